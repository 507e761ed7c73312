"""Headless Chromium over its DevTools protocol: what a page asks for, complains about, shows and plays."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0", "--hide-scrollbars",
)  # fmt: skip
PATIENCE_S = 300  # a page with thirty players takes a second, or a minute on a machine that is busy with tests
LOCAL_SCHEMES = ("file:", "data:", "blob:", "about:", "chrome:")


def find_chromium() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass
class Visit:
    """What happened while a page loaded."""

    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # console errors, exceptions, failed requests

    @property
    def outside(self) -> list[str]:
        """Requests that left this machine."""
        return [url for url in self.requests if not url.startswith(LOCAL_SCHEMES)]


class Browser:
    """One tab."""

    def __init__(self, socket: websocket.WebSocket):
        self.socket = socket
        self.count = 0
        self.visit_now = Visit("about:blank")
        self.loaded = False
        self.width = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and wait for its answer; events on the way are noted."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, details = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.visit_now.requests.append(details["request"]["url"])
        elif kind == "Network.loadingFailed" and not details.get("canceled"):
            self.visit_now.errors.append(f"request failed: {details.get('errorText')}")
        elif kind == "Runtime.exceptionThrown":
            exception = details["exceptionDetails"]
            text = exception.get("exception", {}).get("description") or exception["text"]
            self.visit_now.errors.append(f"exception: {text}")
        elif kind == "Runtime.consoleAPICalled" and details["type"] == "error":
            text = " ".join(str(part.get("value", part.get("description"))) for part in details["args"])
            self.visit_now.errors.append(f"console: {text}")
        elif kind == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.visit_now.errors.append(f"log: {details['entry']['text']} {details['entry'].get('url', '')}")
        elif kind == "Page.loadEventFired":
            self.loaded = True

    def visit(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Visit:
        """Open a page in a window of that size and colour scheme; returns when it has loaded and settled."""
        self._resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.visit_now, self.loaded = Visit(url), False
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE_S
        while not self.loaded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not load within {PATIENCE_S} s")
            self.evaluate("1")
            time.sleep(0.02)
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
        return self.visit_now

    def _resize(self, width: int, height: int) -> None:
        self.width = width
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **shape)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:80]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path, most: int = 12_000) -> None:
        """The whole page, at most `most` pixels high, as a PNG file."""
        # A window as high as the page: capturing beyond the window sometimes draws the page shifted.
        height = self.send("Page.getLayoutMetrics")["cssContentSize"]["height"]
        self._resize(self.width, min(int(height), most))
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile folder, ended with the block. Raises RuntimeError if none is installed."""
    program = find_chromium()
    if not program:
        raise RuntimeError(f"no browser found; looked for {', '.join(NAMES)}")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        port = _wait_for_port(profile / "DevToolsActivePort", process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE_S) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=PATIENCE_S, suppress_origin=True)
        try:
            browser = Browser(socket)
            yield browser
            browser.send("Browser.close")
            process.wait(timeout=30)
        finally:
            socket.close()
    finally:
        if process.poll() is None:  # something went wrong: end the browser's own processes, and only those
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_port(file: Path, process: subprocess.Popen) -> int:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended at once with status {process.returncode}")
        if file.exists() and file.read_text().strip():
            return int(file.read_text().splitlines()[0])
        time.sleep(0.1)
    raise RuntimeError("the browser did not answer within 30 s")
