from __future__ import annotations

import logging

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations import agents, catalog, credentials, pools
from gateway.operations.agents import OPEN, Enrolled
from gateway.operations.catalog import Wishes
from gateway.secrets import Secrets
from gateway.state.agents import Holder
from gateway.store import agents as rows
from gateway.store.agents import Announced, Enrolment
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, credential_place
from tests.unit.operations.times import AT


def enrolled(database: Database, secrets: Secrets, name: str = "laptop", models: tuple[str, ...] = ("llama3.1",), **fields: object) -> Enrolled:
    return agents.enrol(database, secrets.hasher, name, models, AT, **fields)  # type: ignore[arg-type]


def hello(database: Database, secrets: Secrets, made: Enrolled, name: str = "", models: tuple[str, ...] = ("llama3.1",)) -> Credential:
    announced = Announced(name, models, 2, "ref/1", 1)
    return database.write(lambda: rows.ensure_agent(made.enrolment, announced, AT, lambda number: secrets.vault.seal("", credential_place(number))))


def found(database: Database, secrets: Secrets, token: str) -> Enrolment | None:
    return database.read(lambda: rows.find_enrolment(secrets.hasher.hash(token)))


def deployments(database: Database) -> dict[str, tuple[str, str, str | None]]:
    return {item.deployment.name: (item.model, item.deployment.backend, item.pool) for item in catalog.list_deployments(database)}


def elsewhere(database: Database, model: str) -> None:
    catalog.create_deployment(database, f"other-{model.replace('*', 'any')}", model, "echo", AT, Wishes())


def announce(database: Database, made: Enrolled, *models: str, passed: tuple[str, ...] = ()) -> tuple[str, ...]:
    return agents.ensure_deployments(database, made.enrolment, models, AT, passed)


def test_a_token_is_shown_once_and_lets_its_agents_in(database: Database, secrets: Secrets) -> None:
    made = enrolled(database, secrets)
    token = made.token.reveal()
    assert token.startswith("gw_agent_")
    assert token not in repr(made)
    assert token.startswith(made.enrolment.prefix)
    assert token.endswith(made.enrolment.suffix)
    assert found(database, secrets, token) == made.enrolment


def test_models_that_are_named_exactly_are_served_from_the_pool(database: Database, secrets: Secrets) -> None:
    enrolled(database, secrets, models=("llama3.1", "meta/llama:8b", "qwen*"))
    enrolled(database, secrets, "second", models=("llama3.1",))
    served_from = deployments(database)
    assert served_from.pop("agents-llama3.1") == ("llama3.1", "agent", "agents")
    ((name, served),) = served_from.items()
    assert name.startswith("agents-meta-llama-8b-")
    assert served == ("meta/llama:8b", "agent", "agents")
    assert pools.find_pool(database, "agents").pool.affinity == "soft"


def test_a_model_that_others_serve_is_shared_where_the_operator_names_it(database: Database, secrets: Secrets) -> None:
    elsewhere(database, "llama3.1")
    made = enrolled(database, secrets)
    assert "agents-llama3.1" in deployments(database)
    assert made.notes == ("llama3.1 is served by other-llama3.1 too: calls are shared; `gateway deployment set --priority` says who goes first",)


@pytest.mark.parametrize(
    ("name", "models", "fields"),
    [
        ("a b", ("m",), {}),
        ("x" * 49, ("m",), {}),
        (OPEN, ("m",), {}),
        ("ok", (), {}),
        ("ok", ("a b",), {}),
        ("ok", tuple(f"m{number}" for number in range(101)), {}),
        ("ok", ("m",), {"pool": "a/b"}),
        ("ok", ("m",), {"expires_at": AT}),
        ("ok", ("m",), {"max_agents": 0}),
    ],
)
def test_what_cannot_be_enrolled_is_refused_and_leaves_nothing(
    database: Database, secrets: Secrets, name: str, models: tuple[str, ...], fields: dict[str, object]
) -> None:
    with pytest.raises(BadRequest):
        enrolled(database, secrets, name, models, **fields)
    assert (agents.list_agents(database), pools.list_pools(database)) == ([], [])


def test_a_name_is_enrolled_once(database: Database, secrets: Secrets) -> None:
    enrolled(database, secrets)
    with pytest.raises(Conflict, match="gateway agent rotate laptop"):
        enrolled(database, secrets)


def test_agents_do_not_join_a_pool_whose_credentials_go_elsewhere(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "main", Secret("sk-of-the-upstream"), AT)
    catalog.create_deployment(database, "official", "gpt-4o", "openai", AT, Wishes(pool="main"))
    with pytest.raises(Conflict, match="the pool main is behind official"):
        enrolled(database, secrets, pool="main")


def test_a_rotated_token_is_another_for_the_same_agents(database: Database, secrets: Secrets) -> None:
    made = enrolled(database, secrets)
    agent = hello(database, secrets, made)
    rotated = agents.rotate(database, secrets.hasher, "laptop", AT)
    assert hello(database, secrets, rotated) == agent
    assert found(database, secrets, made.token.reveal()) is None
    assert found(database, secrets, rotated.token.reveal()) == rotated.enrolment
    agents.revoke(database, "laptop", AT)
    with pytest.raises(BadRequest, match="is revoked"):
        agents.rotate(database, secrets.hasher, "laptop", AT)


def test_a_deleted_enrolment_takes_what_only_its_agents_served(database: Database, secrets: Secrets) -> None:
    made, other = enrolled(database, secrets), enrolled(database, secrets, "other", ("qwen",))
    agent = hello(database, secrets, made)
    deleted = agents.delete(database, "laptop")
    assert [item.credential for item in deleted.agents] == [agent]
    assert set(deployments(database)) == {"agents-llama3.1", "agents-qwen"}
    hello(database, secrets, other, models=("qwen",))
    agents.delete(database, "other")
    assert (deployments(database), pools.list_pools(database), agents.list_agents(database)) == ({}, [], [])


def test_an_enrolment_whose_agent_is_a_deployment_s_only_credential_stays(database: Database, secrets: Secrets) -> None:
    hello(database, secrets, enrolled(database, secrets))
    catalog.create_deployment(database, "alone", "m", "echo", AT, Wishes(credential="laptop"))
    with pytest.raises(Conflict, match="are used by alone"):
        agents.delete(database, "laptop")


def test_what_is_no_enrolment_is_not_found(database: Database, secrets: Secrets) -> None:
    for verb in (lambda: agents.revoke(database, "x", AT), lambda: agents.rotate(database, secrets.hasher, "x", AT), lambda: agents.delete(database, "x")):
        with pytest.raises(NotFound, match="gateway agent list"):
            verb()


def test_a_name_that_is_announced_and_covered_is_served_from_then_on(database: Database, secrets: Secrets) -> None:
    made = enrolled(database, secrets, models=("llama*", "qwen"))
    assert announce(database, made, "qwen", "llama3.2", "llama3.2", "mistral") == ("qwen", "llama3.2")
    assert announce(database, made, "llama3.2") == ("llama3.2",)
    assert set(deployments(database)) == {"agents-qwen", "agents-llama3.2"}


def test_no_agent_captures_a_name_that_others_serve(database: Database, secrets: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere(database, "gpt-4o")
    before = deployments(database)
    made = enrolled(database, secrets, models=("*",))
    with caplog.at_level(logging.WARNING):
        assert announce(database, made, "gpt-4o") == ()
    assert deployments(database) == before
    assert "agents of laptop do not serve gpt-4o" in caplog.text


def test_behind_a_glob_of_others_a_token_must_be_narrower(database: Database, secrets: Secrets) -> None:
    elsewhere(database, "gpt-*")
    wide, narrow = enrolled(database, secrets, models=("*",)), enrolled(database, secrets, "narrow", ("gpt-oss*",))
    assert announce(database, wide, "gpt-5", "llama") == ("llama",)
    assert announce(database, narrow, "gpt-oss:20b") == ("gpt-oss:20b",)
    assert announce(database, wide, "mistral", passed=("*",)) == ()
    assert announce(database, narrow, "gpt-oss:120b", passed=("*",)) == ("gpt-oss:120b",)


@pytest.mark.parametrize("name", ["*", "gpt-?", "a b", "a,b", "", "x" * 257, "é"])
def test_what_cannot_be_a_model_s_name_makes_none(database: Database, secrets: Secrets, name: str) -> None:
    made = enrolled(database, secrets, models=("*",))
    assert announce(database, made, name, "fine") == ("fine",)
    assert [item.model.name for item in catalog.list_models(database)] == ["fine"]


def test_agents_make_so_many_models_and_no_more(database: Database, secrets: Secrets) -> None:
    made = enrolled(database, secrets, models=("*",))
    names = [f"m{number}" for number in range(agents.MODELS + 20)]
    assert len(announce(database, made, *names[:400])) == 400
    assert len(announce(database, made, *names)) == agents.MODELS
    assert len(catalog.list_models(database)) == agents.MODELS


def test_agents_are_listed_with_their_connections(database: Database, secrets: Secrets) -> None:
    made = enrolled(database, secrets)
    first, second = hello(database, secrets, made), hello(database, secrets, made, "b")
    holder = Holder(first.place, "", made.enrolment.id, "w1", 1, "s", 2, ("llama3.1",), 1, 5.0)
    (listed,) = agents.list_agents(database, {first.place: holder})
    assert listed.enrolment == made.enrolment
    assert [(item.credential, item.holder, item.agent.announced.name) for item in listed.agents] == [(first, holder, ""), (second, None, "b")]


def test_agents_without_a_token_have_an_enrolment_of_their_own(database: Database, secrets: Secrets) -> None:
    made = agents.ensure_open_enrolment(database, AT)
    assert agents.ensure_open_enrolment(database, AT + 1) == made
    assert deployments(database) == {OPEN: (OPEN, "agent", OPEN)}
    assert (pools.find_pool(database, OPEN).pool.policy, made.models, made.state(AT)) == ("longest_unused", (OPEN,), "active")
    with pytest.raises(BadRequest, match="have no token"):
        agents.rotate(database, secrets.hasher, OPEN, AT)


def test_that_door_can_be_closed_before_anybody_came_and_opened_again(database: Database) -> None:
    agents.revoke(database, OPEN, AT)
    assert agents.ensure_open_enrolment(database, AT).state(AT) == "revoked"
    agents.delete(database, OPEN)
    assert database.read(rows.list_enrolments) == []
    assert agents.ensure_open_enrolment(database, AT).state(AT) == "active"


def test_a_pool_to_which_a_token_leads_is_not_deleted(database: Database, secrets: Secrets) -> None:
    enrolled(database, secrets, models=("llama*",))
    with pytest.raises(Conflict, match="the pool agents is used by laptop"):
        pools.delete_pool(database, "agents")
