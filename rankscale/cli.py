"""The command `rankscale`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import click
import yaml
from pydantic import ValidationError

from rankscale import __version__
from rankscale.config import RunConfig, profile

EXECUTORS = ("processes", "in-process", "ray")
COMPILE_HELP = "train through torch.compile: the same run up to rounding, faster after a wait where it pays"

if TYPE_CHECKING:
    from rankscale.report import RankReport


class _Readable(click.Group):
    """Errors that a user can mend end as one message, not as a traceback."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(1)


@click.group(cls=_Readable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Scaling laws for general audio representations through the effective rank of embeddings."""


@main.command()
@click.argument("chapter", required=False)
@click.option("--profile", default="small", show_default=True, help="smoke, small or full")
@click.option("-p", "--parameter", "settings", multiple=True, metavar="NAME=VALUE", help="change one parameter")
@click.option("--list", "only_list", is_flag=True, help="show the chapter's parameters and stop")
def chapter(chapter: str | None, profile: str, settings: tuple[str, ...], only_list: bool) -> None:
    """Run one CHAPTER (its number or a part of its name) and keep the executed notebook under runs/chapters/.

    Without CHAPTER, list them all.
    """
    from rankscale import chapters

    root = chapters.find_root()
    if chapter is None:
        for each in chapters.list_chapters(root):
            click.echo(f"{each.name:36} {each.title}")
        return
    found = chapters.find_chapter(root, chapter)
    if only_list:
        click.echo("\n".join(map(str, found.parameters.values())) or "no parameters")
        return
    values = chapters.choose_parameters(root, found, profile, _split(settings))
    tag = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    folder = root / "runs" / "chapters" / f"{found.name}-{profile}-{tag}"
    output = chapters.run_chapter(found, values, folder, progress=True)
    click.echo(f"executed notebook: {output}")


def _split(settings: tuple[str, ...], option: str = "-p") -> dict[str, str]:
    """("seed=1",) -> {"seed": "1"}."""
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise click.BadParameter(f"{wrong[0]!r}: write NAME=VALUE, for example seed=1", param_hint=option)
    return {name.strip(): value.strip() for name, _, value in pairs}


@main.command()
@click.option("--profile", default="small", show_default=True, help="smoke, small or full")
@click.option("--workers", default=2, show_default=True, help="chapters that run at once")
def book(profile: str, workers: int) -> None:
    """Run the chapters that changed and render the book."""
    from rankscale import chapters

    html = chapters.build_book(chapters.find_root(), profile, workers)
    page = html / "index.html"
    click.echo(f"\nThe book ({profile}): {_short(page)}\n  open  {page.as_uri()}")
    click.echo(f"  or    python3 -m http.server -d {_short(html)} 8000   then   http://localhost:8000")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class _ListOptions(click.Command):
    """Lets `--tasks A B C` mean `--tasks A --tasks B --tasks C`, as people type it."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        lists = {flag for option in self.params if getattr(option, "multiple", False) for flag in option.opts}
        spread, current, follows = [], None, False
        for arg in args:
            is_flag = arg.startswith("--")
            if not is_flag and follows and current:
                spread.append(current)
            spread.append(arg)
            follows = not is_flag
            current = (arg if arg in lists else None) if is_flag else current
        return super().parse_args(context, spread)


def _config_options(command: Callable) -> Callable:
    """An option for every field of RunConfig; those that are not given keep the profile's value."""
    for name, field in reversed(RunConfig.model_fields.items()):
        many = get_origin(field.annotation) is tuple
        default = " ".join(map(str, field.default)) if many else field.default
        option = click.option(
            f"--{name.replace('_', '-')}", name, multiple=many, default=None, metavar="VALUE ..." if many else "VALUE",
            help=f"small: {default}",
        )  # fmt: skip
        command = option(command)
    return command


@main.command(cls=_ListOptions)
@click.option("--profile", "profile_name", default="small", show_default=True, help="smoke, small or full")
@_config_options
@click.option(
    "--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="records, encoders, caches"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--workers", default=2, show_default=True, help="processes that prepare clips")
@click.option("--save-every", "save_every_s", default=60.0, show_default=True, help="seconds between checkpoints")
@click.option("--compile", "compiled", is_flag=True, help=COMPILE_HELP)
@click.option("--publish", is_flag=True, help="also copy the records to data/runs/, where chapters read them")
@click.option("--quiet", is_flag=True, help="no progress bars")
def run(
    profile_name: str, out: Path, device: str, workers: int, save_every_s: float, compiled: bool, publish: bool,
    quiet: bool, **fields: object,
) -> None:  # fmt: skip
    """Pre-train one encoder, rank its embeddings, probe them, and write a record.

    Any setting of a run can be given; the rest comes from the profile. The same command goes on where a killed one
    stopped, and prints the record if it is there. Several GPUs or machines train one run together when it is started
    by `torchrun --nproc-per-node N -m rankscale.cli run ...` or `accelerate launch`; all must see the folder of --out.
    """
    given = {name: value for name, value in fields.items() if value not in (None, ())}
    try:
        config = profile(profile_name, **given)
    except ValueError as error:
        raise click.UsageError(_explain(error)) from error
    from rankscale import experiment, records
    from rankscale.distributed import join_team
    from rankscale.pretrain import pick_device

    places = experiment.Places(out)
    with join_team(pick_device(device)) as team:
        record = experiment.run(config, places, device, workers, not quiet, save_every_s, team, compiled)
        if not team.leads:
            return
    click.echo(experiment.describe(record))
    click.echo(f"record: {_short(records.record_path(places.records, config).resolve())}")
    if publish:
        for kept in records.publish({config, config.untrained()}, places.records, Path("data/runs")):
            click.echo(f"published: {kept}")


@main.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="show runs, cost and expected time, and stop")
@click.option(
    "--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="records, encoders, caches, logs"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--workers", type=click.IntRange(1), help="runs at once  [default: one a GPU, or one a core]")
@click.option(
    "--executor", type=click.Choice(EXECUTORS), default=EXECUTORS[0], show_default=True, help="who makes runs"
)
@click.option("--address", help="of a Ray cluster  [default: one of its own on this machine]")
@click.option("--save-every", "save_every_s", default=60.0, show_default=True, help="seconds between checkpoints")
@click.option(
    "--time-limit", metavar="TIME", help="end by then: 540, 9m or 2h; what does not fit is left out, and listed"
)
@click.option("--compile", "compiled", is_flag=True, help=COMPILE_HELP)
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="change one setting that all runs of SPEC share"
)
@click.option("--without", multiple=True, metavar="BLOCK", help="leave out a block of SPEC")
@click.option("--publish", is_flag=True, help="also copy the records to data/runs/, where chapters read them")
def sweep(
    spec: Path, dry_run: bool, publish: bool, time_limit: str | None, changes: tuple[str, ...], **options: Any
) -> None:
    """Make every run that the file SPEC names and that has no record yet.

    SPEC is YAML: a profile, settings that all runs share, and blocks of runs, each with seeds, a grid of values, or a
    list of runs; data/sweeps/smoke.yaml is an example. A run that is in several blocks is made once. The same command
    goes on where a killed one stopped. Failed runs are kept with their reason and not tried again unless `attempt` is
    raised in SPEC. The exit status is 1 where a run has no result, 130 after Ctrl-C.

    With --time-limit, speeds are measured first; what does not fit is left out: runs that would not end in time by
    themselves, then from the end of the plan, never those of a block named test. None is begun that would end too late.
    """
    from rankscale import sweep as sweeps

    options |= {"dry_run": dry_run, "publish_to": Path("data/runs") if publish else None, "say": click.echo}
    options |= {"time_limit_s": sweeps.seconds(time_limit)} if time_limit else {}
    options["changes"] = {name: yaml.safe_load(value) for name, value in _split(changes, "--set").items()}
    sys.exit(sweeps.carry_out(spec, **options))


@main.command("records")
@click.argument("folder", default="data/runs", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--table", metavar="OUT.CSV", type=click.Path(path_type=Path), help="write one row a run")
@click.option("--schema", is_flag=True, help="print the JSON schema of a record and stop")
def records_command(folder: Path, table: Path | None, schema: bool) -> None:
    """Check every record of FOLDER (data/runs) and count them."""
    from rankscale import records

    if schema:
        click.echo(json.dumps(records.RunRecord.model_json_schema(), indent=1))
        return
    found = records.read_records(folder)
    counts = Counter(record.status for record in found)
    click.echo(f"{folder}: {len(found)} valid records" + "".join(f", {n} {status}" for status, n in counts.items()))
    if table:
        records.write_table(found, table)
        click.echo(f"table: {table}")


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--key", help="which tensor of FILE, or which column, where there are several")
@click.option("--encoder", metavar="PATH|MODULE", help="embed audio with this checkpoint, or Python module (see below)")
@click.option("--audio", metavar="DIR", type=click.Path(path_type=Path), help="folder of audio files for --encoder")
@click.option("--model-path", metavar="PATH", help="what the module's load_model is called with")
@click.option("--pool", type=click.Choice(["mean", "meanstd"]), help="over time, for checkpoints  [default: mean]")
@click.option("--clip-s", default=10.0, show_default=True, help="seconds of a clip: 10, as AudioSet's are")
@click.option("--batch", default=16, show_default=True, help="clips embedded at once")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--save", metavar="Z.NPY", type=click.Path(path_type=Path), help="keep the embeddings")
@click.option(
    "--cache", default="runs/cache", show_default=True, type=click.Path(path_type=Path), help="of audio scans"
)
@click.option("--eps", default=1e-7, show_default=True, help="RankMe's constant")
@click.option("--center/--no-center", default=None, help="subtract the mean clip for all numbers, or for none")
@click.option("--groups", default=10, show_default=True, help="of clips, left out in turn for the intervals")
@click.option("--seed", default=0, show_default=True, help="of these groups")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there")
@click.option("--plot", metavar="HTML", type=click.Path(path_type=Path), help="draw the eigenspectrum, as one file")
def rank(file: Path | None, as_json: bool, plot: Path | None, groups: int, **options: Any) -> None:
    """How many directions an embedding matrix uses: RankMe and its relatives, with intervals and warnings.

    FILE holds one row a clip: .npy (may be larger than memory), .pt, .safetensors or .parquet. Or measure your own
    model: --encoder takes a checkpoint of rankscale or Dasheng, or a Python module (dotted name or .py file) with the
    HEAR functions load_model(path) and get_scene_embeddings(audio, model); files under --audio are cut into clips.
    """
    if (file is None) == (options["encoder"] is None) or (options["encoder"] is None) != (options["audio"] is None):
        raise click.UsageError("give a FILE of embeddings, or --encoder and --audio together")
    if groups < 2:
        raise click.BadParameter("at least 2", param_hint="--groups")
    with contextlib.redirect_stdout(sys.stderr):  # models like to print
        report = _rank_file(file, groups, options) if file else _rank_audio(groups, options)
    click.echo(report.to_json() if as_json else report.text())
    if plot:
        report.save_plot(plot)
        click.echo(f"plot: {_short(plot.resolve())}", err=as_json)


def _rank_file(file: Path, groups: int, options: dict[str, Any]) -> RankReport:
    from rankscale.embed import load_embeddings
    from rankscale.report import rank_report

    z = load_embeddings(file, options["key"])
    source = f"{file.name}:{options['key']}" if options["key"] else file.name
    try:
        return rank_report(z, source, options["eps"], options["center"], groups=groups, seed=options["seed"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _rank_audio(groups: int, options: dict[str, Any]) -> RankReport:
    from rankscale.embed import embed_folder, load_embedder
    from rankscale.pretrain import pick_device
    from rankscale.report import rank_report
    from rankscale.storage import write_atomically

    embedder = load_embedder(options["encoder"], options["model_path"], options["pool"], pick_device(options["device"]))
    found = embed_folder(embedder, options["audio"], options["clip_s"], options["batch"], options["cache"])
    if save := options["save"]:
        write_atomically(save, lambda temporary: _save_array(temporary, found.z))
        click.echo(f"embeddings: {_short(save.resolve())}", err=True)
    source = f"{embedder.name} on {options['audio'].name or options['audio']}, clips of {options['clip_s']:g} s"
    return rank_report(
        found.z, source, options["eps"], options["center"], embedder.pool, groups, options["seed"], found.files,
        found.remarks,
    )  # fmt: skip


def _save_array(path: Path, z: Any) -> None:
    import numpy as np

    with path.open("wb") as file:  # given a name, NumPy would add its own ending
        np.save(file, z)


def _explain(error: ValueError) -> str:
    """What is wrong with which setting, without pydantic's own layout."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


if __name__ == "__main__":
    main()
