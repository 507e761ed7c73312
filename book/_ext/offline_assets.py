"""Sphinx extension: pages with charts load Vega from beside the page; no other page carries it."""

CHART_MARKS = ('class="rs-chart"', "vegaEmbed")


def add_vega(app, pagename, templatename, context, doctree):
    """A script tag in the head of chart pages, before the inline scripts that draw."""
    body = context.get("body") or ""
    if any(mark in body for mark in CHART_MARKS):
        app.add_js_file("vendor/vega.js", priority=100)


def setup(app):
    app.connect("html-page-context", add_vega)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
