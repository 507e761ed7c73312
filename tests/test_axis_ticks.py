"""The values of an axis are written as they are, not rounded to what a chart's own ticks would need."""

import altair as alt
import pandas as pd
import pytest
import vl_convert

from rankscale import axes, axis_charts


@pytest.mark.parametrize(
    ("name", "values", "written"),
    [
        ("mask_ratio", [0.5, 0.75, 0.875], ["0.5", "0.75", "0.875"]),
        ("lr", [0.0005, 0.001, 0.002], ["0.0005", "0.001", "0.002"]),
        ("width", [32, 64, 128], ["32", "64", "128"]),
        ("steps", [250, 1000, 4000], ["250", "1,000", "4,000"]),
    ],
)
def test_every_value_of_an_axis_is_written_below_it(name, values, written):
    table = pd.DataFrame({"value": values})
    chart = alt.Chart(table, width=400).mark_point().encode(x=axis_charts._across(axes.AXES[name], values))
    drawn = vl_convert.vegalite_to_svg(chart.to_json(), vl_version="6.1")
    assert [text for text in written if f">{text}<" not in drawn] == []
