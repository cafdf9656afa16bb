"""Bodies that come compressed although identity was asked for: decoded as they come, with a bound on what they grow to."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import Protocol

from gateway.backend import Headers
from gateway.errors import UpstreamInterrupted, UpstreamProtocolError

STEP_BYTES = 65_536
"""Decoded at a time, and so the longest block."""
MAX_RATIO = 100
RATIO_FREE_BYTES = 16_777_216
"""A body that decodes to more than this, and to more than MAX_RATIO times what was received, is a bomb."""

_GZIP = zlib.MAX_WBITS | 16
_RAW = -zlib.MAX_WBITS
_WINDOW_BITS = MappingProxyType({"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS})


class Blocks(Iterator[bytes], Protocol):
    """What is received, and the end of receiving."""

    def close(self) -> None: ...


def window_bits(headers: Headers) -> int | None:
    """How zlib is to read a body with these headers; None for one that is not encoded. Raises UpstreamProtocolError."""
    named = [value.strip().lower() for name, value in headers if name == "content-encoding"]
    encodings = [one for one in named if one and one != "identity"]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in _WINDOW_BITS:
        raise UpstreamProtocolError("The upstream's answer is encoded in a way that was not asked for.")
    return _WINDOW_BITS[encodings[0]]


def without_encoding(headers: Headers) -> Headers:
    """The headers that fit the decoded body."""
    return tuple(field for field in headers if field[0] not in ("content-encoding", "content-length"))


class Decoded:
    """The decoded body, in blocks of at most 64 KB; ticks pass. Raises UpstreamInterrupted where the encoded body is broken, cut or a bomb."""

    __slots__ = ("_blocks", "_broken", "_decoder", "_first", "_full", "_received", "_tail", "_yielded")

    def __init__(self, blocks: Blocks, bits: int) -> None:
        self._blocks = blocks
        self._decoder = zlib.decompressobj(bits)
        self._first = b"" if bits == zlib.MAX_WBITS else None
        self._tail = b""
        self._full = False
        self._received = self._yielded = 0
        self._broken: UpstreamInterrupted | None = None

    def __iter__(self) -> Decoded:
        return self

    def __next__(self) -> bytes:
        if self._broken is not None:
            raise self._broken
        try:
            while True:
                data = self._tail
                if not data and not self._full:
                    data = self._receive()
                    if not data:
                        return b""  # a tick
                block = self._step(data)
                if block:
                    return block
        except UpstreamInterrupted as error:
            self._broken = error
            self._blocks.close()
            raise

    def close(self) -> None:
        if self._tail or self._full or self._broken is not None:  # as in Chunks.close
            self._broken = UpstreamInterrupted("The answer was given up.")
        self._blocks.close()

    def _receive(self) -> bytes:
        try:
            data = next(self._blocks)
        except StopIteration:
            if self._received and not self._decoder.eof:
                raise UpstreamInterrupted("The upstream's compressed answer was cut.") from None
            raise
        self._received += len(data)
        if self._first is None or not data:
            return data
        # "deflate" is zlib's format, but some servers send it bare; two bytes tell
        first = self._first = self._first + data
        if len(first) < 2:
            return self._receive()
        if first[0] & 15 != 8 or int.from_bytes(first[:2], "big") % 31:
            self._decoder = zlib.decompressobj(_RAW)
        self._first = None
        return first

    def _step(self, data: bytes) -> bytes:
        decoder = self._decoder
        if decoder.eof and data:  # one gzip member after another
            decoder = self._decoder = zlib.decompressobj(_GZIP)
        try:
            block = decoder.decompress(data, STEP_BYTES)
        except zlib.error as error:
            raise UpstreamInterrupted("The upstream's compressed answer is broken.") from error
        self._tail = decoder.unconsumed_tail or decoder.unused_data
        # a full block may have left more inside the decoder, even where it took all its input
        self._full = len(block) == STEP_BYTES
        self._yielded += len(block)
        if self._yielded > RATIO_FREE_BYTES and self._yielded > MAX_RATIO * self._received:
            raise UpstreamInterrupted("The upstream's compressed answer grows beyond measure.")
        return block
