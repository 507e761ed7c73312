"""`rankscale place`: an encoder's rank and quality beside the records', and what may be compared."""

import json

import numpy as np
import pytest
import soundfile
import torch
from browser import find_chromium, open_browser
from click.testing import CliRunner

from rankscale import records
from rankscale.cli import main
from rankscale.config import RunConfig, profile
from rankscale.embed import embed_synth, load_embedder
from rankscale.experiment import Places, run
from rankscale.place import Placement, place, score_encoder, score_matrices
from rankscale.report import rank_report
from rankscale.sound.synthetic_tasks import synthetic_task

TASKS = ("synth:rhythm", "synth:tempo")
MODULE = """
import torch
class Model: sample_rate = 22050; scene_embedding_size = 6
def load_model(path=""): return Model()
def get_scene_embeddings(audio, model):
    print("models like to print")
    return torch.stack([part.square().mean(dim=1).add(1e-6).log() for part in audio.tensor_split(6, dim=1)], dim=1)

class Bands(torch.nn.Module):
    sampling_rate = 16000
    def forward(self, audio):
        return torch.fft.rfft(audio[:, :audio.shape[1] // 512 * 512].unflatten(1, (-1, 512))).abs()[..., 1:129:8]
"""


@pytest.fixture(scope="module")
def config():
    return profile("smoke", tasks=TASKS, task_clips=40, rank_clips=128)


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """One small run and its untrained encoder: their places."""
    places = Places(tmp_path_factory.mktemp("runs"))
    run(config, places, device="cpu", progress=False)
    return places


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path / "mine.py"


def command(*args):
    return CliRunner().invoke(main, ["place", *map(str, args)])


def placed(result):
    assert result.exit_code == 0, result.output
    return Placement.model_validate_json(result.stdout)


# --- one of our own ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_record_lands_on_that_record(made, config, tmp_path):
    record = records.read_record(records.record_path(made.records, config))
    result = command(
        "--encoder", made.encoder(config), "--audio", "synth", "--synth-clips", 128, "--tasks", *TASKS,
        "--task-clips", 40, "--records", made.records, "--cache", made.cache, "--out", tmp_path / "p.html", "--json",
    )  # fmt: skip
    found = placed(result)
    assert found.rank["rankme"].value == pytest.approx(record.rank.rankme, rel=1e-3)  # records hold float16 log-Mel
    assert found.rankme[0] == pytest.approx(record.rank.rankme_corrected, rel=1e-3)
    for probe, suites in record.quality.items():
        assert found.quality[probe] == pytest.approx(suites, abs=1e-6)
    assert found.floors == {name: record.floor_quality[name] for name in ("logmel_mean", "logmel_meanstd")}
    assert found.remarks == () and [n.steps for n in found.neighbours].count(0) == 1
    twin = next(n for n in found.neighbours if n.hash == record.hash)
    assert twin.quality == record.quality and twin.rankme == record.rank.rankme_corrected
    assert "p.html" in result.stderr


def some_rank(n=60, dim=8):
    return rank_report(np.random.default_rng(0).normal(size=(n, dim)), "mine")


def test_records_are_compared_on_my_tasks_only(made, config):
    mine = config.replace(tasks=("synth:rhythm",))
    published = records.read_records(made.records)
    score = {"score": 0.5, "top1_acc": 0.6}
    scores = {probe: {"rhythm": score} for probe in ("linear", "knn", "linear_rp32", "mlp")}
    found = place(some_rank(), scores, mine, published, made.cache, progress=False)
    for record, neighbour in zip(published, found.neighbours, strict=True):
        assert neighbour.quality["linear"] == {"synthetic": record.scores["linear"]["rhythm"]["score"]}
    table = found.table()
    assert set(table["suite"]) == {"synthetic"} and (table["records"] == 2).all() and (table["q"] == 0.5).all()
    expected = sum(record.scores["knn"]["rhythm"]["score"] < 0.5 for record in published)
    assert table.set_index("probe").loc["knn", "above"] == expected
    assert f"{expected} of 2" in found.text()


@pytest.mark.parametrize("change", [{"task_clips": 60}, {"tasks": ("synth:contour",)}])
def test_other_tasks_or_sizes_are_not_compared(change, made, config, monkeypatch):
    mine = config.replace(tasks=("synth:rhythm",)).replace(**change)
    task = mine.tasks[0].partition(":")[2]
    scores = {"linear": {task: {"score": 0.1}}}
    monkeypatch.setattr("rankscale.place.load_suites", lambda *_: [])
    monkeypatch.setattr("rankscale.place.score_all", lambda *_: {"linear": {task: {"score": 0.2}}})  # floors, measured
    found = place(some_rank(), scores, mine, records.read_records(made.records), made.cache, progress=False)
    assert found.neighbours == () and found.floors["logmel_mean"] == {"linear": {"synthetic": 0.2}}
    assert f"no published record was scored on these synthetic tasks ({task})" in found.text()
    assert found.chart().to_json()


def test_without_tasks_rank_alone_is_placed(made, config):
    published = records.read_records(made.records)
    found = place(some_rank(), {}, config.replace(corpus="my clips"), published, made.cache, progress=False)
    assert found.quality == {} and len(found.neighbours) == 2
    assert [n.quality for n in found.neighbours] == [record.quality for record in published]
    assert "nothing was probed" in found.remarks[0]
    assert "RankMe was measured on my clips, that of 2 of the 2 records shown on other clips" in found.remarks[1]
    marks = [layer["mark"]["type"] for layer in found.chart().to_dict()["layer"]]
    assert marks == ["point", "point", "rect", "rule"]


def test_without_records_there_is_nothing_beside(config, tmp_path):
    found = place(some_rank(), {}, config, [], tmp_path, progress=False)
    assert found.remarks[0].startswith("no published record was found") and found.chart().to_json()


# --- anybody's --------------------------------------------------------------------------------------------


def test_a_hear_module_is_placed_on_real_recordings(real_audio, module, made, tmp_path):
    folder = next(path for path in sorted(real_audio.iterdir()) if path.name.startswith("notes_pitchclass"))
    result = command(
        "--encoder", module, "--audio", folder, "--clip-s", 0.5, "--tasks", folder, "--records", made.records,
        "--cache", tmp_path, "--out", tmp_path / "p.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "lower sample rate than the encoder's 22050 Hz" in words and "K = 6 dimensions" in words
    assert "no published record was scored on these real tasks (notes_pitchclass)" in words
    assert "models like to print" in result.stderr
    page = (tmp_path / "p.html").read_text()
    assert "mine.py on notes_pitchclass" in page and str(tmp_path) not in page


def test_a_torch_module_is_scored_from_waveforms(module, config, tmp_path):
    embedder = load_embedder(f"{module}:Bands", pool="meanstd")
    scores = score_encoder(embedder, config.replace(tasks=("synth:rhythm",)), tmp_path, progress=False)
    task = synthetic_task("rhythm", 40)
    z = {split: torch.cat([embedder.embed(w) for w in task.waveforms(split)]).numpy() for split in task.splits}
    for split, rows in z.items():
        (tmp_path / "z" / "rhythm").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "z" / "rhythm" / f"{split}.npy", rows)
    again = score_matrices(tmp_path / "z", config.replace(tasks=("synth:rhythm",)), tmp_path / "fresh", progress=False)
    for probe, tasks in scores.items():
        assert again[probe]["rhythm"] == pytest.approx(tasks["rhythm"]), probe


def test_broken_files_are_left_out_with_a_message(module, made, tmp_path):
    folder, rng = tmp_path / "sounds", np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        soundfile.write(folder / f"{i:02}.wav", 0.1 * rng.normal(size=8000), 16_000)
    (folder / "text.wav").write_text("no sound")
    found = placed(command(
        "--encoder", f"{module}:Bands", "--audio", folder, "--clip-s", 0.5, "--records", made.records,
        "--cache", tmp_path, "--out", tmp_path / "p.html", "--json",
    ))  # fmt: skip
    assert found.rank.n_clip == 24 and found.rank.dim == 16
    assert any("1 of 25 files gave no clips: text.wav: not an audio file" in w for w in found.rank.warnings)


def test_embeddings_in_files_are_ranked_and_probed(made, config, tmp_path):
    z = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    task = synthetic_task("tempo", 40)
    (tmp_path / "f" / "tempo").mkdir(parents=True)
    for split, part in task.splits.items():
        labels = np.eye(len(task.vocabulary), dtype=np.float32)[part.labels]
        np.save(tmp_path / "f" / "tempo" / f"{split}.npy", labels)
    args = ["--encoder", tmp_path / "z.npy", "--tasks", "synth:tempo", "--task-clips", 40, "--features", tmp_path / "f",
            "--records", made.records, "--cache", tmp_path / "c", "--out", tmp_path / "p.html", "--json"]  # fmt: skip
    found = placed(command(*args))
    assert found.rank["rankme"].value == pytest.approx(rank_report(z)["rankme"].value)
    assert found.quality["linear"] == {"synthetic": 1.0} and len(found.neighbours) == 2
    np.save(tmp_path / "f" / "tempo" / "test.npy", labels[:7])
    assert "task tempo, split 'test': features of shape (7, " in command(*args).stderr
    (tmp_path / "f" / "tempo" / "test.npy").unlink()
    assert "test.npy: no such file" in command(*args).stderr


def test_synthetic_clips_are_resampled_for_those_who_hear_more(module):
    found = embed_synth(load_embedder(module), 20, progress=False)
    assert found.z.shape == (20, 6) and len(set(found.files)) == 20
    assert "no frequencies above 8000 Hz; the encoder listens at 22050 Hz" in found.remarks[0]
    exact = embed_synth(load_embedder(f"{module}:Bands"), 20, progress=False)
    assert exact.remarks == () and np.isfinite(exact.z).all()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--encoder", "e.pt"], "an encoder needs --audio"),
        (["--encoder", "e.pt", "--audio", "synth", "--features", "f"], "and no --features"),
        (["--encoder", "z.npy", "--audio", "synth"], "hears nothing"),
        (["--encoder", "z.npy", "--tasks", "synth"], "--tasks and --features together"),
        (["--encoder", "none.npy"], "none.npy: no such file"),
        (["--encoder", "none.pt", "--audio", "synth"], "none.pt: no such checkpoint"),
        (["--encoder", "e.pt", "--audio", "synth", "--task-clips", "3"], "task_clips: Input should be greater"),
        (["--encoder", "e.pt", "--audio", "synth", "--records", "none"], "does not exist"),
    ],
)
def test_wrong_calls_end_in_one_plain_message(args, words):
    result = command(*args)
    assert result.exit_code != 0 and words in " ".join(result.stderr.split())
    assert result.stdout == "" and "Traceback" not in result.output


@pytest.mark.parametrize("probed", [True, False])
def test_the_page_draws_offline(probed, made, config, tmp_path):
    if not find_chromium():
        pytest.skip("Chromium was not found")
    published = records.read_records(made.records)
    scores = published[0].scores if probed else {}
    found = place(some_rank(), scores, config, published, made.cache, progress=False)
    found.save_page(tmp_path / "p.html")
    with open_browser(tmp_path / "chromium") as browser:
        visit = browser.visit((tmp_path / "p.html").as_uri(), width=390)
        assert (visit.outside, visit.errors) == ([], [])
        assert browser.evaluate("document.querySelectorAll('#chart svg path').length") > 4
        assert browser.evaluate("document.querySelectorAll('#chart select option').length") == 4
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_json_comes_back(made, config):
    found = place(some_rank(), {}, config, records.read_records(made.records), made.cache, progress=False)
    assert Placement.model_validate_json(found.to_json()) == found
    assert json.loads(found.to_json())["rank"]["source"] == "mine"
    assert RunConfig(tasks="synth").tasks == ("synth",)
