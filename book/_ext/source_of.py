"""Sphinx extension: `{source-of} rankscale.records.RunRecord` shows a definition as it stands in the code.

The comments beside its fields are the documentation, and cannot fall behind it.
"""

import importlib
import inspect

from docutils import nodes
from docutils.parsers.rst import Directive


class SourceOf(Directive):
    required_arguments = 1

    def run(self):
        module, _, name = self.arguments[0].rpartition(".")
        source = inspect.getsource(getattr(importlib.import_module(module), name))
        return [nodes.literal_block(source, source, language="python")]


def setup(app):
    app.add_directive("source-of", SourceOf)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
