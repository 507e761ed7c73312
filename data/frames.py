"""Measure encoders of the sweeps frame by frame: data/frames.csv, and by clip length: data/frame_lengths.csv.

    python data/frames.py --encoders runs/encoders --real real_audio/gunshot_onset-v1.0-full

The encoders come from `rankscale sweep data/sweeps/small.yaml` and `intervention.yaml`; those that are not there are
named and left out. Without --real no recording is heard. About eight minutes on two cores.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import click
import pandas as pd
import torch

from rankscale import frames
from rankscale.arms import label_of
from rankscale.axes import CENTRE, LIVE
from rankscale.config import RunConfig
from rankscale.dasheng import read_encoder
from rankscale.hear_eval import (
    CheckedTask,
    Recipe,
    Settings,
    check_task,
    embed_task,
    interval,
    load_encoder,
    score_task,
)
from rankscale.sound.event_task import onset_task
from rankscale.sound.synth import synthesize
from rankscale.sound.tasks import Task, read_task
from rankscale.storage import write_atomically

DATA = Path(__file__).parent
CLIPS, LONG_CLIPS, LONG_S = 2048, 192, 60.0
SECONDS = (1.0, 2.56, 5.0, 10.0, 30.0, 60.0)
STRETCH = 256  # frames of a scene, where clips change their scene
RECIPE = Recipe(points=2, hidden_dim=128, check_every=5, max_epochs=50)  # HEAR's probe on a smaller grid
METRICS = {"f200": "event_onset_200ms_fms", "f50": "event_onset_50ms_fms", "er": "segment_1s_er"}
CHANGES = (
    *({"seed": seed} for seed in range(3)),
    *({"steps": steps} for steps in (250, 500, 1000, 4000)),
    *({"encoder": encoder, "seed": seed} for encoder in ("en32-4", "en128-4", "en256-4") for seed in (0, 1)),
    *({"encoder": encoder, "lr": 1e-3} for encoder in ("en128-4", "en256-4")),
    {"lr": 4e-3}, {"encoder": "en64-1"}, {"encoder": "en64-8"}, {"clips": 2048}, {"log_det": -0.03}, {"log_det": 0.03},
)  # fmt: skip
UNTRAINED = ("en32-4", "en64-4", "en128-4", "en256-4")
LOGMEL = "logmel_mean"


def encoders() -> list[RunConfig]:
    """What is measured: the centre of the first sweep and its neighbours along several axes, trained and untrained."""
    return [CENTRE.replace(**changes) for changes in CHANGES] + [
        CENTRE.replace(encoder=encoder).untrained() for encoder in UNTRAINED
    ]


def keep_sound(task: Task) -> Task:
    """A task whose clips are made once and held in memory."""
    splits = {name: replace(split, clips=list(split.clips()).__iter__) for name, split in task.splits.items()}
    return replace(task, splits=splits)


@cache
def sounds(real: Path | None) -> tuple[torch.Tensor, dict[str, CheckedTask]]:
    """What every encoder hears: held-out clips, and event tasks by suite."""
    tasks = {"synthetic": onset_task()} | ({"real": read_task(real)} if real else {})
    return frames.heldout_mels(CLIPS), {suite: check_task(keep_sound(task), suite) for suite, task in tasks.items()}


def measure(config: RunConfig | None, place: Path | str, real: Path | None) -> dict:
    """One row of frames.csv."""
    torch.set_num_threads(1)
    mels, tasks = sounds(real)
    encode = frames.tokens_of(read_encoder(place)) if config else frames.logmel_tokens
    row = {"hash": config.hash if config else LOGMEL} | describe(config)
    row |= asdict(frames.frame_ranks(frames.encode_all(encode, mels)))
    for suite, checked in tasks.items():
        row |= onset_scores(checked, place, suite)
    return row


def onset_scores(checked: CheckedTask, spec: Path | str, suite: str) -> dict[str, float]:
    """The linear probe on an event task, and on real sounds HEAR's, as columns."""
    with tempfile.TemporaryDirectory(prefix="frames-") as cache:
        embedded = embed_task(load_encoder(spec), checked.task, checked.hashes, Path(cache), progress=False)
    answers = frames.linear_onsets(checked.task, embedded).answers
    row = {f"{suite}_linear_{short}": answers.measure(name) for short, name in METRICS.items()}
    row |= zip((f"{suite}_linear_low", f"{suite}_linear_high"), interval([answers], METRICS["f200"]), strict=True)
    if suite == "synthetic":
        return row
    hear = score_task(checked, embedded, Settings(recipe=RECIPE)).probes["hear"]
    row |= {f"{suite}_hear_{short}": hear.metrics[name] for short, name in METRICS.items()}
    return row | {f"{suite}_hear_low": hear.low, f"{suite}_hear_high": hear.high}


def lengths(places: dict[str, Path | str]) -> pd.DataFrame:
    """RankMe by clip length of some encoders, on long scenes and on the same sound dealt again."""
    blocks = []
    for start in range(0, LONG_CLIPS, 8):
        index = range(frames.HELDOUT_START + start, frames.HELDOUT_START + min(start + 8, LONG_CLIPS))
        blocks.append(frames.LogMel()(synthesize(index, clip_s=LONG_S).waveform)[..., : round(100 * LONG_S)])
    one = torch.cat(blocks)
    parts = []
    for name, place in places.items():
        encode = frames.logmel_tokens if place == LOGMEL else frames.tokens_of(read_encoder(place))
        for arrangement, mels in (("one scene", one), ("new scene every 2.56 s", frames.deal_again(one, STRETCH))):
            table = frames.length_ranks(encode, mels, SECONDS)
            parts.append(table.assign(encoder=name, arrangement=arrangement, clips=LONG_CLIPS))
            click.echo(f"{name}, {arrangement}: centred {table['centred'].round(1).tolist()}")
    return pd.concat(parts)


def write(table: pd.DataFrame, name: str) -> None:
    write_atomically(DATA / name, lambda path: table.to_csv(path, index=False, float_format="%.5f"))


@click.command()
@click.option("--encoders", "folders", multiple=True, default=["runs/encoders"], show_default=True,
              type=click.Path(path_type=Path), help="folders of encoders, named by hash")  # fmt: skip
@click.option("--real", type=click.Path(path_type=Path, exists=True), help="a HEAR event task folder")
@click.option("--workers", default=2, show_default=True, help="processes of one thread")
def main(folders: tuple[Path, ...], real: Path | None, workers: int) -> None:
    torch.set_num_threads(1)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="frames-") as folder,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        places = find_encoders(folders) | {LIVE.hash: frames.train_encoder(LIVE, Path(folder))}
        configs = [LIVE, *(config for config in encoders() if config.hash in places), None]
        files = [places[config.hash] if config else LOGMEL for config in configs]
        for row in pool.map(measure, configs, files, [real] * len(configs)):
            rows.append(row)
            click.echo(f"{row['label']:24} frames {row['frames']:5.1f}, clips {row['clips']:5.1f}, "
                       f"synthetic onsets {row['synthetic_linear_f200']:.3f}")  # fmt: skip
            write(pd.DataFrame(rows), "frames.csv")
    heard = {"untrained": CENTRE.untrained().hash, "trained": CENTRE.hash}
    heard = {name: places[each] for name, each in heard.items() if each in places}
    write(lengths({"log-Mel": LOGMEL} | heard), "frame_lengths.csv")


def find_encoders(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Hash -> file of those that are there; the others are named."""
    places = {}
    for config in encoders():
        found = [path for path in (folder / f"{config.hash}.pt" for folder in folders) if path.is_file()]
        if found:
            places[config.hash] = found[0]
        else:
            click.echo(f"{config.hash} ({describe(config)['label']}, seed {config.seed}): no such encoder, left out")
    return places


def describe(config: RunConfig | None) -> dict:
    """What a row is of, in columns; label is the same for all seeds."""
    if config is None:
        return {"label": "log-Mel", "kind": "log-Mel", "width": 64, "steps": 0, "seed": 0}
    kind = "short" if config == LIVE else "trained" if config.steps else "untrained"
    moved = f"log-det {config.log_det:+g}" if config.log_det else label_of(config)
    label = {"short": "short run", "trained": moved, "untrained": f"untrained, width {config.width}"}[kind]
    return {"label": label, "kind": kind, "width": config.width, "steps": config.steps, "seed": config.seed}


if __name__ == "__main__":
    main()
