"""A Chromium that tests drive over the DevTools protocol, and a server that shows it a folder."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import websocket

from companion.publishing.book import find_browser
from fusionlib.errors import FusionError

PATIENCE = 60.0
"""Seconds after which an answer, or a page, is not coming any more."""


def executable() -> str | None:
    """The Chromium or Chrome of this machine, if it has one."""
    try:
        return find_browser()
    except FusionError:
        return None


class Tab:
    """One tab. What a page complained of while it was open is in `complaints`."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self._count = 0
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv())
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                thrown = details.get("exception", {}).get("description", details["text"])
                self.complaints.append(thrown.splitlines()[0])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                entry = params["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}".strip())
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                words = [str(a.get("value", a.get("description"))) for a in params["args"]]
                self.complaints.append(" ".join(words))
        self._events.append(message)
        return message

    def look(self, width: int, *, dark: bool, height: int = 900) -> None:
        """Set the width of the window in CSS pixels, and what the reader's system prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open a page and wait until it, with its pictures, is loaded."""
        self.complaints.clear()
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._receive()

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails']['text']}")
        return done["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Evaluate an expression again and again, until its value is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if value := self.evaluate(script):
                    return value
            except RuntimeError as error:  # the page led on to another one while it was asked
                if "Runtime.evaluate: " not in str(error):
                    raise
            time.sleep(0.1)
        raise TimeoutError(f"never true: {script}")

    def screenshot(self, path: Path) -> None:
        """Write the whole page, from top to bottom, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start Chromium without a window, with an empty profile in a folder, and end it."""
    program = executable()
    assert program is not None
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(profile / "DevToolsActivePort", process)
        yield Tab(_first_tab(port))
    finally:
        process.terminate()
        process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise TimeoutError("Chromium did not start.")


def _first_tab(port: int) -> str:
    from urllib.request import urlopen

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            for target in json.load(answer):
                if target["type"] == "page":
                    return target["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise TimeoutError("Chromium has no tab.")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a port of this machine; yields the address, without a slash at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
