"""Write down what the planner predicts for the runs of a block before they are run.

    python data/predict.py data/sweeps/more.yaml "equal compute" data/predictions/equal-compute.csv --crowding 0

The laws are fitted to the records in data/runs without the cells of that block and without test cells.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd

from rankscale.arms import arm_of, held_back
from rankscale.planner import CROWDING, LEVEL, QualityLaw, planning_runs
from rankscale.records import read_records
from rankscale.storage import write_atomically
from rankscale.sweep import plan, read_spec

DATA = Path(__file__).parent
QUALITIES = ("q_linear_synthetic", "q_mlp_synthetic")


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True))
@click.argument("block")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--crowding", default=CROWDING, show_default=True, help="p of the law")
def main(spec: Path, block: str, out: Path, crowding: float) -> None:
    configs = {arm_of(each.config): each.config for each in plan(read_spec(spec))
               if block in each.blocks and each.config.steps}  # fmt: skip
    if not configs:
        raise click.ClickException(f"{spec} has no runs in a block {block!r}")
    without = held_back(DATA / "sweeps") | set(configs)
    x = np.array([(each.width, each.steps * each.batch, each.clips) for each in configs.values()]).T
    parts = []
    for quality in QUALITIES:
        runs, _ = planning_runs(read_records(DATA / "runs"), quality, without=without)
        law = QualityLaw.of_runs(runs, quality, crowding)
        low, high = np.quantile(law.draws(*x), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        told = pd.DataFrame([{name: getattr(c, name) for name in ("encoder", "steps", "lr")} for c in configs.values()])
        told = told.assign(arm=list(configs), quality=quality, predicted=law.predict(*x), low=low, high=high)
        parts.append(told.assign(crowding=crowding, fitted_runs=len(runs)))
    table = pd.concat(parts, ignore_index=True).round(dict.fromkeys(("predicted", "low", "high"), 4))
    write_atomically(out, lambda path: table.to_csv(path, index=False))
    click.echo(table.to_string())


if __name__ == "__main__":
    main()
