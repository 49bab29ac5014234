"""A real browser without a window, driven over the WebDriver protocol by the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the protocol gives to references


class Browser:
    """One browser with one page; everything it says and asks of a network is kept."""

    def __init__(self, folder: Path, downloads: Path | None = None) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        assert DRIVER is not None
        self.process = subprocess.Popen(
            [DRIVER, f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
            options: dict[str, Any] = {
                "binary": BROWSER,
                "args": [*_ARGUMENTS, f"--user-data-dir={folder}"],
                "perfLoggingPrefs": {"enableNetwork": True},
            }
            if downloads is not None:
                options["prefs"] = {"download.default_directory": str(downloads)}
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{answer['sessionId']}"
        except BaseException:
            self._stop()
            raise

    def open(self, url: str) -> None:
        """Load a page and wait until its script says that it is ready."""
        self._ask("POST", f"{self.session}/url", {"url": url})
        self.until("return document.documentElement.dataset.ready === '1'")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function's body in the page."""
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, seconds: float = 20.0) -> None:
        """Wait until something holds in the page."""
        last = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < last, f"never: {script}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds, as a person would."""
        self._ask("POST", f"{self.session}/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self._ask("POST", f"{self.session}/element/{self._find(selector)}/value", {"text": text})

    def console(self) -> list[str]:
        """Return what the console has said since the last time."""
        return [
            f"{e['level']}: {e['message']}"
            for e in self._ask("POST", f"{self.session}/se/log", {"type": "browser"})
        ]

    def requests(self) -> list[str]:
        """Return every address that was asked for since the last time."""
        found = self._ask("POST", f"{self.session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in found]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def resize(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Change the size of the page, and the colours it is asked for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.command("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", {"features": scheme})

    def command(self, name: str, values: dict[str, Any]) -> Any:
        """Give the browser a command of its own protocol."""
        return self._ask("POST", f"{self.session}/goog/cdp/execute", {"cmd": name, "params": values})

    def screenshot(self, file: Path) -> None:
        """Keep a picture of what can be seen."""
        file.write_bytes(base64.b64decode(self._ask("GET", f"{self.session}/screenshot")))

    def close(self) -> None:
        """End the session, the browser and the driver."""
        try:
            self._ask("DELETE", self.session)
        finally:
            self._stop()

    def _find(self, selector: str) -> str:
        found = self._ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _wait(self) -> None:
        last = time.monotonic() + 30
        while True:
            try:
                self._ask("GET", "/status")
                return
            except OSError:
                assert time.monotonic() < last, "the driver does not answer"
                time.sleep(0.05)

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as cause:
            raise AssertionError(f"{method} {path}: {cause.read().decode()[:600]}") from None
