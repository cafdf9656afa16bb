"""Bus: how a worker reaches the agents whose sockets other workers hold. What moves is the frames of docs/agents.md; nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.frames import Channel

MAX_QUEUED_BYTES = 32_000_000
"""What one side of a channel may have sent that the other has not taken, before it is "full"."""
MAX_QUEUED_FRAMES = 4096


@dataclass(frozen=True, slots=True)
class Opening:
    """For whom a channel is: an agent's connection, by its epoch. `by` is the worker that opened it."""

    agent: str
    epoch: int
    by: str


Accept = Callable[[Opening, Channel], None]
"""Serves a channel that another worker opened, in a greenlet of its own. The bus closes the channel when it returns; it must not raise."""


class Bus(Protocol):
    """Of one worker. Every channel is bounded, both ways: MAX_QUEUED_BYTES and MAX_QUEUED_FRAMES."""

    def start(self, accept: Accept) -> None:
        """Be reachable under this worker's owner id. Called once, after the fork."""

    def open(self, owner: str, opening: Opening) -> Channel:
        """A channel to the worker `owner`, which may be this one. Raises ChannelLost where that worker cannot be reached.

        That the worker died afterwards is noticed: `receive` raises ChannelLost, at once on the same host, within 3 s on another.
        """
        ...

    def close(self) -> None:
        """End all channels. Idempotent."""
