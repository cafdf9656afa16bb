from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.affinity import Affinity
from gateway.core.exchange import Exchange
from gateway.core.routing import Candidate
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.pools import Pool
from tests.factories import call, candidate, exchange, migrated, principal

SOFT, HARD = Pool(1, "p", affinity="soft"), Pool(1, "p", affinity="hard")


def members(pool: Pool, count: int = 5) -> list[Candidate]:
    return [candidate("d", pool=pool, credential=f"c{number}", credential_subject=f"credential:{number}-9.1", share=1 / count) for number in range(count)]


def asked(messages: str, key_id: int = 1) -> Exchange:
    ex = exchange(call(b'{"model":"m","messages":' + messages.encode() + b"}"))
    ex.principal = principal(key_id)
    return ex


def turn(number: int, more: str = "") -> str:
    return f'[{{"role":"system","content":"be brief"}},{{"role":"user","content":"question {number}"}}{more}]'


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with migrated(tmp_path) as database:
        database.write(lambda: pools.create_pool("p"))
        yield database


def soft(affinity: Affinity, ex: Exchange, fit: list[Candidate], everyone: list[Candidate]) -> str | None:
    affinity.kept(ex, everyone)
    return affinity.preferred(ex, fit[0], fit, everyone).deployment.credential


def test_a_conversation_keeps_to_one_credential_in_every_worker(database: Database) -> None:
    everyone = members(SOFT)
    first, other = Affinity(database), Affinity(database)
    for number in range(50):
        own = soft(first, asked(turn(number)), everyone, everyone)
        later = asked(turn(number, ',{"role":"assistant","content":"a"},{"role":"user","content":"more"}'))
        assert soft(other, later, everyone[::-1], everyone[::-1]) == own


def test_conversations_spread_within_a_fifth_of_fair(database: Database) -> None:
    everyone = members(SOFT)
    affinity = Affinity(database)
    load = Counter(soft(affinity, asked(turn(number)), everyone, everyone) for number in range(2000))
    assert len(load) == 5
    assert all(0.8 * 400 <= count <= 1.2 * 400 for count in load.values()), load


def test_a_credential_that_goes_moves_only_its_own_conversations(database: Database) -> None:
    everyone = members(SOFT)
    affinity = Affinity(database)
    before = {number: soft(affinity, asked(turn(number)), everyone, everyone) for number in range(200)}
    left = [each for each in everyone if each.deployment.credential != "c2"]
    after = {number: soft(affinity, asked(turn(number)), left, left) for number in range(200)}
    assert {number for number in before if before[number] != after[number]} == {number for number in before if before[number] == "c2"}


def test_a_spill_is_named_with_its_reason(database: Database) -> None:
    everyone = members(SOFT)
    affinity, ex = Affinity(database), asked(turn(1))
    own = soft(affinity, asked(turn(1)), everyone, everyone)
    fit = [each for each in everyone if each.deployment.credential != own]
    ex.excluded[f"d/{own}"] = "rate_limited"
    used = soft(affinity, ex, fit, everyone)
    assert ex.receipt()["affinity"] == {"kind": "soft", "bound": own, "used": used, "spilled": "rate_limited"}


def test_what_the_client_names_goes_before_how_it_opens(database: Database) -> None:
    everyone, affinity = members(SOFT), Affinity(database)
    named = []
    for number in range(30):
        ex = exchange(call(f'{{"model":"m","prompt_cache_key":"mine","messages":{turn(number)}}}'.encode()))
        named.append(soft(affinity, ex, everyone, everyone))
    assert len(set(named)) == 1


def test_two_keys_of_the_same_words_are_two_conversations(database: Database) -> None:
    everyone, affinity = members(SOFT), Affinity(database)
    pairs = [(soft(affinity, asked(turn(n), 1), everyone, everyone), soft(affinity, asked(turn(n), 2), everyone, everyone)) for n in range(50)]
    assert any(one != other for one, other in pairs)


@pytest.mark.parametrize("messages", ["[]", "{}", '"text"', "[1]", "[" + "1" * 5000 + "]", '[{"role":"user","content":"' + "x" * 300_000 + '"}]'])
def test_whatever_the_messages_are_it_does_not_fail(database: Database, messages: str) -> None:
    everyone = members(SOFT)
    assert soft(Affinity(database), asked(messages), everyone, everyone) is not None


def test_a_hard_binding_never_moves_and_outlasts_the_worker(database: Database) -> None:
    everyone = members(HARD)
    affinity, ex = Affinity(database), asked(turn(1))
    assert affinity.kept(ex, everyone) == everyone
    affinity.answered(ex, everyone[3])
    for again in (affinity, Affinity(database)):
        later = asked(turn(1))
        assert again.kept(later, everyone) == [everyone[3]]
        assert later.excluded == {f"d/c{number}": "bound_elsewhere" for number in (0, 1, 2, 4)}
        assert again.is_bound(later, everyone[3])
        assert not again.is_bound(later, everyone[0])
    assert affinity.kept(asked(turn(2)), everyone) == everyone


def test_a_binding_to_a_credential_that_is_gone_is_forgotten_with_it(database: Database) -> None:
    everyone = members(HARD)
    affinity, ex = Affinity(database), asked(turn(1))
    affinity.kept(ex, everyone)
    affinity.answered(ex, everyone[3])
    left = [each for each in everyone if each is not everyone[3]]
    assert affinity.kept(asked(turn(1)), left) == []  # disabled, say: its conversation waits for it
    database.write(lambda: pools.delete_credentials([3]))
    assert affinity.kept(asked(turn(1)), left) == left


def test_where_two_calls_begin_a_conversation_the_first_binds_it(database: Database) -> None:
    everyone = members(HARD)
    one, other = Affinity(database), Affinity(database)
    first, second = asked(turn(1)), asked(turn(1))
    one.kept(first, everyone)
    other.kept(second, everyone)
    one.answered(first, everyone[0])
    other.answered(second, everyone[1])
    assert other.kept(asked(turn(1)), everyone) == [everyone[0]]


def test_without_affinity_nothing_is_asked_and_nothing_named(database: Database) -> None:
    everyone, ex = members(Pool(1, "p")), asked(turn(1))
    assert Affinity(database).kept(ex, everyone) == everyone
    assert ex.conversation is None
    assert "affinity" not in ex.receipt()


@pytest.mark.parametrize("pool", [SOFT, HARD, Pool(1, "p")])
def test_a_conversation_that_its_client_names_goes_on_with_who_answered_it_last(database: Database, pool: Pool) -> None:
    everyone = members(pool)
    affinity, other = Affinity(database), Affinity(database)
    for own in (3, 4):
        affinity.bind(asked(turn(1)), pool.id, own, "named")
        for worker in (affinity, other):
            later = asked(turn(1))
            found = worker.binding(later, pool.id, "named")
            assert found == own
            later.bound = frozenset([found])
            assert worker.kept(later, everyone) == [everyone[own]]
            assert later.excluded == {f"d/c{number}": "bound_elsewhere" for number in range(5) if number != own}
            assert [worker.is_bound(later, each) for each in everyone] == [number == own for number in range(5)]
    assert affinity.binding(asked(turn(1), key_id=2), pool.id, "named") is None
