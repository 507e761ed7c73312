"""`rankscale data`: public sets by name, and shards for pre-training at scale."""

from __future__ import annotations

from pathlib import Path

import click

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
