"""Affinity: a conversation keeps to one credential of a pool. Soft: as long as that is fit, for the upstream's cache. Hard: come what may.

A soft binding is kept nowhere: a hash of the conversation ranks the credentials of its pool, the same in every worker and after a restart, and a
credential that comes or goes moves only its own conversations. A hard one is a row of the store.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core.catalog import Deployment
from gateway.core.exchange import Exchange
from gateway.core.routing import Candidate
from gateway.store import conversations
from gateway.store.database import Database

OPENING = 2048
READ_BYTES = 1 << 18
"""Of longer messages only the first bytes are looked at, which no later turn of the conversation changes."""
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Bound:
    """A call's conversation, as a key that tells nobody anything."""

    key: str

    def rank(self, candidate: Candidate) -> float:
        """Weighted rendezvous: the highest is the conversation's own."""
        label = candidate.deployment.credential or ""
        drawn = int.from_bytes(hashlib.blake2b(f"{self.key}|{label}".encode(), digest_size=8).digest(), "big")
        share = max(candidate.deployment.share, 1e-9)
        return -share / math.log((drawn + 1) / (2**64 + 1))


class Affinity:
    """Of one worker."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, int] = OrderedDict()

    def kept(self, exchange: Exchange, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that a hard binding leaves. Names the conversation on the exchange where a pool asks for that. Raises StoreUnavailable."""
        if exchange.bound:  # by its client's own word, whatever its pool's affinity
            for candidate in [each for each in candidates if credential_id(each) not in exchange.bound]:
                exchange.excluded[candidate.deployment.place] = "bound_elsewhere"
            return [each for each in candidates if credential_id(each) in exchange.bound]
        pools = {candidate.deployment.pool for candidate in candidates if candidate.deployment.pool is not None and candidate.deployment.pool.affinity}
        name = _named(exchange) if pools else None
        if name is None:
            return list(candidates)
        exchange.conversation = name
        left = list(candidates)
        for pool in pools:
            if pool is None or pool.affinity != "hard":
                continue
            members = [each for each in left if each.deployment.pool == pool]
            own = self._bound(conversation_key(exchange, pool.id), members)
            if own is None:
                continue
            for candidate in [each for each in members if not _is(each, own)]:
                exchange.excluded[candidate.deployment.place] = "bound_elsewhere"
                left.remove(candidate)
        return left

    def preferred(self, exchange: Exchange, chosen: Candidate, fit: Sequence[Candidate], all_of_them: Sequence[Candidate]) -> Candidate:
        """Of the deployment that was chosen, the credential that the conversation is bound to, or else the next in rank; the exchange notes which."""
        pool = chosen.deployment.pool
        if pool is None or pool.affinity != "soft" or exchange.conversation is None:
            return chosen
        bound = Bound(conversation_key(exchange, pool.id))
        own = max((each for each in all_of_them if each.deployment.subject == chosen.deployment.subject), key=bound.rank)
        found = max((each for each in fit if each.deployment.subject == chosen.deployment.subject), key=bound.rank)
        exchange.affinity = {"kind": "soft", "bound": own.deployment.credential, "used": found.deployment.credential}
        if own is not found:
            exchange.affinity["spilled"] = exchange.excluded.get(own.deployment.place, "tried")
        return found

    def is_bound(self, exchange: Exchange, candidate: Candidate) -> bool:
        """Whether the call's conversation is bound to this one for good."""
        pool = candidate.deployment.pool
        if exchange.bound:
            return credential_id(candidate) in exchange.bound
        if pool is None or pool.affinity != "hard" or exchange.conversation is None:
            return False
        own = self._known.get(conversation_key(exchange, pool.id))
        return own is not None and _is(candidate, own)

    def answered(self, exchange: Exchange, candidate: Candidate) -> None:
        """Bind a conversation of a hard pool to who answered it first. Raises StoreUnavailable, where nothing could be promised."""
        pool = candidate.deployment.pool
        if pool is None or pool.affinity != "hard" or exchange.conversation is None:
            return
        key = conversation_key(exchange, pool.id)
        exchange.affinity = {"kind": "hard", "bound": candidate.deployment.credential, "used": candidate.deployment.credential}
        number = credential_id(candidate)
        if key not in self._known and number is not None:
            self._remember(key, self._database.write(lambda: conversations.bind(key, pool.id, number, exchange.at)))

    def binding(self, exchange: Exchange, pool_id: int, name: str) -> int | None:
        """To which credential the conversation of this name is bound; None for one that is not known. Raises StoreUnavailable."""
        exchange.conversation = name
        return self._database.read(lambda: conversations.bound(conversation_key(exchange, pool_id)))

    def bind(self, exchange: Exchange, pool_id: int, credential: int, name: str) -> None:
        """From now on the conversation goes on there, wherever it went on before. Raises StoreUnavailable."""
        exchange.conversation = name
        key = conversation_key(exchange, pool_id)
        self._database.write(lambda: conversations.rebind(key, pool_id, credential, exchange.at))
        self._remember(key, credential)

    def _bound(self, key: str, members: Sequence[Candidate]) -> int | None:
        """What is remembered of a credential that is not there any more is asked for again: a deleted one binds nothing."""
        own = self._known.get(key)
        if own is not None and any(_is(each, own) for each in members):
            return own
        self._known.pop(key, None)
        found = self._database.read(lambda: conversations.bound(key))
        if found is not None:
            self._remember(key, found)
        return found

    def _remember(self, key: str, credential: int) -> None:
        self._known[key] = credential
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def conversation_key(exchange: Exchange, pool_id: int) -> str:
    """A hash: two keys' conversations of one name are two."""
    return hashlib.sha256(f"{pool_id}|{exchange.principal.key_id}|{exchange.conversation}".encode("utf-8", "surrogatepass")).hexdigest()


def credential_id(candidate: Candidate) -> int | None:
    """Of "credential:3-AT.1", 3."""
    return credential_number(candidate.deployment)


def credential_number(deployment: Deployment) -> int | None:
    """The id of its credential's row."""
    kind, _, rest = deployment.credential_subject.partition(":")
    number = rest.partition("-")[0]
    return int(number) if kind == "credential" and number.isdecimal() else None


def _is(candidate: Candidate, credential: int) -> bool:
    return credential_id(candidate) == credential


def _named(exchange: Exchange) -> str | None:
    """What the client calls its conversation, its cache's key, or how the conversation opens; None where nothing tells it."""
    if exchange.conversation is not None:
        return exchange.conversation
    member = exchange.call.body.member
    if member is None:
        return None
    for name in ("prompt_cache_key", "conversation_id"):
        if (raw := member(name)) is not None and raw not in (b"null", b'""'):
            return f"{name}:{raw[:256].decode('utf-8', 'replace')}"
    raw = member("messages")
    return None if raw is None else "opening:" + hashlib.sha256(_opening(raw)).hexdigest()


def _opening(raw: bytes) -> bytes:
    """A conversation up to its first word of the user: every later turn begins so."""
    try:
        messages = json.loads(raw) if len(raw) <= READ_BYTES else None
    except (ValueError, RecursionError):  # a number of thousands of digits is JSON all the same
        messages = None
    if not isinstance(messages, list):
        return raw[:OPENING]
    roles = [each.get("role") if isinstance(each, dict) else None for each in messages]
    return json.dumps(messages[: roles.index("user") + 1 if "user" in roles else 1]).encode()
