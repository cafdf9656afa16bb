"""What a websocket's client sends, as text messages and control frames; no socket is known here. wsproto reads the frames: headers, masks, and their rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wsproto.frame_protocol import FrameDecoder, Opcode, ParseFailed

NO_CODE = 1005
_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


class Violation(Exception):
    """The peer broke the protocol; `code` is what it is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = int(code), reason


@dataclass(frozen=True, slots=True)
class Part:
    """A ping, a pong or a close frame; or, as a continuation, that a piece of a message was taken in which is not its last."""

    opcode: Opcode
    payload: bytes = b""


class Incoming:
    """What a client's bytes say: text messages, and control frames between and within them. A message in pieces costs its size, and its text as much again
    (up to four times as much for text that Python cannot keep in fewer bytes a character)."""

    __slots__ = ("_begun", "_frames", "_held", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._frames, self.max_bytes = FrameDecoder(client=False), max_bytes
        self._held, self._begun = bytearray(), False

    @property
    def held(self) -> int:
        """How much of a message is there."""
        return len(self._held)

    @property
    def is_under_way(self) -> bool:
        """Whether a frame or a message has begun and is not whole."""
        return self._begun or self._frames.header is not None or len(self._frames.buffer) > 0

    def feed(self, data: bytes) -> None:
        self._frames.receive_bytes(data)

    def next(self) -> str | Part | None:
        """What comes next, a step at a time; None until there is more. Raises Violation: as early as a frame's header shows it."""
        try:
            frame = self._frames.process_buffer()
        except ParseFailed as error:
            raise Violation(error.code, str(error)) from error
        header = self._frames.header  # of a frame whose payload is not here to its end
        if frame is None and (header is None or header.opcode.iscontrol()):
            return None
        piece: Any = b"" if frame is None else frame.payload  # bytes, until wsproto's next layer
        if frame is not None and frame.opcode.iscontrol():
            return Part(frame.opcode, piece)
        to_come = 0 if header is None else header.payload_len - self._frames.payload_consumed
        self._check(self._frames.effective_opcode if frame is None else frame.opcode, len(piece) + to_come)
        if frame is None:
            return None
        self._held += piece
        self._begun = True
        return self._text() if frame.frame_finished and frame.message_finished else Part(Opcode.CONTINUATION)

    def _check(self, opcode: Opcode | None, size: int) -> None:
        if self._begun is not (opcode is Opcode.CONTINUATION):
            raise Violation(1002, "a message within another" if self._begun else "a continuation of no message")
        if opcode is Opcode.BINARY:
            raise Violation(1003, "only text messages are taken")
        if len(self._held) + size > self.max_bytes:
            raise Violation(1009, f"a message of more than {self.max_bytes} bytes")

    def _text(self) -> str:
        try:
            return self._held.decode()
        except UnicodeDecodeError as error:
            raise Violation(1007, "a message that is not UTF-8") from error
        finally:
            self._held, self._begun = bytearray(), False


def closing(payload: bytes) -> tuple[int, str]:
    """A close frame's code and reason. Raises Violation."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or code not in _CLOSE_CODES:
        raise Violation(1002, "a close frame without a code that may be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError as error:
        raise Violation(1007, "a reason that is not UTF-8") from error
