"""Copy what the pages need in order to work offline out of pinned packages into book/_static/vendor.

MathJax 3.2.2 comes from sphinx-mathjax-offline, Vega, Vega-Lite and Vega-Embed from vl-convert-python. Run with
the environment's Python; `make` does so.
"""

import shutil
from importlib.metadata import distribution, version
from pathlib import Path

from rankscale.charts import vega_bundle

VENDOR = Path("book/_static/vendor")
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml", "input/tex/extensions")
NOTICE = """Third-party files, copied from packages when the book is set up; not part of this project's sources.

mathjax/  MathJax 3.2.2, The MathJax Consortium, Apache License 2.0 (https://github.com/mathjax/MathJax),
          from the PyPI package sphinx-mathjax-offline {mathjax}
vega.js   Vega, Vega-Lite and Vega-Embed, University of Washington Interactive Data Lab, BSD 3-Clause License
          (https://github.com/vega), from the PyPI package vl-convert-python {vega}
"""


def copy_mathjax(target: Path) -> None:
    """The part of MathJax that TeX input and CommonHTML output need (about 2 MB of 22)."""
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    for part in MATHJAX_PARTS:
        target.joinpath(part).parent.mkdir(parents=True, exist_ok=True)
        if source.joinpath(part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, target / part)


def main() -> None:
    VENDOR.mkdir(parents=True, exist_ok=True)
    copy_mathjax(VENDOR / "mathjax")
    (VENDOR / "vega.js").write_text(vega_bundle(), encoding="utf-8")
    notice = NOTICE.format(mathjax=version("sphinx-mathjax-offline"), vega=version("vl-convert-python"))
    (VENDOR / "NOTICE.txt").write_text(notice, encoding="utf-8")
    print(f"Offline assets (MathJax, Vega) copied into {VENDOR}")


if __name__ == "__main__":
    main()
