"""The built book: pages whose links hold, that load nothing from outside, draw, play, and fail loudly when broken.

Screenshots of every page are left in runs/screenshots.
"""

import functools
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser, find_chromium, open_browser
from tiny_book import INTRO, ROOT, run_rankscale, write_tiny_book

from rankscale import chapters

MOST_BYTES = 1_500_000  # of a page, without its sounds
WIDE, PHONE = 1280, 390
built_book = pytest.mark.xdist_group("built book")  # one worker: they share a build and a browser


class Page(HTMLParser):
    """What a page points at, and the places in it that can be pointed at."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.targets, self.ids = path, [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.targets += [attributes[name] for name in ("href", "src", "poster") if attributes.get(name)]


def broken_links(folder: Path) -> list[str]:
    """'page: target' for every relative link, image or sound that is not in `folder`."""
    files = [path.resolve() for path in folder.rglob("*.html")]
    pages = {path: Page(path) for path in files if "_static" not in path.parts}  # the theme's templates lie there
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            missing = not file.exists()
            place = unquote(url.fragment)
            lost = place and file in pages and place not in pages[file].ids
            if missing or lost:
                broken.append(f"{path.relative_to(folder.resolve())}: {target}")
    return broken


class Prose(HTMLParser):
    """The words of a page, without code, tables and scripts."""

    LEFT_OUT = ("script", "style", "pre", "code", "table")

    def __init__(self, text: str):
        super().__init__()
        self.depth, self.words = 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.depth += tag in self.LEFT_OUT

    def handle_endtag(self, tag):
        self.depth -= tag in self.LEFT_OUT

    def handle_data(self, data):
        self.words += "" if self.depth else data

    def slips(self) -> list[str]:
        """Marks that were put out as they are, and numbers that there are none of: from text that code wrote."""
        return re.findall(r"\bnan\b|(?<!\w)\*[A-Za-z][^*\n]{0,80}\*", self.words)


@pytest.fixture(scope="session")
def html() -> Path:
    """The book at smoke, built from the sources as they are now; quick if `make test` has built it already."""
    done = run_rankscale(ROOT, "book", "--profile", "smoke")
    if done.returncode:
        pytest.fail(f"the book does not build:\n{done.stderr}", pytrace=False)
    return chapters.html_folder(ROOT, "smoke")


def page_names(folder: Path) -> list[str]:
    """Every page of the book, without Sphinx's own index and search."""
    found = [*folder.glob("book/*.html"), *folder.glob("chapters/*.html")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not find_chromium():
        pytest.skip(
            "Chromium was not found: install it (Debian: sudo apt install chromium) to check pages in a browser"
        )
    with open_browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


# --- the pages as files -----------------------------------------------------------------------------------


@built_book
def test_every_chapter_became_a_page(html):
    built = {Path(name).stem for name in page_names(html) if name.startswith("chapters/")}
    assert built == {chapter.name for chapter in chapters.list_chapters(ROOT)}


@built_book
def test_the_package_is_documented(html):
    page = Page(html / "book/api.html")
    assert {"rankscale.spectra.rankme", "rankscale.config.RunConfig", "rankscale.charts.player"} <= page.ids
    assert ".. automodule" not in page.path.read_text(encoding="utf-8")


@built_book
def test_links_images_and_sounds_exist(html):
    assert broken_links(html) == []


def test_a_broken_link_is_found(tmp_path):
    tmp_path.joinpath("a.html").write_text('<a id="x" href="#x"></a><a href="b.html"></a><audio src="c.mp3"></audio>')
    tmp_path.joinpath("d.html").write_text('<a href="a.html#y"></a><a href="https://example.org/z"></a>')
    assert sorted(broken_links(tmp_path)) == ["a.html: b.html", "a.html: c.mp3", "d.html: a.html#y"]


@built_book
def test_pages_are_light(html):
    sizes = {name: (html / name).stat().st_size for name in page_names(html)}
    assert {name: size for name, size in sizes.items() if size > MOST_BYTES} == {}


@built_book
def test_no_page_carries_a_path_of_this_machine(html):
    home = str(ROOT)
    assert [name for name in page_names(html) if home in (html / name).read_text(encoding="utf-8")] == []


@built_book
def test_text_that_code_writes_reads_as_prose(html):
    found = {name: Prose((html / name).read_text(encoding="utf-8")).slips() for name in page_names(html)}
    assert {name: slips for name, slips in found.items() if slips and name.startswith("chapters/")} == {}


def test_slips_in_prose_are_found():
    page = "<p>it is *much higher* [nan, 2 * 3 * 4]</p><pre>*args nan*</pre><script>nan</script> <code>*x*</code>"
    assert Prose(page).slips() == ["*much higher*", "nan"]


# --- the pages in a browser -------------------------------------------------------------------------------

CHARTS = """[...document.querySelectorAll('.rs-chart')].map(node => ({
    drawn: !!node.querySelector('svg, canvas'),
    marks: node.querySelectorAll('svg path, svg image, svg text').length}))"""
# What a reader has to be able to read: the words of charts and captions against what lies behind them.
WORDS = """(() => {
    const ground = getComputedStyle(document.body).backgroundColor;
    const find = words => [...document.querySelectorAll(words)];
    const labels = find('.rs-chart svg .role-axis-label text, .rs-chart svg .role-legend-label text');
    const captions = find('.rs-caption, .rs-player figcaption');
    return [...labels.map(node => [getComputedStyle(node).fill, ground]),
            ...captions.map(node => [getComputedStyle(node).color, ground])];})()"""
PLAY = """Promise.all([...document.querySelectorAll('audio')].map(node => new Promise(done => {
    const result = why => done({source: node.currentSrc.slice(0, 80), seconds: node.duration, why});
    node.onerror = () => result('error ' + (node.error && node.error.message));
    node.ontimeupdate = () => { if (node.currentTime > 0.01) { node.pause(); result('played'); } };
    setTimeout(() => result('silent for 10 s'), 10000);
    node.play().catch(error => result('' + error)); })))"""
MOVE_FIRST_SLIDER = """(async () => {
    const slider = document.querySelector('.rs-chart .vega-bind input[type=range]');
    if (!slider) return null;
    const chart = slider.closest('.rs-chart').querySelector('svg');
    const before = chart.innerHTML;
    slider.value = slider.value === slider.max ? slider.min : slider.max;
    slider.dispatchEvent(new Event('input'));
    await new Promise(done => setTimeout(done, 500));
    return before !== chart.innerHTML; })()"""


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two CSS colours rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def check_page(browser: Browser, url: str, width: int, dark: bool) -> list[str]:
    """What is wrong with a page in a window of that width, in the light or in the dark."""
    visit = browser.visit(url, width=width, dark=dark)
    problems = [f"asks {outside}" for outside in visit.outside] + visit.errors
    drawn = browser.evaluate(CHARTS)
    problems += [f"chart {i} is empty" for i, chart in enumerate(drawn) if not chart["drawn"] or chart["marks"] < 3]
    words = {tuple(pair) for pair in browser.evaluate(WORDS)}
    problems += [f"unreadable words {pair}" for pair in words if contrast(*pair) < 4.5]
    if (theme := browser.evaluate("document.documentElement.dataset.theme")) != ("dark" if dark else "light"):
        problems.append(f"the page is {theme}")
    if (wide := browser.evaluate("document.documentElement.scrollWidth")) > width:
        problems.append(f"is {wide} pixels wide in a window of {width}")
    return problems


@built_book
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE], ids=["wide", "phone"])
def test_pages_load_nothing_from_outside_and_draw(html, browser, width, dark):
    problems = {}
    for name in page_names(html):
        found = check_page(browser, (html / name).as_uri(), width, dark)
        problems |= {name: found} if found else {}
        look = f"{'phone' if width == PHONE else 'wide'}-{'dark' if dark else 'light'}"
        browser.screenshot(ROOT / "runs/screenshots" / look / f"{Path(name).stem}.png")
    assert problems == {}


@built_book
def test_players_play(html, browser):
    pages = [name for name in page_names(html) if "<audio" in (html / name).read_text(encoding="utf-8")]
    silent = []
    for name in pages:
        browser.visit((html / name).as_uri())
        silent += [(name, r) for r in browser.evaluate(PLAY) if r["why"] != "played" or not r["seconds"] > 0]
    assert silent == []


@built_book
def test_sliders_of_the_static_pages_move_their_charts(html, browser):
    moved = {}
    for name in page_names(html):
        if "binding" in (page := (html / name).read_text(encoding="utf-8")) or '"bind":{' in page:
            browser.visit((html / name).as_uri())
            moved[name] = browser.evaluate(MOVE_FIRST_SLIDER)
    assert {name: result for name, result in moved.items() if result is False} == {}
    assert True in moved.values()


@built_book
def test_the_front_page_leads_to_the_book(html, browser):
    browser.visit((html / "index.html").as_uri())
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    assert browser.evaluate("document.querySelector('h1').textContent").startswith("rankscale")


@built_book
def test_pages_work_over_http_and_ask_only_their_own_server(html, browser):
    handler = functools.partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        name = next(
            name for name in page_names(html) if 'class="rs-chart"' in (html / name).read_text(encoding="utf-8")
        )
        visit = browser.visit(home + name)
        assert [url for url in visit.outside if not url.startswith(home)] == []
        assert visit.errors == []
        assert all(chart["drawn"] for chart in browser.evaluate(CHARTS))
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# --- the gate: what is broken does not become a book ------------------------------------------------------


@pytest.mark.slow
def test_a_good_book_builds_and_a_second_build_is_quick(tmp_path):
    folder = write_tiny_book(tmp_path)
    first = run_rankscale(folder, "book", "--profile", "smoke")
    assert first.returncode == 0, first.stderr
    assert "file://" in first.stdout
    assert "http.server" in first.stdout
    assert broken_links(folder / "_build/html-smoke") == []
    second = run_rankscale(folder, "book", "--profile", "smoke")
    assert "2 unchanged and 0 to run" in second.stdout
    assert "Nothing changed" in second.stdout
    folder.joinpath("book/intro.md").write_text(INTRO + "\nA new sentence.\n")
    third = run_rankscale(folder, "book", "--profile", "smoke")
    assert "2 unchanged and 0 to run" in third.stdout
    assert "A new sentence" in (folder / "_build/html-smoke/book/intro.html").read_text()


def break_chapter(folder: Path, name: str, old: str, new: str) -> int:
    """Replace a line of a chapter; returns the number of the last line of what is there now."""
    path = folder / "chapters" / name
    text = path.read_text()
    assert text.count(f"{old}\n") == 1
    path.write_text(text.replace(f"{old}\n", f"{new}\n"))
    return path.read_text().splitlines().index(new.splitlines()[-1]) + 1


@pytest.mark.slow
def test_a_broken_cell_breaks_the_book_with_the_place_and_the_reason(tmp_path):
    folder = write_tiny_book(tmp_path)
    line = break_chapter(folder, "01_first.md", "total = seed + len(sizes)", "total = sed + len(sizes)")
    done = run_rankscale(folder, "book", "--profile", "smoke")
    assert done.returncode == 1
    assert f"chapters/01_first.md:{line}: NameError: name 'sed' is not defined" in done.stderr
    assert 'under "The sum"' in done.stderr
    assert "FAILED" in done.stdout
    assert not (folder / "_build/html-smoke").exists()


@pytest.mark.slow
def test_broken_references_citations_and_numbers_break_the_book_with_their_places(tmp_path):
    folder = write_tiny_book(tmp_path)
    first = break_chapter(folder, "01_first.md", "## The sum", "## The sum\n\nSee {ref}`thrid`.")
    second = break_chapter(folder, "02_second.md", "# Second", "# Second\n\n{cite:p}`nobody1900` {glue:text}`nothing`")
    intro = folder / "book/intro.md"
    intro.write_text(INTRO + "\n{doc}`nowhere`\n")
    done = run_rankscale(folder, "book", "--profile", "smoke")
    assert done.returncode == 1
    assert f"chapters/01_first.md:{first}: WARNING: undefined label: 'thrid'" in done.stderr
    assert f'chapters/02_second.md:{second}: WARNING: could not find bibtex key "nobody1900"' in done.stderr
    assert f"chapters/02_second.md:{second}: WARNING: No key 'nothing' found" in done.stderr
    assert re.search(r"book/intro\.md:\d+: WARNING: .*nowhere", done.stderr)
    # A kernel that is shut down may log a traceback of its own before; the message itself must hold none.
    assert "Traceback" not in done.stderr.partition("error: the book did not build")[2]
    assert not (folder / "_build/html-smoke").exists()
