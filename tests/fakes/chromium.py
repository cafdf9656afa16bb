"""The installed Chromium, headless, with an extension, driven over its DevTools pipe: JSON documents that end with a zero byte."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

PROGRAM = "chromium"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--no-proxy-server")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Chromium:
    """Runs from `__enter__` to `__exit__`, with a profile of its own below `directory`."""

    def __init__(self, directory: Path, extension: Path) -> None:
        self._arguments = [*FLAGS, f"--user-data-dir={directory / 'profile'}", f"--load-extension={extension}", "about:blank"]
        self._log = directory / "chromium.log"
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._number = 0

    def __enter__(self) -> Self:
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", PROGRAM, *self._arguments]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(shell, pass_fds=(read, write), stdout=log, stderr=log)
        os.close(read)
        os.close(write)
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)  # it ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A command's result. Raises AssertionError with its error."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            try:
                answer = self._answers.get(timeout=20)
            except queue.Empty:
                raise AssertionError(f"no answer to {method}: {self._log.read_text()[-2000:]}") from None
            if answer["id"] == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def pages(self, url: str) -> list[str]:
        """Whose address begins so."""
        return self._targets("page", url)

    def end_worker(self) -> None:
        """Of the extension, as the browser does when it is idle."""
        (worker,) = self._targets("service_worker", "chrome-extension://")
        self.close(worker)

    def _targets(self, kind: str, url: str) -> list[str]:
        found = self.call("Target.getTargets")["targetInfos"]
        return [target["targetId"] for target in found if target["type"] == kind and target["url"].startswith(url)]

    def extension_url(self, timeout_s: float = 20.0) -> str:
        """Of the one that was loaded, once its worker runs."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for target in self.call("Target.getTargets")["targetInfos"]:
                if target["type"] == "service_worker" and target["url"].startswith("chrome-extension://"):
                    return str(target["url"]).rpartition("/")[0]
            time.sleep(0.05)
        raise AssertionError(f"no extension was loaded: {self._log.read_text()[-2000:]}")

    def open(self, url: str, timeout_s: float = 20.0) -> str:
        """The target of a page, once it is loaded."""
        target = str(self.call("Target.createTarget", url=url)["targetId"])
        until = time.monotonic() + timeout_s
        while (loaded := self.evaluate(target, "`${document.readyState} ${location.href}`")) != f"complete {url}":
            assert time.monotonic() < until, loaded
            time.sleep(0.02)
        return target

    def close(self, target: str) -> None:
        self.call("Target.closeTarget", targetId=target)

    def click(self, target: str, selector: str) -> None:
        self.evaluate(target, f"document.querySelector({json.dumps(selector)}).click()")

    def evaluate(self, target: str, script: str) -> Any:
        """What a script comes to in a page, run as upon a person's click."""
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            done = self.call("Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        finally:
            self.call("Target.detachFromTarget", sessionId=session)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def _receive(self) -> None:
        rest = b""
        while block := os.read(self._read, 65_536):
            *whole, rest = (rest + block).split(b"\0")
            for text in whole:
                document = json.loads(text)
                if "id" in document:
                    self._answers.put(document)
