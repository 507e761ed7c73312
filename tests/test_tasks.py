"""HEAR task folders: what is read, what is refused, what may be pre-trained on, and the way back to a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from rankscale.sound.files import AudioError, read_audio, scan
from rankscale.sound.tasks import (
    TRAIN_VALID_TEST,
    Event,
    Fold,
    Split,
    Task,
    TaskError,
    find_tasks,
    kfold,
    read_task,
    training_files,
    write_task,
)

RATE = 16_000
SCENES = ["esc10", "fsdd_digit", "fsdd_speaker", "notes_instrument", "notes_pitchclass"]


def folder_of(root: Path, name: str) -> Path:
    return root / f"{name}-v1.0-full"


def made_task(prediction="multiclass", kind="scene", n=6) -> Task:
    """Three splits of n clips of constant value k / 100, in labels a, b, c."""
    labels = {
        ("multiclass", "scene"): np.arange(n) % 3,
        ("multilabel", "scene"): np.arange(3) <= (np.arange(n) % 4)[:, None] - 1,
        ("multilabel", "event"): tuple([Event("abc"[k % 3], 10.0 * k, 10.0 * k + 5.5)] * (k % 3) for k in range(n)),
    }[prediction, kind]

    def clips(offset):
        return lambda: iter(torch.full((1600,), (offset + k) / 100) for k in range(n))

    splits = {name: Split(name, labels, clips(20 * i)) for i, name in enumerate(("train", "valid", "test"))}
    return Task("made", "v1", kind, prediction, ("a", "b", "c"), splits, TRAIN_VALID_TEST)


# --- the dataclasses


def test_kfold_is_that_of_hear():
    assert kfold(["fold02", "fold00", "fold03", "fold01"]) == (
        Fold(("fold02", "fold03"), ("fold01",), ("fold00",)),
        Fold(("fold00", "fold03"), ("fold02",), ("fold01",)),
        Fold(("fold00", "fold01"), ("fold03",), ("fold02",)),
        Fold(("fold01", "fold02"), ("fold00",), ("fold03",)),
    )
    with pytest.raises(ValueError, match="three"):
        kfold(["fold00", "fold01"])


def test_waveforms_keep_order_and_split_at_changes_of_length():
    lengths = [100, 100, 100, 50, 100, 100]
    clips = [torch.full((n,), float(k)) for k, n in enumerate(lengths)]
    split = Split("train", np.zeros(6, np.int64), lambda: iter(clips))
    task = Task("t", "v1", "scene", "multiclass", ("a",), {"train": split}, ())
    blocks = list(task.waveforms("train", block=2))
    assert [tuple(block.shape) for block in blocks] == [(2, 100), (1, 100), (1, 50), (2, 100)]
    assert [float(clip[0]) for block in blocks for clip in block] == [0, 1, 2, 3, 4, 5]


def test_a_fold_may_not_use_a_split_twice_or_an_unknown_one():
    task = made_task()
    for fold in (Fold(("train",), ("train",), ("test",)), Fold(("train",), ("valid",), ("fold09",))):
        with pytest.raises(ValueError, match="different splits"):
            Task("t", "v1", "scene", "multiclass", ("a",), task.splits, (fold,))


def test_chance():
    assert made_task().chance == pytest.approx(1 / 3)
    multilabel = made_task("multilabel", n=8)  # rows have 0, 1, 2, 3, 0, 1, 2, 3 of three labels
    assert multilabel.chance == pytest.approx(0.5)
    assert made_task("multilabel", "event").chance == 0


# --- reading


@pytest.mark.real_audio
@pytest.mark.parametrize("name", SCENES)
def test_scene_tasks_are_read_whole(real_audio, name):
    folder = folder_of(real_audio, name)
    task = read_task(folder)
    assert (task.name, task.kind, task.prediction) == (name, "scene", "multiclass")
    for split in task.splits.values():
        source = json.loads((folder / f"{split.name}.json").read_text())
        assert [task.vocabulary[k] for k in split.labels] == [labels[0] for labels in source.values()]
        assert split.names == tuple(Path(clip).stem for clip in source)
    blocks = list(task.waveforms(task.folds[0].test[0]))
    assert sum(map(len, blocks)) == len(task.splits[task.folds[0].test[0]])
    assert all(block.isfinite().all() and block.dtype == torch.float32 for block in blocks)
    lengths = {block.shape[1] / RATE for block in blocks}
    assert lengths == {task.clip_s} if task.clip_s else len(lengths) > 1
    assert len(task.folds) == (1 if name == "fsdd_digit" else len(task.splits))


@pytest.mark.real_audio
def test_clips_are_the_files_in_label_order(real_audio):
    folder = folder_of(real_audio, "esc10")
    first = next(read_task(folder).waveforms("fold02", block=3))
    for clip, name in zip(first, json.loads((folder / "fold02.json").read_text()), strict=False):
        wave, rate = sf.read(folder / "16000" / "fold02" / name, dtype="float32")
        assert rate == RATE
        np.testing.assert_array_equal(clip, wave)


@pytest.mark.real_audio
def test_event_task_keeps_times(real_audio):
    folder = folder_of(real_audio, "gunshot_onset")
    task = read_task(folder)
    assert (task.kind, task.prediction, task.vocabulary) == ("event", "multilabel", ("gunshot",))
    for split in task.splits.values():
        source = json.loads((folder / f"{split.name}.json").read_text())
        assert [[event._asdict() for event in events] for events in split.labels] == [
            [{"label": e["label"], "start_ms": e["start"], "end_ms": e["end"]} for e in events]
            for events in source.values()
        ]
        assert all(event.end_ms <= 1000 * task.clip_s for events in split.labels for event in events)


@pytest.mark.real_audio
def test_find_tasks(real_audio):
    found = find_tasks(real_audio)
    assert [path.name.split("-")[0] for path in found] == sorted([*SCENES, "gunshot_onset"])
    assert find_tasks(found[0]) == [found[0]]
    assert find_tasks(found[0] / "16000") == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_tasks(real_audio / "nowhere")


# --- refusing


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_task(made_task(), tmp_path / "made-v1")


def change_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_metadata_faults_name_file_and_field(folder):
    path = folder / "task_metadata.json"
    change_json(path, lambda m: m.update(split_mode="bySpeaker"))
    with pytest.raises(TaskError, match=r"task_metadata\.json: field split_mode: .* got 'bySpeaker'"):
        read_task(folder)
    change_json(path, lambda m: (m.pop("prediction_type"), m.update(split_mode="trainvaltest")))
    with pytest.raises(TaskError, match="field prediction_type: Field required"):
        read_task(folder)
    path.write_text("{")
    with pytest.raises(TaskError, match=r"task_metadata\.json: not JSON"):
        read_task(folder)
    path.unlink()
    with pytest.raises(TaskError, match=r"task_metadata\.json: missing"):
        read_task(folder)


@pytest.mark.parametrize(
    "metadata, fault",
    [
        ({"splits": ["fold00", "fold01"], "nfolds": 2}, "three or more"),
        ({"splits": ["fold00", "fold01", "fold01"]}, "different folds"),
        ({"splits": ["fold00", "fold01", "fold02"], "nfolds": 5}, "nfolds is 5"),
    ],
)
def test_fold_lists_must_make_sense(folder, metadata, fault):
    change_json(folder / "task_metadata.json", lambda m: m.update(split_mode="presplit_kfold", **metadata))
    with pytest.raises(TaskError, match=fault):
        read_task(folder)


def test_vocabulary_faults(folder):
    path = folder / "labelvocabulary.csv"
    for text in ("number,name\n0,a\n", "idx,label\n0,a\n2,b\n", "idx,label\n0,a\n1,a\n", "idx,label\n"):
        path.write_text(text)
        with pytest.raises(TaskError, match=r"labelvocabulary\.csv"):
            read_task(folder)
    path.write_text("idx,label\n0,a\n1,b\n")
    with pytest.raises(TaskError, match=r"train\.json: clip 'made-train-00002\.flac' has label 'c'"):
        read_task(folder)


def test_split_faults(folder):
    path = folder / "train.json"
    whole = path.read_text()
    one = "should have one label"
    for value, fault in [(["a", "b"], one), ([], one), ("a", "should have a list of labels")]:
        change_json(path, lambda entries, value=value: entries.update({"made-train-00000.flac": value}))
        with pytest.raises(TaskError, match=rf"train\.json: clip 'made-train-00000\.flac' {fault}"):
            read_task(folder)
    path.write_text("[]")
    with pytest.raises(TaskError, match=r"train\.json: should hold a JSON object"):
        read_task(folder)
    path.unlink()
    with pytest.raises(TaskError, match=r"train\.json: missing"):
        read_task(folder)
    path.write_text(whole)
    (folder / "16000" / "train" / "made-train-00003.flac").unlink()
    with pytest.raises(TaskError, match=r"train\.json: 1 of 6 audio files are missing, first .*made-train-00003\.flac"):
        read_task(folder)


def test_a_clip_in_two_splits_is_a_leak(folder):
    shutil.copy(
        folder / "16000" / "train" / "made-train-00000.flac", folder / "16000" / "test" / "made-train-00000.flac"
    )
    change_json(folder / "test.json", lambda entries: entries.update({"made-train-00000.flac": ["a"]}))
    with pytest.raises(TaskError, match=r"'made-train-00000' is in train\.json and in test\.json"):
        read_task(folder)


@pytest.mark.parametrize("event", [{"label": "a", "start": 5}, {"label": "a", "start": 9, "end": 5}, "a"])
def test_event_faults(tmp_path, event):
    folder = write_task(made_task("multilabel", "event"), tmp_path / "made")
    change_json(folder / "valid.json", lambda entries: entries.update({"made-valid-00000.flac": [event]}))
    with pytest.raises(TaskError, match=r"valid\.json: clip 'made-valid-00000\.flac'"):
        read_task(folder)


def test_a_broken_clip_stops_the_reading_of_a_task(folder):
    (folder / "16000" / "test" / "made-test-00001.flac").write_text("no sound")
    task = read_task(folder)
    with pytest.raises(AudioError, match="made-test-00001"):
        list(task.waveforms("test"))


def test_other_sample_rates_are_resampled_from_the_highest(folder):
    for rate in (8000, 48000):
        for path in folder.glob("16000/*/*.flac"):
            other = folder / str(rate) / path.parent.name / path.name
            other.parent.mkdir(parents=True, exist_ok=True)
            sf.write(other, np.full(rate // 10, rate / 100_000), rate)
    shutil.rmtree(folder / "16000")
    block = next(read_task(folder).waveforms("train"))
    assert block.shape == (6, 1600) and float(block[0, 800]) == pytest.approx(0.48, abs=0.01)
    shutil.rmtree(folder / "48000")
    shutil.rmtree(folder / "8000")
    with pytest.raises(TaskError, match="named by its sample rate"):
        read_task(folder)


# --- leakage


@pytest.mark.real_audio
def test_no_recording_of_a_test_fold_is_among_the_training_files(real_audio):
    allowed = {path.stem for path in training_files(real_audio)}
    tasks = [read_task(folder) for folder in find_tasks(real_audio)]
    for task in tasks:
        (fold,) = task.held_out().folds
        tested = {name for split in fold.test for name in task.splits[split].names}
        assert tested and not tested & allowed
    instrument, pitch = (next(t for t in tasks if t.name == name) for name in ("notes_instrument", "notes_pitchclass"))
    trained = {name for split in pitch.held_out().folds[0].train for name in pitch.splits[split].names}
    assert trained & set(instrument.splits["fold04"].names)  # without the rule one note task would leak the other's


@pytest.mark.real_audio
def test_training_files_of_one_task_and_of_scored_others(real_audio, tmp_path):
    digits = folder_of(real_audio, "fsdd_digit")
    assert len(training_files(digits)) == len(read_task(digits).splits["train"])
    pitch, instrument = (folder_of(real_audio, name) for name in ("notes_pitchclass", "notes_instrument"))
    alone, beside = training_files(pitch), training_files(pitch, scored=[instrument])
    assert set(beside) < set(alone) and len({path.parent.name for path in alone}) == 3
    manifest = scan(pitch, beside[:5], cache_dir=tmp_path, progress=False)
    assert len(manifest.files) == 5


def test_held_out_keeps_only_the_last_fold():
    splits = {f"fold{k}": Split(f"fold{k}", np.zeros(1, np.int64), lambda: iter(())) for k in range(4)}
    task = Task("t", "v1", "scene", "multiclass", ("a",), splits, kfold(splits))
    assert task.held_out().folds == (Fold(("fold1", "fold2"), ("fold0",), ("fold3",)),)
    assert made_task().held_out().folds == TRAIN_VALID_TEST


def test_training_files_refuses_what_is_no_task(tmp_path):
    with pytest.raises(TaskError, match="no HEAR task here"):
        training_files(tmp_path)


# --- writing


@pytest.mark.parametrize(
    "prediction, kind", [("multiclass", "scene"), ("multilabel", "scene"), ("multilabel", "event")]
)
def test_a_written_task_reads_back_the_same(tmp_path, prediction, kind):
    task = made_task(prediction, kind)
    back = read_task(write_task(task, tmp_path / "made"))
    for field in ("name", "version", "kind", "prediction", "vocabulary", "folds"):
        assert getattr(back, field) == getattr(task, field)
    assert back.clip_s == 0.1
    for name, split in task.splits.items():
        assert (
            (back.splits[name].labels == split.labels)
            if kind == "event"
            else (back.splits[name].labels == split.labels).all()
        )
        old, new = (torch.cat(list(t.waveforms(name))) for t in (task, back))
        torch.testing.assert_close(new, old, rtol=0, atol=0.5 / 2**15)
    assert json.loads((tmp_path / "made" / "task_metadata.json").read_text())["split_mode"] == "trainvaltest"


@pytest.mark.real_audio
def test_a_real_task_is_written_bit_for_bit(real_audio, tmp_path):
    task = read_task(folder_of(real_audio, "notes_pitchclass"))
    back = read_task(write_task(task, tmp_path / "copy"))
    assert back.folds == task.folds and back.clip_s == task.clip_s
    for name, split in task.splits.items():
        assert back.splits[name].names == split.names
        np.testing.assert_array_equal(back.splits[name].labels, split.labels)
        for old, new in zip(split.clips(), back.splits[name].clips(), strict=True):
            assert torch.equal(old, new)


def test_full_scale_survives_writing(tmp_path):
    wave = torch.tensor([-1.0, 1.0, 0.0] * 500)
    split = {name: Split(name, np.zeros(1, np.int64), lambda: iter([wave])) for name in ("train", "valid", "test")}
    write_task(Task("t", "v1", "scene", "multiclass", ("a",), split, TRAIN_VALID_TEST), tmp_path / "t")
    torch.testing.assert_close(
        read_audio(tmp_path / "t" / "16000" / "train" / "t-train-00000.flac"), wave, rtol=0, atol=4e-5
    )


def test_what_cannot_be_written(folder):
    with pytest.raises(FileExistsError, match="already holds a task"):
        write_task(made_task(), folder)
    splits = {f"fold{k}": Split(f"fold{k}", np.zeros(1, np.int64), lambda: iter(())) for k in range(4)}
    part = Task("t", "v1", "scene", "multiclass", ("a",), splits, kfold(splits)).held_out()
    with pytest.raises(ValueError, match="neither train/valid/test nor a whole k-fold"):
        write_task(part, folder.parent / "part")
