"""What is there already: records, locks and checkpoints of the runs of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankscale.config import RunConfig
from rankscale.experiment import Places
from rankscale.records import RunRecord, read_record, read_records, record_path
from rankscale.storage import is_locked

PUBLISHED = Path("data/runs")


@dataclass(frozen=True)
class Shelves:
    """Where records of a sweep may be: among those of this folder, and among the published ones."""

    places: Places
    published: Path = PUBLISHED

    def find(self, config: RunConfig) -> RunRecord | None:
        """The record of a configuration. Raises ValueError where it is damaged."""
        paths = (record_path(folder, config) for folder in (self.places.records, self.published))
        found = next((path for path in paths if path.exists()), None)
        return read_record(found) if found else None

    def failed(self, config: RunConfig) -> bool:
        record = self.find(config)
        return record is not None and record.status == "failed"

    def state(self, config: RunConfig) -> str:
        """ "ok", "diverged", "collapsed", "failed" by its record; "running", "interrupted" or "to do" without one."""
        if record := self.find(config):
            return record.status
        if is_locked(self.places.lock(config)):
            return "running"
        return "interrupted" if (self.places.work(config) / "checkpoint.pt").exists() else "to do"

    def all(self) -> list[RunRecord]:
        return [record for folder in (self.places.records, self.published) for record in read_records(folder)]
