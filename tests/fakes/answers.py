"""What the fake provider answers: values that are called with what was received, and give a script for the wire.

An Answer is a whole HTTP answer; Gzip, CloseDelimited, ShortContentLength change one. A script is a sequence of
actions: bytes to send, seconds to wait, an End. Delay, Slow, Drip, CloseAt, ResetAt change any step's script.
"""

from __future__ import annotations

import enum
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fakes.openai_answers import default_answer, error_object
from tests.fakes.received import Received

Pairs = tuple[tuple[str, str], ...]


class End(enum.Enum):
    CLOSE = "close"
    RESET = "reset"
    HOLD = "hold"  # silent until the other side closes


Action = bytes | float | End


@dataclass(frozen=True)
class Answer:
    """`framing` is "length", "chunked" or "close"; each block is sent, and chunked, by itself."""

    status: int = 200
    headers: Pairs = ()
    blocks: tuple[bytes, ...] = ()
    framing: str = "length"
    pause_s: float = 0.0

    def __call__(self, received: Received) -> Answer:
        return self

    def script(self) -> Iterator[Action]:
        fields = list(self.headers)
        if self.framing == "length" and self.status not in (204, 304) and not any(name == "content-length" for name, _ in fields):
            fields.append(("content-length", str(sum(map(len, self.blocks)))))
        if self.framing == "chunked":
            fields.append(("transfer-encoding", "chunked"))
        if self.framing == "close":
            fields.append(("connection", "close"))
        lines = [f"HTTP/1.1 {self.status} Status", *(f"{name}: {value}" for name, value in fields), "", ""]
        yield "\r\n".join(lines).encode("latin-1")
        for position, block in enumerate(self.blocks):
            if position and self.pause_s:
                yield self.pause_s
            if block:
                yield b"%x\r\n%b\r\n" % (len(block), block) if self.framing == "chunked" else block
        if self.framing == "chunked":
            yield b"0\r\n\r\n"
        if self.framing == "close":
            yield End.CLOSE


Step = Callable[[Received], Answer | Iterable[Action]]


def script_of(step: Step, received: Received) -> Iterable[Action]:
    made = step(received)
    return made.script() if isinstance(made, Answer) else made


def answer_of(step: Step, received: Received) -> Answer:
    made = step(received)
    assert isinstance(made, Answer), "only an answer can be changed so"
    return made


class Default:
    """What a well-behaved provider answers."""

    def __call__(self, received: Received) -> Answer:
        status, content_type, blocks, streamed = default_answer(received)
        return Answer(status, (("content-type", content_type), ("x-request-id", "req_fake")), tuple(blocks), "chunked" if streamed else "length")


def Json(value: Any, status: int = 200, headers: Pairs = ()) -> Answer:
    return Answer(status, (("content-type", "application/json"), *headers), (json.dumps(value).encode(),))


def Status(status: int, value: Any = None, headers: Pairs = ()) -> Answer:
    """An error object as OpenAI makes it, unless `value` (an object, or bytes) says otherwise."""
    if isinstance(value, bytes):
        return Answer(status, headers, (value,) if value else ())
    return Json(error_object(f"status {status}") if value is None else value, status, headers)


def RateLimited(retry_after: float | str | None = 1, code: str = "rate_limit_exceeded") -> Answer:
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    return Json(error_object("Rate limit reached", code=code, kind="requests"), 429, headers)


def Redirect(to: str, status: int = 302) -> Answer:
    return Answer(status, (("location", to),))


def Events(*events: Any, done: bool = True, pause_s: float = 0.0) -> Answer:
    """A stream: objects become `data:` events, bytes are sent as they are; each is a chunk of its own."""
    blocks = [event if isinstance(event, bytes) else b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
    return Answer(200, (("content-type", "text/event-stream"),), (*blocks, b"data: [DONE]\n\n") if done else tuple(blocks), "chunked", pause_s)


def RawEvents(raw: bytes, cuts: Sequence[int] = (), pause_s: float = 0.0) -> Answer:
    """Exactly these bytes as a stream, in chunks that begin at `cuts`."""
    edges = [0, *sorted(cuts), len(raw)]
    return Events(*(raw[start:end] for start, end in itertools.pairwise(edges)), done=False, pause_s=pause_s)


def ErrorEvent(value: Any = None) -> Answer:
    """A stream with status 200 whose first event is an error object."""
    return Events(error_object("The server had an error", kind="server_error") if value is None else value, done=False)


@dataclass(frozen=True)
class WithoutDone:
    """The stream ends cleanly as HTTP, but its last `drop` events are missing: by default `[DONE]` alone."""

    then: Step = field(default_factory=Default)
    drop: int = 1

    def __call__(self, received: Received) -> Answer:
        answer = answer_of(self.then, received)
        return replace(answer, blocks=answer.blocks[: -self.drop])


@dataclass(frozen=True)
class CloseDelimited:
    """Neither Content-Length nor chunked: the end of the connection ends the body. `keep` bytes of it are sent."""

    then: Step = field(default_factory=Default)
    keep: int | None = None

    def __call__(self, received: Received) -> Answer:
        answer = answer_of(self.then, received)
        if self.keep is None:
            return replace(answer, framing="close")
        return replace(answer, framing="close", blocks=(b"".join(answer.blocks)[: self.keep],))


@dataclass(frozen=True)
class ShortContentLength:
    """Content-Length promises `missing` bytes more than come before the connection ends."""

    then: Step = field(default_factory=Default)
    missing: int = 7

    def __call__(self, received: Received) -> Iterator[Action]:
        answer = answer_of(self.then, received)
        promised = str(sum(map(len, answer.blocks)) + self.missing)
        yield from replace(answer, headers=(*answer.headers, ("content-length", promised)), framing="length").script()
        yield End.CLOSE


@dataclass(frozen=True)
class Gzip:
    """Compressed, although nobody asked. `cut` takes that many bytes off the end; `encoding` may be deflate."""

    then: Step = field(default_factory=Default)
    cut: int = 0
    encoding: str = "gzip"

    def __call__(self, received: Received) -> Answer:
        answer = answer_of(self.then, received)
        if answer.framing == "chunked":
            packer = zlib.compressobj(wbits=31 if self.encoding == "gzip" else 15)
            blocks = [packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH) for block in answer.blocks] + [packer.flush()]
        else:
            whole = b"".join(answer.blocks)
            blocks = [gzip.compress(whole) if self.encoding == "gzip" else zlib.compress(whole)]
        if self.cut:
            blocks[-1] = blocks[-1][: -self.cut]
        return replace(answer, headers=(*answer.headers, ("content-encoding", self.encoding)), blocks=tuple(blocks))


@dataclass(frozen=True)
class Delay:
    """Silent for `seconds`, then the answer."""

    seconds: float
    then: Step = field(default_factory=Default)

    def __call__(self, received: Received) -> Iterator[Action]:
        yield self.seconds
        yield from script_of(self.then, received)


@dataclass(frozen=True)
class Slow:
    """A pause before each piece after the first (the head is a piece)."""

    pause_s: float
    then: Step = field(default_factory=Default)

    def __call__(self, received: Received) -> Iterator[Action]:
        for position, action in enumerate(script_of(self.then, received)):
            if position and isinstance(action, bytes):
                yield self.pause_s
            yield action


@dataclass(frozen=True)
class Drip:
    """`size` bytes every `pause_s` seconds, head included."""

    size: int
    pause_s: float
    then: Step = field(default_factory=Default)

    def __call__(self, received: Received) -> Iterator[Action]:
        for action in script_of(self.then, received):
            if not isinstance(action, bytes):
                yield action
                continue
            for start in range(0, len(action), self.size):
                yield action[start : start + self.size]
                yield self.pause_s


@dataclass(frozen=True)
class Endless:
    """`head`, then `block` again and again until the other side closes, each after a pause."""

    head: bytes
    block: bytes
    pause_s: float = 0.0

    def __call__(self, received: Received) -> Iterator[Action]:
        yield self.head
        while True:
            if self.pause_s:
                yield self.pause_s
            yield self.block


@dataclass(frozen=True)
class _Cut:
    at: int
    then: Step = field(default_factory=Default)
    end: End = End.CLOSE

    def __call__(self, received: Received) -> Iterator[Action]:
        left = self.at
        for action in script_of(self.then, received):
            if isinstance(action, bytes):
                if left:
                    yield action[:left]
                left = max(0, left - len(action))
                if not left:
                    break
            else:
                yield action
        if self.end is End.RESET:
            yield 0.05  # or the reset would overtake what was sent
        yield self.end


def CloseAt(at: int, then: Step | None = None) -> Step:
    """Close after `at` bytes of the whole answer, head included; 0 closes without a byte."""
    return _Cut(at, then or Default())


def ResetAt(at: int, then: Step | None = None) -> Step:
    return _Cut(at, then or Default(), End.RESET)


def StallAt(at: int, then: Step | None = None) -> Step:
    """Send `at` bytes, then nothing until the other side closes."""
    return _Cut(at, then or Default(), End.HOLD)


def Silent() -> Step:
    """Take the request and never answer."""
    return lambda received: (End.HOLD,)


def RawBytes(*actions: Action, end: End | None = End.CLOSE) -> Step:
    """Exactly these bytes and pauses, then `end`; None keeps the connection for another request."""
    return lambda received: actions if end is None else (*actions, end)


def BadChunk() -> Step:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return RawBytes(head + b"5\r\nhello\r\n", 0.05, b"zz\r\nwhat\r\n")


def GarbageStatusLine() -> Step:
    return RawBytes(b"I AM NOT HTTP\r\n\r\n")


def HeaderBomb(size: int = 1_000_000, fields: int = 1) -> Step:
    """`fields` header fields of `size` bytes in all, in pieces."""
    one = size // fields

    def script(received: Received) -> Iterator[Action]:
        yield b"HTTP/1.1 200 OK\r\n"
        for number in range(fields):
            yield b"x-%d: " % number
            for start in range(0, one, 16_384):
                yield b"a" * min(16_384, one - start)
            yield b"\r\n"
        yield b"content-length: 0\r\n\r\n"

    return script


@dataclass(frozen=True)
class BeforeBody:
    """The answer is sent before a byte of the request's body is read; then the connection ends."""

    then: Step
    before_body: bool = True

    def __call__(self, received: Received) -> Iterable[Action]:
        return script_of(self.then, received)
