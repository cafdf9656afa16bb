"""Relay: the answer's bytes to the client, and the call's one settlement.

The server iterates, writes the final chunk, and only then calls `close()`. So `__next__` settles: before the terminal event,
before the block that completes a known length, else before the StopIteration. `close()` settles what ended early. Server-sent
events leave in whole events only: an error event can follow at any moment, and nobody reads half an event.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from itertools import chain

from gateway.concurrency import after
from gateway.core.drains import Drains
from gateway.core.exchange import Ending, Exchange
from gateway.core.head import Answer, Framing, error_of
from gateway.core.ledger import Ledger
from gateway.core.metering import NOTHING, from_events, is_error, metered, whole, without_usage
from gateway.dialects import CHAT_CODECS, CODECS, sse
from gateway.dialects.events import Usage
from gateway.errors import Cancelled, Draining, GatewayError, SettleFailed, UpstreamError, UpstreamInterrupted, UpstreamTimeout, error_type

log = logging.getLogger(__name__)
EVENT_BYTES = 1 << 20
"""A longer event is passed on in pieces, unless it is the terminal one."""
TERMINAL_EVENT_BYTES = 32 << 20
USAGE_EVENTS = 4
LINGER_S = 1.0
"""How long an upstream may stay open after its terminal event; then its connection is closed instead of used again."""
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_HAS_ID = re.compile(rb"(?:^|[\r\n])id[:\r\n]")


class Relay:
    """An iterator of bytes, never b"", with `close`. `status` and `headers` are final when it is built."""

    def __init__(self, answer: Answer, exchange: Exchange, ledger: Ledger, drains: Drains) -> None:
        self._answer, self._exchange, self._ledger, self._drains = answer, exchange, ledger, drains
        self._codec = CODECS[exchange.call.dialect]
        self._chunks, self._pending = answer.reply.chunks, answer.more
        if answer.head:
            self._pending.appendleft(answer.head)
        self._splitter, self._last, self._rest = sse.Splitter(), b"", b""
        self._ending = Ending.COMPLETE
        self._usage_events, self._parts = deque[bytes](maxlen=USAGE_EVENTS), deque[bytes]()
        self._delivered_bytes = self._delivered_events = 0
        self._terminal = self._finished = self._broke_event = self._over = self._has_ids = False
        self._stop_lingering: Callable[[], None] | None = None
        self._claim = exchange.claim
        if self._claim is not None:
            self._claim.answered(answer.reply.status, answer.reply.headers)
        self.status = exchange.status = answer.reply.status
        self.headers = answer.reply.headers
        # Plain functions: a bound method kept here would be a cycle, and the bodies would stay until the collector comes by.
        steps = {Framing.EVENTS: Relay._events, Framing.WHOLE: Relay._stored, Framing.COUNTED: Relay._counted, Framing.OPEN: Relay._open}
        self._step: Callable[[Relay], bytes] = steps[answer.framing]
        if answer.framing is Framing.WHOLE:
            self._settle_whole(answer.head)

    @property
    def body(self) -> bytes | None:
        """The whole body where it is in hand (and settled); None for what streams."""
        return self._answer.head if self._answer.framing is Framing.WHOLE else None

    @property
    def length(self) -> int | None:
        """The content-length of an answer that streams with one."""
        return self._answer.length if self._answer.framing is Framing.COUNTED else None

    def __iter__(self) -> Relay:
        return self

    def __next__(self) -> bytes:
        if self._over or (self._exchange.left and self._exchange.drains):  # nobody reads it: `close` does
            raise StopIteration
        block = self._step(self)
        if self._claim is not None:
            self._claim.keep(block)
        return block

    def close(self) -> None:
        """Settle what ended early: the client left, or the server could not write to it. Idempotent.

        The upstream is aborted, unless it is to be read on to its usage. That is done here: the server ends no worker before.
        """
        was_over, self._over = self._over, True
        if self._stop_lingering is not None:
            self._stop_lingering()
        try:
            if not was_over and self._exchange.ending is None and self._answer.framing is Framing.EVENTS and self._is_whole():
                self._keep_last(self._rest or b"".join(self._parts))
        finally:
            self._abort()

    def _is_whole(self) -> bool:
        """Whether the answer came to its good end, though the client did not see it: it is in hand, or is read on to."""
        if not self._terminal:
            unread = chain(self._pending, self._chunks)
            if not (self._exchange.drains and self._drains.begin() and self._drains.read_on(self._exchange, unread, self._splitter, self._note_unread)):
                return False
            self._judge(self._last)
        return self._ending is Ending.COMPLETE

    def _abort(self) -> None:
        try:
            self._answer.reply.close()
        finally:  # a backend's failing close must not cost the entry
            if self._exchange.ending is None:
                self._settle_quietly(Ending.CLIENT_GONE)

    # whole answers

    def _settle_whole(self, body: bytes) -> None:
        self._exchange.bytes_out = len(body)
        self._keep_last(body)
        try:
            usage = self._reported() or whole(self._exchange.call.dialect, body)
            if self.status >= 400 or (usage is None and is_error(body)):
                if self._exchange.attempts:
                    self._exchange.attempts[-1].usage = usage
                self._ledger.settle(self._exchange, Ending.UPSTREAM_ERROR, NOTHING)
            else:
                ending = Ending.CLIENT_GONE if self._exchange.left else Ending.COMPLETE
                self._ledger.settle(self._exchange, ending, metered(usage, self._exchange.call, len(body), 0))
        except BaseException:  # nobody gets this Relay, so nobody closes it
            self._answer.reply.close()
            raise

    def _stored(self) -> bytes:
        if not self._pending:
            self._over = True
            raise StopIteration
        return self._pending.popleft()

    # answers of bytes

    def _counted(self) -> bytes:
        try:
            block = self._pull_or_break()
        except StopIteration:
            if self._delivered_bytes < self._answer.length and not self._exchange.left:  # without this the client would wait for the rest
                self._settle_quietly(Ending.UPSTREAM_TRUNCATED)
                raise UpstreamInterrupted("The upstream's answer is shorter than it said.") from None
            raise
        self._delivered_bytes += len(block)
        self._exchange.bytes_out = self._delivered_bytes
        if self._delivered_bytes >= self._answer.length:
            self._keep_last(block)
            self._settle_or_break(Ending.COMPLETE)
        return block

    def _open(self) -> bytes:
        try:
            block = self._pull_or_break()
        except StopIteration:
            self._keep_last(b"")
            self._settle_or_break(Ending.COMPLETE)
            raise
        self._delivered_bytes += len(block)
        self._exchange.bytes_out = self._delivered_bytes
        return block

    def _pull_or_break(self) -> bytes:
        """The next block. What goes wrong is raised, so that the server breaks the connection and writes no clean end."""
        try:
            return self._block()
        except StopIteration:
            self._over = True
            raise
        except Exception as error:
            self._over = True
            self._settle_quietly(self._ending_of(error))
            if self._exchange.left:
                raise StopIteration from None
            raise

    def _settle_or_break(self, ending: Ending) -> None:
        try:
            self._settle(ending)
        except SettleFailed:
            self._over = True
            raise

    # server-sent events

    def _events(self) -> bytes:
        while True:
            if self._terminal:
                return self._after_terminal()
            try:
                block = self._pull()
            except StopIteration:
                return self._ended()
            except Exception as error:
                return self._broken(error)
            if not block:
                if beat := self._heartbeat():
                    return beat
            elif ready := self._take(block):
                return ready

    def _take(self, block: bytes) -> bytes:
        """What of the buffered bytes may leave now; b"" where an event is still incomplete."""
        events = self._splitter.feed(block)
        if not events:
            return self._overlong() if self._splitter.size > EVENT_BYTES else b""
        self._broke_event = False
        if not self._has_ids and (b"\nid" in events or b"\rid" in events or events.startswith(b"id")):
            self._has_ids = _HAS_ID.search(events) is not None
        if _USAGE.search(events):
            self._note_usage(events)
        events = self._shown(events)
        self._finished = self._finished or _FINISHED.search(events) is not None
        self._delivered_events += events.count(b"\ndata:") + events.startswith(b"data:")
        if self._codec.terminal_candidate.search(events):
            return self._split_terminal(events)
        self._last = events or self._last
        self._exchange.bytes_out += len(events)
        return events

    def _shown(self, events: bytes) -> bytes:
        return without_usage(events) if self._answer.hides_usage else events

    def _note_unread(self, events: bytes) -> None:
        """Events that come while nobody is there: their usage counts, and their words are there for who asks again."""
        self._note_usage(events)
        if self._claim is not None:
            self._claim.keep(self._shown(events))

    def _heartbeat(self) -> bytes:
        """What the client gets where the upstream is silent: nothing within an event, and nothing where the events have an id. OpenAI's
        Python SDK takes a blank line after one for an event without data, and fails at it."""
        if self._broke_event or self._exchange.left or self._has_ids:
            return b""
        self._exchange.heartbeats += bool(self._codec.heartbeat)
        return self._codec.heartbeat

    def _overlong(self) -> bytes:
        """The first piece of an overlong event that leaves: nothing of one that looks terminal, up to a bound."""
        if self._codec.terminal_candidate.search(self._splitter.head(4096)) and self._splitter.size < TERMINAL_EVENT_BYTES:
            return b""
        self._parts.extend(self._splitter.release())
        self._finished = self._finished or any(map(_FINISHED.search, self._parts))
        self._has_ids = self._has_ids or any(map(_HAS_ID.search, self._parts))
        if not self._broke_event:
            self._delivered_events += 1
            if any(map(_USAGE.search, self._parts)):
                log.warning("usage in an event of over 1 MB is not read", extra={"exchange": self._exchange.id})
        self._broke_event, self._step = True, Relay._part
        return self._part()

    def _part(self) -> bytes:
        """The next piece of an overlong event."""
        part = self._parts.popleft()
        if not self._parts:
            self._step = Relay._events
        self._exchange.bytes_out += len(part)
        return part

    def _note_usage(self, events: bytes) -> None:
        """Keep the last few: what only looks like a usage must not push out the one that is."""
        self._usage_events.extend(raw for raw in sse.split(events) if _USAGE.search(raw))

    def _split_terminal(self, events: bytes) -> bytes:
        """Everything before the terminal event leaves now; the rest is queued behind the settlement."""
        before: list[bytes] = []
        after = list(sse.split(events))
        while after and not self._codec.is_terminal(sse.parse(after[0])):
            before.append(after.pop(0))
        if after:
            self._terminal = True
            self._judge(b"".join([self._last, *before]), after[0])
            self._pending.clear()
            self._rest = b"".join(after) + self._splitter.drain()
            self._exchange.bytes_out += sum(map(len, before))
            return b"".join(before) or self._after_terminal()
        self._last = events
        self._exchange.bytes_out += len(events)
        return events

    def _judge(self, last: bytes, terminal: bytes = b"") -> None:
        """Whether the answer that has come to its end failed: its terminal event says so, or an error stands among its last events."""
        told = b"error" in last and any(error_of(sse.parse(raw)) is not None for raw in sse.split(last))
        if told or self._codec.is_failure(sse.parse(terminal)):
            self._ending, self._exchange.error = Ending.UPSTREAM_TRUNCATED, UpstreamError.code

    def _after_terminal(self) -> bytes:
        if self._exchange.ending is None:
            self._exchange.bytes_out += len(self._rest)
            self._keep_last(self._rest)
            try:
                self._settle(self._ending)
            except SettleFailed as error:
                self._over = True
                return self._error_event(error)
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        if self._stop_lingering is None:
            cancel = self._exchange.call.cancel
            self._stop_lingering = after(LINGER_S, lambda: cancel.fire("complete"))
        try:
            return self._block()  # what little follows; reading to the end also lets the connection be used again
        except StopIteration:
            self._over = True
            raise
        except Exception as error:
            self._over = True
            log.debug("after the terminal event: %s", error, extra={"exchange": self._exchange.id})
            raise StopIteration from None

    def _ended(self) -> bytes:
        """The upstream ended cleanly, but without the terminal event, or without the blank line after it."""
        rest = self._splitter.drain()
        if rest and self._codec.is_terminal(sse.parse(rest)):
            self._note_usage(rest)
            self._judge(self._last, rest)
            self._terminal, self._rest = True, rest
            return self._after_terminal()
        if self._finished and not rest.strip() and self._one_choice():
            self._over = True
            self._judge(self._last)
            self._keep_last(rest)
            try:
                self._settle(self._ending)
            except SettleFailed as error:
                return self._error_event(error)
            if rest:
                return rest
            raise StopIteration
        return self._broken(UpstreamInterrupted("The upstream's stream ended before it was complete."))

    def _one_choice(self) -> bool:
        return self._exchange.call.dialect in CHAT_CODECS and self._exchange.call.fields.n in (None, 1)

    def _broken(self, error: Exception) -> bytes:
        self._over = True
        self._settle_quietly(self._ending_of(error))
        self._answer.reply.close()
        if self._exchange.left:
            raise StopIteration
        if isinstance(error, GatewayError):
            return self._error_event(error)
        log.error("stream broke: %s", type(error).__name__, exc_info=error, extra={"exchange": self._exchange.id})
        return self._error_event(GatewayError("The gateway failed in the middle of the answer."))

    def _error_event(self, error: GatewayError) -> bytes:
        if isinstance(error, Cancelled):
            error = Draining("The gateway is shutting down; the answer is incomplete.")
        told = {"message": error.message, "type": error_type(error.status), "param": None, "code": error.code, "exchange": self._exchange.id}
        return (b"\n\n" if self._broke_event else b"") + self._codec.error_event(told)

    # both

    def _pull(self) -> bytes:
        """The next block, or b"" for a tick. Raises StopIteration, UpstreamError, Cancelled."""
        return self._pending.popleft() if self._pending else next(self._chunks)

    def _block(self) -> bytes:
        """The next block that is not a tick."""
        while not (block := self._pull()):
            continue
        return block

    def _ending_of(self, error: Exception) -> Ending:
        self._exchange.error = error.code if isinstance(error, GatewayError) else "internal_error"
        if self._exchange.left:
            return Ending.CLIENT_GONE
        if isinstance(error, UpstreamTimeout):
            return Ending.TIMEOUT
        return Ending.UPSTREAM_TRUNCATED if isinstance(error, UpstreamError | Cancelled) else Ending.UPSTREAM_ERROR

    def _settle(self, ending: Ending) -> None:
        usage = self._reported() or from_events(self._exchange.call.dialect, b"".join(self._usage_events))
        self._ledger.settle(self._exchange, ending, metered(usage, self._exchange.call, self._delivered_bytes, self._delivered_events))

    def _keep_last(self, block: bytes) -> None:
        """What leaves once the settlement is committed, and so must be kept with it."""
        if self._claim is not None:
            self._claim.keep_last(block)
            self._claim = None

    def _reported(self) -> Usage | None:
        """What the backend itself says was used."""
        try:
            return self._answer.reply.usage()
        except Exception as error:  # a stranger's function: the call is booked all the same
            log.error("the backend's usage failed: %s", type(error).__name__, exc_info=error, extra={"exchange": self._exchange.id})
            return None

    def _settle_quietly(self, ending: Ending) -> None:
        """Where the client already sees that the answer is not whole: a failed commit is in the log, and changes nothing."""
        try:
            self._settle(ending)
        except SettleFailed as error:
            log.debug("%s", error, extra={"exchange": self._exchange.id})
