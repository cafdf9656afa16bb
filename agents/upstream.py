"""The OpenAI-compatible server that the Python agent asks: its chunks become frames, its refusals the protocol's causes."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agents.link import checked
from agents.work import Failed, Work

CONNECT_S, SILENCE_S = 5.0, 300.0
ANSWER_BYTES, EVENT_BYTES, REFUSAL_BYTES = 16_000_000, 4_000_000, 65_536
PIECE_CHARACTERS = 100_000


class Upstream:
    """Redirects are not followed, and the environment's proxies not asked. Raises ValueError for a URL that is none."""

    def __init__(self, url: str, key: str) -> None:
        self._parts = checked(url, ("http", "https"))
        self._headers = {"User-Agent": "chat-gateway", "Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def models(self) -> tuple[str, ...]:
        """What it serves. Raises Failed, OSError, HTTPException, ValueError."""
        with contextlib.closing(self._connected(CONNECT_S)) as connection:
            listed = json.loads(self._asked(connection, "GET", "/models", None).read(EVENT_BYTES))
        found = listed.get("data") if isinstance(listed, dict) else None
        return tuple(each["id"] for each in found or () if isinstance(each, dict) and isinstance(each.get("id"), str))

    def answer(self, work: Work) -> dict[str, Any]:
        """The last frame, when the others are emitted. Raises Failed, GivenUp, OSError, HTTPException, ValueError."""
        body = json.dumps(work.body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        with contextlib.closing(self._connected(min(CONNECT_S, work.left_s))) as connection:
            sock, reader = connection.sock, Reader(work)
            work.hold(sock)
            sock.settimeout(min(SILENCE_S, work.left_s))
            response = self._asked(connection, "POST", "/chat/completions", body)
            if response.headers.get_content_type() == "application/json":  # it cannot stream
                reader.read(response.read(ANSWER_BYTES))
                reader.done = True
                return reader.end()
            for data in events(response, lambda: sock.settimeout(min(SILENCE_S, work.left_s))):
                if reader.read(data):
                    break
            else:
                reader.done = response.chunked or response.length == 0  # some servers never send [DONE], but end as they announced
            return reader.end()

    def _connected(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout_s)
        try:
            connection.connect()
        except OSError as error:
            raise Failed("upstream_failed", f"the upstream cannot be reached: {type(error).__name__}") from error
        return connection

    def _asked(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        connection.request(method, self._parts.path.rstrip("/") + path, body, self._headers)
        response = connection.getresponse()
        if response.status != 200:
            raise refusal(response)
        return response


def refusal(response: http.client.HTTPResponse) -> Failed:
    """What any other answer than 200 means."""
    raw, status = response.read(REFUSAL_BYTES), response.status
    if status == 429:
        after = response.headers.get("Retry-After", "").strip()
        told = {"retry_after_s": int(after)} if after.isdecimal() and len(after) < 7 else {}
        return Failed("rate_limited", "the upstream's rate limit is reached", status=status, **told)
    if status in (401, 403):
        return Failed("unauthorised", f"the upstream refused with {status}", status=status)
    if not 400 <= status < 500:
        return Failed("upstream_failed", f"the upstream answered with {status}", status=status)
    try:
        body = json.loads(raw, parse_constant=no_constant)
    except (ValueError, RecursionError):
        body = raw.decode("utf-8", "replace")
    return Failed("bad_request", f"the upstream refused with {status}", status=status, body=body)


def events(response: http.client.HTTPResponse, before: Callable[[], None]) -> Iterator[bytes]:
    """The data of each event of a stream. `before` is called before each read."""
    rest = b""
    while True:
        before()
        block = response.read1(65_536)
        *lines, rest = (rest + (block or b"\n")).split(b"\n")
        yield from (line[5:].strip() for line in lines if line.startswith(b"data:"))
        if not block:
            return
        if len(rest) > EVENT_BYTES:
            raise Failed("upstream_failed", "an event of the upstream's stream is too large")


class Reader:
    """Turns chunks into frames. `done`: the end came. Without it, and without a reason, the answer was cut."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.done = False
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None

    def read(self, data: bytes) -> bool:
        """Whether this was the end. Raises Failed for what is no chunk."""
        if data == b"[DONE]":
            self.done = True
            return True
        try:
            self._chunk(json.loads(data, parse_constant=no_constant))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Failed("upstream_failed", "the upstream sent what is no chunk of an answer") from error
        return False

    def _chunk(self, chunk: Mapping[str, Any]) -> None:
        if error := chunk.get("error"):
            raise Failed("upstream_failed", "the upstream broke off", body={"error": error})
        self._usage = counts(chunk["usage"]) if chunk.get("usage") else self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._piece(choice.get("delta") or choice.get("message") or {})
                self._reason = choice.get("finish_reason") or self._reason

    def _piece(self, delta: Mapping[str, Any]) -> None:
        for text in pieces(delta.get("content") or delta.get("refusal") or ""):
            self._work.emit({"type": "delta", "text": text})
        for position, call in enumerate(delta.get("tool_calls") or ()):
            function = call.get("function") or {}
            named = {"id": call["id"], "name": function["name"]} if call.get("id") else {}
            for text in list(pieces(function.get("arguments") or "")) or ([""] if named else []):
                self._work.emit({"type": "delta", "tool_call": {"index": call.get("index", position), "arguments": text, **named}})
                named = {}

    def end(self) -> dict[str, Any]:
        if not self.done or self._reason is None:
            raise Failed("upstream_failed", "the upstream's answer was cut")
        return {"type": "done", "reason": self._reason} | ({} if self._usage is None else {"usage": self._usage})


def pieces(text: str) -> Iterator[str]:
    """None of them makes a frame too large."""
    return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))


def counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The whole numbers of a usage and of its details."""
    found = {name: counts(value) if isinstance(value, dict) else value for name, value in usage.items()}
    return {name: value for name, value in found.items() if isinstance(value, dict) or type(value) is int}


def no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
