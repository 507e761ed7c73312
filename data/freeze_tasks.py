"""Decide which synthetic tasks count, before any masked autoencoder is scored.

A candidate is kept if an en64-4 trained on its labels beats the mean-and-std log-Mel floor (the linear probe of the
book) by 0.15 or more in (score - chance) / (1 - chance). Writes data/tasks-v1.csv, one row a task as it is measured;
a task that has its row is not measured again. About 15 minutes on two cores: python data/freeze_tasks.py --workers 2
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import pandas as pd
import torch

from rankscale.config import RunConfig
from rankscale.corpus import CACHE, MelBlocks
from rankscale.embed import embed_all, logmel_embedding
from rankscale.probe import probe_task
from rankscale.sound.synthetic_tasks import CANDIDATES, TASK_VERSION, level_db, synthetic_task
from rankscale.storage import write_atomically
from rankscale.supervised import load_split, train_supervised

MARGIN = 0.15
SUPERVISED = RunConfig(encoder="en64-4", steps=1500, batch=32, lr=1e-3)


def measure(name: str) -> dict:
    """One row of the table."""
    torch.set_num_threads(1)
    task = synthetic_task(name)
    mels = {split: MelBlocks(task, split, CACHE) for split in task.splits}
    row = {"task": name, "version": task.version, "classes": len(task.vocabulary), "chance": task.chance}
    for pool in ("mean", "meanstd"):
        features = {split: embed_all(logmel_embedding(pool), blocks) for split, blocks in mels.items()}
        row[f"logmel_{pool}"] = probe_task(task, features)["score"]
    splits = [load_split(task, split, mels[split]) for split in ("train", "valid", "test")]
    row["supervised"] = train_supervised(SUPERVISED, task, *splits, progress=False)["score"]
    row["margin"] = row["supervised"] - row["logmel_meanstd"]
    return row | {"kept": row["margin"] >= MARGIN, "level_db": level_db(task)}


@click.command()
@click.option("--workers", default=2, show_default=True, help="processes of one thread")
@click.option("--out", default=f"data/tasks-{TASK_VERSION}.csv", show_default=True, type=click.Path(path_type=Path))
def main(workers: int, out: Path) -> None:
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    waiting = [name for name in CANDIDATES if name not in {row["task"] for row in rows}]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, waiting):
            rows.append(row)
            click.echo(
                f"{row['task']:14} floor {row['logmel_meanstd']:.3f}  supervised {row['supervised']:.3f}  "
                f"{'kept' if row['kept'] else 'dropped'}"
            )
            table = pd.DataFrame(rows)
            write_atomically(out, lambda path, table=table: table.to_csv(path, index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
