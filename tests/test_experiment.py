"""From sound to a record: the whole chain at smoke size, on synthetic and on real recordings."""

import json

import numpy as np
import pytest

from rankscale import corpus, records
from rankscale.config import profile
from rankscale.corpus import HELDOUT_START, build_corpus
from rankscale.experiment import Places, run
from rankscale.league import LEAGUE_VERSION, NUMBERS
from rankscale.mae import load_encoder
from rankscale.sound import files
from rankscale.sound.tasks import find_tasks, read_task, training_files


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    places = Places(tmp_path_factory.mktemp("runs"))
    config = profile("smoke")
    return config, places, run(config, places, device="cpu", progress=False)


def test_a_record_is_complete_and_validates(synthetic):
    config, places, record = synthetic
    assert record == records.read_record(records.record_path(places.records, config))
    assert record.status == "ok"
    assert record.rank.n_clip == config.rank_clips
    assert 1 < record.rank.rankme <= config.width
    assert record.rank.rankme == pytest.approx(record.history[-1].rankme, rel=1e-6)
    assert set(record.scores) == {"linear", "knn", "linear_rp32", "mlp"}
    assert set(record.floors) == {"logmel_mean", "logmel_meanstd", "untrained"}
    assert set(record.quality["linear"]) == {"synthetic"}
    assert record.budget.train_flop > 0


def test_a_record_has_the_league_of_its_run_and_of_its_untrained_encoder(synthetic):
    config, places, record = synthetic
    floor = records.read_record(records.record_path(places.records, config.untrained()))
    for each in (record, floor):
        assert set(each.league) == set(NUMBERS)
        assert each.league_missing == {}
        assert each.league_version == LEAGUE_VERSION
        assert each.league["rankme"] == pytest.approx(each.rank.rankme, rel=1e-5)  # the same clips, fewer than 3072
    assert floor.league["cka_init"] == pytest.approx(1)
    assert 0 < record.league["cka_init"] < 1
    gain = np.log(record.rank.rankme / floor.rank.rankme)
    assert record.league["rankme_log_gain"] == pytest.approx(gain, rel=1e-4)  # its initialisation is that encoder


def test_quality_is_the_mean_of_the_task_scores(synthetic):
    record = synthetic[2]
    scores = [task["score"] for task in record.scores["linear"].values()]
    assert record.quality["linear"]["synthetic"] == pytest.approx(np.mean(scores))
    for task in record.scores["linear"].values():
        main = task.get("top1_acc", task["mAP"])
        assert task["score"] == pytest.approx((main - task["chance"]) / (1 - task["chance"]))


def test_a_record_tells_how_much_of_the_device_the_training_used(synthetic):
    config, places, record = synthetic
    made = record.provenance
    assert (made.processes, made.compiled) == (1, False)
    assert made.flop_per_s > 0
    assert made.utilisation == pytest.approx(made.flop_per_s / made.peak_flop_per_s)
    floor = records.read_record(records.record_path(places.records, config.untrained()))
    assert floor.provenance.utilisation is None


def test_the_untrained_floor_is_a_record_of_its_own(synthetic):
    config, places, record = synthetic
    floor = records.read_record(records.record_path(places.records, config.untrained()))
    assert floor.scores == record.floors["untrained"]
    assert floor.floors["logmel_mean"] == record.floors["logmel_mean"]
    assert [point.step for point in floor.history] == [0]


def test_a_second_run_reads_the_record_and_a_fresh_one_reproduces_it(synthetic, tmp_path):
    config, places, record = synthetic
    assert run(config, places, device="cpu", progress=False).provenance == record.provenance
    fresh = run(config, Places(tmp_path), device="cpu", progress=False)
    assert fresh.comparable() == record.comparable()


def test_the_table_of_runs_has_a_row_a_run(synthetic):
    config, places, record = synthetic
    table = records.runs_table(records.read_records(places.records)).set_index("hash")
    assert len(table) == 2
    row = table.loc[config.hash]
    assert row["rankme"] == record.rank.rankme
    assert row["league_pseudo_probe"] == record.league["pseudo_probe"]
    assert row["q_linear_synthetic"] == record.quality["linear"]["synthetic"]
    assert (row["width"], row["depth"]) == (32, 1)


def test_the_encoder_is_kept_and_the_checkpoint_is_not(synthetic):
    config, places, _ = synthetic
    assert load_encoder(places.encoder(config)).spec.width == 32
    assert not list(places.work(config).glob("*"))


def test_records_that_are_damaged_or_renamed_are_named(synthetic, tmp_path):
    record = synthetic[2]
    content = json.loads(record.model_dump_json())
    for change, message in [
        ({"status": "great"}, "status"),
        ({"hash": "0" * 16}, "does not belong"),
        ({"colour": 1}, "colour"),
    ]:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
            records.read_record(path)


def test_another_result_does_not_replace_a_record(synthetic, tmp_path):
    record = synthetic[2]
    records.write_record(record, tmp_path)
    records.write_record(record, tmp_path)
    with pytest.raises(FileExistsError, match="attempt=1"):
        records.write_record(record.model_copy(update={"status": "collapsed"}), tmp_path)


def test_a_diverged_run_is_a_record(tmp_path):
    config = profile("smoke", lr=1e30, warmup=0.0, grad_clip=1e30, clips=64, rank_clips=64, steps=4)
    record = run(config, Places(tmp_path), device="cpu", progress=False)
    assert record.status == "diverged"
    assert "try a lower lr" in record.reason
    assert record.rank is None
    assert record.quality == {}
    assert (record.league, record.league_version) == ({}, None)


@pytest.mark.real_audio
def test_real_recordings_mixed_with_synthetic_ones_give_a_record(real_audio, tmp_path):
    config = profile(
        "smoke", corpus=("synth", str(real_audio)), tasks=(str(real_audio),), clips=128, rank_clips=128, steps=6
    )
    record = run(config, Places(tmp_path), device="cpu", progress=False)
    scenes = {read_task(path).name for path in find_tasks(real_audio) if read_task(path).kind == "scene"}
    assert record.status == "ok"
    assert set(record.scores["linear"]) == scenes
    assert set(record.quality["linear"]) == {"real"}
    assert {source.name for source in record.sources} == {"synth", real_audio.name}
    assert str(real_audio.parent) not in record.model_dump_json()


@pytest.mark.real_audio
def test_no_test_clip_of_a_real_task_is_trained_on(real_audio):
    for folder in find_tasks(real_audio):
        task = read_task(folder).held_out()
        allowed = {path.stem for path in training_files(folder)}
        for fold in task.folds:
            for split in fold.test:
                assert not allowed & set(task.splits[split].names)


def test_corpora_share_shards_and_hold_clips_out(tmp_path):
    small = profile("smoke", clips=100, rank_clips=50)
    one = build_corpus(small, tmp_path, progress=False)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    two = build_corpus(small.replace(clips=200), tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files
    assert any(str(HELDOUT_START) in path.name for path in files)
    assert np.array_equal(one.store.take(one.train_rows[:5]), two.store.take(two.train_rows[:5]))
    assert not set(one.train_rows) & set(one.heldout_rows)
    assert len(one.heldout_rows) == 50


def test_a_handful_of_files_still_holds_one_out_and_the_choice_stays():
    names = [f"clip{k}.wav" for k in range(200)]
    few = corpus._hold_out(names[:3])
    assert len(few) == 1
    most = corpus._hold_out(names)
    assert 8 <= len(most) <= 35
    assert corpus._hold_out(names[:100]) == most & set(names[:100])


@pytest.mark.real_audio
def test_every_clip_of_a_folder_is_used_once(real_audio, tmp_path, monkeypatch):
    """Clips are streamed through shards; none may be lost between two of them."""
    monkeypatch.setattr(corpus, "SHARD", 16)
    config = profile("smoke", corpus=(str(real_audio),), clips=100_000, rank_clips=100_000)
    built = build_corpus(config, tmp_path, progress=False)
    manifest = files.scan(real_audio, files=training_files(real_audio), cache_dir=tmp_path, progress=False)
    clips = sum(1 for _ in files.iter_clips(manifest, config.clip_s))
    assert len(built.train_rows) + len(built.heldout_rows) == clips > 2 * 16
    assert len(set(built.train_rows) | set(built.heldout_rows)) == clips
