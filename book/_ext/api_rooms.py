"""Sphinx extension: the directive `{rooms}` documents every module of rankscale, in the order data flows.

Docstrings in this project are plain sentences, one thing a line, so they are shown line by line as written.
"""

import pkgutil
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.util.nodes import nested_parse_with_titles

import rankscale

# A module may import only from those before it.
DATA_FLOW = (
    "config", "storage", "sound.synth", "sound.files", "sound.datasets", "sound.tasks", "mel", "corpus", "mae",
    "embed", "spectra", "probe", "supervised", "budget", "pretrain", "records", "experiment", "sweep", "laws",
    "planner", "charts", "widgets", "chapters", "hear", "cli",
)  # fmt: skip


def list_rooms():
    """Dotted names of the public modules that exist, in the order of DATA_FLOW, others last."""
    found = [name for _, name, is_package in pkgutil.walk_packages(rankscale.__path__, "rankscale.") if not is_package]
    public = [name for name in found if not any(part.startswith("_") for part in name.split("."))]
    order = {f"rankscale.{name}": place for place, name in enumerate(DATA_FLOW)}
    return sorted(public, key=lambda name: (order.get(name, len(order)), name))


class Rooms(Directive):
    """One section a module (the page is Markdown; autodoc writes reStructuredText)."""

    def run(self):
        lines = []
        for name in list_rooms():
            title = name.removeprefix("rankscale.")
            lines += [f"## {title}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, "api_rooms"), node)
        return node.children


def keep_lines(app, what, name, obj, options, lines):
    """Turn a docstring into a line block: line breaks stay, and only ``code`` is markup."""
    lines[:] = ["| " + indent + escape(text) if text else "|" for indent, text in map(split_indent, lines)] + [""]


def split_indent(line):
    text = line.strip()
    return line[: len(line) - len(line.lstrip())] if text else "", text


def escape(text):
    """Everything but ``code`` made literal."""
    parts = re.split(r"(``.+?``)", text)
    return "".join(part if part.startswith("``") else re.sub(r"([\\*`|_])", r"\\\1", part) for part in parts)


def setup(app):
    app.add_directive("rooms", Rooms)
    app.connect("autodoc-process-docstring", keep_lines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
