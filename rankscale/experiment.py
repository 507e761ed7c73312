"""One run from end to end: prepare, pre-train, embed, rank, probe, record."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from rankscale import probe as probe_room
from rankscale import records, spectra
from rankscale.budget import budget
from rankscale.config import RunConfig, is_synthetic
from rankscale.corpus import Corpus, MelBlocks, build_corpus, for_each, source_digest, task_file
from rankscale.devices import peak_flop_per_s
from rankscale.distributed import ALONE, Team
from rankscale.embed import Embed, embed_all, encoder_embedding, logmel_embedding
from rankscale.league import league
from rankscale.mae import save_encoder
from rankscale.pretrain import Pretrained, initial_model, pick_device, pretrain
from rankscale.probe import PROBES, probe_task, quality
from rankscale.records import Rank, RunRecord, Scores
from rankscale.sound.synthetic_tasks import frozen_tasks
from rankscale.sound.tasks import Task, find_tasks, read_task
from rankscale.storage import hold_lock, write_atomically

PROBE_DIGEST = source_digest(probe_room.__file__)


@dataclass(frozen=True)
class Places:
    """Where a run writes. Everything lies under one folder, `runs` unless told otherwise."""

    root: Path = Path("runs")

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def work(self, config: RunConfig) -> Path:
        return self.root / "work" / config.hash

    def lock(self, config: RunConfig) -> Path:
        """Held by the process that makes this run, see `storage.hold_lock`."""
        return self.root / "work" / f"{config.hash}.lock"

    @property
    def trunks(self) -> Path:
        """Common beginnings of runs with schedule "branch"."""
        return self.root / "trunks"

    def encoder(self, config: RunConfig) -> Path:
        return self.root / "encoders" / f"{config.hash}.pt"


@dataclass(frozen=True, eq=False)
class Suite:
    """A task with its log-Mel clips, ready to be embedded by anything."""

    task: Task
    suite: str  # "synthetic" or "real"
    mels: Mapping[str, Iterable[Tensor]]  # split -> blocks of clips, readable again; log-Mel, or what `embed` takes

    def features(self, embed: Embed) -> dict[str, np.ndarray]:
        """split -> (n_clip, dim)."""
        return {split: embed_all(embed, blocks) for split, blocks in self.mels.items()}


def run(
    config: RunConfig,
    places: Places = Places(),
    device: str = "auto",
    workers: int = 1,
    progress: bool = True,
    save_every_s: float = 60.0,
    team: Team = ALONE,
    compiled: bool = False,
) -> RunRecord:
    """The record of a configuration: read if it is there, else made, with that of its untrained encoder.

    A run that diverges or collapses gives a record with that status. Interrupted runs go on from their checkpoint,
    which is written every `save_every_s` seconds. Processes that ask for one run at once make it once. team: processes
    that share the training, each calling this function with folders that all of them see; the leader does the rest.
    compiled: see `pretrain.Learner`. Raises ValueError where the untrained encoder's own record is one of a failure.
    """
    path = records.record_path(places.records, config)
    if team.on_leader(path.exists):
        return records.read_record(path)
    with hold_lock(places.lock(config)) if team.leads else nullcontext():
        means = _Means(places, pick_device(device), progress and team.leads, save_every_s, team, compiled)
        corpus = team.leader_first(partial(build_corpus, config, places.cache, workers, means.progress, means.device))
        suites = load_suites(config, places.cache, means.progress) if team.leads else []
        untrained = config.untrained()
        if untrained == config:
            return _run(config, corpus, suites, means, floors=None)
        floor = team.on_leader(lambda: _make_floor(untrained, corpus, suites, means))
        return _run(config, corpus, suites, means, floors=floor.floors | {"untrained": floor.scores})


def repeat(config: RunConfig, device: str = "auto") -> RunRecord:
    """Make a run again from nothing, whatever has been made before, and keep nothing of it but the record."""
    with tempfile.TemporaryDirectory(prefix="rankscale-") as folder:
        return run(config, Places(Path(folder)), device, progress=False)


@dataclass(frozen=True)
class _Means:
    """What a run is made with, and what must not change its result."""

    places: Places
    device: str
    progress: bool = True
    save_every_s: float = 60.0
    team: Team = ALONE
    compiled: bool = False


def _make_floor(config: RunConfig, corpus: Corpus, suites: list[Suite], means: _Means) -> RunRecord:
    with hold_lock(means.places.lock(config)):
        floor = _run(config, corpus, suites, replace(means, team=ALONE), floors=None)
    if floor.status == "failed":
        raise ValueError(f"its untrained encoder, run {floor.hash}, failed: {floor.reason}")
    return floor


def _run(
    config: RunConfig, corpus: Corpus, suites: list[Suite], means: _Means, floors: dict[str, Scores] | None
) -> RunRecord:
    path, team = records.record_path(means.places.records, config), means.team
    if team.on_leader(path.exists):  # perhaps made by the process whose lock we waited for
        return records.read_record(path)
    trained = pretrain(
        config, corpus, means.places.work(config), means.device, means.save_every_s, means.progress,
        means.places.trunks, team, means.compiled,
    )  # fmt: skip
    return team.on_leader(lambda: _measure_and_keep(config, trained, corpus, suites, means, floors))


def _measure_and_keep(
    config: RunConfig, trained: Pretrained, corpus: Corpus, suites: list[Suite], means: _Means,
    floors: dict[str, Scores] | None,
) -> RunRecord:  # fmt: skip
    """Rank and probe what was trained; write encoder and record, and let go of the checkpoint."""
    started = time.monotonic()
    places = means.places
    if floors is None:
        floors = {
            name: score_all(suites, embed, places.cache, name, means.progress)
            for name, embed in logmel_floors().items()
        }
    measured = {} if trained.status == "diverged" else _measure(config, trained, corpus, suites, places, means.progress)
    record = RunRecord(
        hash=config.hash,
        config=config.portable(),
        status=trained.status,
        reason=trained.reason,
        budget=budget(config),
        sources=[source for each in (corpus, *corpus.others.values()) for source in each.sources],
        history=list(trained.history),
        floors=floors,
        floor_quality={name: suite_quality(scores, suites) for name, scores in floors.items()},
        task_versions={suite.task.name: suite.task.version for suite in suites},
        provenance=records.provenance(
            means.device,
            datetime.now(UTC).isoformat(timespec="seconds"),
            trained.wall_s,
            time.monotonic() - started,
            processes=means.team.size,
            compiled=means.compiled and config.steps > 0,
            flop_per_s=trained.flop_per_s,
            peak_flop_per_s=peak_flop_per_s(means.device, config.precision) if trained.flop_per_s else None,
        ),
        **measured,
    )
    save_encoder(trained.model.encoder, places.encoder(config))
    records.write_record(record, places.records)  # last: a run with a record is never made again
    (places.work(config) / "checkpoint.pt").unlink(missing_ok=True)  # the record and the encoder are safe
    return record


def write_failure(config: RunConfig, places: Places, device: str, error: Exception, wall_s: float) -> RunRecord:
    """Keep that a run failed, and why: a record with status "failed", unless a record is there already."""
    path = records.record_path(places.records, config)
    with hold_lock(places.lock(config)):
        if not path.exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            record = RunRecord(
                hash=config.hash,
                config=config.portable(),
                status="failed",
                reason=_reason(error),
                budget=budget(config),
                provenance=records.provenance(pick_device(device), now, wall_s, 0.0),
            )
            records.write_record(record, places.records)
    return records.read_record(path)


def _reason(error: Exception) -> str:
    """Class and message on one line, with files by name only: a record says nothing about one machine's disk."""
    first = (str(error).strip().splitlines() or [""])[0]
    nameless = re.sub(r"(?<![\w.])/(?:[^/\s:]+/)+", "", first)
    return f"{type(error).__name__}: {nameless}"[:300]


def prepare(config: RunConfig, cache: Path, workers: int = 1, progress: bool = True, device: str = "cpu") -> None:
    """Make what runs share, the clips of the corpus and of synthetic tasks; check that task folders hold tasks.

    Runs with the same corpus, corpus_seed and clip length share shards, whatever their number of clips.
    device: that synthesises the corpus. Raises ValueError where a folder gives no clip or task.
    """
    build_corpus(config, cache, workers, progress, device)
    for entry in config.tasks:
        _tasks_of(entry, config)
    make = partial(_make_task, clips=config.task_clips, cache=cache)
    for_each(make, missing_tasks(config, cache), workers, "tasks" if progress else None)


def missing_tasks(config: RunConfig, cache: Path) -> list[str]:
    """Names of the synthetic tasks of a configuration whose clips are not there yet.

    Those of folders are made in memory each time: nothing tells us when their files change.
    """
    named = [task for entry in config.tasks if is_synthetic(entry) for task, _ in _tasks_of(entry, config)]
    return [task.name for task in named if not all(task_file(task, split, cache).exists() for split in _splits(task))]


def _make_task(name: str, clips: int | None, cache: Path) -> None:
    (task,) = frozen_tasks(clips, name)
    _suite(task, "synthetic", cache)


def _measure(
    config: RunConfig, trained: Pretrained, corpus: Corpus, suites: list[Suite], places: Places, progress: bool
) -> dict[str, Any]:
    """Rank, league and scores of a finished encoder, as fields of its record."""
    embed = encoder_embedding(trained.model.encoder, config.pool, config.layer)
    scores = score_all(suites, embed, places.cache, config.encoder, progress)
    heldout = embed_all(embed, corpus.store.blocks(corpus.heldout_rows))
    train = embed_all(embed, corpus.store.blocks(corpus.unique_train_rows(config.rank_clips)))
    records.write_moments(heldout, places.records, config)
    others = {entry: embed_all(embed, other.store.blocks(other.heldout_rows)) for entry, other in corpus.others.items()}
    for entry, z in others.items():
        records.write_moments(z, places.records, config, entry)
    return {
        "rank": measure_rank(heldout, "heldout", config),
        "rank_train": measure_rank(train, "train", config),
        "rank_on": {entry: measure_rank(z, "heldout", config) for entry, z in others.items()},
        "scores": scores,
        "quality": suite_quality(scores, suites),
        **_measure_league(embed, config, trained, corpus),
    }


def _measure_league(embed: Embed, config: RunConfig, trained: Pretrained, corpus: Corpus) -> dict[str, Any]:
    """The label-free numbers beside RankMe, on held-out clips in an order that mixes their sources."""
    embed_init = None
    if config.steps:
        initial = initial_model(config, corpus).encoder.to(next(trained.model.parameters()).device)
        embed_init = encoder_embedding(initial, config.pool, config.layer)
    rows = np.random.default_rng(3).permutation(corpus.heldout_rows)
    result = league(embed, embed_init, corpus.store.blocks(rows))
    return {"league": result.values, "league_missing": result.missing, "league_version": result.version}


def logmel_floors() -> dict[str, Embed]:
    """The floors without a model: log-Mel pooled by mean, and by mean and standard deviation."""
    return {"logmel_mean": logmel_embedding("mean"), "logmel_meanstd": logmel_embedding("meanstd")}


def measure_rank(z: np.ndarray, clips: str, config: RunConfig) -> Rank | None:
    """Spectral numbers of z (n_clip, dim); None below two clips a dimension, where they say more of n than of z."""
    n_clip, dim = z.shape
    if n_clip < 2 * dim:
        return None
    sigma = spectra.spectrum(z)
    centred = spectra.spectrum(z, center=True)
    return Rank(
        clips=clips,
        n_clip=n_clip,
        dim=dim,
        eps=config.rank_eps,
        pool=config.pool,
        layer=str(config.layer or "last"),
        rankme=spectra.rankme(sigma, config.rank_eps),
        rankme_centred=spectra.rankme(centred, config.rank_eps),
        rankme_corrected=spectra.rankme_corrected(z, config.rank_eps).value,
        effective_rank_squared=spectra.effective_rank_squared(centred, center=False),
        alpha_req=_alpha(centred),
        singular_values=[float(value) for value in sigma],
    )


def _alpha(centred: Tensor) -> spectra.PowerLawDecay | None:
    try:
        return spectra.alpha_req(centred, center=False)
    except ValueError:  # too few ranks: the record says null, as its schema promises
        return None


def load_suites(config: RunConfig, cache: Path, progress: bool = True) -> list[Suite]:
    """The scene tasks of a configuration with their log-Mel clips. Raises ValueError where a folder has no task."""
    return [_suite(task, suite, cache) for task, suite in tqdm(list_tasks(config), "tasks", disable=not progress)]


def list_tasks(config: RunConfig) -> list[tuple[Task, str]]:
    """The scene tasks of a configuration, each with its suite. Raises ValueError where a folder has none."""
    return [(task, suite) for entry in config.tasks for task, suite in _tasks_of(entry, config)]


def _tasks_of(entry: str, config: RunConfig) -> list[tuple[Task, str]]:
    """An entry of `tasks`: "synth" (all that count), "synth:NAME" (one), or a folder of HEAR task folders."""
    if is_synthetic(entry):
        name = entry.partition(":")[2] or None
        return [(task, "synthetic") for task in frozen_tasks(config.task_clips, name)]
    return [(task, "real") for task in _folder_tasks(Path(entry), config)]


def _splits(task: Task) -> list[str]:
    """Splits that some fold trains, validates or tests on."""
    used = {split for fold in task.folds for part in fold for split in part}
    return [split for split in task.splits if split in used]


def _folder_tasks(folder: Path, config: RunConfig) -> list[Task]:
    tasks = [read_task(path) for path in find_tasks(folder)]
    scenes = [task for task in tasks if task.kind == "scene"]
    if not scenes:
        raise ValueError(f"{folder}: no HEAR scene task in this folder (looked for task_metadata.json)")
    return scenes if config.test_folds == "all" else [task.held_out() for task in scenes]


def _suite(task: Task, suite: str, cache: Path) -> Suite:
    cache = cache if suite == "synthetic" else None
    return Suite(task, suite, {split: MelBlocks(task, split, cache) for split in _splits(task)})


def score_all(suites: list[Suite], embed: Embed, cache: Path, label: str = "", progress: bool = True) -> Scores:
    """Every probe on every task. Scores are kept by what went in, so that an interrupted run does not probe again."""
    scores: Scores = {probe: {} for probe in PROBES}
    for suite in tqdm(suites, f"probing {label}", unit="task", disable=not progress):
        for probe, result in _score(suite, suite.features(embed), cache).items():
            scores[probe][suite.task.name] = result
    return scores


def _score(suite: Suite, features: dict[str, np.ndarray], cache: Path) -> dict[str, dict[str, float]]:
    digest = hashlib.sha256(f"{PROBE_DIGEST} {suite.task.name} {suite.task.folds}".encode())
    for split, x in features.items():
        digest.update(np.ascontiguousarray(x).tobytes() + suite.task.splits[split].labels.tobytes())
    path = cache / "probes" / f"{digest.hexdigest()[:24]}.json"
    if not path.exists():
        result = {probe: probe_task(suite.task, features, probe) for probe in PROBES}
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(result)))
    return json.loads(path.read_text())


def suite_quality(scores: Scores, suites: list[Suite]) -> dict[str, dict[str, float]]:
    """Q by probe and suite: the mean over a suite's tasks of (score - chance) / (1 - chance)."""
    names: dict[str, list[str]] = {}
    for suite in suites:
        names.setdefault(suite.suite, []).append(suite.task.name)
    return {
        probe: {suite: quality({name: by_task[name]["score"] for name in tasks}) for suite, tasks in names.items()}
        for probe, by_task in scores.items()
    }


def describe(record: RunRecord) -> str:
    """A record in a few lines for a terminal: status, rank, Q beside its floors by probe and suite."""
    lines = [f"{record.config.encoder}  {record.status}" + (f": {record.reason}" if record.reason else "")]
    if record.rank:
        rank = record.rank
        lines.append(
            f"RankMe {rank.rankme:.2f} of at most {rank.dim} on {rank.n_clip} held-out clips, "
            f"{rank.rankme_centred:.2f} centred"
        )
    for probe, suites in record.quality.items():
        for suite, q in suites.items():
            floors = "  ".join(f"{name} {q_floor[probe][suite]:.3f}" for name, q_floor in record.floor_quality.items())
            lines.append(f"Q {suite:10} {probe:12} {q:.3f}   floors: {floors}")
    return "\n".join(lines)
