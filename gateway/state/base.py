"""The protocol of shared cooldowns. `gateway.core.pool.MemoryCooldowns` is the one implementation so far."""

from __future__ import annotations

from typing import Protocol


class Cooldowns(Protocol):
    """Who rests until when. A subject is "deployment:7", "credential:3" or "credential:3:gpt-4o"; times are monotonic seconds."""

    def cool(self, subject: str, until: float, reason: str) -> None:
        """Rest `subject` until then. A later end wins over an earlier one."""

    def until(self, subject: str) -> float:
        """When the rest ends; 0.0 where there is none."""

    def reason(self, subject: str) -> str:
        """Why it rests, in one word; "" where it does not."""

    def clear(self, subject: str) -> None:
        """End the rest now."""

    def __len__(self) -> int:
        """How many subjects rest, at most: some of them may be over."""
        ...
