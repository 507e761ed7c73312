"""Laws: functional forms, robust fits of them from many starts, how sure these are, and which form to believe.

`points` checked columns of a table; `forms` what a law may look like; `fit` the search for its parameters;
`uncertainty` bootstraps, bands, and profiles of a limit; `select` held-out extrapolation.
"""

from rankscale.laws.fit import Fit, Loss, Optimum, Space, TooFewPoints, fit
from rankscale.laws.forms import FORMS, ONE_VARIABLE, Form, Parameter, find_form
from rankscale.laws.points import Points, points, read_points
from rankscale.laws.select import (
    HeldOut,
    Trial,
    aicc,
    choose,
    extrapolate,
    leave_groups_out,
    sensitivity,
    try_forms,
)
from rankscale.laws.uncertainty import Bootstrap, Profile, bootstrap, draw_weights, leave_out, profile, refit

__all__ = [
    "FORMS",
    "ONE_VARIABLE",
    "Bootstrap",
    "Fit",
    "Form",
    "HeldOut",
    "Loss",
    "Optimum",
    "Parameter",
    "Points",
    "Profile",
    "Space",
    "TooFewPoints",
    "Trial",
    "aicc",
    "bootstrap",
    "choose",
    "draw_weights",
    "extrapolate",
    "find_form",
    "fit",
    "leave_groups_out",
    "leave_out",
    "points",
    "profile",
    "read_points",
    "refit",
    "sensitivity",
    "try_forms",
]
