"""Who asks: a presented API key becomes a Principal, or one and the same 401."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from gateway.backend import Network
from gateway.core.globs import matches_any
from gateway.errors import PermissionDenied, StoreUnavailable, Unauthenticated
from gateway.secrets import KeyHasher, looks_like_key
from gateway.store.accounts import ApiKey, ensure_key, find_key, first_key_id
from gateway.store.budgets import AccountLimits, AccountPath, Budget, account_path
from gateway.store.database import Conflict, Database

REFUSAL = "The API key is missing, unknown, expired or revoked."
"""One text for every reason: who tries keys learns nothing."""
INFERENCE, USAGE_READ, REDEEM = "inference", "usage:read", "redeem"
SCOPES = (INFERENCE, USAGE_READ, REDEEM)
"""What a key may be restricted to: calls of models; reading what became of them; redeeming codes. A route declares which it takes."""
CALLER = "caller-token"
"""The user, and the label of its one key, to whom calls are booked that bring an upstream token of their own."""
API_SERVER = "api-server"
"""The family whose keys are its own: tokens without our form, which stop working at the moment that they are deleted."""
TOKEN_CHARACTERS = 128
CACHE_S = 5.0
CACHE_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client showed. `family` is the API family's name, `scheme` how it was shown ("bearer", or "raw": without a scheme)."""

    family: str
    scheme: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated key. `models` are names and globs; empty means every model, but for the `denied_models`.

    `scopes`: of SCOPES; None: every one, also such as are added later. `networks`: from where it may be used; empty: from anywhere.
    `budgets` and `limits`: those of the key, its user, its team and all together that are in force, as of the last look-up.
    """

    key_id: int
    key_label: str
    user_id: int
    models: tuple[str, ...]
    denied_models: tuple[str, ...] = ()
    scopes: tuple[str, ...] | None = None
    networks: tuple[Network, ...] = ()
    team_id: int | None = None
    markup_ppm: int = 0
    budgets: tuple[Budget, ...] = ()
    limits: tuple[AccountLimits, ...] = ()

    def may_use(self, model: str) -> bool:
        return (not self.models or matches_any(model, self.models)) and not matches_any(model, self.denied_models)

    def may_come_from(self, address: IPv4Address | IPv6Address | None) -> bool:
        """None is an address that cannot be told."""
        return not self.networks or (address is not None and any(address in network for network in self.networks))


def principal_of(key: ApiKey, path: AccountPath) -> Principal:
    return Principal(
        key.id,
        key.label,
        key.user_id,
        key.models,
        key.denied_models,
        key.scopes,
        tuple([ip_network(network) for network in key.networks]),
        key.team_id,
        key.markup_ppm,
        path.budgets,
        path.limits,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    generation: int
    key: ApiKey
    principal: Principal


class Identity:
    """Looks keys up by their hash. A positive answer is remembered for at most 5 s and until the generation moves.

    `outlasts_database`: a known key stays known while the database does not answer: no revocation could be seen either.
    """

    def __init__(
        self,
        database: Database,
        hasher: KeyHasher,
        generation: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        outlasts_database: bool = False,
    ) -> None:
        self._database, self._hasher, self._generation, self._clock = database, hasher, generation, clock
        self._outlasts_database = outlasts_database
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def authenticate(self, presented: Presented) -> Principal:
        """A key of one family opens nothing in another.

        Raises Unauthenticated, or StoreUnavailable where the key is not in memory and the database does not answer.
        """
        family = API_SERVER if presented.family == API_SERVER else None
        if not _is_well_formed(presented):
            raise Unauthenticated(REFUSAL)
        known = self._find(self._hasher.hash(presented.value), fresh=family is not None)
        if known is None or known.key.family != family or _state(known.key):
            raise Unauthenticated(REFUSAL)
        return known.principal

    def caller(self) -> Principal:
        """Whoever brings an upstream token of their own: all of them are one account, made when it is first asked for.

        Raises PermissionDenied where the operator disabled the account, StoreUnavailable.
        """
        return self.account(CALLER, "with an upstream token of their own")

    def account(self, name: str, which: str) -> Principal:
        """The account of calls that show no key of ours, made when it is first asked for. `name`: of its user and of the label of its one key,
        shorter than any hash; it stands in the place of the key's, so that no key can be presented that has it. `which`: the calls, for the refusal.

        Raises PermissionDenied where the operator disabled the account, StoreUnavailable.
        """
        known = self._find(name) or self._made(name)
        if state := _state(known.key):
            raise PermissionDenied(f"Calls {which} are not taken here: the account '{name}' is {state}.", code="caller_disabled")
        return known.principal

    def _made(self, name: str) -> _Known:
        at = time.time_ns() // 1_000_000
        with contextlib.suppress(Conflict):  # another worker was first
            self._database.write(lambda: ensure_key(name, name, at, name))
        found = self._find(name)
        if found is None:
            raise StoreUnavailable(f"The account '{name}' cannot be made. Try again.", retry_after_s=1.0)
        return found

    def _find(self, digest: str, fresh: bool = False) -> _Known | None:
        generation, now = self._generation(), self._clock()
        known = self._known.get(digest)
        if not fresh and known is not None and known.until > now and known.generation == generation:
            return known
        try:
            found = self._database.read(lambda: _looked_up(digest))
        except StoreUnavailable:
            if known is None or not self._outlasts_database or known.generation != generation:
                raise
            known = self._known[digest] = replace(known, until=now + CACHE_S)
            return known
        if found is None:
            self._known.pop(digest, None)
            return None
        if len(self._known) >= CACHE_KEYS:
            self._known.clear()
        key, path = found
        known = self._known[digest] = _Known(now + CACHE_S, generation, key, principal_of(key, path))
        return known


def _is_well_formed(presented: Presented) -> bool:
    if presented.family == API_SERVER:
        return presented.scheme == "raw" and 0 < len(presented.value) <= TOKEN_CHARACTERS
    return presented.scheme == "bearer" and looks_like_key(presented.value)


def _state(key: ApiKey) -> str:
    """Why a key does not work now; empty where it does."""
    if key.user_disabled:
        return "disabled"
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= time.time_ns() // 1_000_000 else ""


def _looked_up(digest: str) -> tuple[ApiKey, AccountPath] | None:
    key = find_key(digest)
    return None if key is None else (key, account_path(first_key_id(key.id), key.user_id, key.team_id))
