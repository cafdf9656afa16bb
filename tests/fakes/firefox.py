"""The installed Firefox, headless, with an extension, driven by WebDriver BiDi over its websocket. What it can do, Chromium of chromium.py can too."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import Request, TextMessage

PROGRAM = "firefox-esr"


class Firefox:
    """Runs from `__enter__` to `__exit__`, with a profile of its own below `directory`. What an extension asks a person to allow is allowed."""

    def __init__(self, directory: Path, extension: Path) -> None:
        self._profile, self._log, self._extension = directory / "profile", directory / "firefox.log", extension
        manifest = json.loads((extension / "manifest.json").read_text())
        self._uuid = str(uuid.uuid4())
        self._preferences = {
            "extensions.webextensions.uuids": json.dumps({manifest["browser_specific_settings"]["gecko"]["id"]: self._uuid}),
            "extensions.webextOptionalPermissionPrompts": False,
        }
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._sock = socket.socket()
        self._sock.close()
        self._text = ""
        self._number = 0

    def __enter__(self) -> Self:
        self._profile.mkdir()
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in self._preferences.items()]
        (self._profile / "user.js").write_text("".join(lines))
        flags = ["--headless", "--no-remote", "--remote-debugging-port", "0", "--remote-allow-system-access", "--profile", str(self._profile)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([PROGRAM, *flags], stdout=log, stderr=log)
        try:
            self._connect()
            self.call("session.new", capabilities={})
            self.call("webExtension.install", extensionData={"type": "path", "path": str(self._extension)})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result. Raises AssertionError with its error."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        self._sock.sendall(self._ws.send(TextMessage(json.dumps(command))))
        while True:
            for event in list(self._ws.events()):
                answer = self._read(event) if isinstance(event, TextMessage) else None
                if answer is not None and answer.get("id") == self._number:
                    assert answer["type"] == "success", (method, answer)
                    result: dict[str, Any] = answer["result"]
                    return result
            self._ws.receive_data(self._sock.recv(65_536))

    def extension_url(self) -> str:
        return f"moz-extension://{self._uuid}"

    def open(self, url: str) -> str:
        """The context of a page, once it is loaded."""
        page = str(self.call("browsingContext.create", type="tab")["context"])
        self.call("browsingContext.navigate", context=page, url=url, wait="complete")
        return page

    def pages(self, url: str) -> list[str]:
        """Whose address begins so."""
        return [page["context"] for page in self.call("browsingContext.getTree")["contexts"] if page["url"].startswith(url)]

    def close(self, page: str) -> None:
        self.call("browsingContext.close", context=page)

    def evaluate(self, page: str, script: str) -> Any:
        """What a script comes to in a page, by way of JSON."""
        wrapped = f"Promise.resolve({script}).then((value) => JSON.stringify(value ?? null))"
        done = self.call("script.evaluate", expression=wrapped, target={"context": page}, awaitPromise=True)
        assert done["type"] == "success", done
        return json.loads(done["result"]["value"])

    def click(self, page: str, selector: str) -> None:
        """As a person does."""
        where = f"(() => {{ const at = document.querySelector({json.dumps(selector)}); at.scrollIntoView(); return at.getBoundingClientRect(); }})()"
        box = self.evaluate(page, where)
        move = {"type": "pointerMove", "x": int(box["x"] + box["width"] / 2), "y": int(box["y"] + box["height"] / 2)}
        press = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self.call("input.performActions", context=page, actions=[{"type": "pointer", "id": "mouse", "actions": [move, *press]}])

    def _read(self, event: TextMessage) -> dict[str, Any] | None:
        self._text += event.data
        if not event.message_finished:
            return None
        whole, self._text = self._text, ""
        document: dict[str, Any] = json.loads(whole)
        return document

    def _connect(self, timeout_s: float = 30.0) -> None:
        file, until = self._profile / "WebDriverBiDiServer.json", time.monotonic() + timeout_s
        while self._sock.fileno() == -1:
            assert time.monotonic() < until, f"Firefox does not listen: {self._log.read_text()[-2000:]}"
            with contextlib.suppress(OSError, ValueError):
                port = json.loads(file.read_text())["ws_port"]
                self._sock = socket.create_connection(("127.0.0.1", port), 20)
            time.sleep(0.05)
        self._sock.sendall(self._ws.send(Request(host=f"127.0.0.1:{port}", target="/session")))
        while self._ws.state is ConnectionState.CONNECTING:
            self._ws.receive_data(self._sock.recv(65_536))
