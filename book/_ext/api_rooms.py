"""Sphinx extension: the directive `{rooms}` documents every module of rankscale, in the order data flows.

Docstrings in this project are plain sentences, one thing a line, so they are shown line by line as written.
"""

import importlib
import pkgutil
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.util.nodes import nested_parse_with_titles

import rankscale

# A module may import only from those before it.
DATA_FLOW = (
    "config", "storage", "terminal", "process", "devices", "distributed", "sound.synth", "sound.files", "sound.tasks",
    "sound.datasets", "sound.shards", "sound.synthetic_tasks", "sound.event_task", "mel", "corpus", "mae", "dasheng",
    "hear", "embed", "spectra", "probe", "league", "supervised", "budget", "pretrain", "records", "experiment", "sweep",
    "axes", "arms", "shift", "laws", "estimands", "verdict", "early", "planner", "charts", "axis_charts", "law_charts",
    "fit_charts", "early_charts", "plan_charts", "shift_charts", "report", "law_report", "place", "hear_eval", "frames",
    "frame_charts", "widgets", "chapters", "data_commands", "cli",
)  # fmt: skip
ESCAPED = re.compile(r"([\\*`|_])")


def list_rooms():
    """Dotted names of the public modules that exist, in the order of DATA_FLOW, others last.

    A package that says what it offers (`__all__`) is one room, and its modules are its own affair.
    """
    walked = list(pkgutil.walk_packages(rankscale.__path__, "rankscale."))
    whole = [name for _, name, is_package in walked if is_package and hasattr(importlib.import_module(name), "__all__")]
    found = whole + [name for _, name, is_package in walked if not is_package and name.rpartition(".")[0] not in whole]
    public = [name for name in found if not any(part.startswith("_") for part in name.split("."))]
    order = {f"rankscale.{name}": place for place, name in enumerate(DATA_FLOW)}
    return sorted(public, key=lambda name: (order.get(name, len(order)), name))


class Rooms(Directive):
    """One section a module (the page is Markdown; autodoc writes reStructuredText)."""

    def run(self):
        lines = []
        for name in list_rooms():
            title = name.removeprefix("rankscale.")
            options = ["   :members:", "   :exclude-members: model_config"]
            lines += [f"## {title}", "", "```{eval-rst}", f".. automodule:: {name}", *options, "```", ""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, "api_rooms"), node)
        return node.children


def keep_lines(app, what, name, obj, options, lines):
    """Turn a docstring into a line block: its lines stay lines, and only `code` is markup."""
    lines[:] = ["| " + escape(line) if line else "|" for line in unwrap(lines)] + [""]


def unwrap(lines):
    """The docstring's lines, with those put together again that were only broken for their length."""
    whole = []
    for line in lines:
        if whole and line[:1].isspace() and line.strip():  # an indented line goes on with what is above it
            whole[-1] = f"{whole[-1]} {line.strip()}".strip()
        elif whole and len(whole[-1]) > 80 and not re.match(r"$|[A-Z]|\w+:", line):
            whole[-1] += " " + line
        else:
            whole.append(line.rstrip())
    return whole


def escape(text):
    """Everything but code made literal; one backtick or two mark code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(f"``{part.strip('`')}``" if part.startswith("`") else ESCAPED.sub(r"\\\1", part) for part in parts)


def setup(app):
    app.add_directive("rooms", Rooms)
    app.connect("autodoc-process-docstring", keep_lines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
