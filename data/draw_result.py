"""Draw the README's picture from the records, book/_static/result.svg: python data/draw_result.py"""

from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from rankscale import charts
from rankscale.records import RunRecord, read_records

ROOT = Path(__file__).parents[1]
NAMES = {
    "logmel_mean": "log-Mel, mean",
    "logmel_meanstd": "log-Mel, mean and SD",
    "untrained": "untrained encoder",
    "trained": "trained encoder",
}
SUITES = {"synthetic": "thirteen synthetic tasks", "real": "five tasks of real recordings"}


def largest_family(runs: list[RunRecord]) -> list[RunRecord]:
    """The trained runs of one configuration with the most seeds."""
    families: dict = {}
    for run in runs:
        if run.status == "ok" and run.config.steps and set(run.quality["linear"]) == set(SUITES):
            families.setdefault(run.config.replace(seed=0), []).append(run)
    return max(families.values(), key=len)


def result_chart(runs: list[RunRecord]) -> alt.HConcatChart:
    """Q of a trained encoder beside its floors, a dot a seed, for synthetic and for real tasks."""
    rows = [
        (suite, NAMES[name], run.config.seed, quality["linear"][suite])
        for run in runs
        for name, quality in {**run.floor_quality, "trained": run.quality}.items()
        for suite in SUITES
    ]
    table = pd.DataFrame(rows, columns=["suite", "embedding", "seed", "q"])
    parts = [
        charts.strip_chart(table[table["suite"] == suite].drop(columns="suite"), "quality Q (linear probe)", title)
        for suite, title in SUITES.items()
    ]
    return alt.hconcat(*(part.properties(width=280) for part in parts))


def main() -> None:
    alt.theme.enable("rankscale")
    chart = result_chart(largest_family(read_records(ROOT / "data" / "runs")))
    svg = vl_convert.vegalite_to_svg(chart.to_json(), vl_version=".".join(alt.VEGALITE_VERSION.split(".")[:2]))
    (ROOT / "book" / "_static" / "result.svg").write_text(svg + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
