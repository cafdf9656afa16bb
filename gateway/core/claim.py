"""Claim: a call's side of its Idempotency-Key, from the moment it begins until its entry is committed."""

from __future__ import annotations

import json
import math

from gateway.backend import Headers
from gateway.secrets import Vault
from gateway.store import idempotency as keys
from gateway.store.idempotency import Completion, Place

KEPT_BYTES = 256 << 10
"""A longer answer is not kept."""
KEPT_HEADERS = ("content-type", "content-disposition", "content-language")


class Claim:
    """A call's claim of a key. The Relay tells it what the client gets; the ledger writes down what became of it.

    `begun`: it may stand in the database under the call's id. `until` (monotonic): when others may believe its worker gone.
    """

    __slots__ = ("_headers", "_pieces", "_size", "_status", "_vault", "_whole", "begun", "fingerprint", "place", "replaces", "until")

    def __init__(self, place: Place, fingerprint: str, replaces: str | None, vault: Vault) -> None:
        self.place, self.fingerprint, self.replaces, self._vault = place, fingerprint, replaces, vault
        self.begun = self._whole = False
        self.until = math.inf
        self._pieces: list[bytes] | None = []
        self._size = 0
        self._status, self._headers = 0, "[]"

    def opened(self, exchange_id: str, owner: str, lease_s: int, now: float) -> keys.Claim:
        """Its row. From here on it may be there."""
        self.begun, self.until = True, now + lease_s
        return keys.Claim(self.place, self.fingerprint, exchange_id, owner, lease_s, self.replaces)

    def refused(self) -> None:
        """The database said that it was not made."""
        self.begun = False

    def answered(self, status: int, headers: Headers) -> None:
        self._status = status
        self._headers = json.dumps([field for field in headers if field[0] in KEPT_HEADERS])

    def keep(self, block: bytes) -> None:
        """The next piece of the answer, in memory up to what is kept at all."""
        self._size += len(block)
        if self._size > KEPT_BYTES:
            self._pieces = None
        if self._pieces is not None:
            self._pieces.append(block)

    def keep_last(self, block: bytes) -> None:
        """What is still to leave: with it the answer is whole."""
        self.keep(block)
        self._whole = True

    def ended(self, exchange_id: str, now: float, *, charged: bool, good: bool) -> Completion | None:
        """What is to be written down: what cost nothing may be asked again, and only a whole and `good` answer is given again."""
        if not self.begun:
            return None
        if not charged:
            return Completion(self.place, exchange_id, keys.FREE)
        body = self._vault.seal_bytes(b"".join(self._pieces), sealed_at(exchange_id)) if good and self._whole and self._pieces is not None else None
        return Completion(self.place, exchange_id, keys.DONE, self._status, self._headers, body, overran=now >= self.until)


def sealed_at(exchange_id: str) -> str:
    """The place at which an answer's body opens."""
    return f"idempotency:{exchange_id}:body"
