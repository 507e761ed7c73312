"""Chapters as programs: sources that round-trip, parameters that are checked, results that are kept."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import yaml
from click.testing import CliRunner
from tiny_book import FIRST, ROOT, run_rankscale, write_tiny_book

from rankscale import chapters
from rankscale.cli import main
from rankscale.config import PROFILES, RunConfig

CHAPTERS = chapters.list_chapters(ROOT)
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)


# --- this book's own chapters -----------------------------------------------------------------------------


def test_the_table_of_contents_lists_every_chapter():
    assert [chapter.name for chapter in chapters.toc_chapters(ROOT)] == [chapter.name for chapter in CHAPTERS]


@each_chapter
def test_a_chapter_round_trips_unchanged(chapter):
    assert jupytext.writes(jupytext.reads(chapter.text, fmt="md:myst"), fmt="md:myst") == chapter.text


@each_chapter
def test_a_chapters_code_passes_the_linter(chapter, tmp_path):
    path = tmp_path / f"{chapter.name}.ipynb"
    jupytext.write(chapter.notebook, path)
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--config", ROOT / "pyproject.toml"]
    command += ["--extend-ignore", "E501,B905"]  # captions are long; strict= would be noise for a learner
    done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@each_chapter
def test_a_chapters_header_is_what_jupyterlab_writes(chapter):
    """Else the first save in JupyterLab changes the file, and with it the key that its result is kept by."""
    assert "kernelspec:\n  name: python3\n  display_name: Python 3 (ipykernel)\n  language: python\n" in chapter.text


@each_chapter
def test_a_chapters_defaults_are_the_profile_small(chapter):
    defaults = {name: parameter.default for name, parameter in chapter.parameters.items()}
    assert chapters.read_profile(ROOT, "small", chapter.name) == defaults


@each_chapter
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_every_chapter(chapter, profile):
    values = chapters.choose_parameters(ROOT, chapter, profile)
    assert values.keys() == chapter.parameters.keys()


@each_chapter
def test_parameters_are_explained_and_typed_as_run_configurations_are(chapter):
    assert [name for name, parameter in chapter.parameters.items() if not parameter.help] == []
    kinds = {int: "int", float: "float", str: "str", bool: "bool"}
    fields = RunConfig.model_fields
    shared = {
        name: p.kind for name, p in chapter.parameters.items() if name in fields and type(fields[name].default) in kinds
    }
    assert shared == {name: kinds[type(fields[name].default)] for name in shared}


def test_profiles_speak_of_existing_chapters_only():
    names = {chapter.name for chapter in CHAPTERS}
    for profile in PROFILES:
        sections = yaml.safe_load((ROOT / "chapters/parameters" / f"{profile}.yaml").read_text()) or {}
        assert set(sections) - names == set()


@each_chapter
def test_chapters_commit_no_machine_path(chapter):
    assert re.findall(r"(?<![\w.~)/])/(?:[\w.-]+/)+\S*|C:\\\S*", chapter.text) == []


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "3", 3),
        ("float", "1e-3", 0.001),
        ("float", "2", 2.0),
        ("str", "en64-4", "en64-4"),
        ("str", "12", "12"),
        ("bool", "true", True),
        ("list[int]", "[1, 2]", [1, 2]),
        ("tuple[float, ...]", "[0.5, 1]", (0.5, 1.0)),
        ("int | None", "null", None),
        ("Literal['mean', 'max']", "max", "max"),
    ],
)
def test_a_command_lines_text_becomes_the_parameters_type(kind, text, value):
    parsed = chapters.Parameter("x", kind, None, "").parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("int", "3.5"), ("int", "three"), ("int", "true"), ("float", "fast"), ("bool", "1"), ("list[int]", "3"),
     ("Literal['mean', 'max']", "median")],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(kind, text):
    with pytest.raises(ValueError, match=r"^x=.* is not "):
        chapters.Parameter("x", kind, None, "").parse(text)


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_book(tmp_path)


def test_values_come_from_cell_then_profile_then_command_line(tiny):
    first = chapters.find_chapter(tiny, "1")
    assert chapters.choose_parameters(tiny, first, "small") == {
        "seed": 0, "rate": 0.5, "name": "en64-4", "sizes": [1, 2],
    }  # fmt: skip
    assert chapters.choose_parameters(tiny, first, "smoke")["seed"] == 3
    assert chapters.choose_parameters(tiny, first, "smoke", {"seed": "5"})["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "sed=1"], "no parameter 'sed'"),
        (["-p", "rate=fast"], "rate='fast' is not float"),
        (["-p", "seed"], "write NAME=VALUE"),
        (["--profile", "tiny"], "choose one of smoke, small, full"),
    ],
)
def test_the_command_refuses_bad_parameters_and_lists_the_known_ones(tiny, monkeypatch, arguments, words):
    monkeypatch.chdir(tiny)
    result = CliRunner().invoke(main, ["chapter", "01", *arguments])
    assert result.exit_code != 0
    assert words in result.output
    if "seed" not in arguments and "tiny" not in arguments:
        assert "seed: int = 0" in result.output
        assert "of every random draw" in result.output
    assert not (tiny / "runs").exists()


def test_a_profile_with_an_unknown_parameter_is_refused_with_its_file(tiny):
    (tiny / "chapters/parameters/full.yaml").write_text("01_first:\n  widht: 3\n")
    with pytest.raises(chapters.ChapterError, match=r"no parameter 'widht' \(full.yaml\)"):
        chapters.choose_parameters(tiny, chapters.find_chapter(tiny, "first"), "full")


def test_an_untyped_parameter_is_refused(tiny):
    path = tiny / "chapters/01_first.md"
    path.write_text(FIRST.replace("seed: int = 0", "seed = 0"))
    with pytest.raises(chapters.ChapterError, match="name: type = default"):
        _ = chapters.Chapter(path).parameters


@pytest.mark.parametrize("wanted", ["7", "nothing", "s"])
def test_an_unknown_or_unclear_chapter_is_refused_with_the_list(tiny, wanted):
    with pytest.raises(chapters.ChapterError, match="01_first\n"):
        chapters.find_chapter(tiny, wanted)


def test_outside_a_book_the_command_says_so(tmp_path):
    with pytest.raises(chapters.ChapterError, match=r"no _toc\.yml"):
        chapters.find_root(tmp_path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("      - file: chapters/02_second\n      - file: chapters/03_third\n", "03_third, which does not exist"),
        ("      - file: chapters/02_second\n      - file: chapters/02_second\n", "02_second twice"),
        ("", "02_second.md is not in"),
    ],
)
def test_contents_and_chapters_must_agree(tiny, entry, words):
    replace_in(tiny / "_toc.yml", "      - file: chapters/02_second\n", entry)
    with pytest.raises(chapters.ChapterError, match=words):
        chapters.toc_chapters(tiny)


@each_chapter
def test_cells_are_found_in_the_chapters_file(chapter):
    rows = chapter.text.splitlines()
    for cell, line in zip(chapter.notebook.cells, chapter.cell_lines, strict=True):
        source = cell.source.splitlines()
        assert rows[line - 1 : line - 1 + len(source)] == source
    assert chapter.cell_lines == sorted(set(chapter.cell_lines))


# --- running and keeping ----------------------------------------------------------------------------------


def test_one_chapter_runs_with_its_parameters_one_thread_and_no_trace_of_the_machine(tiny):
    result = run_rankscale(tiny, "chapter", "first", "--profile", "smoke", "-p", "sizes=[1,2,3]")
    assert result.returncode == 0, result.stderr
    (path,) = tiny.glob("runs/chapters/01_first-smoke-*/01_first.ipynb")
    assert str(path) in result.stdout
    text = path.read_text()
    notebook = json.loads(text)
    printed = ["".join(out["text"]) for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert printed == ["total 6 1 1\n"]
    assert str(tiny) not in text


def test_a_failing_cell_is_named_with_chapter_heading_line_and_cause(tiny):
    path = tiny / "chapters/01_first.md"
    path.write_text(FIRST.replace("total = seed + len(sizes)", "total = seed + len(size)"))
    line = path.read_text().splitlines().index("total = seed + len(size)") + 1
    result = run_rankscale(tiny, "chapter", "first")
    assert result.returncode == 1
    assert f"chapters/01_first.md:{line}: NameError: name 'size' is not defined" in result.stderr
    assert 'under "The sum"' in result.stderr
    (kept,) = tiny.glob("runs/chapters/01_first-small-*/01_first.ipynb")
    assert "NameError" in kept.read_text()


@pytest.fixture
def ran(tiny, monkeypatch):
    """Chapters run by a stand-in that is quick: what is kept and what runs again is the matter here.

    tests/test_book.py builds the same book with real kernels.
    """
    names = []

    def run_all(root, waiting, profile, workers):
        for chapter, folder in waiting.items():
            names.append(chapter.name)
            folder.joinpath("assets").mkdir(parents=True)
            folder.joinpath("assets", "tone.mp3").write_text(chapter.name)
            cells = [{"cell_type": "markdown", "source": [f"# {chapter.title}\n", "Text."]}]
            notebook = {"metadata": {"rankscale": {"seconds": 61.4}}, "cells": cells}
            folder.joinpath(f"{chapter.name}.ipynb").write_text(json.dumps(notebook))
        return []

    def stage_again():
        names.clear()
        chapters.stage(tiny, "smoke")
        return list(names)

    package = tiny / "package"
    package.mkdir()
    package.joinpath("room.py").write_text("one = 1\n")
    monkeypatch.setattr(chapters, "PACKAGE", package)
    monkeypatch.setattr(chapters, "_run_all", run_all)
    assert stage_again() == ["01_first", "02_second"]
    return stage_again


def test_nothing_runs_again_while_nothing_changed(ran):
    assert ran() == []


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_change_of_prose_or_parameters_runs_that_chapter_only(ran, tiny):
    replace_in(tiny / "chapters/01_first.md", "## The sum", "## The total")
    assert ran() == ["01_first"]
    replace_in(tiny / "chapters/parameters/smoke.yaml", "seed: 3", "seed: 4")
    assert ran() == ["01_first"]
    replace_in(tiny / "chapters/parameters/smoke.yaml", "seed: 4", "seed: 3")
    assert ran() == []  # the result for that seed is still there


@pytest.mark.parametrize("path", ["package/room.py", "data/runs/record.json"])
def test_a_change_of_sources_or_records_runs_every_chapter(ran, tiny, path):
    tiny.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
    tiny.joinpath(path).write_text("two = 2\n")
    assert ran() == ["01_first", "02_second"]


def test_old_results_are_forgotten_but_never_another_chapters(ran, tiny):
    for seed in range(10, 16):
        (tiny / "chapters/parameters/smoke.yaml").write_text(f"01_first:\n  seed: {seed}\n")
        assert ran() == ["01_first"]
    assert len(list(tiny.glob("runs/staged/01_first-smoke-*"))) == chapters.KEPT_RESULTS
    assert len(list(tiny.glob("runs/staged/02_second-smoke-*"))) == 1


def test_the_staged_tree_has_pages_sounds_and_run_times(ran, tiny):
    staged = tiny / "runs/book/smoke"
    assert (staged / "book/_static/chapters/02_second/tone.mp3").read_text() == "02_second"
    assert "| [2. Second](../chapters/02_second.ipynb) | 61 |" in (staged / "book/run_times_table.md").read_text()
    page = json.loads((staged / "chapters/02_second.ipynb").read_text())
    assert page["cells"][0]["source"] == "# 2. Second\nText."
    assert "| all | 123 |" in (staged / "book/run_times_table.md").read_text()
    assert sorted(path.name for path in staged.glob("*.yml")) == ["_config.yml", "_toc.yml"]


# --- the machine check ------------------------------------------------------------------------------------


def load_check():
    spec = importlib.util.spec_from_file_location("check_machine", ROOT / "tools/check_machine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"version": (3, 9)}, "Python 3.11 or later is needed"),
        ({"has_module": lambda name: name != "ensurepip"}, "sudo apt install python3-venv"),
        ({"free_gb": 3.0}, "only 3.0 GB found"),
    ],
)
def test_the_machine_check_says_what_is_missing(machine, words):
    ready = {"version": (3, 12), "free_gb": 50.0, "has_module": lambda name: True}
    check = load_check()
    assert check.find_problems(".", **ready) == []
    (problem,) = check.find_problems(".", **(ready | machine))
    assert words in problem


def test_python_is_chosen_by_version_not_by_name():
    assert Path(sys.executable).exists()
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text()
