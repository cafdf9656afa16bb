"""One answer of a web-style conversation, over as many upstream requests as it takes. Used by backends/access_token.py alone."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.http import Response
from gateway.backend import Cancellation, Secret
from gateway.concurrency import after
from gateway.dialects.chatgpt_web import Complaint, Lines, Reader, continuation
from gateway.errors import Cancelled, UpstreamError, UpstreamInterrupted, UpstreamRefused, UpstreamTimeout

LINE_BYTES = 8 << 20
LINGER_S = 0.25
LINGER_BYTES = 1 << 16
"""How long an upstream may take to end its stream behind `[DONE]`, and what it may still say; then its connection is closed instead of used again."""

Ask = Callable[[Mapping[str, Any], Cancellation], Response]
"""Sends one request for a conversation; raises UpstreamError unless it is answered with a stream."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the answer as it came, and the text that it adds. Neither: a tick, while the upstream is silent."""

    raw: bytes
    text: str


TICK = Line(b"", "")


class Conversation:
    """An iterator of lines, with `close`. Where the upstream's limit of tokens cut the answer, it is asked to continue, `limit` times at most.

    The `[DONE]`s are not among the lines: StopIteration stands for the last one. `begun` is the caller's to set, once a client may
    have got something: from then on whatever fails is an UpstreamInterrupted (or UpstreamTimeout, or Cancelled) with its cause in a line.
    `relays`: continue at a message that says of itself that it was cut; else at what counts of the answer. `hidden` never shows in errors.
    Raises when it is built where the first request is refused.
    """

    def __init__(self, ask: Ask, asked: Mapping[str, Any], cancel: Cancellation, *, limit: int, relays: bool, hidden: Sequence[Secret]) -> None:
        self._ask, self._asked, self._cancel = ask, asked, cancel
        self._left, self._relays, self._hidden = limit, relays, hidden
        self.begun = self._over = self._continues = False
        self._forget: Callable[[], None] = lambda: None
        self._open()

    @property
    def reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        return self._reader.reason

    def __iter__(self) -> Conversation:
        return self

    def __next__(self) -> Line:
        try:
            while not self._over:
                line = self._read() if self._ready else self._receive()
                if line is not None:
                    return line
        except UpstreamError as error:
            # a continuation's mistake is ours, not the client's: it must not be told so
            untold = not self.begun and not (self._continues and not error.retryable)
            if untold or isinstance(error, UpstreamInterrupted | UpstreamTimeout):
                raise
            raise UpstreamInterrupted(self._cause(error)) from error
        raise StopIteration

    def close(self) -> None:
        self._over = True
        self._forget()
        self._response.close()

    def _open(self) -> None:
        """The next part."""
        self._reader, self._lines, self._ready = Reader(), Lines(), deque[bytes]()
        self._ended = False
        self._part = part = Cancellation()
        self._forget = self._cancel.on_cancel(lambda: part.fire(self._cancel.reason or "client_gone"))
        try:
            self._response = self._ask(self._asked, part)
        except BaseException:
            self._forget()
            raise

    def _receive(self) -> Line | None:
        if self._ended:
            return self._end_part()
        try:
            block = next(self._response.chunks)
        except StopIteration:
            self._ended = True
            block = b""
            self._ready.extend(filter(None, (self._lines.rest(),)))
            return None
        if not block:
            return TICK
        self._ready.extend(self._lines.feed(block))
        if self._lines.size > LINE_BYTES:
            raise UpstreamInterrupted("The upstream's stream holds a line that is too long.")
        return None

    def _read(self) -> Line | None:
        raw = self._ready.popleft()
        text = self._reader.feed(raw)
        if self._reader.complaint is not None:
            raise self._refusal(self._reader.complaint, raw)
        if self._reader.done:
            self._ready.clear()
            return self._end_part()
        return Line(raw, text)

    def _end_part(self) -> Line | None:
        """What the part held back. The next part is asked for where there is to be one; else the answer is over."""
        reader = self._reader
        if not (reader.done or reader.finished):
            raise UpstreamInterrupted("The upstream's stream ended before it was complete.")
        if not self._ended:
            self._read_on()
        self._forget()
        self._response.close()
        rest = reader.rest()
        cut = reader.cut if self._relays else reader.finish_type == "max_tokens"
        if cut and self._left > 0 and reader.message_id and reader.conversation_id:
            self._left, self._continues = self._left - 1, True
            self._asked = continuation(self._asked, reader.conversation_id, reader.message_id)
            self._open()
        else:
            self._over = True
        return Line(b"", rest) if rest else None

    def _read_on(self) -> None:
        """To the end of the stream, behind its `[DONE]`: then its connection can be used again."""
        part, left = self._part, LINGER_BYTES
        stop = after(LINGER_S, lambda: part.fire("complete"))
        try:
            with contextlib.suppress(UpstreamError, Cancelled):  # the part is complete, whatever follows
                for chunk in self._response.chunks:
                    left -= len(chunk)
                    if left < 0:
                        break
        finally:
            stop()

    def _refusal(self, complaint: Complaint, raw: bytes) -> UpstreamError:
        if self.begun:
            return UpstreamInterrupted(f"The upstream broke its answer off: {self._shown(complaint.text) or 'it gave no reason'}")
        status, body = complaint.status, raw.removeprefix(b"data:").strip()
        code = complaint.upstream_code(status)
        return UpstreamRefused(status, (("content-type", "application/json"),), body, upstream_code=code, reset_s=complaint.clears_in_s)

    def _cause(self, error: UpstreamError) -> str:
        status = f" with status {error.upstream_status}" if isinstance(error, UpstreamRefused) else ""
        return f"The upstream did not continue its answer{status}." if status else f"The upstream did not continue its answer: {error.message}"

    def _shown(self, text: str) -> str:
        """A foreign text without what must not be seen, should it repeat what it was sent."""
        for secret in self._hidden:
            if secret:
                text = text.replace(secret.reveal(), repr(secret))
        return text
