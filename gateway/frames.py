"""What a backend sees of upstreams that connect in: the channel to an agent, wherever in the gateway its socket is.

docs/agents.md says what the frames are. `gateway.core.agents` is the Frames that backends get; `gateway.bus` has the channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

MAX_FRAME_BYTES = 16_000_000
GRACE_S = 5.0
"""How long an agent that keeps its frames may take to connect again, and how long who waits for one that was lost goes on waiting."""


def decoded(raw: str | bytes) -> dict[str, Any] | None:
    """A frame's members; None for what is no JSON object.

    Half of a surrogate pair, which whoever cuts a text in the middle of a character writes as an escape, is JSON to Python's decoder alone.
    """
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError):
        found = _leniently(raw)
    except RecursionError:
        found = None
    return found if isinstance(found, dict) else None


def _leniently(raw: str | bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


class ChannelLost(Exception):
    """The channel leads nowhere any more. `cause`: "gone" (nobody holds the agent's socket there), "closed" (by this side), "full"."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"the channel to the agent is lost ({cause})")
        self.cause = cause


class Channel(Protocol):
    """Frames of one request, in order, both ways: each one JSON object as UTF-8 bytes.

    One greenlet receives, any may send or close.
    """

    def send(self, frame: bytes) -> None:
        """Queue a frame; does not wait for the other side. Raises ChannelLost, "full" where the other side has not read for too long."""

    def receive(self, timeout_s: float) -> bytes | None:
        """The next frame; None when the time is up. Raises ChannelLost once the other side has closed and its frames are read."""

    def close(self) -> None:
        """What was sent still arrives; the other side learns of the end. Wakes who receives here. Idempotent, does not wait, never raises."""


@dataclass(frozen=True, slots=True)
class Connected:
    """An agent as it is connected now. `session` tells whether it still remembers a request; `epoch` counts its connections."""

    agent: str
    epoch: int
    session: str
    resumes: bool
    models: tuple[str, ...]


class Frames(Protocol):
    """The gateway's side, lent to a backend by `attach`. An agent is named by `Target.credential`."""

    def connected(self, agent: str) -> Connected | None:
        """None where it is not connected. Costs nothing."""

    def open(self, connection: Connected) -> Channel:
        """A channel to this very connection: one that replaced it is never reached. Raises ChannelLost."""


@runtime_checkable
class HostsAgents(Protocol):
    """A backend whose upstreams are agents: its credentials are usable while they are connected."""

    def attach(self, frames: Frames) -> None:
        """Called once, before the first call."""
