"""Drawing a chart as the book's pages do."""

import altair as alt
import vl_convert


def draw(chart, most=400_000):
    """The chart as SVG; its specification has fewer than `most` characters, since a page carries all of them."""
    with alt.theme.enable("rankscale"):
        spec = chart.to_json()
    assert len(spec) < most
    return vl_convert.vegalite_to_svg(spec, vl_version=".".join(alt.VEGALITE_VERSION.split(".")[:2]))
