"""Answers whose client is gone, read on to the provider's usage, where the operator wants the call billed by it and not by an estimate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from gateway.concurrency import after
from gateway.core.exchange import Exchange
from gateway.core.head import error_of
from gateway.dialects import CODECS, sse

log = logging.getLogger(__name__)
MOST_BYTES = 32 << 20
MOST_S = 120.0
MOST_AT_ONCE = 200


class Drains:
    """Of one worker: at most `most` at once, each within so many bytes and seconds. What goes beyond is billed by estimate."""

    def __init__(self, most: int = MOST_AT_ONCE, most_bytes: int = MOST_BYTES, most_s: float = MOST_S) -> None:
        self._most, self._most_bytes, self._most_s = most, most_bytes, most_s
        self.count = 0

    def begin(self) -> bool:
        """Whether there is a place for one more; `read_on` gives it back."""
        if self.count >= self._most:
            return False
        self.count += 1
        return True

    def read_on(self, exchange: Exchange, chunks: Iterator[bytes], splitter: sse.Splitter, note: Callable[[bytes], None]) -> bool:
        """Read the rest of a stream and hand on its whole events, up to its terminal event; whether that came, and nothing failed. Ends, whatever happens."""
        stop = after(self._most_s, lambda: exchange.call.cancel.fire("client_gone"))
        codec, left, failed = CODECS[exchange.call.dialect], self._most_bytes, False
        try:
            for chunk in chunks:
                left -= len(chunk)
                if events := splitter.feed(chunk):
                    note(events)
                    failed = failed or (b"error" in events and any(error_of(sse.parse(raw)) is not None for raw in sse.split(events)))
                    if codec.terminal_candidate.search(events) and (ends := [event for raw in sse.split(events) if codec.is_terminal(event := sse.parse(raw))]):
                        return not failed and not any(map(codec.is_failure, ends))
                if left < 0 or splitter.size > self._most_bytes:
                    return False
            if rest := splitter.drain():
                note(rest)
        except Exception as error:  # the call is over for its client: what came until here is booked
            log.debug("not read on to its end: %s", error, extra={"exchange": exchange.id})
        finally:
            stop()
            self.count -= 1
        return False
