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
    from rankscale.embed import Embedder
    from rankscale.law_report import LawReport
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


def _embedding_options(command: Callable) -> Callable:
    """How audio becomes embeddings and these a rank: what `rank` and `place` have in common."""
    options = [
        click.option("--model-path", metavar="PATH", help="what the module is loaded with"),
        click.option(
            "--pool", type=click.Choice(["mean", "meanstd"]), help="over time, where a model does not  [default: mean]"
        ),
        click.option("--clip-s", type=float, help="seconds of a clip  [default: 10, as AudioSet's are; of synth 1.28]"),
        click.option(
            "--synth-clips", default=12_288, show_default=True, type=click.IntRange(2), help="how many of --audio synth"
        ),
        click.option("--batch", default=16, show_default=True, help="clips embedded at once"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda"),
        click.option(
            "--cache", default="runs/cache", show_default=True, type=click.Path(path_type=Path), help="of audio scans"
        ),
        click.option("--eps", default=1e-7, show_default=True, help="RankMe's constant"),
        click.option(
            "--groups",
            default=10,
            show_default=True,
            type=click.IntRange(2),
            help="of clips, left out in turn for the intervals",
        ),
        click.option("--seed", default=0, show_default=True, help="of these groups"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--key", help="which tensor of FILE, or which column, where there are several")
@click.option("--encoder", metavar="PATH|MODULE", help="embed audio with this checkpoint, or Python module (see below)")
@click.option("--audio", metavar="DIR|synth", help="folder of audio files for --encoder, or the book's synthetic clips")
@click.option("--save", metavar="Z.NPY", type=click.Path(path_type=Path), help="keep the embeddings")
@click.option("--center/--no-center", default=None, help="subtract the mean clip for all numbers, or for none")
@_embedding_options
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there")
@click.option("--plot", metavar="HTML", type=click.Path(path_type=Path), help="draw the eigenspectrum, as one file")
def rank(file: Path | None, as_json: bool, plot: Path | None, **options: Any) -> None:
    """How many directions an embedding matrix uses: RankMe and its relatives, with intervals and warnings.

    FILE holds one row a clip: .npy (may be larger than memory), .pt, .safetensors or .parquet. Or measure your own
    model: --encoder takes a checkpoint of rankscale or Dasheng; a Python module (dotted name or .py file) with the HEAR
    functions load_model(path) and get_scene_embeddings(audio, model); or MODULE:NAME of a torch module whose forward
    takes waveforms. Files under --audio are cut into clips.
    """
    if (file is None) == (options["encoder"] is None) or (options["encoder"] is None) != (options["audio"] is None):
        raise click.UsageError("give a FILE of embeddings, or --encoder and --audio together")
    with contextlib.redirect_stdout(sys.stderr):  # models like to print
        report = _rank_file(file, options) if file else _rank_audio(_embedder(options), options)
    click.echo(report.to_json() if as_json else report.text())
    if plot:
        report.save_plot(plot)
        click.echo(f"plot: {_short(plot.resolve())}", err=as_json)


def _rank_file(file: Path, options: dict[str, Any]) -> RankReport:
    from rankscale.embed import load_embeddings
    from rankscale.report import rank_report

    z = load_embeddings(file, options["key"])
    source = f"{file.name}:{options['key']}" if options["key"] else file.name
    try:
        return rank_report(z, source, options["eps"], options["center"], groups=options["groups"], seed=options["seed"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _embedder(options: dict[str, Any]) -> Embedder:
    from rankscale.embed import load_embedder
    from rankscale.pretrain import pick_device

    return load_embedder(options["encoder"], options["model_path"], options["pool"], pick_device(options["device"]))


def _rank_audio(embedder: Embedder, options: dict[str, Any]) -> RankReport:
    from rankscale.embed import CLIP_S, embed_folder, embed_synth
    from rankscale.report import rank_report
    from rankscale.storage import write_atomically

    audio = options["audio"]
    if audio == "synth":
        clip_s, name = options["clip_s"] or 1.28, "synthetic clips"
        found = embed_synth(embedder, options["synth_clips"], clip_s)
    else:
        clip_s, name = options["clip_s"] or CLIP_S, Path(audio).name or audio
        found = embed_folder(embedder, audio, clip_s, options["batch"], options["cache"])
    if save := options["save"]:
        write_atomically(save, lambda temporary: _save_array(temporary, found.z))
        click.echo(f"embeddings: {_short(save.resolve())}", err=True)
    source = f"{embedder.name} on {name}, clips of {clip_s:g} s"
    return rank_report(
        found.z, source, options["eps"], options["center"], embedder.pool, options["groups"], options["seed"],
        found.files, found.remarks,
    )  # fmt: skip


def _save_array(path: Path, z: Any) -> None:
    import numpy as np

    with path.open("wb") as file:  # given a name, NumPy would add its own ending
        np.save(file, z)


@main.command(cls=_ListOptions)
@click.option("--encoder", required=True, metavar="SPEC", help="as for `rank`, or a .npy file of embeddings")
@click.option("--audio", metavar="DIR|synth", help="what RankMe is measured on: a folder, or the records' own clips")
@click.option(
    "--tasks", multiple=True, metavar="ENTRY ...", help="synth, one such as synth:pitch, or HEAR task folders"
)
@click.option("--features", metavar="DIR", type=click.Path(path_type=Path), help="of a .npy: DIR/TASK/SPLIT.npy, for Q")
@click.option("--task-clips", type=int, help="of each synthetic task and split  [default: the frozen sizes]")
@click.option(
    "--test-folds", type=click.Choice(["unseen", "all"]), default="unseen", show_default=True, help="of task folders"
)
@click.option(
    "--records", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="[default: data/runs of the checkout]",
)  # fmt: skip
@_embedding_options
@click.option("--out", default="place.html", show_default=True, type=click.Path(path_type=Path), help="the figure")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there")
def place(
    tasks: tuple[str, ...], features: Path | None, task_clips: int | None, test_folds: str, records: Path | None,
    out: Path, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Rank and probe your own encoder, and place it among the published records: a page, and numbers.

    SPEC is a checkpoint of rankscale or Dasheng; a Python module with the HEAR functions; MODULE:NAME of a torch
    module; or a .npy file of embeddings, one row a clip. --audio synth measures RankMe on the clips that the records'
    is measured on, --tasks synth scores the tasks that they were scored on: then the numbers can be compared.
    """
    from rankscale import place as placing
    from rankscale.records import read_records

    matrix = Path(options["encoder"]) if Path(options["encoder"]).suffix in (".npy", ".parquet") else None
    heard = {"corpus": matrix.name if matrix else Path(options["audio"] or ".").name or "."}
    if options["audio"] == "synth" and options["clip_s"]:
        heard["clip_s"] = options["clip_s"]
    try:
        config = RunConfig(tasks=tasks or ("synth",), task_clips=task_clips, test_folds=test_folds, **heard)
    except ValueError as error:
        raise click.UsageError(_explain(error)) from error
    _check_place(matrix, features, tasks, options)
    cache = options["cache"]
    with contextlib.redirect_stdout(sys.stderr):  # models like to print
        if matrix:
            report = _rank_file(matrix, options | {"key": None, "center": None})
            scores = placing.score_matrices(features, config, cache) if tasks else {}
        else:
            embedder = _embedder(options)
            report = _rank_audio(embedder, options | {"save": None, "center": None})
            scores = placing.score_encoder(embedder, config, cache) if tasks else {}
        published = read_records(records or Path(__file__).parents[1] / "data" / "runs")
        placement = placing.place(report, scores, config, published, cache)
    click.echo(placement.to_json() if as_json else placement.text())
    placement.save_page(out)
    click.echo(f"page: {_short(out.resolve())}", err=as_json)


def _check_place(matrix: Path | None, features: Path | None, tasks: tuple[str, ...], options: dict[str, Any]) -> None:
    if matrix and options["audio"]:
        raise click.UsageError("a file of embeddings hears nothing: leave --audio out")
    if matrix and bool(tasks) != bool(features):
        raise click.UsageError("a file of embeddings is probed with --tasks and --features together")
    if not matrix and (not options["audio"] or features):
        raise click.UsageError("an encoder needs --audio (a folder, or synth), and no --features")


@main.command("import-dasheng")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="FILE.pt", type=click.Path(path_type=Path), help="[default: runs/encoders/CHECKPOINT.pt]"
)
def import_dasheng(checkpoint: Path, out: Path | None) -> None:
    """Check a CHECKPOINT of Dasheng and keep it as an encoder of rankscale, bit for bit.

    CHECKPOINT is what PyPI dasheng publishes (.pt), a .safetensors file with its JSON configuration beside it, or a
    folder of the Hugging Face form. No code in it is run. `rankscale rank` and `place` take the result, or CHECKPOINT.
    """
    from rankscale import dasheng

    encoder = dasheng.read_encoder(checkpoint)
    out = out or Path("runs/encoders") / f"{checkpoint.resolve().stem}.pt"
    if out.suffix != ".pt":
        raise click.BadParameter("name a .pt file", param_hint="--out")
    if out.exists() and out.samefile(checkpoint):
        raise click.BadParameter("that is CHECKPOINT itself", param_hint="--out")
    dasheng.write_dasheng(encoder, out)
    click.echo(f"{dasheng.describe(encoder)}\nencoder: {_short(out.resolve())}")


@main.command("export-dasheng")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="FILE.pt|FOLDER", type=click.Path(path_type=Path), help="where to")
def export_dasheng(checkpoint: Path, out: Path) -> None:
    """Write an encoder CHECKPOINT so that Dasheng's own code loads it, bit for bit.

    A .pt file is for PyPI dasheng (Dasheng.from_pretrained); any other name is a folder for its Hugging Face form
    (DashengModel.from_pretrained): model.safetensors and two JSON files.
    """
    from rankscale import dasheng

    encoder = dasheng.read_encoder(checkpoint)
    written = dasheng.write_dasheng(encoder, out)
    click.echo(f"{dasheng.describe(encoder)}\nwritten: {_short(written.resolve())}")


@main.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--x", metavar="COL", help="the variable of a law of one variable, or the rank of rank_width")
@click.option("--y", metavar="COL", required=True, help="what the law predicts: quality, or a loss")
@click.option("--n", metavar="COL", help="model size, for --form joint")
@click.option("--d", metavar="COL", help="amount of data, for --form joint")
@click.option("--k", metavar="COL", help="width, for --form rank_width")
@click.option("--form", default="auto", show_default=True, metavar="NAME", help="auto tries all of one variable")
@click.option("--group", metavar="COL", help="leave its values out in turn, for example the axis a run varies")
@click.option("--cluster", "clusters", multiple=True, metavar="COL", help="resample rows of one value together; "
              "given twice, the second one within the first")  # fmt: skip
@click.option("--space", type=click.Choice(["log", "linear"]), default="log", show_default=True, help="of residuals")
@click.option("--loss", type=click.Choice(["huber", "lad"]), default="huber", show_default=True,
              help="lad: least absolute deviations")  # fmt: skip
@click.option("--delta", default=1e-3, show_default=True, help="where Huber's loss turns from square to absolute")
@click.option("--draws", type=click.IntRange(100), default=1000, show_default=True, help="resamples for the intervals")
@click.option("--seed", default=0, show_default=True, help="of the resamples")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there")
@click.option("--plot", metavar="HTML", type=click.Path(path_type=Path), help="draw points and law, as one file")
def fit(table: Path, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Fit laws to the runs in TABLE, a CSV file with a header, and judge them by what they foretell.

    Forms of one variable: power, log_linear, saturating, shifted_power, exponential, sigmoid, bnsl1, bnsl2 (power laws
    with one and two breaks). Of two: joint, E + A / N^alpha + B / D^beta, with --n and --d; rank_width, a ceiling less
    a power of rank times a power of width, with --x and --k. A form is judged on the larger runs, predicted from the
    smaller ones, and on each group, predicted from the others.
    """
    report = _fit_table(table, **options)
    click.echo(report.to_json() if as_json else report.text())
    if plot:
        report.save_plot(plot)
        click.echo(f"plot: {_short(plot.resolve())}", err=as_json)


def _fit_table(
    file: Path, form: str, y: str, group: str | None, clusters: tuple[str, ...], x: str | None, n: str | None,
    d: str | None, k: str | None, **how: Any,
) -> LawReport:  # fmt: skip
    import pandas as pd

    from rankscale.law_report import law_report
    from rankscale.laws import ONE_VARIABLE, find_form, read_points

    forms = ONE_VARIABLE if form == "auto" else (find_form(form),)
    columns = {"x": x, "r": x, "n": n, "d": d, "k": k}
    wanted = {variable: "x" if variable == "r" else variable for variable in forms[0].variables}
    if missing := [f"--{option}" for variable, option in wanted.items() if not columns[variable]]:
        raise click.UsageError(f"--form {form} needs {' and '.join(missing)}")
    if extra := [
        f"--{o}" for o, value in (("x", x), ("n", n), ("d", d), ("k", k)) if value and o not in wanted.values()
    ]:
        raise click.UsageError(f"--form {form} has no use for {' and '.join(extra)}")
    try:
        table = pd.read_csv(file)
        table.index = pd.RangeIndex(2, len(table) + 2, name="line")  # as an editor counts, the header being line 1
        points = read_points(table, [columns[variable] for variable in forms[0].variables], y, group, clusters)
        return law_report(points, forms, file.name, **how)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _explain(error: ValueError) -> str:
    """What is wrong with which setting, without pydantic's own layout."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


if __name__ == "__main__":
    main()
