"""The Idempotency-Key header: a request that is sent again gets the answer that its first call gave, and is charged once.

A claim of the key is made with the call's hold and ends with its entry, each in one transaction: nobody sees the end of an answer that a second
call could be made for. Calls without the header do not come here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gateway.backend import Call, Headers
from gateway.concurrency import offload
from gateway.core.claim import Claim, sealed_at
from gateway.core.exchange import began_ms
from gateway.core.identity import Principal
from gateway.dialects import multipart
from gateway.errors import AnswerNotKept, BadRequest, IdempotencyKeyInUse, IdempotencyKeyReused
from gateway.metrics import Metrics
from gateway.presence import Presence
from gateway.secrets import SecretsError, Vault
from gateway.store import idempotency as keys
from gateway.store.database import Database
from gateway.store.idempotency import Known
from gateway.store.journal import Journal

log = logging.getLogger(__name__)
OFFLOAD_BYTES = 1 << 20
RETRY_MS = (1_000, 10_000)
"""The shortest and the longest wait that a client is told: as long again as the call has already taken."""
_KEY = re.compile(r"[\x20-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that was given, as it was; `exchange` is the id of the call that gave it."""

    exchange: str
    status: int
    headers: Headers
    body: bytes


class Idempotency:
    """Looks keys up. `now_ms`: Unix time."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        presence: Presence,
        vault: Vault,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database, self._journal, self._presence, self._vault = database, journal, presence, vault
        self._metrics, self._now_ms = metrics, now_ms

    def recall(self, key: str, call: Call, principal: Principal) -> Claim | Kept:
        """What this key's call answered, or the claim with which this call may become it.

        Raises BadRequest, IdempotencyKeyInUse, AnswerNotKept, IdempotencyKeyReused; StoreUnavailable, as nobody knows then.
        """
        if not _KEY.fullmatch(key):
            raise BadRequest("An Idempotency-Key is 1 to 255 printable ASCII characters.", code="idempotency_key_invalid")
        fingerprint = offload(lambda: _fingerprint(call)) if (call.body.size or 0) > OFFLOAD_BYTES else _fingerprint(call)
        place, known = self._database.read(lambda: keys.find(principal.key_id, key))
        if known is None:
            return Claim(place, fingerprint, None, self._vault)
        if known.fingerprint != fingerprint:
            raise IdempotencyKeyReused(f"This Idempotency-Key came with another request before, exchange {known.exchange}. Another request needs another key.")
        if known.state == keys.DONE:
            return self._kept(known)
        if not self._gone(known):
            raise in_use(known.exchange, self._now_ms())
        return Claim(place, fingerprint, known.exchange, self._vault)

    def _kept(self, known: Known) -> Kept:
        if known.body is None or known.status is None:
            raise AnswerNotKept(_not_kept(known.exchange, "too large to be kept, or was not seen to its end"))
        try:
            body = self._vault.open_bytes(known.body, sealed_at(known.exchange))
        except SecretsError as error:
            log.warning("a stored answer does not open: %s", error, extra={"exchange": known.exchange})
            raise AnswerNotKept(_not_kept(known.exchange, "sealed with a key that is gone")) from error
        headers = tuple([(str(name), str(value)) for name, value in json.loads(known.headers or "[]")])
        self._metrics.replayed()
        log.info("replayed", extra={"exchange": known.exchange, "fields": {"status": known.status, "bytes_out": len(body)}})
        return Kept(known.exchange, known.status, headers, body)

    def _gone(self, known: Known) -> bool:
        """Whether the owner will never end this call. What it booked in its journal comes first."""
        if self._database.shared and not self._presence.local(known.owner):
            return known.late
        return not self._presence.alive(known.owner) and known.owner not in self._journal.owners(self._presence.alive)


def in_use(exchange_id: str | None, now_ms: int) -> IdempotencyKeyInUse:
    """`exchange_id` is of the call that is under way, where it is known."""
    shortest, longest = RETRY_MS
    age_ms = shortest if exchange_id is None else now_ms - began_ms(exchange_id)
    named = "" if exchange_id is None else f", exchange {exchange_id}"
    wait_s = min(max(age_ms, shortest), longest) / 1000
    return IdempotencyKeyInUse(f"The call of this Idempotency-Key is still under way{named}. Ask again for its answer.", retry_after_s=wait_s)


def _not_kept(exchange_id: str, reason: str) -> str:
    return f"The call of this Idempotency-Key has ended, but its answer was {reason}. GET /v1/requests/{exchange_id} says what became of it."


def _fingerprint(call: Call) -> str:
    """Tells one request from another. A form's boundary, which clients draw anew each time, does not count."""
    content_type = next((value for name, value in call.headers if name == "content-type"), "")
    kind = content_type.partition(";")[0].strip().lower()
    digest = hashlib.sha256("\n".join((call.dialect, call.method, call.path, kind, "")).encode())
    blocks: Iterable[bytes] = call.body.open()
    if kind == "multipart/form-data":
        blocks = _without(blocks, b"--" + multipart.boundary_of(content_type))
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _without(blocks: Iterable[bytes], mark: bytes) -> Iterator[bytes]:
    """The blocks with each `mark` as one zero byte, wherever they are cut."""
    held = b""
    for block in blocks:
        held = (held + block).replace(mark, b"\0")
        edge = max(0, len(held) - len(mark) + 1)
        yield held[:edge]
        held = held[edge:]
    yield held
