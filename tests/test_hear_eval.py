"""`rankscale evaluate`: tasks, folds, leaks, cached embeddings, one tiny event task end to end, and the command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rankscale import hear, hear_eval, mae
from rankscale.cli import main
from rankscale.embed import Embedder, load_embedder
from rankscale.hear_eval import Encoder, Recipe, Settings, check_task, embed_task, evaluate, load_encoder, score_task
from rankscale.mel import LogMel, mel_stats
from rankscale.sound.tasks import TRAIN_VALID_TEST, Event, Split, Task, kfold, read_task, write_task

QUICK = Settings(Recipe(points=2, hidden_dim=16, max_epochs=30, patience=3))
MODULE = """
import torch
class Model: sample_rate = 8000; scene_embedding_size = timestamp_embedding_size = 3
def load_model(path=""): return Model()
def get_scene_embeddings(audio, model): return audio[:, :3] * SCALE
def get_timestamp_embeddings(audio, model):
    return audio[:, :30].reshape(len(audio), 10, 3), torch.arange(10.0).expand(len(audio), 10) * STEP
"""


def tone(name, k, seconds=0.2):
    """A pure tone of class k in noise; the name seeds phase and noise."""
    rng = np.random.default_rng(sum(map(ord, name)))
    t = np.arange(round(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * (300 * 2**k * t + rng.random())) + 0.05 * rng.standard_normal(len(t))
    return torch.tensor(wave, dtype=torch.float32)


def tones(folds=("fold00", "fold01", "fold02"), n=12, **changes):
    splits = {}
    for fold in folds:
        names = tuple(f"{fold}-{i}" for i in range(n))
        splits[fold] = Split(
            fold, np.arange(n) % 3, lambda names=names: (tone(x, i % 3) for i, x in enumerate(names)), names
        )
    task = Task("tones", "v1", "scene", "multiclass", ("low", "middle", "high"), splits, kfold(folds), 0.2)
    return replace(task, **changes)


def bursts(sizes=(("train", 8), ("valid", 4), ("test", 6))):
    """Silence with one or two bursts of 300 ms a clip of 2 s."""

    def events(i):
        starts = [200.0 + 40 * (i % 5), 1200.0 + 40 * (i % 7)][: 1 + i % 2]
        return [Event("burst", start, start + 300) for start in starts]

    def wave(i, seed):
        clip = 0.001 * np.random.default_rng(seed).standard_normal(32_000)
        for _, start, end in events(i):
            part = slice(round(16 * start), round(16 * end))
            clip[part] *= 300
        return torch.tensor(clip, dtype=torch.float32)

    splits, offset = {}, 0
    for name, n in sizes:
        rows = range(offset, offset + n)
        splits[name] = Split(name, tuple(map(events, rows)), lambda rows=rows: (wave(i, i) for i in rows))
        offset += n
    task = Task("bursts", "v1", "event", "multilabel", ("burst",), splits, TRAIN_VALID_TEST, 2.0)
    return replace(task, post_processing=((0, 0), (0, 120)))


class Listener:
    """Level in 20 bands of a clip, or of frames of 40 ms; counts how many clips it heard."""

    def __init__(self, name="bands", frames=True):
        self.heard = 0
        embedder = Embedder(name, 16_000, "the model's own", self.embed, frames=self.frames if frames else None)
        self.encoder = Encoder(embedder, name)

    def embed(self, waveform):
        self.heard += len(waveform)
        power = torch.fft.rfft(waveform).abs().square()
        return torch.stack([p.mean(dim=1) for p in power.tensor_split(20, dim=1)], dim=1).log10()

    def frames(self, waveform):
        parts = waveform.unflatten(1, (-1, 640))
        self.heard += len(waveform)
        z = self.embed(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
        return z, (torch.arange(parts.shape[1]) * 40 + 20.0).expand(len(z), -1)


def scored(task, tmp_path, encoder=None, settings=QUICK):
    found = evaluate(encoder or Listener().encoder, [check_task(task)], tmp_path, settings, progress=False)
    return found, found.tasks[0]


# --- whole evaluations ------------------------------------------------------------------------------------


def test_a_scene_task_is_scored_on_every_fold_by_every_probe(tmp_path):
    settings = Settings(Recipe(points=3, hidden_dim=64, max_epochs=90))
    found, score = scored(tones(), tmp_path, settings=settings)
    assert list(score.probes) == ["hear", "linear", "knn"] and score.metric == "top1_acc"
    assert (score.clips, score.chance, score.suite) == (36, 1 / 3, "real")
    for probe, of in score.probes.items():
        assert of.value > 0.75 and of.low <= of.value <= of.high, probe
        assert of.value == pytest.approx(np.mean([fold["top1_acc"] for fold in of.folds])) and len(of.folds) == 3
        assert set(of.metrics) == {"top1_acc", "mAP", "d_prime", "aucroc"}
        assert found.quality[probe]["real"] == pytest.approx((of.value - 1 / 3) / (2 / 3))
    assert len(score.probes["hear"].chosen.epochs) == 3 and score.probes["knn"].chosen is None
    again = hear_eval.Evaluation.model_validate_json(found.model_dump_json())
    assert again == found


def test_an_event_task_is_scored_from_frames(tmp_path):
    settings = Settings(Recipe(points=8, hidden_dim=16, max_epochs=60))
    found, score = scored(bursts(), tmp_path, settings=settings)
    assert list(score.probes) == ["hear"] and score.metric == "event_onset_200ms_fms"
    metrics = score.probes["hear"].metrics
    assert metrics["event_onset_200ms_fms"] > 0.95 and metrics["event_onset_50ms_fms"] > 0.95
    assert metrics["segment_1s_er"] < 0.1 and score.chance == 0
    assert score.probes["hear"].chosen.post_processing[0] in ((0, 0), (0, 120))
    assert found.quality == {} and score.clips == 6


def test_the_same_evaluation_gives_the_same_numbers(tmp_path):
    one, two = (scored(tones(), tmp_path / str(k))[0] for k in range(2))
    assert one.model_dump(exclude={"seconds"}) == two.model_dump(exclude={"seconds"})
    other, _ = scored(tones(), tmp_path, settings=replace(QUICK, seed=1))
    assert other.tasks != one.tasks


def test_the_grid_is_searched_on_the_first_fold_only(tmp_path):
    checked, ticks = check_task(tones()), []
    embedded = embed_task(Listener().encoder, checked.task, checked.hashes, tmp_path, progress=False)
    score_task(checked, embedded, QUICK, lambda: ticks.append(1))
    assert len(ticks) == hear_eval.fits_of(checked.task, QUICK.recipe) == 2 + 2 + 6


def test_probes_never_see_the_test_fold(tmp_path):
    """Features of the last fold tell its labels and nothing elsewhere: where it is tested, nothing can be told."""
    checked, rng = check_task(tones(n=60)), np.random.default_rng(0)
    noise = {split: hear_eval.Embedded(rng.normal(size=(60, 4)).astype(np.float32)) for split in checked.hashes}
    noise["fold02"].z[:] = np.eye(4)[np.arange(60) % 3] * 5
    held_out = replace(checked, task=checked.task.held_out())
    assert [fold.test for fold in held_out.task.folds] == [("fold02",)]
    for probe in score_task(held_out, noise, QUICK).probes.values():
        assert probe.value < 0.75


def test_only_event_tasks_need_frames(tmp_path):
    tasks = [check_task(tones()), check_task(bursts())]
    found = evaluate(Listener(frames=False).encoder, tasks, tmp_path, QUICK, progress=False)
    assert [score.task for score in found.tasks] == ["tones"]
    assert found.remarks == ("bursts: left out, as bands gives no frames with timestamps",)
    with pytest.raises(ValueError, match=r"bands: gives no frames.*bursts"):
        embed_task(Listener(frames=False).encoder, tasks[1].task, tasks[1].hashes, tmp_path)


# --- tasks ------------------------------------------------------------------------------------------------


def test_a_sound_in_two_splits_is_a_leak():
    task = tones()
    again = task.splits["fold02"]
    copied = [*list(again.clips())[:-1], next(task.splits["fold00"].clips())]
    leaky = replace(task, splits=task.splits | {"fold02": replace(again, clips=lambda: iter(copied))})
    with pytest.raises(ValueError, match=r"tones: 1 clips.*fold00/fold00-0 and fold02/fold02-11 have the same sound"):
        check_task(leaky)
    assert check_task(leaky, allow_leaks=True).remark.startswith("tones: 1 clips are in two splits")
    assert check_task(task).remark is None


def test_a_name_in_two_splits_is_a_leak():
    task = tones()
    named = replace(task.splits["fold01"], names=("fold00-3", *task.splits["fold01"].names[1:]))
    with pytest.raises(ValueError, match="fold00/fold00-3 and fold01/fold00-3 have the same name"):
        check_task(replace(task, splits=task.splits | {"fold01": named}))


def test_real_tasks_share_no_clip_between_splits(real_audio):
    for name in ("notes_pitchclass", "gunshot_onset"):
        (folder,) = real_audio.glob(f"{name}-*")
        assert check_task(read_task(folder)).remark is None


def test_what_the_protocol_has_no_probe_for_is_refused(tmp_path):
    silent = bursts()
    silent = replace(silent, splits=silent.splits | {"test": replace(silent.splits["test"], labels=([],) * 6)})
    with pytest.raises(ValueError, match="bursts: no event in test"):
        scored(silent, tmp_path)
    with pytest.raises(ValueError, match="events are probed as multilabel, its prediction_type is multiclass"):
        check_task(replace(bursts(), prediction="multiclass"))
    with pytest.raises(ValueError, match=f"{tmp_path.name}: no HEAR task in this folder"):
        hear_eval.read_tasks([tmp_path], progress=False)
    with pytest.raises(ValueError, match="two tasks are called 'rhythm'"):
        hear_eval.read_tasks(["synth:rhythm", "synth:rhythm"], 20, progress=False)


def test_what_the_authors_report_survives_in_the_folder(tmp_path):
    task = replace(bursts(), evaluation=("segment_1s_er", "event_onset_50ms_fms"))
    back = read_task(write_task(task, tmp_path / "bursts"))
    assert (back.evaluation, back.post_processing) == (task.evaluation, task.post_processing)
    assert hear_eval.metrics_of(back)[:2] == task.evaluation


# --- embeddings -------------------------------------------------------------------------------------------


def embedded(listener, task, cache):
    checked = check_task(task)
    return embed_task(listener.encoder, task, checked.hashes, cache, progress=False)


@pytest.mark.parametrize("task", [tones(), bursts()], ids=["scene", "event"])
def test_embeddings_are_made_once_and_again_when_broken(task, tmp_path):
    listener = Listener()
    first = embedded(listener, task, tmp_path)
    heard = listener.heard
    assert heard and list(tmp_path.rglob("*.tmp")) == []

    def same_again():
        again = embedded(listener, task, tmp_path)
        return all(
            (vars(first[split])[name] == array).all() if array is not None else vars(first[split])[name] is None
            for split in first
            for name, array in vars(again[split]).items()
        )

    assert same_again() and listener.heard == heard
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    whole = files[0].read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], b"none of this"):
        files[0].write_bytes(broken)
        before = listener.heard
        assert same_again() and listener.heard > before
        assert files[0].read_bytes() == whole


def test_other_encoders_and_other_sounds_are_embedded_anew(tmp_path):
    listener, other = Listener(), Listener("others")
    embedded(listener, tones(), tmp_path)
    embedded(other, tones(), tmp_path)
    assert other.heard == listener.heard == 36
    louder = tones()
    split = louder.splits["fold01"]
    changed = replace(split, clips=lambda: (clip * 0.5 for clip in split.clips()))
    embedded(listener, replace(louder, splits=louder.splits | {"fold01": changed}), tmp_path)
    assert listener.heard == 48


def test_a_clip_that_gives_nan_is_named(tmp_path):
    task = bursts()
    clips = list(task.splits["valid"].clips())
    clips[2] = clips[2] * 0  # whose level in dB is no number
    bad = replace(task.splits["valid"], clips=lambda: iter(clips))
    with pytest.raises(ValueError, match="bands: gives NaN or infinity for clip 2 of task bursts, split valid"):
        embedded(Listener(), replace(task, splits=task.splits | {"valid": bad}), tmp_path)


def test_digests_tell_encoders_apart(tmp_path):
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = mae.Encoder(width=32, depth=1)
        encoder.set_input_stats(mel_stats([LogMel()(torch.rand(2, 8000) - 0.5)]))
        paths.append(mae.save_encoder(encoder, tmp_path / f"{seed}.pt") or tmp_path / f"{seed}.pt")
    module = tmp_path / "theirs.py"
    module.write_text(MODULE.replace("SCALE", "1").replace("STEP", "40"))
    specs = [*paths, module, "logmel_mean", "logmel_meanstd"]
    digests = [load_encoder(spec).digest for spec in specs]
    assert len(set(digests)) == 5
    assert [load_encoder(spec).digest for spec in specs] == digests
    module.write_text(module.read_text() + "# another version\n")
    assert load_encoder(module).digest != digests[2]


def test_frames_of_checkpoints_and_modules_are_those_of_hear(tmp_path):
    torch.manual_seed(0)
    mae.save_encoder(mae.Encoder(width=32, depth=1), tmp_path / "toy.pt")
    waveform = torch.rand(2, 16_000) - 0.5
    found = load_embedder(tmp_path / "toy.pt").hear_frames(waveform)
    expected = hear.get_timestamp_embeddings(waveform, hear.load_model(tmp_path / "toy.pt"))
    torch.testing.assert_close(found, expected)

    (tmp_path / "theirs.py").write_text(MODULE.replace("SCALE", "1").replace("STEP", "40"))
    z, at_ms = load_embedder(tmp_path / "theirs.py").hear_frames(waveform)
    assert z.shape == (2, 10, 3) and at_ms[1].tolist() == [40.0 * k for k in range(10)]
    (tmp_path / "back.py").write_text(MODULE.replace("SCALE", "1").replace("STEP", "-40"))
    with pytest.raises(ValueError, match=r"get_timestamp_embeddings gave.*in ms, ascending"):
        load_embedder(tmp_path / "back.py").hear_frames(waveform)


def test_frames_of_the_floor_are_the_log_mel_of_40_ms():
    waveform = torch.rand(2, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    mel = LogMel()(waveform)
    mean, at_ms = load_encoder("logmel_mean").embedder.hear_frames(waveform)
    both, _ = load_encoder("logmel_meanstd").embedder.hear_frames(waveform)
    torch.testing.assert_close(mean[:, 3], mel[..., 12:16].mean(dim=2))
    torch.testing.assert_close(both[:, 3], torch.cat([mean[:, 3], mel[..., 12:16].std(dim=2, correction=0)], dim=1))
    assert mean.shape == (2, 25, 64) and at_ms[0, :2].tolist() == [15, 55]
    assert load_encoder("logmel_mean").embedder.hear_frames(waveform[:, :100])[0].shape == (2, 1, 64)


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hear_eval, "Recipe", lambda points: QUICK.recipe.model_copy(update={"points": points}))
    write_task(tones(), tmp_path / "tasks" / "tones-v1-full")
    return tmp_path / "tasks"


def command(*args):
    return CliRunner().invoke(main, ["evaluate", *map(str, args)])


def test_the_command_prints_a_table_and_json(folder, tmp_path):
    args = ("--encoder", "logmel_mean", "logmel_meanstd", "--tasks", folder, "--grid-points", 1, "--cache", tmp_path)
    result = command(*args)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["task", "metric", "encoder"] and max(map(len, lines)) <= 140
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["tones", "top1_acc", f"logmel_{k}"] for k in ("mean", "meanstd")
    ]
    result = command(*args, "--json")
    kept = tmp_path / "kept.json"
    kept.write_text(result.stdout)
    found = hear_eval.read_evaluations(kept)
    assert [each.encoder for each in found] == ["logmel_mean", "logmel_meanstd"]
    assert f"{found[0].tasks[0].probes['hear'].value:.3f} [" in lines[1]
    rows = hear_eval.table(found)
    assert list(rows.probe) == ["hear", "linear", "knn"] * 2 and (rows.low <= rows.value).all()
    assert str(Path(tmp_path)) not in result.stdout


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "other.json"
    missing = r"other\.json: .*0\.digest: Field required"
    for text, words in (('[{"encoder": "x"}]', missing), ("[", "the whole: Invalid")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            hear_eval.read_evaluations(path)


def test_folders_are_read_whole_or_by_the_fold_that_no_corpus_holds(folder):
    (all_folds,) = hear_eval.read_tasks([folder], progress=False)
    (unseen,) = hear_eval.read_tasks([folder], unseen=True, progress=False)
    assert [fold.test for fold in all_folds.task.folds] == [("fold00",), ("fold01",), ("fold02",)]
    assert [fold.test for fold in unseen.task.folds] == [("fold02",)]
    assert set(unseen.hashes) == {"fold00", "fold01", "fold02"} and unseen.suite == "real"


def test_the_command_explains_bad_input(folder, tmp_path):
    assert "no such checkpoint or Python module" in command("--encoder", "none.pt", "--tasks", folder).stderr
    assert "no such folder" in command("--encoder", "logmel_mean", "--tasks", tmp_path / "none").stderr
    (path,) = folder.glob("*/task_metadata.json")
    path.write_text(path.read_text().replace("top1_acc", "top2_acc"))
    result = command("--encoder", "logmel_mean", "--tasks", folder)
    assert result.exit_code == 1 and "metric 'top2_acc' is unknown" in result.stderr
