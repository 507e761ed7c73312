"""Your encoder among the book's: its rank and its quality, beside those of the published records.

Q is comparable where the tasks are the same: a record is shown if it was scored on every task of yours, in the same
version, of the same size, with the same folds; its Q is then taken over your tasks. RankMe is comparable where the
clips are the same too, which a remark says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from rankscale.config import RunConfig
from rankscale.embed import Embedder, load_embeddings
from rankscale.experiment import Suite, list_tasks, load_suites, logmel_floors, score_all
from rankscale.probe import PROBES, quality
from rankscale.records import RunRecord, Scores
from rankscale.report import RankReport
from rankscale.sound.synthetic_tasks import CANDIDATES
from rankscale.sound.tasks import Task
from rankscale.terminal import wrapped

if TYPE_CHECKING:
    import altair as alt

BATCH = 16  # clips that an encoder gets at once: those of tasks may be long
FLOORS = ("logmel_mean", "logmel_meanstd")
Qualities = dict[str, dict[str, float]]  # probe -> suite -> Q
Lists = dict[str, dict[str, str]]  # suite -> task -> version


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Neighbour(_Part):
    """A published record: rankme is less its bias from few clips where that is known, as yours is."""

    hash: str
    encoder: str
    steps: int
    seed: int
    rankme: float
    quality: Qualities


class Placement(_Part):
    """Where an encoder stands. `place` makes it.

    tasks: by suite, with versions; empty where nothing was probed. floors: Q of the log-Mel spectrogram's statistics.
    neighbours: the records with a Q on these tasks; without tasks, on those that most records share.
    """

    rank: RankReport
    tasks: Lists
    scores: Scores
    quality: Qualities
    floors: dict[str, Qualities]
    neighbours: tuple[Neighbour, ...]
    remarks: tuple[str, ...]

    @property
    def rankme(self) -> tuple[float, float | None, float | None]:
        """RankMe, less its bias where that is known, and the ends of its 95 % interval where there is one."""
        metric = self.rank["rankme"]
        return metric.value if metric.corrected is None else metric.corrected, metric.low, metric.high

    def table(self) -> pd.DataFrame:
        """One row a suite and probe: q, each floor, and how many records it has more Q than, of how many."""
        rows = []
        for probe, suite in ((probe, suite) for probe in self.quality for suite in self.tasks):
            q, others = self.quality[probe][suite], [n.quality.get(probe, {}).get(suite) for n in self.neighbours]
            others = [other for other in others if other is not None]
            floors = {name: found[probe][suite] for name, found in self.floors.items() if suite in found.get(probe, {})}
            above = {"above": sum(q > other for other in others), "records": len(others)}
            rows.append({"suite": suite, "probe": probe, "q": q} | floors | above)
        return pd.DataFrame(rows, columns=["suite", "probe", "q", *FLOORS, "above", "records"])

    def to_json(self) -> str:
        """Everything, as JSON; numbers that do not exist are null."""
        return self.model_dump_json(indent=2)

    def text(self) -> str:
        """The rank report, a table of qualities and the remarks, for a terminal."""
        layout = "{:10} {:14} {:>7} {:>10} {:>14}  {}"
        lines = [layout.format("Q of tasks", "probe", "Q", "log-Mel", "log-Mel + SD", "above records")]
        for row in self.table().itertuples():
            numbers = (f"{value:.3f}" for value in (row.q, row.logmel_mean, row.logmel_meanstd))
            above = f"{row.above} of {row.records}" if row.records else "-"
            lines.append(layout.format(row.suite, row.probe, *numbers, above))
        remarks = [wrapped(f"! {remark}", "  ") for remark in self.remarks]
        parts = [self.rank.text(), "\n".join(lines) if self.tasks else "", "\n".join(remarks)]
        return "\n\n".join(part for part in parts if part)

    def chart(self) -> alt.LayerChart:
        """Q against RankMe: records as dots, this encoder as a cross with its interval, floors as dashed lines."""
        from rankscale import axis_charts  # numbers alone should not wait for a charting library

        points = [
            {"encoder": n.encoder, "steps": n.steps, "seed": n.seed, "rankme": n.rankme, "probe": p, "suite": s, "q": q}
            for n in self.neighbours
            for p, suites in n.quality.items()
            for s, q in suites.items()
        ]
        value, low, high = self.rankme
        here = {"rankme": value, "low": low or value, "high": high or value}
        mine = [here | dict(zip(row.index, row, strict=True)) for _, row in self.table().iterrows()] or [here]
        return axis_charts.placement_chart(pd.DataFrame(points), pd.DataFrame(mine))

    def save_page(self, path: str | Path) -> Path:
        """Write the figure and the text as one HTML file that needs nothing else.

        Raises ValueError if the packages for charts are not installed.
        """
        try:
            from rankscale import charts

            title = f"{self.rank.source} among the records of the book"
            return charts.save_page(self.chart(), path, title, self._caption(), self.text())
        except ModuleNotFoundError as error:
            raise ValueError(f"pages need {error.name}: pip install 'rankscale[book]'") from error

    def _caption(self) -> str:
        here = (
            "the cross is this encoder, with the 95 % interval of its RankMe"
            if self.tasks
            else "the upright line is this encoder's RankMe, with its 95 % interval, as it was not probed"
        )
        return (
            f"Quality Q against RankMe: a dot is one of {len(self.neighbours)} published runs (hollow: untrained), "
            f"{here}; dashed lines are floors without a model. Choose probe and tasks below the figure. A high RankMe "
            "is no proof of quality: see where untrained encoders lie."
        )


# --- scores -----------------------------------------------------------------------------------------------


class _Waveforms:
    """The clips of a split at 16 kHz, as blocks of one length each; can be read again."""

    def __init__(self, task: Task, split: str):
        self.task, self.split = task, split

    def __iter__(self) -> Iterator[Tensor]:
        return self.task.waveforms(self.split, BATCH)


def score_encoder(embedder: Embedder, config: RunConfig, cache: Path, progress: bool = True) -> Scores:
    """Every probe on every task of `config.tasks`: probe -> task -> metric -> value. Probes are kept in the cache.

    Encoders that hear our log-Mel get that of the records; others the waveforms, at their own rate.
    """
    if embedder.embed_mel:
        return score_all(load_suites(config, cache, progress), embedder.embed_mel, cache, embedder.name, progress)
    suites = [Suite(t, suite, {s: _Waveforms(t, s) for s in _splits(t)}) for t, suite in list_tasks(config)]
    return score_all(suites, embedder.hear, cache, embedder.name, progress)


def score_matrices(folder: Path, config: RunConfig, cache: Path, progress: bool = True) -> Scores:
    """The same from embeddings in files: FOLDER/TASK/SPLIT.npy, (n_clip, dim), rows in the order of SPLIT.json.

    Raises FileNotFoundError or ValueError that names the file that is missing or has another number of rows.
    """

    def read(task: Task, split: str) -> list[Tensor]:
        return [torch.from_numpy(np.array(load_embeddings(folder / task.name / f"{split}.npy"), dtype=np.float32))]

    suites = [Suite(t, suite, {s: read(t, s) for s in _splits(t)}) for t, suite in list_tasks(config)]
    return score_all(suites, lambda z: z, cache, folder.name, progress)


def _splits(task: Task) -> list[str]:
    used = {split for fold in task.folds for part in fold for split in part}
    return [split for split in task.splits if split in used]


# --- placing ----------------------------------------------------------------------------------------------


def place(
    rank: RankReport,
    scores: Scores,
    config: RunConfig,
    records: Iterable[RunRecord],
    cache: Path,
    progress: bool = True,
) -> Placement:
    """Put an encoder's rank and scores beside the records'.

    scores: of `score_encoder` or `score_matrices` on `config.tasks`, or {} where nothing was probed. config: says which
    tasks, and in `corpus` and `clip_s` what RankMe was measured on. Floors come from the records, or are measured.
    """
    found = [record for record in records if record.status == "ok" and record.rank and record.rank.layer == "last"]
    tasks = list_tasks(config) if scores else []
    lists: Lists = {}
    for task, suite in tasks:
        lists.setdefault(suite, {})[task.name] = task.version
    shown = lists or _commonest(found)
    sizes = config if scores else None
    qualities = {record.hash: _quality_on(record, shown, sizes) for record in found}
    near = [record for record in found if qualities[record.hash]]

    return Placement(
        rank=rank,
        tasks=lists,
        scores=scores,
        quality=_qualities(scores, lists),
        floors=_floors(near, lists, config, cache, progress) if scores else {},
        neighbours=tuple(_neighbour(record, qualities[record.hash]) for record in near),
        remarks=tuple(_remarks(found, near, qualities, lists, config)),
    )


def _neighbour(record: RunRecord, q: Qualities) -> Neighbour:
    rank, config = record.rank, record.config
    rankme = rank.rankme if rank.rankme_corrected is None else rank.rankme_corrected
    return Neighbour(
        hash=record.hash, encoder=config.encoder, steps=config.steps, seed=config.seed, rankme=rankme, quality=q
    )


def _list_of(record: RunRecord) -> Lists:
    lists: Lists = {}
    for task, version in record.task_versions.items():
        lists.setdefault("synthetic" if task in CANDIDATES else "real", {})[task] = version
    return lists


def _commonest(records: list[RunRecord]) -> Lists:
    """The task lists that most records share."""
    counts = Counter(str(sorted(record.task_versions.items())) for record in records)
    most = counts.most_common(1)
    return next((_list_of(r) for r in records if most and str(sorted(r.task_versions.items())) == most[0][0]), {})


def _covers(record: RunRecord, suite: str, wanted: dict[str, str], config: RunConfig | None) -> bool:
    """Whether a record was scored on these tasks: the same versions, and, where a config says so, sizes and folds."""
    there = _list_of(record).get(suite, {})
    if any(there.get(task) != version for task, version in wanted.items()):
        return False
    field = "task_clips" if suite == "synthetic" else "test_folds"
    return config is None or getattr(record.config, field) == getattr(config, field)


def _quality_on(record: RunRecord, lists: Lists, config: RunConfig | None) -> Qualities:
    """Q of a record over the given tasks, by probe and suite; without the suites that it does not cover."""
    return _qualities(record.scores, {s: wanted for s, wanted in lists.items() if _covers(record, s, wanted, config)})


def _qualities(scores: Scores, lists: Lists) -> Qualities:
    return {
        probe: {suite: quality({task: by_task[task]["score"] for task in wanted}) for suite, wanted in lists.items()}
        for probe, by_task in scores.items()
        if lists
    }


def _floors(
    near: list[RunRecord], lists: Lists, config: RunConfig, cache: Path, progress: bool
) -> dict[str, Qualities]:
    """Q of the log-Mel floors: of a record that covers all the tasks and probes, else measured now."""
    for record in near:
        floors = {name: record.floors.get(name, {}) for name in FLOORS}
        complete = all(set(PROBES) <= floor.keys() for floor in floors.values())
        if complete and all(_covers(record, suite, wanted, config) for suite, wanted in lists.items()):
            return {name: _qualities(floor, lists) for name, floor in floors.items()}
    suites = load_suites(config, cache, progress)
    return {
        name: _qualities(score_all(suites, embed, cache, name, progress), lists)
        for name, embed in logmel_floors().items()
    }


def _remarks(
    found: list[RunRecord], near: list[RunRecord], qualities: dict[str, Qualities], lists: Lists, config: RunConfig
) -> Iterator[str]:
    if not found:
        yield "no published record was found (--records): nothing is drawn beside this encoder"
    if not lists:
        yield "nothing was probed: name tasks (--tasks) for a Q; the figure shows RankMe alone"
    for suite, tasks in lists.items():
        count = sum(any(suite in of for of in qualities[record.hash].values()) for record in near)
        if found and not count:
            yield (
                f"no published record was scored on these {suite} tasks ({', '.join(tasks)}), in these versions, sizes "
                "and folds: this Q stands beside its floors only"
            )
        elif count < len(found):
            yield f"{suite}: {count} of {len(found)} published records were scored on these tasks; only they are shown"
    if others := sum(not _heard_alike(record.config, config) for record in near):
        yield (
            f"RankMe was measured on {' and '.join(config.corpus)}, that of {others} of the {len(near)} records shown "
            "on other clips, and it moves with the clips: --audio synth measures it on those of the synthetic corpus"
        )


def _heard_alike(one: RunConfig, other: RunConfig) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("corpus", "corpus_seed", "clip_s"))
