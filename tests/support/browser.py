"""A headless Chromium, driven by its own DevTools protocol over a WebSocket."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.processes import wait_for

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 30.0
_MAX_BYTES = 64 << 20  # of a message: a screenshot


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Refused(AssertionError):
    """The browser refused a call: there is no document while it goes from one to the next."""


class Page:
    """The one tab of a browser. Not for several threads."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        """Exceptions of scripts, and what the browser refused or could not load."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(TIMEOUT_S))
            if told.get("id") == self._number:
                if "error" in told:
                    raise Refused(f"{method}: {told['error']}")
                return dict(told["result"])
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        if told.get("method") == "Runtime.exceptionThrown":
            details = told["params"]["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            self.complaints.append(f"{details['text']} {thrown}")
        elif told.get("method") == "Log.entryAdded":
            entry = told["params"]["entry"]
            if entry["level"] in ("error", "warning"):
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def open(self, url: str) -> None:
        """Go to an address; its scripts may still be loading."""
        result = self.call("Page.navigate", url=url)
        assert "errorText" not in result, f"{url}: {result}"

    def leave(self) -> None:
        """Go to an empty page, whose scripts ask nobody, and forget the complaints."""
        self.open("about:blank")
        self.wait("location.href === 'about:blank'", "the empty page")
        self.complaints.clear()

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, and a promise's value."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, expression: str, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until JavaScript is true."""

        def met() -> Any:
            with suppress(Refused):
                return self.evaluate(expression)

        return wait_for(met, what, timeout_s, poll_s=0.05)

    def reload(self) -> None:
        """Load the page anew, and wait for the new document."""
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        self.wait("window.isOld === undefined", "the page to be loaded anew")

    def type(self, selector: str, text: str) -> None:
        """Type into an input, in place of what it has."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press a named key, such as Tab or ArrowLeft."""
        for kind in ("rawKeyDown", "keyUp"):
            codes = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
            )

    def shape(self, width: int, height: int, dark: bool = False) -> None:
        """Give it another size; below 600 pixels it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        wanted = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wanted])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page, all of it or what is to be seen."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Run a browser, which is ended by pid.

    Args:
        folder: empty, for its profile and its log.
    """
    found = program()
    assert found is not None
    log = folder / "chromium.log"
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}/profile"]
    options += ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    options += ["--disable-background-networking", "--hide-scrollbars", "--lang=en"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # it refuses to start as root otherwise
    # For the socket and the files that it would leave behind; a short path, as sockets need.
    scratch = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
    with log.open("wb") as written:
        process = subprocess.Popen(
            [found, *options, "about:blank"],
            stdout=written,
            stderr=written,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch.name},
        )
    try:
        port_file = folder / "profile" / "DevToolsActivePort"
        wait_for(
            lambda: port_file.exists() and len(port_file.read_text().split()) == 2,
            f"chromium to start\n{log.read_text()}",
            60,
        )
        tabs = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list"
        with urllib.request.urlopen(tabs, timeout=TIMEOUT_S) as reply:
            (tab,) = [one for one in json.load(reply) if one["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=_MAX_BYTES, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        scratch.cleanup()
