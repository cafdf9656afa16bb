"""What every directory of agents has to do, whatever it is kept in: inherited by the tests of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.state.agents import FORGET_S, AgentDirectory, Holder

Make = Callable[..., AgentDirectory]
"""Another worker's directory over the same place. `owner`: its id; `dead`: the owners that died."""


def holder(agent: str = "credential:3-AT", owner: str = "one", **others: object) -> Holder:
    values: dict[str, object] = {
        "name": "laptop",
        "enrolment": 7,
        "epoch": 0,
        "session": "s1",
        "protocol": 2,
        "models": ("llama3.1", "mistral"),
        "concurrency": 4,
        "since": 1000.0,
    }
    return Holder(agent=agent, owner=owner, **values | others)  # type: ignore[arg-type]


class AgentDirectoryContract:
    def test_what_one_worker_claims_the_others_see(self, make: Make) -> None:
        one, other = make("one"), make("other")
        assert other.current() == {}
        claimed = one.claim(holder(resumes=True, software="agent/1 ü", rtt_ms=1.5))
        assert claimed == replace(holder(resumes=True, software="agent/1 ü", rtt_ms=1.5), epoch=claimed.epoch)
        assert one.current() == other.current() == {"credential:3-AT": claimed}

    def test_the_newest_connection_wins_and_nothing_of_the_older_counts(self, make: Make) -> None:
        one, other = make("one"), make("other")
        older = one.claim(holder())
        newer = other.claim(holder(owner="other", session="s2"))
        assert newer.epoch > older.epoch
        assert not one.change(replace(older, models=()))
        one.release(older.agent, older.epoch, 1001.0)
        assert one.current() == other.current() == {newer.agent: newer}

    def test_what_is_changed_is_seen(self, make: Make) -> None:
        one, other = make("one"), make("other")
        claimed = one.claim(holder())
        changed = replace(claimed, models=("phi3",), draining=True, used_at=1001.5, heard_at=1002.5)
        assert one.change(changed)
        assert other.current() == {claimed.agent: changed}

    def test_what_is_not_there_is_not_changed(self, make: Make) -> None:
        directory = make("one")
        assert not directory.change(holder(epoch=1))
        directory.release("credential:3-AT", 1, 1000.0)
        assert directory.current() == {}

    def test_a_released_agent_is_gone_from_then_on_and_forgotten_later(self, make: Make) -> None:
        one, other = make("one"), make("other")
        claimed = one.claim(holder())
        one.release(claimed.agent, claimed.epoch, 1001.0)
        one.release(claimed.agent, claimed.epoch, 1005.0)
        assert other.current() == {claimed.agent: replace(claimed, gone_at=1001.0)}
        one.tidy(1001.0 + FORGET_S)
        assert set(other.current()) == {claimed.agent}
        one.tidy(1001.5 + FORGET_S)
        assert one.current() == other.current() == {}

    def test_epochs_never_fall(self, make: Make) -> None:
        directory = make("one")
        first = directory.claim(holder())
        directory.release(first.agent, first.epoch, 1000.0)
        directory.tidy(2000.0)
        assert directory.current() == {}
        assert first.epoch < directory.claim(holder()).epoch < directory.claim(holder("credential:4-AT")).epoch < directory.claim(holder(epoch=5)).epoch

    def test_agents_of_a_worker_that_died_are_noted_as_gone(self, make: Make) -> None:
        one = make("one")
        lost, kept = one.claim(holder()), make("other").claim(holder("credential:4-AT", owner="other"))
        third = make("third", dead=("one",))
        third.tidy(1010.0)
        assert third.current() == {lost.agent: replace(lost, gone_at=1010.0), kept.agent: kept}

    def test_an_agent_that_connects_again_is_gone_no_more(self, make: Make) -> None:
        directory = make("one")
        first = directory.claim(holder())
        directory.release(first.agent, first.epoch, 1000.0)
        assert directory.current()[first.agent].gone_at == 1000.0
        second = directory.claim(holder(session="s2"))
        assert directory.current() == {first.agent: second}
        assert second.gone_at is None

    def test_what_was_looked_at_does_not_change(self, make: Make) -> None:
        directory = make("one")
        before = directory.current()
        directory.claim(holder())
        after = directory.current()
        directory.claim(holder("credential:4-AT"))
        assert (len(before), len(after), len(directory.current())) == (0, 1, 2)
        assert not hasattr(after, "__setitem__")
