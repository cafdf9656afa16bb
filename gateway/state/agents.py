"""Which worker holds which agent's socket: the directory that all workers share. Losing it loses connections' traces, and agents connect again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

FORGET_S = 60.0
"""How long the entry of an agent that is gone stays."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A connection of an agent, and the worker that holds its socket. Times are Unix seconds.

    `agent`: its credential's place ("credential:3-AT"); `name`: what it calls itself; `enrolment`: the id of the token's row. `epoch` counts the
    connections of this agent; `protocol` is 1 or 2. `models`: what it serves, of what its token covers. `draining`: its worker goes; `leaving`: the
    agent itself takes nothing new. `gone_at`: when its socket was lost; None
    while it is connected. `used_at`: when it was last sent a request; `heard_at`: when it last answered one well; both None before the first.
    """

    agent: str
    name: str
    enrolment: int
    owner: str
    epoch: int
    session: str
    protocol: int
    models: tuple[str, ...]
    concurrency: int
    since: float
    resumes: bool = False
    draining: bool = False
    leaving: bool = False
    software: str = ""
    gone_at: float | None = None
    used_at: float | None = None
    heard_at: float | None = None
    rtt_ms: float | None = None


class AgentDirectory(Protocol):
    """Every verb that changes something decides in one step, and raises StateUnavailable."""

    def claim(self, holder: Holder) -> Holder:
        """The agent is connected here now; whoever held it does no more. Its epoch is higher than any before, whatever `holder.epoch` says."""
        ...

    def change(self, holder: Holder) -> bool:
        """Put this in the place of what is known of the same connection (agent and epoch); False where another connection took its place."""
        ...

    def release(self, agent: str, epoch: int, at: float) -> None:
        """Its socket is lost (`gone_at`), if it is still that connection's. The entry stays for a while, so that who waits knows that it was there."""

    def current(self) -> Mapping[str, Holder]:
        """By agent, also those that are gone since a moment ago. Read from memory: costs nothing while nothing changes."""
        ...

    def tidy(self, now: float) -> None:
        """Note connections of workers that died as gone, and forget what is gone for more than 60 s. Called by every worker, a few times a second."""

    def close(self) -> None:
        """Idempotent."""
