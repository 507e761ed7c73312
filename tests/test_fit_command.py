"""`rankscale fit`: the table, the JSON, the figure, and errors in words."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from browser import find_chromium, open_browser
from click.testing import CliRunner
from test_laws import TRUTHS, make

from rankscale import charts, laws
from rankscale.cli import main
from rankscale.law_report import TEXT_WIDTH, LawReport, law_report

FEW = ("power", "log_linear", "saturating")


def runs_table(seed=0):
    """Four axes of five cells, three seeds each, on one saturating law."""
    rng = np.random.default_rng(seed)
    rows = []
    for axis in ("width", "depth", "steps", "mask_ratio"):
        for cell in range(5):
            rank = np.exp(rng.uniform(np.log(6), np.log(200)))
            for each in range(3):
                rankme = rank * np.exp(0.02 * rng.normal())
                quality = (0.8 - 1.2 * rankme**-0.5) * np.exp(0.02 * rng.normal())
                rows.append((f"{axis}-{cell}", axis, each, rankme, quality))
    return pd.DataFrame(rows, columns=["run", "axis", "seed", "rankme", "quality"])


@pytest.fixture(scope="module")
def report():
    data = laws.read_points(runs_table(), ["rankme"], "quality", "axis", ["run", "seed"])
    return law_report(data, [laws.find_form(name) for name in FEW], "runs.csv", draws=200)


@pytest.fixture(scope="module")
def runs_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "runs.csv"
    runs_table().to_csv(path, index=False)
    return path


def fit(*args):
    return CliRunner().invoke(main, ["fit", *map(str, args)])


# --- the report -------------------------------------------------------------------------------------------


def test_the_report_is_that_of_the_laws_room(report):
    data = laws.read_points(runs_table(), ["rankme"], "quality", "axis", ["run", "seed"])
    found = laws.fit("saturating", data)
    assert report.chosen == "saturating" and report.n_point == 60 and report.n_cluster == 20
    form = report["saturating"]
    assert {each.name: each.value for each in form.parameters} == found.parameters
    assert (form.objective, form.condition) == (found.objective, found.condition)
    assert form.heldout_error == pytest.approx(laws.extrapolate("saturating", data).size)
    assert form.group_r2 == pytest.approx(laws.leave_groups_out("saturating", data).r2)
    low, high = laws.bootstrap(found, draws=200).interval("b")
    b = form.parameters[2]
    assert (b.low, b.high, b.source) == (low, high, "bootstrap") and low < TRUTHS["saturating"]["b"] < high
    assert min(each.aicc for each in report.forms) == 0
    with pytest.raises(KeyError, match="no form 'cubic'; the report has power, log_linear, saturating"):
        report["cubic"]


def test_json_holds_everything_and_comes_back(report):
    assert LawReport.model_validate_json(report.to_json()) == report
    assert len(report.table()) == 3


def test_the_text_is_narrow_and_says_what_was_done(report):
    text = report.text()
    assert max(map(len, text.splitlines())) <= TEXT_WIDTH
    words = " ".join(text.split())
    assert "60 points, 20 clusters, groups width, depth, steps, mask_ratio" in words
    assert "loss: sum of Huber, delta 0.001" in words
    assert re.search(r"\* saturating 3", words) and "left-out group" in words
    assert re.search(r"Without row \d+ the curve of saturating moves by up to 0\.0\d+", words)


def test_a_limit_without_clusters_has_a_profile_and_perhaps_no_end():
    data = make("log_linear", noise=0.03)
    found = law_report(data, [laws.find_form("saturating")], draws=100)
    limit = found["saturating"].parameters[0]
    assert (limit.source, limit.high) == ("profile", None) and limit.low > 0.5
    assert "no end] by profile" in found.text() and "Q_inf is not identified" in found.text()
    assert json.loads(found.to_json())["forms"][0]["parameters"][0]["high"] is None
    assert "left-out" not in found.text()


def test_warnings_say_why_not_to_trust():
    table = runs_table()
    seeds = laws.read_points(table, ["rankme"], "quality", clusters=["seed"])
    assert "3 clusters are too few to resample" in law_report(seeds, [laws.find_form("power")], draws=100).text()
    near = table[table["rankme"].between(50, 120)]
    narrow = law_report(laws.read_points(near, ["rankme"], "quality"), [laws.find_form("power")], draws=100)
    assert any("forms are hard to tell apart" in warning for warning in narrow.warnings)
    x = np.geomspace(1, 100, 40)
    peaked = laws.points(x, np.exp(-(np.log(x / 10) ** 2)))
    assert any("trust no form" in w for w in law_report(peaked, [laws.find_form("power")], draws=100).warnings)


def test_refused_forms_are_named_with_their_reason():
    found = law_report(make("power", n=10, noise=0.02), [laws.find_form(n) for n in ("power", "bnsl1")], draws=100)
    assert [form.name for form in found.forms] == ["power"]
    assert "bnsl1 is left out: bnsl1 has 6 parameters and needs at least 7 points" in " ".join(found.text().split())


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_prints_table_or_json(runs_csv, tmp_path):
    asked = (runs_csv, "--x", "rankme", "--y", "quality", "--form", "saturating", "--cluster", "run", "--draws", 100)
    shown = fit(*asked)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("runs.csv: quality over rankme, 60 points, 20 clusters")
    machine = fit(*asked, "--json", "--plot", tmp_path / "law.html")
    assert machine.exit_code == 0 and "law.html" in machine.stderr
    assert LawReport.model_validate_json(machine.stdout).chosen == "saturating"


def test_auto_tries_every_form_of_one_variable(runs_csv):
    found = fit(runs_csv, "--x", "rankme", "--y", "quality", "--group", "axis", "--draws", 100, "--json")
    assert found.exit_code == 0, found.output
    report = LawReport.model_validate_json(found.stdout)
    assert [form.name for form in report.forms] == [form.name for form in laws.ONE_VARIABLE]
    assert len(report["saturating"].parameters) < len(report["sigmoid"].parameters)


@pytest.mark.parametrize("form", ["joint", "rank_width"])
def test_laws_of_two_variables(form, tmp_path):
    options = ("--n", "N", "--d", "D") if form == "joint" else ("--x", "N", "--k", "D")
    data = make(form, n=60, noise=0.01)
    pd.DataFrame({"N": data.x[:, 0], "D": data.x[:, 1], "loss": data.y}).to_csv(tmp_path / "t.csv", index=False)
    page = tmp_path / "law.html"
    found = fit(tmp_path / "t.csv", "--form", form, *options, "--y", "loss", "--draws", 100, "--json", "--plot", page)
    assert found.exit_code == 0, found.output
    report = LawReport.model_validate_json(found.stdout)
    assert report[form].heldout_r2 > 0.8 and report.curves == {}
    assert "hollow: predicted from the smaller 80 % of the runs" in page.read_text()


@pytest.mark.parametrize(
    ("changed", "args", "words"),
    [
        ({}, ("--x", "rank", "--y", "quality"), "t.csv: no column rank; the table has run, axis,"),
        ({"rankme": 7}, ("--x", "rankme", "--y", "quality"), r"column rankme holds one value only \(7\)"),
        ({"quality": "high"}, ("--x", "rankme", "--y", "quality"), "column quality, line 2: 'high' is not a number"),
        ({"quality": -1.5}, ("--x", "rankme", "--y", "quality"), r"holds one value only \(-1.5\)"),
        ({}, ("--x", "seed", "--y", "quality"), r"column seed: 20 of 60 values are not positive.*\(line 2, line 5,"),
        ({}, ("--y", "quality"), "--form auto needs --x"),
        ({}, ("--form", "joint", "--n", "rankme", "--y", "quality"), "--form joint needs --d"),
        ({}, ("--x", "rankme", "--n", "seed", "--y", "quality"), "--form auto has no use for --n"),
        ({}, ("--x", "rankme", "--y", "quality", "--form", "cubic"), "no form 'cubic'; there are power, log_linear"),
        ({}, ("--x", "rankme", "--y", "quality", "--group", "lr"), "no column lr"),
    ],
)
def test_wrong_calls_end_in_one_plain_message(changed, args, words, tmp_path):
    runs_table().assign(**changed).to_csv(tmp_path / "t.csv", index=False)
    found = fit(tmp_path / "t.csv", *args)
    assert found.exit_code != 0 and re.search(words, " ".join(found.stderr.split()))
    assert found.stdout == "" and "Traceback" not in found.output


def test_negative_quality_and_few_rows_are_told_in_words(tmp_path):
    table = runs_table()
    table.loc[3, "quality"] = -0.1
    table.to_csv(tmp_path / "t.csv", index=False)
    asked = (tmp_path / "t.csv", "--x", "rankme", "--y", "quality", "--form", "log_linear", "--draws", 100)
    refused = fit(*asked)
    assert refused.exit_code == 1 and "fit in linear space (line 5)" in refused.stderr
    assert fit(*asked, "--space", "linear").exit_code == 0
    table.head(3).to_csv(tmp_path / "t.csv", index=False)
    assert "power has 2 parameters and needs at least 3 points" in fit(*asked[:5]).stderr
    (tmp_path / "t.csv").write_text("")
    empty = fit(*asked)
    assert empty.exit_code == 1 and "t.csv: No columns" in empty.stderr


def test_the_book_is_not_needed(runs_csv, tmp_path):
    """As installed without extras: no charts, no notebooks. Only the plot asks for them."""
    script = "import sys; sys.modules.update(dict.fromkeys(['IPython', 'vl_convert', 'papermill', 'pyarrow']));"
    script += "from rankscale.cli import main; main()"
    run = [sys.executable, "-c", script, "fit", str(runs_csv), "--x", "rankme", "--y", "quality", "--form", "power"]
    table = subprocess.run(run, capture_output=True, text=True)
    assert table.returncode == 0 and "power" in table.stdout, table.stderr
    plot = subprocess.run([*run, "--plot", str(tmp_path / "s.html")], capture_output=True, text=True)
    assert plot.returncode == 1 and "plots need" in plot.stderr and "rankscale[book]" in plot.stderr


# --- the figure -------------------------------------------------------------------------------------------


def test_axes_have_their_colours_in_the_figure(report):
    spec = report.chart().to_dict()
    scale = spec["layer"][-1]["encoding"]["color"]["scale"]
    assert scale["domain"] == ["width", "depth", "steps", "mask_ratio"]
    assert scale["range"] == [charts.AXIS_COLOURS[axis] for axis in scale["domain"]]
    none = law_report(make("power", noise=0.02), [laws.find_form("power")], draws=100)
    assert "color" not in none.chart().to_dict()["layer"][-1]["encoding"]


def test_the_line_of_the_figure_is_the_law(report):
    curves = pd.DataFrame(report.curves)
    chosen = curves[curves["chosen"]]
    assert set(chosen["form"]) == {"saturating"}
    value = {each.name: each.value for each in report["saturating"].parameters}
    np.testing.assert_allclose(chosen["y"], value["Q_inf"] - value["a"] * chosen["x"] ** -value["b"], rtol=1e-9)
    assert chosen["x"].max() == pytest.approx(3 * runs_table()["rankme"].max())
    band = pd.DataFrame(report.band)
    assert (band["low"] <= chosen["y"].to_numpy()).mean() > 0.95 and (band["new_low"] < band["low"]).mean() > 0.9


@pytest.mark.parametrize("kind", ["law", "agreement"])
def test_pages_draw_offline(kind, report, tmp_path):
    if not find_chromium():
        pytest.skip("Chromium was not found")
    if kind == "agreement":
        report = law_report(make("joint", n=60, noise=0.01), [laws.find_form("joint")], draws=100)
    page = report.save_plot(tmp_path / "law.html")
    with open_browser(tmp_path / "chromium") as browser:
        visit = browser.visit(page.as_uri(), width=390)
        assert (visit.outside, visit.errors) == ([], [])
        assert browser.evaluate("document.querySelectorAll('#chart svg path').length") > 60
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
