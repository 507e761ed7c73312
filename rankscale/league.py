"""The league of label-free numbers: what might predict the quality of an encoder, frozen before any result was seen.

All numbers come from held-out log-Mel clips and two functions: the encoder's embedding (z) and that of its untrained
self. No label and no score of a task enters. Which kinds of numbers to take was suggested by a pilot on other runs,
whose tasks were known; their definitions and constants were chosen by reasoning and on constructed embeddings. Whoever
changes one of them gives `LEAGUE_VERSION` another value.

Of z alone, as `spectra` defines them: rankme, rankme_centred, effective_rank_squared, alpha_req, stable_rank,
participation_ratio, nesum, self_cluster, uniformity (of the first 2048 clips); and rankme_standardised, coding_rate,
two_nn.
Beside the initialisation: cka_init, rankme_log_gain.
Beside another hearing of a clip: lidar, of 8 views (`augment`) of each of 512 clips, with the constants of `spectra`.
Beside the sound: logmel_from_z, z_from_logmel; and probe_modulation, probe_quarters, probe_quefrency,
probe_random_conv, the R2 from z to four families of acoustic targets, with their mean, pseudo_probe.
All depend on how many clips there are: compare runs that were measured on equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rankscale import spectra
from rankscale.config import BANDS, HOP, SAMPLE_RATE
from rankscale.embed import Embed, logmel_embedding

LEAGUE_VERSION = "v1"
LEAGUE_CLIPS = 3072  # held-out clips at most
SEED = 20_240  # of views, folds and random filters

VIEW_CLIPS, VIEWS = 512, 8  # clips that LiDAR tells apart, and views of each
SHIFT = 0.25  # of the clip, either way
TILT_DB, LEVEL_DB = 3.0, 6.0  # either way; the tilt at the two ends of the Mel axis
FLOOR_DB = (30.0, 60.0)  # below the clip's maximum

UNIFORMITY_CLIPS = 2048
CODING_EPS = 0.5**0.5  # Yu et al.: squared precision 0.5 for rows of length one
TWO_NN_DISCARD = 0.1  # of the clips, those with the largest ratio of distances
FOLDS = 5
RIDGE = tuple(10.0**k for k in range(-2, 7))  # penalties on standardised columns
ROUNDING = 1e-6  # a column that moves less than this share of its size holds float32 rounding only

MODULATION_HZ = (0.5, 2.0, 4.0, 8.0, 16.0, 32.0, 51.0)  # edges; the last one takes in the Nyquist rate of the frames
MODULATION_FLOOR = 1e-2  # dB^2: above what float16 rounds, below what is heard
BAND_GROUPS = 8  # of neighbouring Mel bands
QUEFRENCIES = 16  # orders 1 to 16
CONV_SCALES, CONV_FILTERS, CONV_SIZE = (1, 2, 4), 16, 5  # filters a scale, each 5 x 5
CONV_CLIPS = 8  # filtered at once: sixteen filters make sixteen times the memory


@dataclass(frozen=True)
class League:
    """values: every number by its name, finite, or None; missing: for each None the reason, in words."""

    values: dict[str, float | None]
    missing: dict[str, str]
    version: str = LEAGUE_VERSION


def league(embed: Embed, embed_init: Embed | None, blocks: Iterable[Tensor]) -> League:
    """Every number of the league (`NUMBERS`) for one encoder.

    embed: log-Mel (n, 64, frame) in dB -> (n, dim) float32. embed_init: the same of the untrained encoder, None where
    `embed` is untrained itself. blocks: held-out clips in random order, (n, 64, frame) each, one number of frames;
    read once, and no further than 3072 clips. The first 512 clips are those that LiDAR's views are made of.
    A number that is not defined (a collapsed encoder has no centred rank) is None with a reason, and so are all of them
    below two clips a dimension, where spectra say more of the clips than of z.
    Raises ValueError for no clip, clips of another shape, or NaN or infinity in clips or embeddings.
    """
    seen = look(embed, embed_init, blocks)
    n_clip, dim = seen.z.shape
    if n_clip < spectra.FEWEST_PER_DIMENSION * dim:
        return League(dict.fromkeys(NUMBERS), dict.fromkeys(NUMBERS, f"only {n_clip} clips for {dim} dimensions"))
    values: dict[str, float | None] = dict.fromkeys(NUMBERS)
    missing = {}
    for name, number in NUMBERS.items():
        try:
            values[name] = _finite(number(seen))
        except ValueError as error:  # the rooms' own words on what has no spectrum, no direction, no neighbour
            missing[name] = str(error)
    return League(values, missing)


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"not finite ({value}): no target varies, or a number ran out of range")
    return float(value)


# --- one pass over the clips ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """What one pass over the clips leaves, all float64: the material of every number.

    z, z_init: (n_clip, dim). views: (n_class, 8, dim). stats: (n_clip, 128) mean and standard deviation of the bands.
    targets: name of the family -> (n_clip, n_target).
    """

    z: np.ndarray
    z_init: np.ndarray
    views: np.ndarray
    stats: np.ndarray
    targets: dict[str, np.ndarray]

    @cached_property
    def raw(self) -> Tensor:
        """Singular values of z, largest first."""
        return spectra.spectrum(self.z)

    @cached_property
    def centred(self) -> Tensor:
        """Singular values of z less its mean row."""
        return spectra.spectrum(self.z, center=True)

    @cached_property
    def read_from_z(self) -> dict[str, float]:
        """Cross-fitted R2 from z to the statistics ("stats") and to each family of targets; one ridge for all."""
        wanted = {"stats": self.stats, **self.targets}
        r2 = ridge_r2(self.z, np.concatenate([*wanted.values()], axis=1))
        ends = np.cumsum([y.shape[1] for y in wanted.values()])[:-1]
        return {name: mean_r2(part) for name, part in zip(wanted, np.split(r2, ends), strict=True)}


def look(embed: Embed, embed_init: Embed | None, blocks: Iterable[Tensor]) -> Seen:
    """Embed clips, their views, and take their targets, block by block; see `league`."""
    z, z_init, views, stats = [], [], [], []
    targets: dict[str, list[Tensor]] = {name: [] for name in TARGETS}
    statistics = logmel_embedding("meanstd")
    for start, mel in _checked(blocks):
        z.append(_embed(embed, mel))
        if embed_init is not None:
            z_init.append(_embed(embed_init, mel))
        stats.append(statistics(mel))
        for name, target in TARGETS.items():
            targets[name].append(target(mel))
        if start < VIEW_CLIPS:
            views.append(_embed_views(embed, mel[: VIEW_CLIPS - start], start))
    embedded = _stack(z, "embeddings")
    return Seen(
        z=embedded,
        z_init=embedded if embed_init is None else _stack(z_init, "embeddings at initialisation"),
        views=_stack(views, "embeddings of views"),
        stats=_stack(stats, "statistics"),
        targets={name: _stack(parts, name) for name, parts in targets.items()},
    )


def _embed(embed: Embed, mel: Tensor) -> Tensor:
    z = embed(mel)
    if z.ndim != 2 or len(z) != len(mel):
        raise ValueError(f"embeddings of shape {tuple(z.shape)} for {len(mel)} clips: pool over time to (n_clip, dim)")
    return z


def _checked(blocks: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(number of its first clip, block), up to LEAGUE_CLIPS."""
    start, frames = 0, None
    for mel in blocks:
        frames = frames or mel.shape[-1]
        if mel.ndim != 3 or mel.shape[1:] != (BANDS, frames) or frames < 4:
            raise ValueError(f"clips of shape {tuple(mel.shape)}: give (n, {BANDS}, frame >= 4), all of one length")
        if not mel.isfinite().all():
            raise ValueError(f"NaN or infinity in the log-Mel of clips {start} to {start + len(mel) - 1}")
        yield start, mel[: LEAGUE_CLIPS - start].float()
        start += len(mel)
        if start >= LEAGUE_CLIPS:
            return
    if not start:
        raise ValueError("no clips to take the league's numbers of")


def _stack(parts: list[Tensor], what: str) -> np.ndarray:
    """One float64 array; raises ValueError that names the first row with NaN or infinity."""
    rows = torch.cat(parts).double().cpu().numpy()
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise ValueError(f"NaN or infinity in the {what} of clip {bad.argmax()}")
    return rows


# --- views ------------------------------------------------------------------------------------------------


def augment(mel: Tensor, draws: Tensor) -> Tensor:
    """Another hearing of each clip, made in the log-Mel domain without labels: (n, 64, frame) in dB, as `mel`.

    draws: (n, 4) uniform in [0, 1), which decide, in this order:
    1. a circular shift in time by at most a quarter of the clip either way, in whole frames;
    2. a tilt: a straight line over the Mel bands, at most 3 dB up at one end and as much down at the other;
    3. a steady noise floor, alike in all bands and frames, 30 to 60 dB below the maximum of the tilted clip, added as
       power: 10 log10(10^(mel / 10) + 10^(floor / 10)). Real noise fluctuates; this one does not;
    4. a change of level by at most 6 dB either way.
    """
    frames = mel.shape[2]
    either = 2 * draws - 1
    place = torch.arange(frames) - (either[:, :1] * SHIFT * frames).round().long()
    mel = mel.gather(2, (place % frames)[:, None].expand_as(mel))
    mel = mel + either[:, 1, None, None] * TILT_DB * torch.linspace(-1, 1, BANDS)[:, None]
    below = FLOOR_DB[0] + draws[:, 2] * (FLOOR_DB[1] - FLOOR_DB[0])
    floor = mel.amax(dim=(1, 2)) - below
    nepers = np.log(10) / 10  # of power, in a decibel
    mel = torch.logaddexp(mel * nepers, floor[:, None, None] * nepers) / nepers
    return mel + either[:, 3, None, None] * LEVEL_DB


@lru_cache(maxsize=1)
def _view_draws() -> Tensor:
    draws = np.random.default_rng(SEED).random((VIEW_CLIPS, VIEWS, 4), dtype=np.float32)
    return torch.from_numpy(draws)


def _embed_views(embed: Embed, mel: Tensor, start: int) -> Tensor:
    """All views of a block, whose first clip is number `start`: (n, 8, dim). The clip as it is is not among them."""
    draws = _view_draws()[start : start + len(mel)]
    return torch.stack([_embed(embed, augment(mel, draws[:, view])) for view in range(VIEWS)], dim=1)


# --- acoustic targets -------------------------------------------------------------------------------------


def modulation(mel: Tensor) -> Tensor:
    """How fast the bands move: ln of the power spectrum over time of each band, pooled to (n, 8 * n_rate).

    mel: (n, 64, frame) in dB. Each band less its mean, Hann window w, |rfft|^2 / sum(w^2) in dB^2; mean over groups of
    8 neighbouring bands and over the rates 0.5-2-4-8-16-32-50 Hz; ln(. + 0.01). 48 targets; a range of rates that a
    short clip has no bin in is left out. Blind to when something happens. Source: modulation spectra, as in Chi, Ru &
    Shamma 2005, here without their cortical filters.
    """
    frames = mel.shape[2]
    window = torch.hann_window(frames)
    power = torch.fft.rfft((mel - mel.mean(2, keepdim=True)) * window).abs().square() / window.square().sum()
    power = power.unflatten(1, (BAND_GROUPS, -1)).mean(2)
    rate = torch.fft.rfftfreq(frames, HOP / SAMPLE_RATE)
    inside = [(low <= rate) & (rate < high) for low, high in pairwise(MODULATION_HZ)]
    pooled = [power[..., bins].mean(2) for bins in inside if bins.any()]
    return torch.cat(pooled, dim=1).add(MODULATION_FLOOR).log()


def quarters(mel: Tensor) -> Tensor:
    """When the spectrum is where: mean of each quarter of the clip less the clip's mean, (n, 4 * 64), in dB.

    Quarters of a clip whose frames four does not divide differ by a frame. Blind to everything faster.
    """
    mean = mel.mean(2)
    return torch.cat([part.mean(2) - mean for part in mel.tensor_split(4, dim=2)], dim=1)


def quefrency(mel: Tensor) -> Tensor:
    """Shape of the average spectrum: orders 1 to 16 of its orthonormal DCT-II over bands, (n, 16), in dB.

    Order 0, the level, is left out. Blind to time. Source: mel cepstrum, Davis & Mermelstein 1980.
    """
    return torch.from_numpy(dct(mel.mean(2).numpy(), norm="ortho", axis=1)[:, 1 : QUEFRENCIES + 1])


def random_conv(mel: Tensor) -> Tensor:
    """Texture that nobody designed: mean over bands and frames of ReLU(filter * x + bias), (n, 48).

    x: the clip less its overall mean, in units of 10 dB, averaged over squares of 1, 2 and 4 cells; 16 filters of 5 x 5
    cells at each scale, weights N(0, 1 / 25), biases N(0, 1), from a fixed seed; edges see the clip's mean.
    Blind to the level, and to where and when. Source: random convolution kernels, Rahimi & Recht 2007; Dempster et al.
    2020.
    """
    return torch.cat([_convolve(part) for part in mel.split(CONV_CLIPS)])


def _convolve(mel: Tensor) -> Tensor:
    x = (mel - mel.mean(dim=(1, 2), keepdim=True))[:, None] / 10
    features = []
    for scale, (weight, bias) in zip(CONV_SCALES, _random_filters(), strict=True):
        response = F.conv2d(F.avg_pool2d(x, scale), weight, bias, padding=CONV_SIZE // 2)
        features.append(response.relu_().mean(dim=(2, 3)))
    return torch.cat(features, dim=1)


@lru_cache(maxsize=1)
def _random_filters() -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(SEED)
    weights = rng.standard_normal((len(CONV_SCALES), CONV_FILTERS, 1, CONV_SIZE, CONV_SIZE)) / CONV_SIZE
    biases = rng.standard_normal((len(CONV_SCALES), CONV_FILTERS))
    return [(torch.from_numpy(w).float(), torch.from_numpy(b).float()) for w, b in zip(weights, biases, strict=True)]


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "modulation": modulation,
    "quarters": quarters,
    "quefrency": quefrency,
    "random_conv": random_conv,
}


# --- numbers of one or two matrices -----------------------------------------------------------------------


def ridge_r2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of each target a linear map of x explains on clips that it was not fitted on: (n_target,).

    x: (n_clip, dim), y: (n_clip, n_target). Five folds (shuffled, fixed seed); on the other four x is standardised and
    one penalty a target chosen from 10^-2 ... 10^6 by leave-one-out error (RidgeCV). R2 = 1 - SSE / SST over all clips
    together: at most 1, near 0 or below where x says nothing; NaN for a target that does not vary.
    Blind to what is not linear in x, and unaffected by the targets' units. Clips of one recording can fall on both
    sides of a fold. Raises ValueError where x does not vary, or for fewer clips than folds.
    """
    keep, seen = varies(y), varies(x)
    if not seen.any():
        raise ValueError("no column to predict from varies")
    r2 = np.full(y.shape[1], np.nan)
    if keep.any():
        y = StandardScaler().fit_transform(y[:, keep])
        model = make_pipeline(StandardScaler(), RidgeCV(RIDGE, alpha_per_target=True))
        folds = KFold(FOLDS, shuffle=True, random_state=SEED)
        r2[keep] = r2_score(y, cross_val_predict(model, x[:, seen], y, cv=folds), multioutput="raw_values")
    return r2


def mean_r2(r2: np.ndarray) -> float:
    """Mean over the targets that vary, negative ones as they are; NaN if none does."""
    return float(r2[np.isfinite(r2)].mean()) if np.isfinite(r2).any() else float("nan")


def varies(x: np.ndarray) -> np.ndarray:
    """(dim,) which columns move by more than float32's rounding of their size."""
    return x.std(axis=0) > ROUNDING * np.sqrt(np.square(x).mean(axis=0))


def rankme_standardised(z: np.ndarray) -> float:
    """RankMe of z with every column brought to mean 0 and standard deviation 1; columns that do not vary are left out.

    Returns 1 up to min(n_clip, dim). Unlike RankMe it does not change when columns are re-scaled one by one, but it
    does under a rotation, and a column of noise counts as much as any. Source: Garrido et al. 2023, after a z-score.
    """
    keep = varies(z)
    if not keep.any():
        raise ValueError("all rows of the embeddings are equal: no column can be standardised")
    return spectra.rankme(StandardScaler().fit_transform(z[:, keep]))


def coding_rate(z: np.ndarray, eps: float = CODING_EPS) -> float:
    """Nats that tell a clip's direction to a precision of eps: 1/2 ln det(I + dim / (n eps^2) Z^T Z).

    z: (n_clip, dim), rows scaled to length one. eps^2 = 0.5 in the league. From 1/2 ln(1 + dim / eps^2) if all rows lie
    on one line up to dim/2 ln(1 + 1 / eps^2) if directions are used alike. Blind to lengths of rows; grows with dim;
    an offset shrinks it. Raises ValueError for a row of zeros. Source: Yu et al. 2020 (arXiv 2006.08558).
    """
    n_clip, dim = z.shape
    length = np.linalg.norm(z, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"row {length.argmin()} of the embeddings is all zero: it has no direction")
    unit = z / length
    return float(np.linalg.slogdet(np.eye(dim) + dim / (n_clip * eps**2) * unit.T @ unit)[1]) / 2


def two_nn(z: np.ndarray, discard: float = TWO_NN_DISCARD) -> float:
    """Intrinsic dimension from two neighbours: with mu = r_2 / r_1, -ln(1 - F(mu)) = d ln(mu), a line through 0.

    z: (n_clip, dim); r_1 < r_2 are the distances of a clip to its nearest two. F is the empirical distribution; the
    `discard` share of clips with the largest mu is left out of the fit, as the authors do; of clips that float32 could
    not tell apart one is kept. Returns d > 0. Knows only the smallest scale, so that noise in many directions counts
    in full, and falls short of high dimensions (20 and more) unless clips are very many. Blind to everything larger
    than the distance between neighbours. Raises ValueError for fewer than 20 different clips. Source: Facco et al. 2017
    (arXiv 1803.06992), who leave out a tenth.
    """
    grid = np.round(z / max(ROUNDING * np.abs(z).max(), np.finfo(float).tiny))
    z = z[np.unique(grid, axis=0, return_index=True)[1]]
    n = len(z)
    if n < 20:
        raise ValueError(f"only {n} clips differ: TwoNN needs 20")
    nearest = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(z - z.mean(axis=0))
    first, second = nearest.kneighbors()[0].T
    kept = int(n * (1 - discard))
    x = np.log(np.sort(second / first)[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / n)
    return float(x @ y / (x @ x))


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment: ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), Frobenius norms, columns centred.

    x: (n_clip, dim), y: (n_clip, other dim), the same clips. Returns 0 (nothing shared) to 1 (equal up to a rotation,
    a scale and an offset). Blind to weak directions; not to noise, and about dim / n_clip above 0 for chance.
    Raises ValueError where one does not vary. Source: Kornblith et al. 2019 (arXiv 1905.00414).
    """
    if len(x) != len(y):
        raise ValueError(f"CKA compares the same clips, got {len(x)} and {len(y)}")
    if not (varies(x).any() and varies(y).any()):
        raise ValueError("all rows of one matrix are equal: nothing to align")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    shared = np.square(y.T @ x).sum()
    return float(shared / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def pseudo_probe(seen: Seen) -> float:
    """Mean over the four families of targets of the cross-fitted ridge R2 from z (`ridge_r2`), families alike.

    At most 1; negative values are kept. A guess at a linear probe's score without labels: blind to whatever none of
    the four families speaks of, and partial to encoders of acoustic detail rather than of meaning. Quefrency is a
    linear map of the average spectrum, so that a plain spectrogram has all of that quarter.
    """
    return float(np.mean([seen.read_from_z[name] for name in TARGETS]))


def rankme_log_gain(seen: Seen) -> float:
    """ln(RankMe / RankMe of the untrained encoder), both raw, on the same clips.

    Above 0 where training opened directions, 0 for the untrained encoder itself. Blind to which directions they are.
    """
    return float(np.log(spectra.rankme(seen.raw) / spectra.rankme(seen.z_init)))


def logmel_from_z(seen: Seen) -> float:
    """Cross-fitted ridge R2 (`ridge_r2`) from z to the mean and standard deviation over time of the 64 bands.

    At most 1: the plain spectrogram's statistics can be read from z. Blind to whatever else z holds.
    """
    return seen.read_from_z["stats"]


def z_from_logmel(seen: Seen) -> float:
    """The other way round: mean over the dimensions of z of the R2 from those 128 statistics.

    At most 1: z is a linear map of the plain spectrogram's statistics. Dimensions count alike however little they vary,
    so that a rotation of z changes it, and noise in z lowers it.
    """
    return mean_r2(ridge_r2(seen.stats, seen.z))


# Every number by the name that records and tables give it; each is defined where its function is.
NUMBERS: dict[str, Callable[[Seen], float]] = {
    # spectra of z
    "rankme": lambda seen: spectra.rankme(seen.raw),
    "rankme_centred": lambda seen: spectra.rankme(seen.centred),
    "rankme_standardised": lambda seen: rankme_standardised(seen.z),
    "effective_rank_squared": lambda seen: spectra.effective_rank_squared(seen.centred),
    "alpha_req": lambda seen: spectra.alpha_req(seen.centred).alpha,
    "stable_rank": lambda seen: spectra.stable_rank(seen.raw),
    "participation_ratio": lambda seen: spectra.participation_ratio(seen.centred),
    "nesum": lambda seen: spectra.nesum(seen.centred),
    # how the rows of z lie
    "self_cluster": lambda seen: spectra.self_cluster(seen.z),
    "uniformity": lambda seen: spectra.uniformity(seen.z[:UNIFORMITY_CLIPS]),
    "coding_rate": lambda seen: coding_rate(seen.z),
    "two_nn": lambda seen: two_nn(seen.z),
    # what training changed
    "cka_init": lambda seen: cka(seen.z, seen.z_init),
    "rankme_log_gain": rankme_log_gain,
    # what stays when a clip is heard another way; at most 511, and noisy where z has more than about 200 dimensions
    "lidar": lambda seen: spectra.lidar(seen.views),
    # what z and the plain spectrogram say of each other, and of acoustic targets
    "logmel_from_z": logmel_from_z,
    "z_from_logmel": z_from_logmel,
    "probe_modulation": lambda seen: seen.read_from_z["modulation"],
    "probe_quarters": lambda seen: seen.read_from_z["quarters"],
    "probe_quefrency": lambda seen: seen.read_from_z["quefrency"],
    "probe_random_conv": lambda seen: seen.read_from_z["random_conv"],
    "pseudo_probe": pseudo_probe,
}
