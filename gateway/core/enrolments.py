"""Who may connect as an agent: a token's enrolment, and the credential that an agent of it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.core.agent_frames import Hello, Refused, Update
from gateway.core.agent_session import FORBIDDEN, TOO_MUCH, UNKNOWN
from gateway.core.globs import is_glob, is_model, matches_any
from gateway.errors import BadRequest
from gateway.secrets import Secrets, looks_like_key
from gateway.store import agents
from gateway.store.agents import Announced, Enrolment
from gateway.store.database import Database
from gateway.store.pools import Credential, credential_place, list_credentials

REFUSAL = "the token is missing, unknown, expired or revoked"
Deploy = Callable[[Enrolment, Sequence[str]], Sequence[str]]
"""Sees to it that there is a deployment over the token's pool for each of these models, as far as may be; for which there is. Raises GatewayError."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An agent that was let in. `agent`: its credential's place, `credential` that one's id; `models`: what it serves, of what its token covers."""

    agent: str
    credential: int
    label: str
    enrolment: int
    models: tuple[str, ...]
    hello: Hello
    protocol: int


class Enrolments:
    """`open_door`: the enrolment of agents without a token, made when the first of them comes."""

    def __init__(self, database: Database, secrets: Secrets, deploy: Deploy, open_door: Callable[[], Enrolment]) -> None:
        self._database, self._secrets, self._deploy, self._open_door = database, secrets, deploy, open_door

    def admit(self, token: str | None, hello: Hello, protocol: int) -> Admitted:
        """`token` is None where none is needed. Raises Refused, StoreUnavailable."""
        return self._admitted(self._enrolment(token), hello, protocol)

    def announced(self, before: Admitted, said: Update) -> Admitted:
        """What an agent that is let in serves from now on. Raises Refused, StoreUnavailable."""
        enrolment = self._database.read(lambda: agents.find_enrolment_by_id(before.enrolment))
        if enrolment is None or enrolment.state(_now_ms()) != "active":
            raise Refused(UNKNOWN, REFUSAL)
        hello = before.hello if said.concurrency is None else replace(before.hello, concurrency=said.concurrency)
        if said.models is None:
            return replace(before, hello=hello)
        if not (models := covered(enrolment.models, said.models) if said.models else ()):
            return replace(before, hello=replace(hello, models=said.models), models=())
        return replace(before, hello=replace(hello, models=said.models), models=self._deployed(enrolment, models))

    def valid(self, admitted: Sequence[Admitted]) -> frozenset[str]:
        """Which of these agents may stay: their tokens and credentials are there still. Raises StoreUnavailable."""
        at = _now_ms()

        def look() -> frozenset[str]:
            active = {each.id for each in agents.list_enrolments() if each.state(at) == "active"}
            known = {each.place for each in list_credentials()}
            return frozenset(each.agent for each in admitted if each.enrolment in active and each.agent in known)

        return self._database.read(look)

    def seen(self, admitted: Sequence[Admitted]) -> None:
        """They are still connected: who is not seen for long is forgotten. Raises StoreUnavailable."""
        ids = [each.credential for each in admitted]
        if ids:
            self._database.write(lambda: agents.note_seen(ids, _now_ms()))

    def _enrolment(self, token: str | None) -> Enrolment:
        if token is None:
            found: Enrolment | None = self._open_door()
        else:
            digest = self._secrets.hasher.hash(token) if looks_like_key(token) else ""  # a typo costs no look-up
            found = self._database.read(lambda: agents.find_enrolment(digest)) if digest else None
        if found is None or found.state(_now_ms()) != "active":
            raise Refused(UNKNOWN, REFUSAL)
        return found

    def _admitted(self, enrolment: Enrolment, hello: Hello, protocol: int) -> Admitted:
        models = covered(enrolment.models, hello.models)
        if not models:
            raise Refused(FORBIDDEN, "the token covers none of its models")
        credential = self._credential(enrolment, Announced(hello.name, models, protocol, hello.software, hello.concurrency))
        served = self._deployed(enrolment, models)
        return Admitted(credential.place, credential.id, credential.label, enrolment.id, served, replace(hello, token=""), protocol)

    def _deployed(self, enrolment: Enrolment, models: Sequence[str]) -> tuple[str, ...]:
        """Of these models, those for which there is a deployment now; what is a glob stays one."""
        served = frozenset(self._deploy(enrolment, [model for model in models if not is_glob(model)]))
        return tuple(model for model in models if model in served or is_glob(model))

    def _credential(self, enrolment: Enrolment, announced: Announced) -> Credential:
        vault = self._secrets.vault

        def ensure() -> Credential:
            return agents.ensure_agent(enrolment, announced, _now_ms(), lambda number: vault.seal("", credential_place(number)))

        try:
            return self._database.write(ensure)
        except BadRequest as error:
            raise Refused(TOO_MUCH, error.message) from error


def covered(allowed: Sequence[str], announced: Sequence[str] | None) -> tuple[str, ...]:
    """Of what an agent announces, what its token covers and can be a model's name; where it announces nothing, whatever its token names."""
    if not announced:
        return tuple(allowed) if announced is None else tuple(model for model in allowed if not is_glob(model))
    return tuple(model for model in announced if model in allowed or (is_model(model) and not is_glob(model) and matches_any(model, allowed)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
