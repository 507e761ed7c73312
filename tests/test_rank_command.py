"""`rankscale rank`: the report's numbers and words, the command's output, and a plot that draws offline."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from browser import find_chromium, open_browser
from click.testing import CliRunner

from rankscale import charts, spectra
from rankscale.cli import main
from rankscale.mae import Encoder, save_encoder
from rankscale.report import RankReport, rank_report
from rankscale.terminal import TEXT_WIDTH

MODULE = """
import torch
class Model: sample_rate = 22050; scene_embedding_size = 4
def load_model(path=""): return Model()
def get_scene_embeddings(audio, model):
    print("models like to print")
    return torch.stack([part.square().mean(dim=1) for part in audio.tensor_split(4, dim=1)], dim=1)
"""


def gaussian(n_clip=600, dim=40, decay=0.5, offset=0.0, seed=0):
    """Embeddings with a known population spectrum: singular values fall as rank^-decay."""
    scale = np.arange(1, dim + 1.0) ** -decay
    return np.random.default_rng(seed).normal(size=(n_clip, dim)) * scale + offset * np.eye(dim)[-1]


def warned(report, words):
    return [warning for warning in report.warnings if re.search(words, warning)]


# --- the report -------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_spectra_room():
    z = gaussian(offset=0.5)
    report = rank_report(z)
    assert report["rankme"].value == pytest.approx(spectra.rankme(z), rel=1e-9)
    assert report["rankme_centred"].value == pytest.approx(spectra.rankme(z, center=True), rel=1e-9)
    for name in ("effective_rank", "effective_rank_squared", "participation_ratio", "stable_rank", "nesum",
                 "condition_number", "coherence", "self_cluster", "uniformity"):  # fmt: skip
        assert report[name].value == pytest.approx(getattr(spectra, name)(z), rel=1e-9), name
    assert report["alpha_req"].value == pytest.approx(spectra.alpha_req(z).alpha, rel=1e-9)
    assert report["power_law_tail"].value == pytest.approx(spectra.power_law_tail(z).exponent, rel=1e-9)
    corrected = spectra.rankme_corrected(z)
    rankme = report["rankme"]
    assert (rankme.corrected, rankme.low, rankme.high) == pytest.approx(
        (corrected.value, corrected.low, corrected.high), rel=1e-9
    )


@pytest.mark.parametrize("center", [True, False])
def test_centring_of_all_numbers_or_none(center):
    z = gaussian(offset=2.0)
    moved, report = z - z.mean(axis=0) * center, rank_report(z, center=center)
    assert {metric.centred for metric in report.metrics} == {center}
    assert "rankme_centred" not in report.table()["name"].to_list()
    for name in ("rankme", "stable_rank", "coherence", "self_cluster", "uniformity"):
        assert report[name].value == pytest.approx(getattr(spectra, name)(moved), rel=1e-6), name
    for name in ("participation_ratio", "nesum", "effective_rank_squared"):
        assert report[name].value == pytest.approx(getattr(spectra, name)(moved, center=False), rel=1e-6), name


def test_intervals_hold_what_endless_clips_would_give():
    population = torch.arange(1, 41, dtype=torch.float64) ** -0.5
    inside = {"rankme_centred": 0, "effective_rank_squared": 0, "participation_ratio": 0, "nesum": 0}
    for seed in range(20):
        report = rank_report(gaussian(400, seed=seed), seed=seed)
        for name in inside:
            true = getattr(spectra, name.removesuffix("_centred"))(population)
            inside[name] += report[name].low <= true <= report[name].high
    assert min(inside.values()) >= 16, inside


def test_clips_of_one_recording_stay_together():
    z, recordings = np.repeat(gaussian(150), 4, axis=0), np.repeat(np.arange(150), 4)
    alone, together = rank_report(z), rank_report(z, clusters=recordings)
    assert (alone.clusters, together.clusters) == (None, 150)
    for name in ("participation_ratio", "self_cluster"):
        widths = [report[name].high - report[name].low for report in (alone, together)]
        assert widths[1] > 1.5 * widths[0], name
    assert "600 clips of 150 recordings" in together.text()


def test_large_matrices_are_sampled_for_what_compares_pairs(monkeypatch):
    monkeypatch.setattr("rankscale.report.SAMPLED_ROWS", 1000)
    z = gaussian(1500, 8)
    report = rank_report(z)
    assert report["self_cluster"].value == pytest.approx(spectra.self_cluster(z), abs=0.02)
    assert "of 1,000 clips drawn at random" in report.text()
    assert report == rank_report(z) == rank_report(torch.from_numpy(z))


def test_few_clips_have_no_corrected_value_and_say_why():
    report = rank_report(gaussian(52, 40, decay=0))
    assert report["rankme"].corrected is None
    assert report["rankme"].low < report["rankme"].value < report["rankme"].high
    assert warned(report, r"N/K is 1.3: RankMe is biased low by about 9 % or more.*Take 80 clips, better 160")
    assert warned(rank_report(gaussian(120, 40)), r"N/K is 3: .* about 4 %; the corrected value allows for it")
    assert not warned(rank_report(gaussian(600, 40)), "N/K")


def test_fewer_clips_than_dimensions_and_too_few_for_intervals():
    report = rank_report(gaussian(15, 40))
    assert warned(report, "15 clips for 40 dimensions: no rank can exceed 15.*transposed")
    assert warned(report, "15 independent clips.*10 groups")
    assert report.groups == 0 and all(metric.low is None for metric in report.metrics)
    assert "No intervals" in report.text()


WARNINGS = {
    "an offset": (lambda: gaussian(offset=5.0), r"largest direction holds 8\d % of the variance: is a constant offset"),
    "a collapse": (lambda: gaussian(offset=1e3), r"RankMe is 1\.\d\d: collapsed"),
    "a centred collapse": (lambda: gaussian(decay=4), r"RankMe, centred, is 1\.\d\d: collapsed"),
    "a dominant direction": (lambda: gaussian(decay=1.5), r"largest direction holds \d\d % of the variance about"),
    "missing directions": (lambda: np.tile(gaussian(), 2), "rank-deficient: 40 of 80 possible directions empty"),
    "a poor fit": (lambda: gaussian() * np.where(np.arange(40) < 30, 1, 1e-4), "power law fits ranks 11 to 40 poorly"),
    "too few ranks": (lambda: gaussian(dim=12), "alpha-ReQ is left out: .*20 ranks"),
    "zero rows": (lambda: gaussian() * (np.arange(600) > 2)[:, None], "left out: 3 embeddings hold nothing but zeros"),
    "an outlier": (lambda: gaussian() + 1e3 * np.eye(600, 40), "one clip has a direction almost to itself"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings_say_what_is_wrong(case):
    make, words = WARNINGS[case]
    assert warned(rank_report(make()), words), rank_report(make()).warnings


def test_healthy_embeddings_get_no_warning():
    assert rank_report(gaussian()).warnings == ()


def test_a_large_eps_is_remarked_on():
    assert warned(rank_report(gaussian(), eps=1e-2), r"eps 0.01 adds \d+ % to RankMe")


def test_few_recordings_are_remarked_on():
    report = rank_report(gaussian(), clusters=np.arange(600) // 15)
    assert warned(report, "40 recordings for 40 dimensions")


def test_a_layer_norm_bends_no_power_law():
    z = torch.nn.functional.layer_norm(torch.from_numpy(gaussian(dim=60)).float(), (60,))
    report = rank_report(z)
    assert warned(report, r"1 of 60 possible directions empty \(a layer norm leaves one\)")
    assert report.alpha_req.last == 59 and report["alpha_req"].value < 2


@pytest.mark.parametrize("make", [gaussian, lambda: np.tile(gaussian(300, 50), 2), lambda: gaussian(15, 40)])
def test_text_is_narrow_and_json_comes_back(make):
    report = rank_report(make(), source="a file with a long name " * 5)
    assert max(map(len, report.text().splitlines())) <= TEXT_WIDTH
    assert RankReport.model_validate_json(report.to_json()) == report
    assert report.table()["name"].is_unique


def test_a_rank_deficient_condition_number_is_null():
    z = np.hstack([gaussian(), np.zeros((600, 1))])
    report = rank_report(z)
    assert report["condition_number"].value is None
    assert re.search(r"condition number +infinite +rank-deficient", report.text())
    assert json.loads(report.to_json())["metrics"][7]["value"] is None


@pytest.mark.parametrize("z", [np.ones((30, 3)), np.zeros((30, 3)), np.ones(3), gaussian()[:1]])
def test_matrices_without_a_spectrum_are_refused(z):
    with pytest.raises(ValueError):
        rank_report(z)


# --- the command ------------------------------------------------------------------------------------------


def rank(*args):
    return CliRunner().invoke(main, ["rank", *map(str, args)])


@pytest.fixture
def z_npy(tmp_path):
    np.save(tmp_path / "z.npy", gaussian())
    return tmp_path / "z.npy"


@pytest.fixture
def tones(tmp_path):
    """Forty short files of two clips each, and one that is none."""
    folder, rng = tmp_path / "tones", np.random.default_rng(0)
    folder.mkdir()
    for i in range(40):
        soundfile.write(
            folder / f"{i:02}.wav", rng.normal(size=16_000) * np.linspace(0, rng.uniform(0.1), 16_000), 16_000
        )
    (folder / "text.wav").write_text("no sound")
    return folder


def test_a_file_becomes_a_table(z_npy):
    result = rank(z_npy)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == rank_report(gaussian(), source="z.npy").text()


def test_json_is_all_there_is_on_stdout(z_npy, tmp_path):
    result = rank(
        z_npy, "--json", "--eps", "1e-5", "--groups", 5, "--seed", 3, "--center", "--plot", tmp_path / "s.html"
    )
    report = RankReport.model_validate_json(result.stdout)
    assert report == rank_report(gaussian(), "z.npy", 1e-5, True, groups=5, seed=3)
    assert "s.html" in result.stderr


def test_a_module_is_measured_on_a_folder(tones, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "mine.py").write_text(MODULE)
    result = rank("--encoder", tmp_path / "mine.py", "--audio", tones, "--clip-s", 0.5, "--cache", tmp_path,
                  "--save", tmp_path / "kept.npy", "--json")  # fmt: skip
    report = RankReport.model_validate_json(result.stdout)
    assert (report.n_clip, report.dim, report.clusters) == (80, 4, 40)
    assert report.source == "mine.py on tones, clips of 0.5 s"
    assert warned(report, "1 of 41 files gave no clips: text.wav: not an audio file")
    assert warned(report, "lower sample rate than the encoder's 22050 Hz")
    assert "models like to print" in result.stderr
    kept = np.load(tmp_path / "kept.npy")
    assert report["rankme"].value == pytest.approx(spectra.rankme(kept))


def test_a_checkpoint_is_measured_on_real_recordings(real_audio, tmp_path):
    torch.manual_seed(0)
    save_encoder(Encoder(32, 1), tmp_path / "toy.pt")
    folder = next(path for path in sorted(real_audio.iterdir()) if path.name.startswith("fsdd_digit"))
    result = rank(
        "--encoder", tmp_path / "toy.pt", "--audio", folder, "--clip-s", 0.5, "--cache", tmp_path, "--pool", "meanstd"
    )
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "K = 64 dimensions" in words and "pooling: meanstd over time" in words


def test_a_checkpoint_is_measured_on_the_synthetic_clips_of_the_book(tmp_path):
    torch.manual_seed(0)
    save_encoder(Encoder(32, 1), tmp_path / "toy.pt")
    result = rank("--encoder", tmp_path / "toy.pt", "--audio", "synth", "--synth-clips", 96, "--json")
    report = RankReport.model_validate_json(result.stdout)
    assert (report.n_clip, report.dim, report.clusters) == (96, 32, 96)
    assert report.source == "toy.pt on synthetic clips, clips of 1.28 s"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give a FILE of embeddings, or --encoder and --audio together"),
        (["z.npy", "--encoder", "e.pt", "--audio", "a"], "give a FILE"),
        (["--encoder", "e.pt"], "give a FILE"),
        (["none.npy"], "none.npy: no such file"),
        (["--encoder", "none.pt", "--audio", "a"], "none.pt: no such checkpoint"),
        (["z.npy", "--groups", "1"], "1 is not in the range x>=2"),
    ],
)
def test_wrong_calls_end_in_one_plain_message(args, words):
    result = rank(*args)
    assert result.exit_code != 0 and words in result.stderr
    assert result.stdout == "" and "Traceback" not in result.output


def test_a_matrix_without_a_spectrum_is_named(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones((30, 3)))
    result = rank(tmp_path / "flat.npy")
    assert result.exit_code == 1
    assert re.search(r"flat\.npy: all rows of the embeddings are equal", result.stderr)


def test_the_book_is_not_needed(z_npy, tmp_path):
    """As installed without extras: no charts, no notebooks. Only the plot asks for them."""
    script = "import sys; sys.modules.update(dict.fromkeys(['IPython', 'vl_convert', 'papermill', 'pyarrow']));"
    script += "from rankscale.cli import main; main()"
    run = [sys.executable, "-c", script, "rank", str(z_npy)]
    table = subprocess.run(run, capture_output=True, text=True)
    assert table.returncode == 0 and "RankMe" in table.stdout, table.stderr
    plot = subprocess.run([*run, "--plot", str(tmp_path / "s.html")], capture_output=True, text=True)
    assert plot.returncode == 1 and "plots need" in plot.stderr and "rankscale[book]" in plot.stderr


# --- the plot ---------------------------------------------------------------------------------------------


def test_the_line_lies_on_the_points_it_was_fitted_to():
    rank_ = np.arange(1, 81.0)
    fit = spectra.alpha_req(np.sqrt(rank_**-1.5))
    points, line = charts.eigenspectrum_chart(rank_**-1.5, fit).layer
    np.testing.assert_allclose(line.data["share"], points.data["share"].iloc[[10, 79]], rtol=1e-3)
    assert points.data["used"].sum() == 70


def test_a_spectrum_of_few_ranks_is_drawn_without_a_line(tmp_path):
    report = rank_report(gaussian(dim=8))
    assert len(report.chart().layer) == 1
    assert "Too few ranks for a power law" in report.save_plot(tmp_path / "s.html").read_text()


def test_the_page_needs_nothing_else(z_npy, tmp_path):
    assert rank(z_npy, "--plot", tmp_path / "s.html").exit_code == 0
    page = (tmp_path / "s.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page.split("<body>")[1])
    assert str(tmp_path) not in page


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_draws_offline_in_light_and_dark(dark, z_npy, tmp_path):
    if not find_chromium():
        pytest.skip("Chromium was not found")
    rank(z_npy, "--plot", tmp_path / "s.html")
    with open_browser(tmp_path / "chromium") as browser:
        visit = browser.visit((tmp_path / "s.html").as_uri(), width=390, dark=dark)
        assert (visit.outside, visit.errors) == ([], [])
        assert browser.evaluate("document.querySelectorAll('#chart svg path').length") > 40
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        ink = browser.evaluate("getComputedStyle(document.querySelector('#chart svg text')).fill")
        assert ink == ("rgb(255, 255, 255)" if dark else "rgb(0, 0, 0)")
