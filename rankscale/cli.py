"""The command `rankscale`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import click

from rankscale import __version__


class _Readable(click.Group):
    """Errors that a user can mend end as one message, not as a traceback."""

    def invoke(self, context: click.Context) -> object:
        from rankscale.chapters import ChapterError

        try:
            return super().invoke(context)
        except ChapterError as error:
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


def _split(settings: tuple[str, ...]) -> dict[str, str]:
    """("seed=1",) -> {"seed": "1"}."""
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise click.BadParameter(f"{wrong[0]!r}: write NAME=VALUE, for example seed=1", param_hint="-p")
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
