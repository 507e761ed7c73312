"""A book of two small chapters, with this project's configuration: for tests of the machinery."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOC = """format: jb-book
root: book/intro
parts:
  - caption: Chapters
    numbered: true
    chapters:
      - file: chapters/01_first
      - file: chapters/02_second
  - caption: Reference
    chapters:
      - file: book/run_times
      - file: book/references
"""
INTRO = "# A tiny book\n\nSee {doc}`../chapters/01_first` and {ref}`second`. {cite:t}`garrido2023rankme` is cited.\n"
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
    jupytext_version: 1.19.6
kernelspec:
  name: python3
  display_name: Python 3 (ipykernel)
  language: python
---

"""
FIRST = (
    HEADER
    + """# First

```{code-cell} ipython3
:tags: [parameters]

seed: int = 0  # of every random draw
rate: float = 0.5  # between 0 and 1
name: str = "en64-4"  # the encoder
sizes: list[int] = [1, 2]  # how many
```

## The sum

```{code-cell} ipython3
import os

total = seed + len(sizes)
print("total", total, os.environ["OMP_NUM_THREADS"], os.environ["RANKSCALE_STATIC"])
```
"""
)
SECOND = (
    HEADER
    + """(second)=
# Second

```{code-cell} ipython3
import altair as alt
import numpy as np
import pandas as pd

from rankscale import charts

charts.setup()
table = pd.DataFrame({"x": [1, 2, 3], "y": [2, 1, 3]})
slider = alt.param("size", value=60, bind=alt.binding_range(min=10, max=300, name="size "))
points = alt.Chart(table).mark_point(size=slider).encode(x="x", y="y").add_params(slider)
charts.show(points, "What to see: three points.", table, "points")
```

```{code-cell} ipython3
charts.mel_chart(np.linspace(-80, 0, 64 * 30).reshape(64, 30), "A slope")
```

```{code-cell} ipython3
charts.player(0.1 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000), "tone", "A synthetic tone of 440 Hz")
```
"""
)


def write_tiny_book(folder: Path) -> Path:
    """The book's sources under `folder`; returns it."""
    for part in ("chapters/parameters", "book"):
        folder.joinpath(part).mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    for name in ("references.md", "references.bib", "run_times.md"):
        shutil.copy(ROOT / "book" / name, folder / "book")
    folder.joinpath("_toc.yml").write_text(TOC)
    folder.joinpath("book/intro.md").write_text(INTRO)
    folder.joinpath("chapters/01_first.md").write_text(FIRST)
    folder.joinpath("chapters/02_second.md").write_text(SECOND)
    folder.joinpath("chapters/parameters/smoke.yaml").write_text("01_first:\n  seed: 3\n")
    return folder


def run_rankscale(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command `rankscale` in `folder`, with its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "rankscale.cli", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
