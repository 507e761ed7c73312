"""One run, one JSON file: everything a chapter, a fit or a critic may want to know about it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rankscale.budget import Budget
from rankscale.config import SCHEMA_VERSION, RunConfig
from rankscale.corpus import Source
from rankscale.pretrain import HistoryPoint
from rankscale.spectra import PowerLawDecay, SpectrumAccumulator
from rankscale.storage import write_atomically

Status = Literal["ok", "diverged", "collapsed", "failed"]
Scores = dict[str, dict[str, dict[str, float]]]  # probe -> task -> metric -> value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rank(_Part):
    """Spectral numbers of one set of embeddings, with every choice that they depend on."""

    clips: Literal["heldout", "train"]
    n_clip: int
    dim: int
    eps: float
    pool: str
    layer: str
    rankme: float
    rankme_centred: float
    rankme_corrected: float | None  # None below 2 clips a dimension
    effective_rank_squared: float
    alpha_req: PowerLawDecay | None  # None under 20 usable ranks
    singular_values: list[float]  # raw, not centred


class Provenance(_Part):
    """Host, time and versions: what may differ between two runs with one result.

    processes: that shared the training. compiled: whether its forward pass went through torch.compile. flop_per_s: of
    the training steps, by the record's counting rule, all processes together; None in old records, and where too few
    steps were timed. peak_flop_per_s: the most that the device of one process can do, see `devices`.
    """

    commit: str | None
    versions: dict[str, str]
    device: str
    finished: str  # UTC, ISO 8601
    train_s: float
    measure_s: float
    processes: int = 1
    compiled: bool = False
    flop_per_s: float | None = None
    peak_flop_per_s: float | None = None

    @property
    def utilisation(self) -> float | None:
        """Model FLOP utilisation: the share of what the devices can do that went into the model's own products."""
        if not self.flop_per_s or not self.peak_flop_per_s:
            return None
        return self.flop_per_s / (self.processes * self.peak_flop_per_s)


class RunRecord(_Part):
    """The result of one `RunConfig`. Failed runs are records too, with a status and a reason."""

    schema_version: int = SCHEMA_VERSION
    hash: str
    config: RunConfig
    status: Status
    reason: str | None = None
    budget: Budget
    sources: list[Source] = []
    history: list[HistoryPoint] = []
    rank: Rank | None = None
    rank_train: Rank | None = None
    rank_on: dict[str, Rank | None] = {}  # entry of the configuration's rank_on -> as rank, on clips not trained on
    league: dict[str, float | None] = {}  # label-free numbers on held-out clips, by the names in `league.NUMBERS`
    league_missing: dict[str, str] = {}  # number -> why it is None
    league_version: str | None = None  # None: made before there was a league
    scores: Scores = {}
    quality: dict[str, dict[str, float]] = {}  # probe -> suite ("synthetic", "real") -> Q
    floors: dict[str, Scores] = {}  # floor -> as scores
    floor_quality: dict[str, dict[str, dict[str, float]]] = {}
    task_versions: dict[str, str] = {}
    provenance: Provenance

    @model_validator(mode="after")
    def _hash_matches(self) -> RunRecord:
        if self.hash != self.config.hash:
            raise ValueError(f"hash {self.hash} does not belong to this configuration ({self.config.hash})")
        return self

    def comparable(self) -> dict[str, Any]:
        """Everything that a second run of the same configuration must reproduce."""
        return self.model_dump(exclude={"provenance"})


def provenance(device: str, finished: str, train_s: float, measure_s: float, **more: Any) -> Provenance:
    """Describe this process: git commit, package versions, device. more: other fields of Provenance."""
    packages = ("rankscale", "torch", "torchaudio", "numpy", "scipy", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    return Provenance(
        commit=_commit(),
        versions=versions,
        device=device_name(device),
        finished=finished,
        train_s=train_s,
        measure_s=measure_s,
        **more,
    )


def device_name(device: str) -> str:
    """The kind of a device, as it stands in records: a GPU's model, or "cpu" with the machine's architecture."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})"


def _commit() -> str | None:
    """The checkout's commit, marked + where it has changes; None outside a checkout or without git."""
    root = Path(__file__).parent.parent
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record_path(folder: Path, config: RunConfig) -> Path:
    """Where the record of a configuration stands."""
    return folder / f"{config.hash}.json"


def moments_path(folder: Path, config: RunConfig, entry: str = "") -> Path:
    """Where the second moments of a run's held-out embeddings stand: beside its record.

    entry: of its portable `rank_on`, for those of other audio.
    """
    name = f"-{entry.replace(':', '-')}" if entry else ""
    return folder / f"{config.hash}{name}.safetensors"


def write_moments(z: np.ndarray, folder: Path, config: RunConfig, entry: str = "") -> Path:
    """Keep mean and scatter of embeddings z (n_clip, dim), from which any spectrum can be computed again.

    entry: as in `moments_path`. Read them with `SpectrumAccumulator.load`. Singular values below 6e-8 of the largest
    are lost in the squares.
    """
    return SpectrumAccumulator(z.shape[1]).update(z).save(moments_path(folder, config, entry))


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write a record; raises FileExistsError rather than replace another result of the same configuration."""
    path = record_path(folder, record.config)
    if path.exists() and read_record(path).comparable() != record.comparable():
        raise FileExistsError(
            f"{path} holds another result of this configuration; set attempt={record.config.attempt + 1}"
        )
    text = record.model_dump_json(indent=1)
    write_atomically(path, lambda p: p.write_text(text + "\n"))
    return path


def publish(configs: Iterable[RunConfig], folder: Path, published: Path) -> list[Path]:
    """Copy records and moments of these configurations to the published ones, and make the table beside them again.

    Configurations without a record are left. The table of a folder `runs` is `runs.csv`.
    Returns the published records. Raises FileExistsError where another result of a configuration has been published.
    """
    there = [config for config in configs if record_path(folder, config).exists()]
    paths = [write_record(read_record(record_path(folder, config)), published) for config in there]
    for config, entry in [(each, entry) for each in there for entry in ("", *each.portable().rank_on)]:
        moments = moments_path(folder, config, entry)
        if moments.exists():  # a run without embeddings, or one from before they were kept, has none
            write_atomically(moments_path(published, config, entry), partial(shutil.copyfile, moments))
    if paths:
        write_table(read_records(published), published.with_suffix(".csv"))
    return paths


def read_record(path: Path) -> RunRecord:
    """Read and validate one record; raises ValueError that names the file and the field."""
    try:
        return RunRecord.model_validate_json(Path(path).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "record"
        raise ValueError(f"{path}: {field}: {first['msg']} ({error.error_count()} problem(s))") from error


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a folder, in the order of their names."""
    return [read_record(path) for path in sorted(Path(folder).glob("*.json"))]


def agreement(one: RunRecord, other: RunRecord) -> pd.DataFrame:
    """Two results of one configuration side by side: a row for RankMe and for each Q, columns one, other, difference.

    Differences are relative for RankMe and absolute for Q.
    """
    if one.hash != other.hash:
        raise ValueError(f"runs {one.hash} and {other.hash} have different configurations")
    rows = {"RankMe": (one.rank.rankme, other.rank.rankme, one.rank.rankme / other.rank.rankme - 1)}
    for probe, suites in one.quality.items():
        for suite, q in suites.items():
            rows[f"Q {probe}, {suite}"] = (q, other.quality[probe][suite], q - other.quality[probe][suite])
    return pd.DataFrame.from_dict(rows, orient="index", columns=["one", "other", "difference"])


def runs_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row a run: configuration, status, budget, rank numbers, Q by probe and suite (`q_linear_synthetic`, ...).

    Columns `league_...` hold the numbers of the room `league`, NaN where a record has none.
    """
    return pd.DataFrame([_row(record) for record in records])


def write_table(records: Iterable[RunRecord], path: Path) -> Path:
    """The table of runs as CSV, for those who want the numbers and not this package; lists are joined by +."""
    table = runs_table(records)
    for name in ("corpus", "tasks", "rank_on"):
        table[name] = table[name].map("+".join)
    return write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def _row(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"hash": record.hash, "status": record.status}
    row |= record.config.model_dump(mode="json")
    row |= {"width": record.config.width, "depth": record.config.depth}
    row |= asdict(record.budget)
    if record.rank:
        numbers = record.rank.model_dump(
            include={"rankme", "rankme_centred", "rankme_corrected", "effective_rank_squared"}
        )
        row |= numbers | {"alpha": record.rank.alpha_req.alpha if record.rank.alpha_req else None}
    row["rankme_train"] = record.rank_train.rankme if record.rank_train else None
    row |= {f"league_{name}": value for name, value in record.league.items()}
    if record.history:
        row |= {"train_loss": record.history[-1].train_loss, "heldout_loss": record.history[-1].heldout_loss}
    for probe, suites in record.quality.items():
        row |= {f"q_{probe}_{suite}": q for suite, q in suites.items()}
    return row
