from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.agent_frames import Hello, Refused, Update
from gateway.core.agent_session import FORBIDDEN, TOO_MUCH, UNKNOWN
from gateway.core.enrolments import Admitted, Enrolments, covered
from gateway.core.globs import is_glob, is_model, matches_any
from gateway.errors import StoreUnavailable
from gateway.secrets import KeyHasher, Secrets, Vault, mint_key
from gateway.store import agents, pools
from gateway.store.agents import Enrolment
from gateway.store.database import Database
from tests.factories import migrated, now_ms

SHOWN = ("gw_agent_", "")


class Stage:
    """Enrolments over a real database. `deployed`: what was to be served, for whom."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.secrets = Secrets(KeyHasher(bytes(32)), Vault({1: bytes(32)}, 1), ())
        self.deployed: list[tuple[str, list[str]]] = []
        self.door: Enrolment | None = None
        self.enrolments = Enrolments(database, self.secrets, self._deploy, self._open_door)
        self.pool = database.write(lambda: pools.create_pool("agents"))

    def _deploy(self, enrolment: Enrolment, models: Sequence[str]) -> Sequence[str]:
        self.deployed.append((enrolment.name, list(models)))
        return models

    def _open_door(self) -> Enrolment:
        assert self.door is not None
        return self.door

    def enrol(self, name: str = "laptop", *models: str, expires_at: int | None = None, max_agents: int | None = None) -> tuple[str, Enrolment]:
        token = mint_key("agent")
        digest, allowed = self.secrets.hasher.hash(token), models or ("llama*", "qwen")
        more = {"expires_at": expires_at, "max_agents": max_agents}
        made = self.database.write(lambda: agents.create_enrolment(name, digest, self.pool.id, allowed, now_ms(), shown=SHOWN, **more))
        return token, made

    def admit(self, token: str | None, name: str = "", *models: str) -> Admitted:
        return self.enrolments.admit(token, Hello(name=name, token=token or "", models=models or ("llama3.1",), software="ref/1"), 2)

    def refusal(self, token: str | None, name: str = "", *models: str) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.admit(token, name, *models)
        return caught.value.code, caught.value.reason


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        yield Stage(database)


def test_an_agent_is_a_credential_of_the_tokens_pool_made_at_its_first_hello(stage: Stage) -> None:
    token, enrolment = stage.enrol()
    admitted = stage.admit(token)
    (credential,) = stage.database.read(pools.list_credentials)
    assert (admitted.agent, admitted.credential, admitted.label) == (credential.place, credential.id, "laptop")
    assert credential.pool_id == enrolment.pool_id
    assert stage.admit(token) == admitted
    assert len(stage.database.read(pools.list_credentials)) == 1


def test_agents_of_one_token_are_told_apart_by_their_names(stage: Stage) -> None:
    token, _ = stage.enrol()
    admitted = [stage.admit(token, name) for name in ("", "a", "b", "a")]
    assert len({each.agent for each in admitted}) == 3
    assert admitted[1] == admitted[3]


def test_a_name_under_another_token_is_another_agent(stage: Stage) -> None:
    (one, _), (other, _) = stage.enrol("one"), stage.enrol("other")
    assert stage.admit(one, "a").agent != stage.admit(other, "a").agent


def test_what_is_kept_of_an_agent_has_no_token_in_it(stage: Stage) -> None:
    token, _ = stage.enrol()
    admitted = stage.admit(token)
    assert token not in repr(admitted)
    assert admitted.hello.token == ""


def test_of_its_models_those_that_the_token_covers_are_served(stage: Stage) -> None:
    token, _ = stage.enrol("laptop", "llama*", "qwen", "gpt-oss*")
    admitted = stage.admit(token, "", "llama3.1", "gpt-4o", "qwen", "qwen2", "llama*", "gpt-*")
    assert admitted.models == ("llama3.1", "qwen", "llama*")
    assert stage.deployed == [("laptop", ["llama3.1", "qwen"])]


def test_an_agent_of_whose_models_none_is_covered_is_forbidden(stage: Stage) -> None:
    token, _ = stage.enrol("laptop", "llama*")
    assert stage.refusal(token, "", "gpt-4o") == (FORBIDDEN, "the token covers none of its models")
    assert stage.database.read(pools.list_credentials) == []


def test_tokens_that_let_nobody_in_are_refused_in_the_same_words(stage: Stage) -> None:
    revoked, made = stage.enrol("revoked")
    stage.database.write(lambda: agents.revoke_enrolment(made.id, now_ms()))
    expired, _ = stage.enrol("expired", expires_at=now_ms() - 1)
    good, _ = stage.enrol("good")
    tokens = [revoked, expired, mint_key("agent"), mint_key("user"), good[:-1], good + "x", good.upper(), "", "\ud800", "x" * 100_000, "gw_agent_\0"]
    refusals = {stage.refusal(token) for token in tokens}
    assert refusals == {(UNKNOWN, "the token is missing, unknown, expired or revoked")}
    assert stage.database.read(pools.list_credentials) == []


def test_one_agent_too_many_is_refused_and_those_that_are_known_are_not(stage: Stage) -> None:
    token, _ = stage.enrol(max_agents=2)
    first = stage.admit(token, "a")
    stage.admit(token, "b")
    code, reason = stage.refusal(token, "c")
    assert (code, reason) == (TOO_MUCH, "the token laptop lets in 2 agents, and has as many")
    assert stage.admit(token, "a") == first


def test_without_a_token_the_open_door_is_gone_through_as_long_as_it_is_open(stage: Stage) -> None:
    _, stage.door = stage.enrol("api-server", "api-server")
    admitted = stage.enrolments.admit(None, Hello(name="id-of-a-tab"), 1)
    assert (admitted.models, admitted.protocol) == (("api-server",), 1)
    stage.door = replace(stage.door, revoked_at=1)
    assert stage.refusal(None)[0] == UNKNOWN


def test_an_agent_that_announces_anew_serves_that_under_the_same_credential(stage: Stage) -> None:
    token, _ = stage.enrol()
    before = stage.admit(token, "a")
    after = stage.enrolments.announced(before, Update(models=("llama4", "gpt-4o"), concurrency=3))
    assert (after.agent, after.models, after.hello.name, after.hello.concurrency) == (before.agent, ("llama4",), "a", 3)
    assert stage.deployed[-1] == ("laptop", ["llama4"])


def test_what_an_update_does_not_name_stays_and_no_models_are_none(stage: Stage) -> None:
    token, _ = stage.enrol()
    before = stage.admit(token, "a")
    assert stage.enrolments.announced(before, Update(concurrency=3)).models == before.models
    assert stage.enrolments.announced(before, Update(models=())).models == ()
    assert stage.enrolments.announced(before, Update(models=("gpt-4o",))).models == ()


@pytest.mark.parametrize("end", ["revoked", "deleted"])
def test_an_agent_that_announces_anew_under_a_token_that_ended_is_refused(stage: Stage, end: str) -> None:
    token, made = stage.enrol()
    before = stage.admit(token)
    stage.database.write(lambda: agents.revoke_enrolment(made.id, 1) if end == "revoked" else agents.delete_enrolment(made.id))
    with pytest.raises(Refused) as caught:
        stage.enrolments.announced(before, Update(models=("llama4",)))
    assert caught.value.code == UNKNOWN


def test_who_may_stay_is_whose_token_and_credential_are_there(stage: Stage) -> None:
    tokens = {name: stage.enrol(name) for name in ("stays", "revoked", "expired", "deleted", "without")}
    admitted = {name: stage.admit(token) for name, (token, _) in tokens.items()}
    everyone = list(admitted.values())
    assert stage.enrolments.valid(everyone) == {each.agent for each in everyone}
    stage.database.write(lambda: agents.revoke_enrolment(tokens["revoked"][1].id, now_ms()))
    stage.database.write(lambda: agents.EnrolmentRow.update(expires_at=1).where(agents.EnrolmentRow.name == "expired").execute())
    stage.database.write(lambda: agents.delete_enrolment(tokens["deleted"][1].id))
    stage.database.write(lambda: pools.delete_credentials([admitted["without"].credential]))
    assert stage.enrolments.valid(everyone) == {admitted["stays"].agent}


def test_who_is_connected_is_seen(stage: Stage) -> None:
    token, _ = stage.enrol()
    admitted = stage.admit(token)
    stage.database.write(lambda: agents.AgentRow.update(seen_at=5).execute())
    stage.enrolments.seen([])
    assert stage.database.read(agents.list_agents)[0].seen_at == 5
    stage.enrolments.seen([admitted])
    assert now_ms() - stage.database.read(agents.list_agents)[0].seen_at < 60_000


def test_a_database_that_is_away_is_told_and_nobody_is_refused_for_it(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def read(self, work: object) -> object:
            raise StoreUnavailable("away")

    enrolments = Enrolments(Away(), stage.secrets, lambda enrolment, models: None, stage._open_door)  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable):
        enrolments.admit(mint_key("agent"), Hello(models=("m",)), 2)


NAMES = st.text(st.sampled_from("ab*? ,\ud800\xe9"), max_size=4)


@given(st.lists(NAMES.filter(bool), max_size=4), st.lists(NAMES, max_size=6))
def test_nothing_is_served_that_the_token_does_not_cover(allowed: list[str], announced: list[str]) -> None:
    for model in covered(allowed, announced):
        assert model in allowed or (matches_any(model, allowed) and is_model(model) and not is_glob(model))
    assert covered(allowed, None) == tuple(allowed)
    assert not any(is_glob(model) for model in covered(allowed, ()))
