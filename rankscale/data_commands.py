"""`rankscale data`: public sets by name, and shards for pre-training at scale."""

from __future__ import annotations

from pathlib import Path

import click

from rankscale.config import SAMPLE_RATE

ToFolder = click.option(
    "--to", default="runs/data", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="where"
)


@click.group()
def data() -> None:
    """Public sets by name, each with its licence and citation."""


@data.command("list")
def list_command() -> None:
    """Every set: its name, the size of its download, its licence."""
    from rankscale.sound.datasets import datasets

    for dataset in datasets().values():
        click.echo(f"{dataset.name:28} {dataset.size_text():14} {dataset.title}   [{dataset.licence}]")


@data.command()
@click.argument("name")
def card(name: str) -> None:
    """Where the set NAME comes from, under which licence, how large it is, its hashes, and how to cite it."""
    from rankscale.sound.datasets import find_dataset

    click.echo(find_dataset(name).card())


@data.command()
@click.argument("name")
@ToFolder
@click.option("--keep", is_flag=True, help="keep the archives after they are unpacked")
@click.option("--quiet", is_flag=True, help="no progress bars")
def fetch(name: str, to: Path, keep: bool, quiet: bool) -> None:
    """Download the set NAME, check it, and unpack it to TO/NAME.

    An interrupted download goes on where it stopped when the same command is given again. Nothing is opened before its
    hash is the published one, where one is published; `rankscale data card NAME` shows which.
    """
    from rankscale.sound import datasets

    dataset = datasets.find_dataset(name)
    folder = datasets.fetch(dataset, to, not quiet, keep)
    click.echo(f"{dataset.title}: {folder}\nlicence: {dataset.licence}\n\n{datasets.next_steps(dataset, folder)}")


@data.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@ToFolder
def task(name: str, out: Path, to: Path) -> None:
    """Write the fetched set NAME as a HEAR task folder OUT, with its published splits or folds."""
    from rankscale.sound import datasets
    from rankscale.sound.tasks import write_task

    written = write_task(datasets.dataset_task(datasets.find_dataset(name), to), out)
    click.echo(f"{written}\n\nrankscale place --encoder CHECKPOINT --audio synth --tasks {written}")


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--shard-mb", default=256.0, show_default=True, help="16-bit sound in a shard; FLAC makes it less")
@click.option("--piece-s", default=30.0, show_default=True, type=click.FloatRange(1), help="longer files are cut")
@click.option("--tasks", multiple=True, metavar="FOLDER", help="leave the tests of these HEAR tasks out of DIR's tasks")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="processes")
@click.option(
    "--cache", default="runs/cache", show_default=True, type=click.Path(path_type=Path), help="of audio scans"
)
@click.option("--quiet", is_flag=True, help="no progress bars")
def shard(
    folder: Path, out: Path, shard_mb: float, piece_s: float, tasks: tuple[str, ...], workers: int, cache: Path,
    quiet: bool,
) -> None:  # fmt: skip
    """Write the audio files under DIR as tar shards OUT/000000.tar, ... (WebDataset: 16 kHz mono FLAC, and JSON).

    Bad files are listed at the end and stop nothing. The same command goes on where a killed one stopped; shards that
    are complete are kept. Of HEAR task folders only what may be trained on is taken. Pre-training streams shards, in
    constant memory, and holds one in ten out.
    """
    from rankscale.sound import files, shards
    from rankscale.sound.datasets import full_disk
    from rankscale.sound.tasks import find_tasks, training_files

    holds_tasks = bool(find_tasks(folder))
    if tasks and not holds_tasks:
        raise click.UsageError(f"--tasks: {folder} holds no HEAR tasks, whose recordings could be told by their names")
    allowed = training_files(folder, tasks) if holds_tasks else None
    manifest = files.scan(folder, allowed, cache, workers=workers, progress=not quiet)
    with full_disk(out, round(manifest.hours * 3600 * 2 * SAMPLE_RATE)):
        left_out = shards.write_shards(manifest, out, shard_mb, piece_s, workers, not quiet)
    click.echo(f"{len(list(out.glob('*.tar')))} shards in {out}: {manifest.hours:.2f} h of sound")
    click.echo("\n".join(f"left out: {path}: {reason}" for path, reason in left_out) or "nothing was left out")
    click.echo(f"\nrankscale run --corpus 'shards:{out}/*.tar' --clips N")
