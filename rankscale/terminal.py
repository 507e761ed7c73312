"""Text for a terminal."""

from __future__ import annotations

import textwrap

TEXT_WIDTH = 100  # characters


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 100 characters; those after the first begin with `indent`."""
    return textwrap.fill(text, TEXT_WIDTH, subsequent_indent=indent, break_on_hyphens=False)
