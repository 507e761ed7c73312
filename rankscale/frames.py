"""Embeddings in time: the rank of frames beside that of clips, onsets found by a probe, clips of any length.

A frame is one token of an encoder, 40 ms unless told otherwise; tokens are (n_clip, n_frame, dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rankscale import spectra
from rankscale.arms import draw_again, estimate, rank_correlation, standardised_ranks
from rankscale.config import HOP, SAMPLE_RATE, RunConfig
from rankscale.corpus import HELDOUT_START, build_corpus
from rankscale.embed import BLOCK
from rankscale.hear_eval import POST_PROCESSINGS, Answers, Embedded, gather, goodness, metrics_of
from rankscale.mae import Encoder, save_encoder
from rankscale.mel import LogMel
from rankscale.pretrain import pretrain
from rankscale.probe import CANDIDATES, Data
from rankscale.sound.synth import synthesize
from rankscale.sound.tasks import Task

FRAMES_PER_S = SAMPLE_RATE // HOP
Encode = Callable[[Tensor], Tensor]  # log-Mel (batch, band, frame) in dB -> tokens (batch, token, dim)


# --- tokens -----------------------------------------------------------------------------------------------


def tokens_of(encoder: Encoder) -> Encode:
    """The last layer of an encoder, frame by frame: evaluation mode, no gradients, on the CPU."""
    encoder.eval()

    @torch.inference_mode()
    def encode(mel: Tensor) -> Tensor:
        return encoder.forward_mel(mel.to(next(encoder.parameters()).device)).float().cpu()

    return encode


def logmel_tokens(mel: Tensor) -> Tensor:
    """The floor without a model: each log-Mel frame of 10 ms is a token."""
    return mel.transpose(1, 2)


def heldout_mels(clips: int, clip_s: float = 1.28) -> Tensor:
    """Log-Mel (clip, band, frame) of synthetic clips that no run trains on, as long as the encoders' own."""
    front_end, frames, blocks = LogMel(), round(clip_s * FRAMES_PER_S), []
    for start in range(0, clips, BLOCK):
        index = range(HELDOUT_START + start, HELDOUT_START + min(start + BLOCK, clips))
        blocks.append(front_end(synthesize(index, clip_s=clip_s).waveform)[..., :frames])
    return torch.cat(blocks)


def encode_all(encode: Encode, mels: Tensor) -> Tensor:
    """Tokens of many clips, a block at a time."""
    return torch.cat([encode(block) for block in mels.split(BLOCK)])


def train_encoder(config: RunConfig, folder: Path) -> Path:
    """Train the encoder of a configuration on the CPU and write it to a file in the folder.

    Only the encoder is kept; a whole run with its record is `experiment.run`'s.
    """
    corpus = build_corpus(config, folder / "cache", progress=False)
    trained = pretrain(config, corpus, folder / "work", "cpu", progress=False)
    path = folder / f"{config.hash}.pt"
    save_encoder(trained.model.encoder, path)
    return path


# --- the rank of frames -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameRanks:
    """How many directions frames use, and what part of their variance is where.

    frames, frames_centred: RankMe of all frames of all clips. clips, clips_centred: of the clips' means. one_frame: of
    one frame a clip, as many rows as clips. within: of frames less the mean of their clip. within_share: of the
    variance of frames that lies within clips, 0 to 1; position_share: that part of the variance of frames which depends
    on the place in the clip alone, the same in all clips (a part of within_share).
    """

    frames: float
    frames_centred: float
    clips: float
    clips_centred: float
    one_frame: float
    within: float
    within_share: float
    position_share: float


def frame_ranks(tokens: Tensor, eps: float = spectra.DEFAULT_EPS, seed: int = 0) -> FrameRanks:
    """Ranks and variances of tokens (n_clip, n_frame, dim); seed: which frame of each clip stands for it.

    By the law of total covariance, the covariance of frames is that of the clips' means plus the mean of the
    covariances within clips; traces give the shares. Raises ValueError for another shape, or fewer than two clips or
    frames; otherwise as `spectra.rankme`.
    """
    if tokens.ndim != 3 or min(tokens.shape[:2]) < 2:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: give (n_clip, n_frame, dim), at least two of each")
    tokens = tokens.double()
    clips = tokens.mean(1)
    deviations = tokens - clips[:, None]
    positions = deviations.mean(0)
    total = (tokens - clips.mean(0)).square().sum(2).mean()
    rng = np.random.default_rng(seed)
    drawn = tokens[torch.arange(len(tokens)), torch.from_numpy(rng.integers(tokens.shape[1], size=len(tokens)))]
    rows, within = tokens.flatten(0, 1), deviations.flatten(0, 1)
    return FrameRanks(
        frames=spectra.rankme(rows, eps),
        frames_centred=spectra.rankme(rows, eps, center=True),
        clips=spectra.rankme(clips, eps),
        clips_centred=spectra.rankme(clips, eps, center=True),
        one_frame=spectra.rankme(drawn, eps),
        within=spectra.rankme(within, eps),
        within_share=float(deviations.square().sum(2).mean() / total),
        position_share=float(positions.square().sum(1).mean() / total),
    )


# --- onsets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Heard:
    """Answers on test clips, and what they were made from: of each clip the times (frame,) and the probabilities."""

    answers: Answers
    at_ms: list[np.ndarray]
    probabilities: list[np.ndarray]  # (frame, label)


def linear_onsets(task: Task, embedded: dict[str, Embedded]) -> Heard:
    """Events that a linear probe of single frames finds in the test clips of a task with one fold.

    embedded: what `hear_eval.embed_task` gave. Logistic regression; its penalty and HEAR's post-processing are
    chosen together, by the task's first metric on the validation clips.
    Raises ValueError for a task of scenes or of several folds.
    """
    if task.kind != "event" or len(task.folds) != 1:
        raise ValueError(f"task {task.name}: an event task with one fold is needed")
    train, valid, test = (gather(task, embedded, part) for part in task.folds[0])
    scaler = StandardScaler().fit(train.x)
    count, metric = len(task.vocabulary), metrics_of(task)[0]
    twice = 2 if count == 1 else 1  # scikit-learn adds the opposite of a label that is alone, but not of two
    best, chosen = -np.inf, None
    for scorer in CANDIDATES["linear"](Data(scaler.transform(train.x), np.repeat(train.y, twice, axis=1))):
        judged = valid.answers(scorer(scaler.transform(valid.x))[:, :count], POST_PROCESSINGS)
        for way, answers in zip(POST_PROCESSINGS, judged, strict=True):
            if (score := goodness(metric, answers.measure(metric))) > best:
                best, chosen = score, (scorer, way)
    scorer, way = chosen
    probabilities = scorer(scaler.transform(test.x))[:, :count]
    return Heard(test.answers(probabilities, [way])[0], test.at_ms, test.by_clip(probabilities))


# --- clips of any length ----------------------------------------------------------------------------------


def deal_again(mels: Tensor, frames: int, seed: int = 0) -> Tensor:
    """The same sound in another arrangement: stretches of `frames` frames, each dealt to a clip drawn at random.

    mels: (clip, band, frame). A stretch keeps its place in time; what is left at the end stays. Raises ValueError where
    a clip holds no stretch.
    """
    if not 0 < frames <= mels.shape[2]:
        raise ValueError(f"stretches of {frames} frames from clips of {mels.shape[2]}: give 1 to {mels.shape[2]}")
    rng, dealt = np.random.default_rng(seed), mels.clone()
    for start in range(0, mels.shape[2] - frames + 1, frames):
        dealt[..., start : start + frames] = mels[rng.permutation(len(mels)), :, start : start + frames]
    return dealt


def length_ranks(
    encode: Encode, mels: Tensor, seconds: Iterable[float], eps: float = spectra.DEFAULT_EPS
) -> pd.DataFrame:
    """RankMe of clips by the length that is heard: the first `seconds` of each long clip, its tokens averaged.

    mels: (clip, band, frame). Columns seconds, raw, centred, spread (standard deviation of the embeddings over the
    length of their mean: both without unit). Raises ValueError for a length beyond the clips or under one frame.
    """
    rows = []
    for length in seconds:
        frames = round(length * FRAMES_PER_S)
        if not 0 < frames <= mels.shape[2]:
            raise ValueError(f"{length} s of clips of {mels.shape[2] / FRAMES_PER_S:g} s: give a length within them")
        z = torch.cat([encode(block[..., :frames]).mean(1) for block in mels.split(8)]).double()
        spread = float((z - z.mean(0)).square().sum(1).mean().sqrt() / z.mean(0).norm())
        rows.append((float(length), spectra.rankme(z, eps), spectra.rankme(z, eps, center=True), spread))
    return pd.DataFrame(rows, columns=["seconds", "raw", "centred", "spread"])


# --- over encoders ----------------------------------------------------------------------------------------


def over_encoders(
    table: pd.DataFrame, x: str, y: str, given: str | None = None, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's correlation of two columns over encoders, with a 95 % interval from drawing rows again.

    table: one row a configuration, the mean of its seeds: rows count as independent, which seeds of one configuration
    are not. Where configurations are kin (neighbours of one centre) the interval is too narrow; the noise of x and y
    is not in it. given: a column whose share in both is taken out. draws 0: no interval (NaN); NaN, too, where nothing
    varies. Raises ValueError for fewer than four rows.
    """
    columns = [x, y] if given is None else [x, y, given]
    values = table[columns].dropna().to_numpy(float)
    if len(values) < 4:
        raise ValueError(f"a rank correlation of {x} and {y} over {len(values)} encoders says nothing: give four")
    drawn = values[draw_again(draws + 1, len(values), seed)]  # (draw, encoder, column)
    with np.errstate(divide="ignore", invalid="ignore"):
        ranks: Sequence[np.ndarray] = [standardised_ranks(drawn[..., k]) for k in range(len(columns))]
        found = rank_correlation(*ranks)
    return estimate(np.where(np.isfinite(found), found, np.nan))
