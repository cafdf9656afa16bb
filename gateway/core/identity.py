"""Who asks: a presented API key becomes a Principal, or one and the same 401."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.core.globs import matches
from gateway.errors import Unauthenticated
from gateway.secrets import KeyHasher, looks_like_key
from gateway.store.accounts import ApiKey, find_key
from gateway.store.database import Database

REFUSAL = "The API key is missing, unknown, expired or revoked."
"""One text for every reason: who tries keys learns nothing."""
CACHE_S = 5.0
CACHE_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client showed. `family` is the API family's name, `scheme` how it was shown ("bearer")."""

    family: str
    scheme: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated key. `models` are names and globs; empty means every model."""

    key_id: int
    key_label: str
    user_id: int
    models: tuple[str, ...]

    def may_use(self, model: str) -> bool:
        return not self.models or any(matches(model, pattern) for pattern in self.models)


class Identity:
    """Looks keys up by their hash. A positive answer is remembered for at most 5 s and until the generation moves."""

    def __init__(self, database: Database, hasher: KeyHasher, generation: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._hasher, self._generation, self._clock = database, hasher, generation, clock
        self._known: dict[str, tuple[float, int, ApiKey]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def authenticate(self, presented: Presented) -> Principal:
        """Raises Unauthenticated, or StoreUnavailable where the key is not in memory and the database does not answer."""
        if presented.scheme != "bearer" or not looks_like_key(presented.value):
            raise Unauthenticated(REFUSAL)
        key = self._find(self._hasher.hash(presented.value))
        now = time.time_ns() // 1_000_000
        if key is None or key.user_disabled or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
            raise Unauthenticated(REFUSAL)
        return Principal(key.id, key.label, key.user_id, key.models)

    def _find(self, digest: str) -> ApiKey | None:
        generation, now = self._generation(), self._clock()
        known = self._known.get(digest)
        if known is not None and known[0] > now and known[1] == generation:
            return known[2]
        key = self._database.read(lambda: find_key(digest))
        if key is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= CACHE_KEYS:
            self._known.clear()
        self._known[digest] = (now + CACHE_S, generation, key)
        return key
