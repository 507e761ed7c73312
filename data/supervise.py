"""Ceilings: encoders of every width trained on the labels of each synthetic task, end to end.

Writes data/supervised-v1.csv, one row for an encoder, a task and a seed as it is measured; a row that is there is not
measured again. Half the steps of data/freeze_tasks.py: what that costs en64-4 stands in data/tasks-v1.csv.
About three quarters of an hour on two cores: python data/supervise.py --workers 2
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import click
import pandas as pd
import torch
from tqdm import tqdm

from rankscale.budget import budget
from rankscale.config import RunConfig
from rankscale.corpus import CACHE, MelBlocks
from rankscale.sound.synthetic_tasks import FROZEN, TASK_VERSION, synthetic_task
from rankscale.storage import write_atomically
from rankscale.supervised import load_split, train_supervised

TRAINING = RunConfig(steps=750, batch=32, lr=1e-3)
KEY = ["encoder", "task", "seed"]


def measure(encoder: str, name: str, seed: int) -> dict:
    """One row: score is the main metric with chance removed."""
    torch.set_num_threads(1)
    task = synthetic_task(name)
    splits = [load_split(task, split, MelBlocks(task, split, CACHE)) for split in ("train", "valid", "test")]
    result = train_supervised(TRAINING.replace(encoder=encoder, seed=seed), task, *splits, progress=False)
    return {"encoder": encoder, "task": name, "seed": seed, "version": task.version} | result


@click.command()
@click.option("--encoder", "encoders", multiple=True, default=("en32-4", "en64-4", "en128-4", "en256-4"))
@click.option("--seed", "seeds", multiple=True, default=(0,), type=int)
@click.option("--workers", default=2, show_default=True, help="processes of one thread")
@click.option(
    "--out", default=f"data/supervised-{TASK_VERSION}.csv", show_default=True, type=click.Path(path_type=Path)
)
def main(encoders: tuple[str, ...], seeds: tuple[int, ...], workers: int, out: Path) -> None:
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {tuple(row[name] for name in KEY) for row in rows}
    waiting = [each for each in product(encoders, FROZEN, seeds) if each not in done]
    waiting.sort(key=lambda each: budget(TRAINING.replace(encoder=each[0])).encoder_flop)  # the cheapest first
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(measure, *each) for each in waiting]
        for each in tqdm(as_completed(running), "encoders", total=len(running)):
            rows.append(each.result())
            table = pd.DataFrame(rows).sort_values(KEY)
            write_atomically(out, lambda path, table=table: table.to_csv(path, index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
