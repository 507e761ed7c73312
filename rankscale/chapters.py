"""Chapters as programs: find them, check their parameters, run them, stage the executed book and build it.

A chapter is a MyST notebook `chapters/NN_name.md`. papermill runs it at a profile; the executed notebook is kept
while nothing it depends on changes, and Jupyter Book renders the kept notebooks with execution switched off.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from rankscale.charts import ASSETS, ASSETS_URL, STATIC
from rankscale.config import PROFILES
from rankscale.process import environment

PACKAGE = Path(__file__).parent
WORKERS = 2  # chapters that run at once, each in a kernel of one thread
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
# A change of one of these may change a chapter's output.
KEY_PACKAGES = (
    "torch", "torchaudio", "numpy", "scipy", "pandas", "scikit-learn", "soundfile", "altair", "ipykernel",
    "papermill", "jupytext", "myst-nb", "jupyter-book", "Sphinx",
)  # fmt: skip
KEPT_RESULTS = 3  # staged results kept per chapter and profile, the newest
TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict)} | {"Literal": Literal}


class ChapterError(ValueError):
    """A chapter or the book could not be made; the message says where and what to do."""


# --- finding chapters and their parameters ----------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One line of a chapter's parameter cell: ``seed: int = 0  # help``."""

    name: str
    kind: str  # the annotation as written
    default: Any
    help: str

    def check(self, value: Any) -> Any:
        """The value in the parameter's type (a list becomes a tuple where one is asked for, an int a float).

        Raises ValueError on another type.
        """
        adapter = TypeAdapter(eval(self.kind, {"__builtins__": {}}, TYPES))  # our own chapters' source
        try:
            return adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise ValueError(f"{self.name}={value!r} is not {self.kind}: {error.errors()[0]['msg']}") from error

    def parse(self, text: str) -> Any:
        """The value that a command line's text stands for; ValueError if it is of another type."""
        try:
            return self.check(_plain_value(text))
        except ValueError:
            return self.check(text) if "str" in self.kind or "Literal" in self.kind else self.check(_plain_value(text))

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} = {self.default!r}".ljust(36) + f"  {self.help}"


def _plain_value(text: str) -> Any:
    """JSON if it is (1e-3 is a number there, not in YAML), else YAML (true, none, bare words)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text)


@dataclass(frozen=True)
class Chapter:
    """A chapter's source file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def notebook(self) -> Any:
        """The chapter as an nbformat notebook; its cells are in the order of the text."""
        import jupytext

        return jupytext.read(self.path)

    @property
    def title(self) -> str:
        found = re.search(r"^# (.+)$", self.text, re.MULTILINE)
        return found[1].strip() if found else self.name

    @property
    def numbered_title(self) -> str:
        """The title as readers see it: "9. Training steps" for 09_training_steps."""
        number = re.match(r"\d+", self.name)
        return f"{int(number[0])}. {self.title}" if number else self.title

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """What the cell tagged `parameters` declares; empty if there is none.

        Raises ChapterError on a line that is not ``name: type = default``.
        """
        if self.parameter_cell is None:
            return {}
        return {item.name: item for item in self._declared(self.notebook.cells[self.parameter_cell].source)}

    def _declared(self, source: str) -> Iterator[Parameter]:
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom | ast.Import):
                continue
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                raise ChapterError(
                    f"{self.path.name}: write every parameter as `name: type = default  # help`, "
                    f"not `{lines[node.lineno - 1]}`"
                )
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            yield Parameter(
                name=ast.unparse(node.target),
                kind=ast.unparse(node.annotation),
                default=ast.literal_eval(node.value),
                help=rest.partition("#")[2].strip(),
            )

    @cached_property
    def cell_lines(self) -> list[int]:
        """The line of the file (1 is the first) on which each cell's source starts."""
        lines, position = [], 0
        for cell in self.notebook.cells:
            found = re.compile(rf"^{re.escape(cell.source)}$", re.MULTILINE).search(self.text, position)
            position = found.end() if found else position
            lines.append(self.text.count("\n", 0, found.start() if found else position) + 1)
        return lines

    @cached_property
    def parameter_cell(self) -> int | None:
        """Index of the cell tagged `parameters`."""
        tags = [cell.metadata.get("tags", []) for cell in self.notebook.cells]
        return next((index for index, found in enumerate(tags) if "parameters" in found), None)


def find_root(start: Path | None = None) -> Path:
    """The book's folder: the nearest one upwards that holds _toc.yml. Raises ChapterError if there is none."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if folder.joinpath("_toc.yml").is_file():
            return folder
    raise ChapterError(f"no _toc.yml in {start} or above: run this inside the book's repository")


def list_chapters(root: Path) -> list[Chapter]:
    """Every chapters/NN_name.md, in order of its number."""
    return [Chapter(path) for path in sorted(root.glob("chapters/[0-9][0-9]_*.md"))]


def find_chapter(root: Path, wanted: str) -> Chapter:
    """The chapter of a number ("3", "03") or of a part of its name. Raises ChapterError unless it is one."""
    chapters = list_chapters(root)
    number = f"{int(wanted):02d}_" if wanted.isdigit() else None
    stem = Path(wanted).stem
    found = [c for c in chapters if (c.name.startswith(number) if number else stem in c.name)]
    if len(found) != 1:
        names = "\n  ".join(chapter.name for chapter in chapters)
        raise ChapterError(f"chapter {wanted!r} is {'not unique' if found else 'unknown'}; there are\n  {names}")
    return found[0]


def choose_parameters(root: Path, chapter: Chapter, profile: str, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Every parameter's value: the cell's default, then the profile's, then `changes` (text from a command line
    or values), all checked.

    Raises ChapterError on an unknown profile, an unknown parameter or a value of the wrong type; it lists the
    known ones.
    """
    if profile not in PROFILES:
        raise ChapterError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
    known = chapter.parameters
    problems, values = [], {name: parameter.default for name, parameter in known.items()}
    for source, settings in ((f"{profile}.yaml", read_profile(root, profile, chapter.name)), ("", changes)):
        for name, value in settings.items():
            try:
                parameter = known[name]
                from_text = source == "" and isinstance(value, str)
                values[name] = parameter.parse(value) if from_text else parameter.check(value)
            except KeyError:
                problems.append(f"there is no parameter {name!r} {source and f'({source})'}".rstrip())
            except ValueError as error:
                problems.append(f"{error} {source and f'({source})'}".rstrip())
    if problems:
        listing = "\n  ".join(map(str, known.values())) or "none at all"
        raise ChapterError(f"{chapter.name}: {'; '.join(problems)}. It takes\n  {listing}")
    return values


def read_profile(root: Path, profile: str, name: str) -> dict[str, Any]:
    """A chapter's section of chapters/parameters/{profile}.yaml; empty if it has none."""
    path = root / "chapters" / "parameters" / f"{profile}.yaml"
    sections = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return (sections or {}).get(name) or {}


# --- running one chapter ----------------------------------------------------------------------------------


def run_chapter(
    chapter: Chapter,
    parameters: Mapping[str, Any],
    folder: Path,
    assets_url: str | None = None,
    progress: bool = False,
) -> Path:
    """Run a chapter through papermill; returns the executed notebook, folder/NN_name.ipynb.

    parameters: every value (see choose_parameters); those that differ from the cell are injected.
    assets_url: for a page of the book, where the page finds folder/assets. Raises ChapterError with cell, line
    and traceback when a cell fails; the notebook up to there is kept.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{chapter.name}.ipynb"
    changed = {name: value for name, value in parameters.items() if value != chapter.parameters[name].default}
    setting = ONE_THREAD | {STATIC: "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if assets_url:
        setting |= {ASSETS: str(folder / "assets"), ASSETS_URL: assets_url}
    started = time.perf_counter()
    with environment(setting):
        try:
            notebook = papermill.execute_notebook(
                chapter.notebook, str(output), parameters=changed, kernel_name="python3",
                cwd=str(chapter.path.parent), progress_bar=progress, extra_arguments=["--log-level=CRITICAL"],
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise ChapterError(_explain_failure(chapter, error, bool(changed), output)) from None
        except DeadKernelError as error:
            raise ChapterError(f"chapters/{chapter.path.name}: the kernel died (out of memory?): {error}") from None
    _describe_run(chapter, notebook, output, time.perf_counter() - started)
    return output


def _describe_run(chapter: Chapter, notebook: Any, output: Path, seconds: float) -> None:
    """Write the notebook with its run time and its cells' lines in the chapter, without papermill's own record
    of where it lay on this machine.
    """
    import nbformat

    notebook.metadata.pop("papermill", None)
    starts, source_map = iter(chapter.cell_lines), []
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        # MyST-NB adds the line inside the cell, and two.
        source_map.append(source_map[-1] if injected else next(starts) - 2)
    notebook.metadata["source_map"] = source_map
    notebook.metadata["rankscale"] = {"seconds": round(seconds, 1)}
    nbformat.write(notebook, output)


def _explain_failure(chapter: Chapter, error: Any, injected: bool, output: Path) -> str:
    """Which cell of which chapter, under which heading, on which line, and the end of the traceback.

    injected: papermill has put a cell of its own after the parameters.
    """
    cells = chapter.notebook.cells
    position = error.cell_index - (injected and error.cell_index > chapter.parameter_cell)
    prose = "\n".join(cell.source for cell in cells[:position] if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    trace = [re.sub(r"\x1b\[[0-9;]*m", "", line) for part in error.traceback for line in part.splitlines()]
    in_cell = re.findall(rf"Cell In\[{error.exec_count}\], line (\d+)", "\n".join(trace))
    line = chapter.cell_lines[position] + (int(in_cell[-1]) - 1 if in_cell else 0)
    under = f' under "{headings[-1]}"' if headings else ""
    tail = "\n    ".join([text for text in trace if text.strip()][-20:])
    return (
        f"chapters/{chapter.path.name}:{line}: {error.ename}: {error.evalue}\n"
        f"  in code cell [{error.exec_count}]{under}\n    {tail}\n"
        f"  The notebook up to there: {output}"
    )


# --- staging: every chapter, kept while nothing changed ---------------------------------------------------


def stage(root: Path, profile: str, workers: int = WORKERS) -> Path:
    """Run the chapters of _toc.yml, `workers` at a time, and lay out what Jupyter Book needs in runs/book/.

    A chapter whose text, parameters, package sources, data and package versions are unchanged is not run again.
    Returns the staged folder. Raises ChapterError with the message of every chapter that failed.
    """
    chapters = toc_chapters(root)
    inputs = _hash_inputs(root)
    jobs = {c: _result_folder(root, c, profile, inputs) for c in chapters}
    waiting = {c: folder for c, folder in jobs.items() if not folder.exists()}
    kept = len(jobs) - len(waiting)
    print(f"Chapters at profile {profile}: {len(jobs)}, of which {kept} unchanged and {len(waiting)} to run")
    failures = _run_all(root, waiting, profile, workers)
    if failures:
        raise ChapterError("\n\n".join(failures))
    for chapter, folder in jobs.items():
        _forget_old(folder, chapter, profile)
    return _lay_out(root, profile, jobs)


def toc_chapters(root: Path) -> list[Chapter]:
    """The chapters that _toc.yml lists. Raises ChapterError when it and chapters/ disagree."""
    text = root.joinpath("_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*-?\s*file:\s*chapters/([\w-]+?)(?:\.md)?\s*$", text, re.MULTILINE)
    chapters = {chapter.name: chapter for chapter in list_chapters(root)}
    if missing := [name for name in listed if name not in chapters]:
        raise ChapterError(f"_toc.yml lists chapters/{missing[0]}, which does not exist")
    if twice := [name for name in listed if listed.count(name) > 1]:
        raise ChapterError(f"_toc.yml lists chapters/{twice[0]} twice")
    if forgotten := [name for name in chapters if name not in listed]:
        raise ChapterError(f"chapters/{forgotten[0]}.md is not in _toc.yml: add it there")
    return [chapters[name] for name in listed]


def _run_all(root: Path, waiting: Mapping[Chapter, Path], profile: str, workers: int) -> list[str]:
    """Run chapters in processes of their own; the messages of those that failed."""
    failures, started = [], time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_stage_one, root, c, profile, folder): c for c, folder in waiting.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            name = futures[future].name
            try:
                outcome = f"ran in {future.result():.0f} s"
            except ChapterError as error:
                failures.append(str(error))
                outcome = "FAILED"
            elapsed = time.perf_counter() - started
            print(f"  [{done}/{len(futures)}] {name} {outcome} ({elapsed:.0f} s since the start)", flush=True)
    return failures


def _stage_one(root: Path, chapter: Chapter, profile: str, folder: Path) -> float:
    """Run one chapter into `folder`, which appears only when it is complete; returns the seconds."""
    started = time.perf_counter()
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    parameters = choose_parameters(root, chapter, profile)
    run_chapter(chapter, parameters, part, assets_url=f"../_static/chapters/{chapter.name}")
    part.rename(folder)
    return time.perf_counter() - started


def _result_folder(root: Path, chapter: Chapter, profile: str, inputs: str) -> Path:
    """Where a chapter's result is kept: its name holds the hash of all that the result depends on."""
    parameters = choose_parameters(root, chapter, profile)
    parts = [chapter.text, json.dumps(parameters, sort_keys=True), profile, inputs]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return root / "runs" / "staged" / f"{chapter.name}-{profile}-{key}"


def _hash_inputs(root: Path) -> str:
    """Hash of what every chapter may depend on: the package's sources, data/, package versions."""
    files = [*PACKAGE.rglob("*.py"), *(path for path in root.glob("data/**/*") if path.is_file())]
    packages = [f"{name}=={version(name)}" for name in KEY_PACKAGES] + [sys.version]
    return _hash_files(files) + hashlib.sha256("\n".join(packages).encode()).hexdigest()


def _hash_files(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _forget_old(folder: Path, chapter: Chapter, profile: str) -> None:
    """Delete a chapter's results beyond the newest few; the one in use counts as new."""
    os.utime(folder)
    results = sorted(
        folder.parent.glob(f"{chapter.name}-{profile}-*"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for old in results[KEPT_RESULTS:]:
        shutil.rmtree(old)


def _lay_out(root: Path, profile: str, results: Mapping[Chapter, Path]) -> Path:
    """runs/book/{profile}: configuration, front matter, executed notebooks, their files, the run times."""
    staged = root / "runs" / "book" / profile
    shutil.rmtree(staged, ignore_errors=True)
    staged.joinpath("chapters").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, staged / name)
    shutil.copytree(root / "book", staged / "book")
    for chapter, folder in results.items():
        _copy_numbered(chapter, folder / f"{chapter.name}.ipynb", staged / "chapters")
        if folder.joinpath("assets").exists():
            shutil.copytree(folder / "assets", staged / "book" / "_static" / "chapters" / chapter.name)
    table = _run_times(profile, results)
    staged.joinpath("book", "run_times_table.md").write_text(table, encoding="utf-8")
    return staged


def _copy_numbered(chapter: Chapter, source: Path, target: Path) -> None:
    """Copy an executed notebook with its number in its title.

    The number is the file's: figures and references use it, and Sphinx's own would change where a chapter is missing.
    """
    notebook = json.loads(source.read_text(encoding="utf-8"))
    head = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    text = "".join(head["source"])
    head["source"] = text.replace(f"# {chapter.title}", f"# {chapter.numbered_title}", 1)
    target.joinpath(source.name).write_text(json.dumps(notebook), encoding="utf-8")


def _run_times(profile: str, results: Mapping[Chapter, Path]) -> str:
    """A Markdown table: how long each chapter ran when its result was made."""
    lines = [f"Profile `{profile}`, one thread a chapter.", "", "| chapter | run time (s) |", "|---|---:|"]
    total = 0.0
    for chapter, folder in results.items():
        notebook = json.loads(folder.joinpath(f"{chapter.name}.ipynb").read_text(encoding="utf-8"))
        seconds = notebook["metadata"]["rankscale"]["seconds"]
        total += seconds
        lines.append(f"| [{chapter.numbered_title}](../chapters/{chapter.name}.ipynb) | {seconds:.0f} |")
    return "\n".join([*lines, f"| all | {total:.0f} |"]) + "\n"


# --- building the book ------------------------------------------------------------------------------------


def build_book(root: Path, profile: str, workers: int = WORKERS) -> Path:
    """Stage the chapters and render the book, strictly: any warning is an error. Returns the HTML folder.

    The folder is replaced only by a complete new book, and left as it is when nothing changed. Raises
    ChapterError with the warnings, in terms of the chapters' own files and lines.
    """
    with _alone(root):
        return _build_alone(root, profile, workers)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other build of this book is at work: builds share runs/staged and runs/book."""
    import fcntl

    root.joinpath("runs").mkdir(exist_ok=True)
    with root.joinpath("runs", "book.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another build of this book to end ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_alone(root: Path, profile: str, workers: int) -> Path:
    staged = stage(root, profile, workers)
    html = html_folder(root, profile)
    key = _hash_staged(staged) + _hash_inputs(root)[:16]
    if html.joinpath("build.json").exists() and json.loads(html.joinpath("build.json").read_text())["key"] == key:
        print("Nothing changed since this book was built.")
        return html
    print("Rendering the pages ...", flush=True)
    _run_jupyter_book(staged)
    built = staged / "_build" / "html"
    built.joinpath("build.json").write_text(json.dumps({"key": key, "profile": profile}), encoding="utf-8")
    shutil.rmtree(html, ignore_errors=True)
    html.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(built, html)
    return html


def html_folder(root: Path, profile: str) -> Path:
    """_build/html for the published profile `small`, _build/html-{profile} for the others."""
    return root / "_build" / ("html" if profile == "small" else f"html-{profile}")


def _hash_staged(staged: Path) -> str:
    # The time stamps of a result's own notebook are inside it, so equal content means an equal book.
    return _hash_files(path for path in staged.rglob("*") if path.is_file())


def _run_jupyter_book(staged: Path) -> None:
    """The strict build; the full log stays beside the staged tree."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(staged), "-W", "-n", "--keep-going"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | ONE_THREAD | {"NO_COLOR": "1"},
    )  # fmt: skip
    log = staged / "build.log"
    log.write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        rows = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
        marked = [bool(re.search(r"WARNING|ERROR|rror: \S", row)) for row in rows]
        # A warning that ends with a colon has its reason on the next line.
        follows = [False, *(mark and row.endswith(":") for mark, row in zip(marked, rows, strict=True))]
        found = [row for row, mark, more in zip(rows, marked, follows, strict=False) if mark or more] or rows[-15:]
        lines = "\n  ".join(dict.fromkeys(_in_source_terms(line, staged) for line in found))
        raise ChapterError(f"the book did not build:\n  {lines}\n  The whole log: {log}")


def _in_source_terms(line: str, staged: Path) -> str:
    """A warning of the build with the staged file's name put as its source's; the lines are the source's already."""
    return re.sub(r"^chapters/([\w-]+)\.ipynb", r"chapters/\1.md", line.replace(f"{staged}/", ""))
