"""Controls for a live kernel, and a plain sentence for everyone else."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display

from rankscale.charts import STATIC


def live() -> bool:
    """Whether somebody sits at a running notebook: a kernel, and not one that papermill runs."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and not os.environ.get(STATIC)


def explore(function: Callable[..., Any], **controls: Any) -> None:
    """Call `function` with values from sliders where there is a kernel; else once, with its own defaults.

    controls: parameter -> an ipywidget, or what `ipywidgets.interact` abbreviates: (low, high[, step]), a list
    of choices, a boolean. Every parameter of `function` has a default; a slider starts from it.
    Raises ValueError on a control that is no parameter and on a parameter without a default.
    """
    parameters = inspect.signature(function).parameters
    if unknown := set(controls) - set(parameters):
        raise ValueError(f"{function.__name__} has no parameter {', '.join(sorted(unknown))}")
    if bare := [name for name, parameter in parameters.items() if parameter.default is parameter.empty]:
        raise ValueError(f"{function.__name__}: give {', '.join(bare)} a default, the static book shows it")
    if live():
        import ipywidgets

        fixed = {name: ipywidgets.fixed(parameters[name].default) for name in set(parameters) - set(controls)}
        display(ipywidgets.interactive(function, **controls, **fixed))
        return
    # A static page can show widgets, but nothing would answer them.
    names = ", ".join(f"`{name}`" for name in controls)
    display(Markdown(f"*Live control: open this chapter with `make lab` to move {names}.*"))
    result = function()
    if result is not None:
        display(result)
