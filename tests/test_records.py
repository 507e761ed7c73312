"""The published records: each validates, is named by its hash, and is complete."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from rankscale import experiment
from rankscale.axes import LIVE
from rankscale.cli import main
from rankscale.probe import quality
from rankscale.records import agreement, moments_path, read_record, read_records, runs_table, write_table
from rankscale.sound.synthetic_tasks import CANDIDATES as SYNTHETIC
from rankscale.spectra import SpectrumAccumulator, rankme

FOLDER = Path(__file__).parents[1] / "data" / "runs"
PUBLISHED = sorted(FOLDER.glob("*.json"))


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
    table = runs_table(read_records(FOLDER)).set_index("hash")
    assert sorted(table.index) == [path.stem for path in PUBLISHED]
    for path in PUBLISHED:
        record = read_record(path)
        for suite, q in record.quality.get("linear", {}).items():
            names = [name for name in record.scores["linear"] if (name in SYNTHETIC) == (suite == "synthetic")]
            assert q == pytest.approx(quality({name: record.scores["linear"][name]["score"] for name in names}))
            assert table.loc[path.stem, f"q_linear_{suite}"] == q


def test_the_published_table_is_that_of_the_records(tmp_path):
    """If it fails: rankscale records --table data/runs.csv"""
    made = write_table(read_records(FOLDER), tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(pd.read_csv(FOLDER.parent / "runs.csv"), pd.read_csv(made))


@pytest.mark.filterwarnings("ignore::rankscale.spectra.SpectrumWarning")  # of the direction that a layer norm empties
def test_the_moments_beside_a_record_give_its_spectra_again():
    records = [read_record(path) for path in PUBLISHED]
    kept = [record for record in records if moments_path(FOLDER, record.config).exists()]
    assert kept
    for record in kept:
        moments = SpectrumAccumulator.load(moments_path(FOLDER, record.config))
        assert moments.rows == record.rank.n_clip
        assert rankme(moments.spectrum(), record.rank.eps) == pytest.approx(record.rank.rankme, rel=1e-4)
        centred = rankme(moments.spectrum(center=True), record.rank.eps)
        assert centred == pytest.approx(record.rank.rankme_centred, rel=1e-4)


@pytest.mark.slow
def test_a_published_record_can_be_made_again():
    kept = read_record(FOLDER / f"{LIVE.replace(steps=100).hash}.json")
    check = agreement(experiment.repeat(kept.config, "cpu"), kept)
    assert abs(check.loc["RankMe", "difference"]) < 0.01
    assert check.drop(index="RankMe")["difference"].abs().max() < 0.02


def test_agreement_is_of_one_configuration_only():
    one, other = (read_record(path) for path in PUBLISHED[:2])
    assert (agreement(one, one)["difference"] == 0).all()
    with pytest.raises(ValueError, match="different configurations"):
        agreement(one, other)


def test_the_command_checks_counts_and_writes_the_table(tmp_path):
    done = CliRunner().invoke(main, ["records", str(FOLDER), "--table", str(tmp_path / "t.csv")])
    assert done.exit_code == 0 and f"{len(PUBLISHED)} valid records" in done.output
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(PUBLISHED)
    schema = json.loads(CliRunner().invoke(main, ["records", "--schema", str(FOLDER)]).output)
    assert {"hash", "config", "rank", "scores"} <= schema["properties"].keys()


def test_the_command_names_a_damaged_record(tmp_path):
    text = PUBLISHED[0].read_text()
    (tmp_path / PUBLISHED[0].name).write_text(text.replace('"status": "ok"', '"status": "fine"'))
    done = CliRunner().invoke(main, ["records", str(tmp_path)])
    assert done.exit_code == 1
    assert PUBLISHED[0].name in done.output + done.stderr and "status" in done.output + done.stderr
