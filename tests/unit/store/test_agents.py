"""Enrolments and their agents: one credential each, made once, forgotten with everything that hangs on it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.secrets import Vault
from gateway.store import agents, catalog, conversations, generation, pools
from gateway.store.agents import SEEN_EVERY_MS, Announced, Enrolment
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, credential_place

VAULT = Vault({1: b"m" * 32}, 1)
LLAMA = Announced("", ("llama3.1",), 2, "ref/1", 4)

WORKER = """
import sys
from gateway.store import agents
from gateway.store.database import Database
database = Database(sys.argv[1])
database.bind()
enrolment = database.read(lambda: agents.find_enrolment("h"))
print("ready", flush=True)
sys.stdin.readline()
made = database.write(lambda: agents.ensure_agent(enrolment, agents.Announced("", ("llama3.1",), 2, "ref/1", 4), 1000, lambda number: b"sealed"))
print(made.id)
database.close()
"""


def seal(credential_id: int) -> bytes:
    return VAULT.seal("", credential_place(credential_id))


def enrolled(database: Database, name: str = "laptop", hash: str = "h", max_agents: int | None = None) -> Enrolment:
    def create() -> Enrolment:
        pool = pools.find_pool("agents") or pools.create_pool("agents")
        return agents.create_enrolment(name, hash, pool.id, ["llama*"], 5, shown=("gw_agent_ab12", "wxyz"), max_agents=max_agents)

    return database.write(create)


def hello(database: Database, enrolment: Enrolment, announced: Announced = LLAMA, at: int = 1000) -> Credential:
    return database.write(lambda: agents.ensure_agent(enrolment, announced, at, seal))


def generation_of(database: Database) -> int:
    return database.read(generation.generation)


def test_an_enrolment_is_found_by_the_hash_of_its_token_and_by_its_name(database: Database) -> None:
    made = enrolled(database, max_agents=3)
    assert (made.name, made.models, made.pool_name, made.max_agents, made.state(10)) == ("laptop", ("llama*",), "agents", 3, "active")
    assert database.read(lambda: (agents.find_enrolment("h"), agents.find_enrolment_by_name("laptop"))) == (made, made)
    assert database.read(lambda: (agents.find_enrolment("laptop"), agents.find_enrolment_by_name("h"))) == (None, None)


@pytest.mark.parametrize(("name", "hash"), [("laptop", "other"), ("other", "h")])
def test_a_name_and_a_token_are_enrolled_once(database: Database, name: str, hash: str) -> None:
    enrolled(database)
    with pytest.raises(Conflict):
        enrolled(database, name, hash)


def test_a_revoked_enrolment_keeps_its_time_and_an_expired_one_ends_at_its_own(database: Database) -> None:
    made = enrolled(database)
    database.write(lambda: agents.revoke_enrolment(made.id, 7))
    revoked = database.write(lambda: agents.revoke_enrolment(made.id, 9))
    assert (revoked.revoked_at, revoked.state(8)) == (7, "revoked")
    expiring = dataclasses.replace(made, expires_at=20)
    assert (expiring.state(19), expiring.state(20)) == ("active", "expired")


def test_a_replaced_token_is_the_only_one(database: Database) -> None:
    made = enrolled(database)
    replaced = database.write(lambda: agents.replace_token(made.id, "h2", ("gw_agent_cd34", "abcd")))
    assert (replaced.prefix, replaced.suffix) == ("gw_agent_cd34", "abcd")
    assert database.read(lambda: (agents.find_enrolment("h"), agents.find_enrolment("h2"))) == (None, replaced)


def test_an_agent_gets_its_credential_once(database: Database) -> None:
    enrolment = enrolled(database)
    first = hello(database, enrolment)
    assert (first.label, first.pool_name, first.created_at, first.hint) == ("laptop", "agents", 1000, "")
    assert VAULT.open(first.sealed, credential_place(first.id)) == ""
    assert hello(database, enrolment, at=2000) == first
    named = hello(database, enrolment, dataclasses.replace(LLAMA, name="the box\u2019s own"))
    assert named.label.startswith("laptop-")
    assert len(named.label) == len("laptop-") + 8
    assert [agent.credential for agent in database.read(agents.list_agents)] == [first.id, named.id]
    assert database.read(lambda: agents.find_agent(enrolment.id, "")) == agents.Agent(first.id, enrolment.id, LLAMA, 1000)


def test_the_same_name_under_another_token_is_another_agent(database: Database) -> None:
    one, two = enrolled(database), enrolled(database, "other", "h2")
    assert hello(database, one).id != hello(database, two).id
    assert [agent.enrolment for agent in database.read(lambda: agents.list_agents(two.id))] == [two.id]


def test_a_label_that_is_taken_makes_room_for_another(database: Database) -> None:
    database.write(lambda: pools.create_credential("laptop", "", 1, seal))
    made = hello(database, enrolled(database))
    assert made.label.startswith("laptop-")
    assert len(made.label) == len("laptop-") + 32


def test_workers_to_which_one_agent_says_hello_at_once_make_one_credential(url: str, opened: Callable[..., Database]) -> None:
    enrolled(opened(url))
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=30)[0].strip() for worker in workers]
    assert answers[0].isdigit()
    assert len(set(answers)) == 1


def test_what_an_agent_announces_is_noted_when_it_changes(database: Database) -> None:
    enrolment = enrolled(database)
    made = hello(database, enrolment)
    before = generation_of(database)
    hello(database, enrolment, dataclasses.replace(LLAMA, software="ref/2"), at=1001)
    assert generation_of(database) == before
    changed = dataclasses.replace(LLAMA, models=("llama3.1", "llama3.2"), concurrency=8)
    hello(database, enrolment, changed, at=1002)
    assert generation_of(database) == before, "no worker builds its catalog anew for that: who holds the agent tells"
    assert database.read(agents.list_agents) == [agents.Agent(made.id, enrolment.id, changed, 1002)]


def test_the_operator_s_concurrency_stays_beside_what_is_announced(database: Database) -> None:
    enrolment = enrolled(database)
    made = hello(database, enrolment)
    assert made.concurrency is None
    database.write(lambda: pools.set_credential(made.id, concurrency=2))
    again = hello(database, enrolment, dataclasses.replace(LLAMA, concurrency=9))
    assert (again.concurrency, database.read(agents.list_agents)[0].announced.concurrency) == (2, 9)


def test_that_an_agent_is_seen_is_written_once_a_minute(database: Database) -> None:
    made, before = hello(database, enrolled(database)), generation_of(database)

    def seen(at: int) -> int:
        database.write(lambda: agents.note_seen([made.id, 99], at))
        return database.read(agents.list_agents)[0].seen_at

    assert [seen(1000 + SEEN_EVERY_MS - 1), seen(1000 + SEEN_EVERY_MS), seen(1000)] == [1000, 1000 + SEEN_EVERY_MS, 1000 + SEEN_EVERY_MS]
    assert generation_of(database) == before


def test_one_agent_too_many_is_refused_and_those_that_are_there_come_in(database: Database) -> None:
    enrolment = enrolled(database, max_agents=1)
    first = hello(database, enrolment)
    with pytest.raises(BadRequest, match="lets in 1 agents") as caught:
        hello(database, enrolment, dataclasses.replace(LLAMA, name="b"))
    assert caught.value.code == "too_many_agents"
    assert hello(database, enrolment).id == first.id


def test_an_agent_of_an_enrolment_that_is_gone_is_refused(database: Database) -> None:
    enrolment = enrolled(database)
    database.write(lambda: agents.delete_enrolment(enrolment.id))
    with pytest.raises(NotFound):
        hello(database, enrolment)
    assert database.read(pools.list_credentials) == []


def test_agents_go_with_their_enrolment_and_with_their_credential(database: Database) -> None:
    enrolment, kept = enrolled(database), enrolled(database, "kept", "h2")
    first, second, other = hello(database, enrolment), hello(database, enrolment, dataclasses.replace(LLAMA, name="b")), hello(database, kept)
    database.write(lambda: pools.delete_credential(first.id))
    assert database.read(lambda: agents.find_agent(enrolment.id, "")) is None
    assert database.write(lambda: agents.delete_enrolment(enrolment.id)) == [second.id]
    assert [item.id for item in database.read(pools.list_credentials)] == [other.id]
    assert database.read(lambda: (agents.list_enrolments(), [agent.credential for agent in agents.list_agents()])) == ([kept], [other.id])


def test_a_pool_outlives_its_last_agent_while_a_token_leads_to_it(database: Database) -> None:
    enrolment = enrolled(database)
    made = hello(database, enrolment)
    database.write(lambda: pools.delete_credential(made.id))
    assert database.read(lambda: pools.find_pool("agents")) is not None
    with pytest.raises(Conflict):
        database.write(lambda: pools.delete_pool(enrolment.pool_id))


def test_agents_that_nobody_saw_for_long_are_forgotten_with_their_conversations(database: Database) -> None:
    enrolment = enrolled(database)
    old, seen, alone = (hello(database, enrolment, dataclasses.replace(LLAMA, name=name), at) for name, at in (("a", 10), ("b", 20), ("c", 5)))

    def more() -> None:
        conversations.bind("k", old.pool_id, old.id, 10)
        catalog.create_deployment("d", catalog.create_model("m", 1).id, "agent", 1, credential_id=alone.id)

    database.write(more)
    assert database.write(lambda: agents.forget_agents(20, 500)) == 1
    assert [agent.credential for agent in database.read(agents.list_agents)] == [seen.id, alone.id]
    assert database.read(lambda: conversations.bound("k")) is None
    assert database.write(lambda: agents.forget_agents(20, 500)) == 0


def test_few_are_forgotten_at_once(database: Database) -> None:
    enrolment = enrolled(database)
    for name in "abc":
        hello(database, enrolment, dataclasses.replace(LLAMA, name=name), 1)
    assert [database.write(lambda: agents.forget_agents(20, 2)) for _ in range(3)] == [2, 1, 0]


def test_the_catalog_carries_enrolments_and_agents(database: Database) -> None:
    enrolment = enrolled(database)
    made = hello(database, enrolment)
    rows = database.read(catalog.load)
    assert (rows.enrolments, rows.agents) == ((enrolment,), (agents.Agent(made.id, enrolment.id, LLAMA, 1000),))
