"""Planning a run: laws fitted to records, a budget, and the width and number of steps that they say to train.

The law is 1 - Q = E + A / K^alpha + B / (D / K^p)^beta. With p = 0 it is the joint form of Hoffmann et al. (2022,
approach 3) over width K and clips heard D; with p = 1 every dimension wants clips of its own. Clips that were heard
before count for less (Muennighoff et al. 2023, eq. 5). Depth stays the centre's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from scipy import stats

from rankscale import early, laws
from rankscale.arms import held_back, in_reach, moved, sweep_table
from rankscale.axes import CENTRE, pooled_sd
from rankscale.budget import budget
from rankscale.config import RunConfig
from rankscale.devices import PEAKS
from rankscale.laws.uncertainty import draw_weights, refit
from rankscale.pretrain import pick_device, trunk_hash
from rankscale.records import RunRecord, read_records
from rankscale.sweep.estimate import time_step
from rankscale.terminal import wrapped
from rankscale.verdict import best_rates

QUALITY = "q_linear_synthetic"
LEVEL = 0.9
DRAWS = 500
PLANNED = {"width", "steps", "clips", "lr"}  # what a run may differ in from the centre to be fitted
REPEATS = tuple(np.geomspace(1, 1000, 13))  # values of R* that are tried
WIDTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
FEWEST_STEPS = 250  # in the records: below, a run is in its warm-up
CROWDING = 1.0  # p of the law: chosen in chapter 17, after p = 0 had promised too much of wide, short runs
WATCHED = 0.1  # share of the steps after which RankMe is to be looked at
FAR = 3.0  # times the largest record: beyond, a plan warns


def effective(heard: np.ndarray, unique: np.ndarray, repeats: float) -> np.ndarray:
    """What clips are worth that were heard more than once, in clips heard once (Muennighoff et al. 2023, eq. 5).

    heard, unique: numbers of clips. repeats: R*, after how many repetitions a clip has little more to give.
    """
    unique = np.minimum(heard, unique)
    return unique * (1 + repeats * -np.expm1(-(heard / unique - 1) / repeats))


# --- what is fitted ---------------------------------------------------------------------------------------


def planning_runs(
    records: Iterable[RunRecord], quality: str = QUALITY, centre: RunConfig = CENTRE, without: Iterable[str] = ()
) -> tuple[pd.DataFrame, dict[int, float]]:
    """Runs that a plan is fitted to, one row each, and the learning rate of each width.

    They differ from the centre in width, steps, unique clips and the rate alone, and of every width only those at the
    rate count that had the best quality at the centre's length; a width that never ran at that length has to have been
    tried at one rate only. without: arms (`arms.arm_of`) that are left out.
    Columns of `arms.sweep_table`, and heard (clips, with repeats), trunk, shape (what runs of other seeds share).
    Raises ValueError where a width's rates share no seed, and for a quality that the records do not have.
    """
    kept = [each for each in records if in_reach(each.config, centre) and moved(each.config, centre).keys() <= PLANNED]
    table = sweep_table(kept, centre, frozenset(without))
    if quality not in table:
        present = ", ".join(name for name in table.columns if name.startswith("q_"))
        raise ValueError(f"quality {quality!r}: the records have {present}")
    by_hash = {each.hash: each.config for each in kept}
    rates = {
        width: max(best)
        for width, best in best_rates(table.assign(short=1 - table[quality]), centre, of="short").items()
    }
    tried = table.groupby("width")["lr"].unique()
    rates |= {width: lr[0] for width, lr in tried.items() if width not in rates and len(lr) == 1}
    table = table[table["lr"] == table["width"].map(rates)].dropna(subset=[quality]).reset_index(drop=True)
    configs = [by_hash[each] for each in table["hash"]]
    return table.assign(
        heard=table["steps"] * table["batch"],
        trunk=[trunk_hash(config) for config in configs],
        shape=[trunk_hash(config.replace(seed=0)) for config in configs],
    ), rates


@dataclass(frozen=True, eq=False)
class QualityLaw:
    """1 - Q over width and clips heard, with resamples of the seeds.

    crowding: p. fits: one for each value of R* (`repeats`) that was tried; best: the one with the smallest sum of
    losses. drawn: (draws, parameter) working parameters of resamples; of: (draws,) which of `fits` each took.
    """

    crowding: float
    repeats: tuple[float, ...]
    fits: tuple[laws.Fit, ...]
    best: int
    drawn: np.ndarray
    of: np.ndarray

    @classmethod
    def of_runs(
        cls, table: pd.DataFrame, quality: str = QUALITY, crowding: float = CROWDING, draws: int = DRAWS, seed: int = 0
    ) -> QualityLaw:
        """Fit it to a table of `planning_runs`. Seeds are resampled; the cells of the design are kept."""
        fits = tuple(laws.fit("joint", _points(table, quality, each, crowding), starts=512) for each in REPEATS)
        best = int(np.argmin([each.objective for each in fits]))
        clusters, strata = [table["trunk"].to_numpy()], table["shape"].to_numpy()
        weights = draw_weights(len(table), clusters, strata, draws, seed)
        # A value of R* that fits much worse than the best one comes first in no resample worth its time.
        near = [i for i in range(len(fits)) if fits[i].objective <= 2 * fits[best].objective]
        drawn = {i: refit(fits[i], weights) for i in near}
        losses = np.stack([_losses(fits[i], drawn[i], weights) for i in near], axis=1)
        of = np.array(near)[losses.argmin(axis=1)]
        return cls(crowding, REPEATS, fits, best, np.stack([drawn[i][row] for row, i in enumerate(of)]), of)

    @property
    def fit(self) -> laws.Fit:
        return self.fits[self.best]

    def heldout(self) -> laws.HeldOut:
        """Errors of ln (1 - Q) where every cell of the design is predicted from all others, R* kept."""
        return laws.leave_groups_out(self.fit.form, self.fit.points, starts=256)

    def predict(self, width: np.ndarray, heard: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """Q at each point, (n,)."""
        return 1 - self.fit.predict(_x(width, heard, unique, self.repeats[self.best], self.crowding))

    def draws(
        self, width: np.ndarray, heard: np.ndarray, unique: np.ndarray, scatter: bool = True, seed: int = 0
    ) -> np.ndarray:
        """Q of new runs as resamples have it, (draw, n). scatter: with that of runs about the law, or the law alone."""
        found = np.empty((len(self.of), len(np.atleast_1d(width))))
        for i in np.unique(self.of):
            rows = self.of == i
            x = _x(width, heard, unique, self.repeats[i], self.crowding)
            found[rows] = self.fits[i].problem.predict(self.drawn[rows], x)
        if not scatter:
            return 1 - found
        residual, free = -self.fit.residuals(), len(self.fit.points) - self.drawn.shape[1] - 1
        noise = np.random.default_rng(seed).choice(residual * np.sqrt(len(residual) / free), (len(found), 1))
        return 1 - found * np.exp(noise)


def _points(table: pd.DataFrame, quality: str, repeats: float, crowding: float) -> laws.Points:
    x = _x(table["width"], table["heard"], table["clips"], repeats, crowding)
    names = ("width", "clips heard", f"1 - {quality}")
    return laws.points(x, 1 - table[quality], names, group=table["arm"], clusters=[table["trunk"].to_numpy()])


def _x(width: np.ndarray, heard: np.ndarray, unique: np.ndarray, repeats: float, crowding: float) -> np.ndarray:
    width, heard, unique = (np.atleast_1d(np.asarray(each, dtype=float)) for each in (width, heard, unique))
    return np.column_stack([width, effective(heard, unique, repeats) / width**crowding])


def _losses(fit: laws.Fit, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return fit.problem.objective(fit.problem.residuals(theta)[0], weights)


@dataclass(frozen=True, eq=False)
class RankLaw:
    """ln RankMe during training as a plane in ln width and ln clips heard, for one look at one run.

    plane: (3,) coefficients; inverse: (3, 3) of the normal equations; sd: of one look about the plane; df: runs less 3.
    """

    plane: np.ndarray
    inverse: np.ndarray
    sd: float
    df: int

    @classmethod
    def of_records(cls, records: Iterable[RunRecord], hashes: Iterable[str]) -> RankLaw:
        """Fit it to the histories of these runs, from the end of warm-up to the beginning of decay."""
        chosen = {each.hash: each for each in records if each.hash in set(hashes)}
        seen = early.points(chosen.values())
        configs = [chosen[each].config for each in seen["hash"]]
        seen = seen.assign(
            trunk=[trunk_hash(config) for config in configs],
            width=[config.width for config in configs],
            heard=[step * config.batch for step, config in zip(seen["step"], configs, strict=True)],
            warm=[step >= config.warmup_steps for step, config in zip(seen["step"], configs, strict=True)],
        )
        seen = seen[seen["warm"] & ~seen["decaying"]].drop_duplicates(["trunk", "step"])
        x, y = _plane(seen["width"], seen["heard"]), np.log(seen["rankme"].to_numpy())
        plane = np.linalg.lstsq(x, y, rcond=None)[0]
        df = seen["trunk"].nunique() - x.shape[1]
        if df < 1:
            raise ValueError(f"{df + x.shape[1]} run(s) with a history: a law of early RankMe needs more than three")
        return cls(plane, np.linalg.inv(x.T @ x) * len(x) / (df + 3), float((y - x @ plane).std(ddof=3)), df)

    def predict(self, width: float, heard: float) -> Expected:
        """RankMe of one run of this width that has heard so many clips."""
        x = _plane([width], [heard])[0]
        half = stats.t.ppf((1 + LEVEL) / 2, self.df) * self.sd * math.sqrt(1 + x @ self.inverse @ x)
        value = float(x @ self.plane)
        return Expected(value=math.exp(value), low=math.exp(value - half), high=math.exp(value + half))


def _plane(width: Iterable[float], heard: Iterable[float]) -> np.ndarray:
    return np.column_stack([np.ones(len(width)), np.log(width), np.log(heard)])


# --- a machine --------------------------------------------------------------------------------------------

GPUS = {"h200": "NVIDIA H200", "h100": "NVIDIA H100 80GB HBM3", "a100": "NVIDIA A100"}  # by their names in `devices`
UTILISATION = 0.3  # of a data sheet's FLOP/s: an assumption, and too much for narrow encoders
TIMED_WIDTHS = (64, 256)


@dataclass(frozen=True)
class Machine:
    """How fast something trains: FLOP/s by width, interpolated between widths and level beyond; source: in words."""

    speeds: Mapping[int, float]
    source: str

    @classmethod
    def named(cls, device: str, utilisation: float = UTILISATION) -> Machine:
        """A known GPU at a share of its data sheet's bf16 speed; or "cpu", "cuda", "auto": this machine, timed now."""
        if device in GPUS:
            peak = PEAKS[GPUS[device]]["bf16"]
            return cls({1: peak * utilisation}, f"{GPUS[device]}: {utilisation:.0%} of {peak:.3g} FLOP/s, assumed")
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device {device!r}: choose {', '.join(GPUS)}; or cpu, cuda or auto, this machine")
        device = pick_device(device)
        shapes = {width: CENTRE.replace(encoder=f"en{width}-{CENTRE.depth}", steps=1) for width in TIMED_WIDTHS}
        speeds = {width: budget(shape).train_flop / time_step(shape, device) for width, shape in shapes.items()}
        return cls(speeds, f"this machine ({device}), timed now at widths {' and '.join(map(str, TIMED_WIDTHS))}")

    def flop_per_s(self, width: float) -> float:
        known = sorted(self.speeds)
        return float(np.exp(np.interp(math.log(width), np.log(known), np.log([self.speeds[each] for each in known]))))

    def allows(self, hours: float) -> Callable[[int], float]:
        """FLOP that can be spent in so many hours on an encoder of a given width."""
        return lambda width: hours * 3600 * self.flop_per_s(width)


# --- a plan -----------------------------------------------------------------------------------------------


Flop = float | Callable[[int], float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Expected(_Part):
    """A prediction for one new run, with its 90 % interval."""

    value: float
    low: float
    high: float


class Option(_Part):
    """One width that the budget allows.

    lr: learning rate; heard_h: hours of audio heard, repeats counted; reach: how many times the largest record it is,
    in what it exceeds that most; best: in what share of the resampled laws this width comes out first.
    """

    width: int
    steps: int
    lr: float
    heard_h: float
    epochs: float
    train_flop: float
    reach: float
    quality: Expected
    best: float


class Plan(_Part):
    """What to train with a budget.

    quality: what is predicted, a column of `records.runs_table`. audio_h: hours of different audio. machine: whose
    speed was taken, and how it is known; hours: of training on it, and their cost. config: what to run; params: of its
    encoder. chosen: its option, and `options` all of them, narrow to wide. watch: RankMe to expect after `watch_step`
    steps. beyond: how many times the largest record that the laws were fitted to, by name. remarks: what a reader must
    know before trusting it.
    """

    quality: str
    audio_h: float
    machine: str | None = None
    hours: float | None = None
    cost: float | None = None
    config: RunConfig
    params: int
    chosen: Option
    options: tuple[Option, ...]
    watch_step: int
    watch: Expected
    beyond: dict[str, float]
    remarks: tuple[str, ...]

    def command(self) -> str:
        """The line that trains it."""
        c = self.config
        return (
            f"rankscale run --encoder {c.encoder} --steps {c.steps} --lr {c.lr:.3g} --clips {c.clips} "
            f"--schedule {c.schedule}"
        )

    def text(self) -> str:
        """The plan for a terminal, at most 100 characters wide."""
        c, q, r = self.config, self.chosen.quality, self.watch
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        time = [] if self.hours is None else [f"time      {_hours(self.hours)}{cost}; {self.machine}"]
        lines = [
            f"train     {c.encoder} ({self.params / 1e6:.2f} M parameters) for {c.steps:,} steps of {c.batch} clips at "
            f"rate {c.lr:.3g}: {self.chosen.train_flop:.2g} FLOP",
            *time,
            f"audio     {self.chosen.heard_h:,.1f} h heard, {self.chosen.epochs:.3g} times {self.audio_h:,.4g} h",
            f"expect    {self.quality} {q.value:.3f} [{q.low:.3f}, {q.high:.3f}]",
            f"watch     RankMe {r.value:.1f} [{r.low:.1f}, {r.high:.1f}] after {self.watch_step:,} steps",
            "beyond    " + ", ".join(f"{name} x {_factor(value)}" for name, value in self.beyond.items())
            + " of the largest record",
        ]  # fmt: skip
        rows = ["width   steps       heard (h)   epochs   expected Q             best in"]
        rows += [
            f"{each.width:<7} {each.steps:<11,} {each.heard_h:<11,.4g} {each.epochs:<8.3g} "
            f"{each.quality.value:.3f} [{each.quality.low:.3f}, {each.quality.high:.3f}]   {each.best:.0%}"
            for each in self.options
        ]
        remarks = [wrapped(f"! {remark}", "  ") for remark in self.remarks]
        parts = [[wrapped(line, " " * 10) for line in lines], rows, remarks, [self.command()]]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    def table(self) -> pd.DataFrame:
        """The options as `plan_charts` draws them, one row a width."""
        from rankscale import plan_charts

        rows = [each.model_dump(exclude={"quality"}) for each in self.options]
        seen = [each.quality for each in self.options]
        place = [plan_charts.KNOWN if each.reach <= FAR else plan_charts.BEYOND for each in self.options]
        return pd.DataFrame(rows).assign(
            place=place,
            q=[each.value for each in seen],
            low=[each.low for each in seen],
            high=[each.high for each in seen],
        )

    def save_page(self, path: Path) -> None:
        """Write what each width would give as one HTML file."""
        from rankscale import charts, plan_charts

        caption = (
            f"Predicted {self.quality} at each width, if the whole budget goes into it; bars: {LEVEL:.0%} intervals "
            "for one new run. The dashed line is the plan."
        )
        charts.save_page(plan_charts.options_chart(self.table()), path, "A plan", caption, self.text())


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _factor(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True, eq=False)
class Planner:
    """Laws fitted to records, ready to be asked. `Planner.of_records` makes it.

    rates: learning rate by width. largest: of the fitted runs, by the names that `Plan.beyond` has. noise: standard
    deviation of Q over seeds. depths: Q of other depths less that of the centre's depth, at the centre's width.
    """

    quality: str
    law: QualityLaw
    ranks: RankLaw
    rates: Mapping[int, float]
    largest: Mapping[str, float]
    noise: float
    depths: Mapping[int, float]
    centre: RunConfig

    @classmethod
    def of_records(
        cls,
        records: Iterable[RunRecord],
        quality: str = QUALITY,
        centre: RunConfig = CENTRE,
        without: Iterable[str] = (),
        crowding: float = CROWDING,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Planner:
        """Fit the laws. quality: a column q_PROBE_SUITE; without: arms that are left out; crowding: p of the law."""
        records = list(records)
        runs, rates = planning_runs(records, quality, centre, without)
        return cls(
            quality,
            QualityLaw.of_runs(runs, quality, crowding, draws, seed),
            RankLaw.of_records(records, runs["hash"]),
            rates,
            {name: float(runs[of].max()) for name, of in _SIZES.items()},
            pooled_sd(runs, quality, "arm")[0],
            depth_effects(records, quality, centre, without),
            centre,
        )

    def rate(self, width: int) -> float:
        """The best rate of the nearest width in the records; beyond the widest it falls as 1 / width.

        That is how Yang et al. (2022) let Adam's rate for hidden layers fall.
        """
        nearest = min(self.rates, key=lambda known: abs(math.log(known / width)))
        return self.rates[nearest] * min(1.0, max(self.rates) / width)

    def config(self, width: int, steps: int, clips: int) -> RunConfig:
        encoder = f"en{width}-{self.centre.depth}"
        return self.centre.replace(encoder=encoder, steps=steps, clips=clips, lr=self.rate(width))

    def options(self, flop: Flop, audio_h: float, widths: Iterable[int] = WIDTHS) -> tuple[Option, ...]:
        """What each width would give if the whole budget went into it; widths with too few steps are left out.

        flop: of the whole training, a number or a function of the width (`Machine.allows`). audio_h: hours of different
        clips. Raises ValueError where no width is left.
        """
        clips = self._clips(audio_h)
        afford = flop if callable(flop) else lambda width: flop
        shapes = [self.config(width, 1, clips) for width in widths]
        steps = {each.width: int(afford(each.width) / budget(each).train_flop) for each in shapes}
        configs = [self.config(width, n, clips) for width, n in steps.items() if n >= FEWEST_STEPS]
        if not configs:
            least = min(shapes, key=lambda each: budget(each).train_flop)
            raise ValueError(
                f"{afford(least.width):.2g} FLOP are too few: {FEWEST_STEPS} steps of width {least.width} take "
                f"{FEWEST_STEPS * budget(least).train_flop:.2g}"
            )
        x = [np.array(each) for each in zip(*((c.width, c.steps * c.batch, c.clips) for c in configs), strict=True)]
        value, law = self.law.predict(*x), self.law.draws(*x, scatter=False)
        low, high = np.quantile(self.law.draws(*x), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        wins = np.bincount(law.argmax(axis=1), minlength=len(configs)) / len(law)
        return tuple(
            Option(
                width=each.width, steps=each.steps, lr=each.lr, heard_h=budget(each).seen_audio_h,
                epochs=each.steps * each.batch / clips, train_flop=budget(each).train_flop,
                reach=max(self.beyond(each).values()), best=wins[i],
                quality=Expected(value=value[i], low=low[i], high=high[i]),
            )
            for i, each in enumerate(configs)
        )  # fmt: skip

    def plan(
        self,
        flop: Flop,
        audio_h: float,
        widths: Iterable[int] = WIDTHS,
        machine: Machine | None = None,
        price: float | None = None,
    ) -> Plan:
        """The width with the highest predicted quality, and what to expect of it.

        flop, audio_h, widths: as in `options`. machine: what trains it, for the time; price: of an hour of it.
        """
        options = self.options(flop, audio_h, widths)
        chosen = max(options, key=lambda each: each.quality.value)
        config = self.config(chosen.width, chosen.steps, self._clips(audio_h))
        watch_step = max(config.warmup_steps, round(WATCHED * config.steps))
        beyond = self.beyond(config)
        hours = machine and chosen.train_flop / machine.flop_per_s(chosen.width) / 3600
        return Plan(
            quality=self.quality, audio_h=audio_h, machine=machine and machine.source, hours=hours,
            cost=hours and price and hours * price, config=config, params=budget(config).encoder_params,
            chosen=chosen, options=options, watch_step=watch_step,
            watch=self.ranks.predict(config.width, watch_step * config.batch), beyond=beyond,
            remarks=tuple(self._remarks(options, chosen, beyond)),
        )  # fmt: skip

    def beyond(self, config: RunConfig) -> dict[str, float]:
        """How many times the largest record a run is, by name."""
        sizes = (config.width, config.steps * config.batch, config.clips, budget(config).train_flop)
        return {name: size / self.largest[name] for name, size in zip(_SIZES, sizes, strict=True)}

    def _clips(self, audio_h: float) -> int:
        clips = int(audio_h * 3600 / self.centre.clip_s)
        if clips < self.centre.batch:
            raise ValueError(f"{audio_h:g} h of audio are {clips} clips of {self.centre.clip_s:g} s: less than a batch")
        return clips

    def _remarks(self, options: tuple[Option, ...], chosen: Option, beyond: Mapping[str, float]) -> Iterable[str]:
        if far := {name: factor for name, factor in beyond.items() if factor > FAR}:
            yield (
                f"extrapolates to {_factor(max(far.values()))} times the largest record (in {max(far, key=far.get)}): "
                "intervals hold only if the law does, and nothing has shown that it does so far out"
            )
        if chosen.width in (options[0].width, options[-1].width) and len(options) > 1:
            side = "narrowest" if chosen is options[0] else "widest"
            yield f"the {side} encoder that was considered comes out best: the best one may lie beyond"
        near = [each.width for each in options if chosen.quality.value - each.quality.value < self.noise]
        if len(near) > 1:
            luck = f"one standard deviation of seeds ({self.noise:.3f})"
            yield f"widths {min(near)} to {max(near)} are predicted within {luck} of the best"
        yield from self.law.fit.remarks


_SIZES = {"width": "width", "clips heard": "heard", "different clips": "clips", "compute": "train_flop"}


def depth_effects(
    records: Iterable[RunRecord], quality: str = QUALITY, centre: RunConfig = CENTRE, without: Iterable[str] = ()
) -> dict[int, float]:
    """Mean Q of every other depth less that of the centre's, everything else as in the centre: why depth stays."""
    kept = [
        each for each in records if in_reach(each.config, centre) and moved(each.config, centre).keys() <= {"depth"}
    ]
    means = sweep_table(kept, centre, frozenset(without)).groupby("depth")[quality].mean()
    return {int(depth): float(q - means[centre.depth]) for depth, q in means.items() if depth != centre.depth}


def default_records(folder: Path) -> tuple[list[RunRecord], frozenset[str]]:
    """Published records under `folder` (data/), and the arms in them that no fit may use."""
    return read_records(folder / "runs"), held_back(folder / "sweeps")
