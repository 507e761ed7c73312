"""Sphinx extension: pages with charts load Vega from beside the page, and no page knows Thebe."""

CHART_MARKS = ('class="rs-chart"', "vegaEmbed")


def add_vega(app, pagename, templatename, context, doctree):
    """A script tag in the head of chart pages, before the inline scripts that draw."""
    body = context.get("body") or ""
    if any(mark in body for mark in CHART_MARKS):
        app.add_js_file("vendor/vega.js", priority=100)


def drop_thebe(app, config):
    """Undo what Jupyter Book always switches on: Thebe runs cells on somebody else's server."""
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [item for item in app.registry.css_files if item[0] != "sphinx-thebe.css"]


def setup(app):
    app.connect("config-inited", drop_thebe)
    app.connect("html-page-context", add_vega)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
