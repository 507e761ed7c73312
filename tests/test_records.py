"""The published records: each validates, is named by its hash, and is complete."""

from pathlib import Path

import pytest

from rankscale.probe import quality
from rankscale.records import read_record, runs_table
from rankscale.sound.synthetic_tasks import CANDIDATES as SYNTHETIC

PUBLISHED = sorted((Path(__file__).parents[1] / "data" / "runs").glob("*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_record_is_whole(path):
    record = read_record(path)
    assert path.stem == record.hash
    assert "/" not in "".join(record.config.corpus + record.config.tasks), "a record must not know a folder's place"
    assert record.status == "failed" or record.history[0].step == 0
    if record.status == "ok":
        assert record.history[-1].step == record.config.steps
        assert 1 <= record.rank.rankme <= record.rank.dim
        assert set(record.scores["linear"]) == set(record.task_versions)
        assert {"logmel_mean", "logmel_meanstd"} <= set(record.floors)


def test_the_published_floor_of_a_trained_run_is_published_too():
    records = {path.stem: read_record(path) for path in PUBLISHED}
    trained = [record for record in records.values() if record.config.steps and record.status != "failed"]
    assert trained
    for record in trained:
        assert records[record.config.untrained().hash].scores == record.floors["untrained"]


def test_the_table_agrees_with_the_records():
    table = runs_table(PUBLISHED[0].parent).set_index("hash")
    assert sorted(table.index) == [path.stem for path in PUBLISHED]
    for path in PUBLISHED:
        record = read_record(path)
        for suite, q in record.quality.get("linear", {}).items():
            names = [name for name in record.scores["linear"] if (name in SYNTHETIC) == (suite == "synthetic")]
            assert q == pytest.approx(quality({name: record.scores["linear"][name]["score"] for name in names}))
            assert table.loc[path.stem, f"q_linear_{suite}"] == q
