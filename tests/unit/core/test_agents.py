from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.bus.base import Opening
from gateway.bus.unix import UnixBus
from gateway.core.agent_frames import PROTOCOL_ERROR
from gateway.core.agent_session import FORBIDDEN, LEAVING, REPLACED, UNAVAILABLE, UNKNOWN, SessionV2, SocketClosed
from gateway.core.agents import Agents
from gateway.core.enrolments import Enrolments
from gateway.core.rests import LEFT, NOT_CONNECTED, NOT_SERVED, RECONNECTING, NoHosts, Rest
from gateway.errors import StoreUnavailable
from gateway.frames import GRACE_S, ChannelLost, Connected
from gateway.secrets import KeyHasher, Secrets, Vault, mint_key
from gateway.state.agents import Holder
from gateway.state.agents_sqlite import SqliteAgents
from gateway.state.base import Limit, StateUnavailable
from gateway.state.conditions import FOREVER
from gateway.store import agents as rows
from gateway.store import pools
from gateway.store.agents import Enrolment
from gateway.store.database import Database
from tests.factories import Clock, candidate, migrated, now_ms
from tests.fakes.line import Line, said, wait


class Directory(SqliteAgents):
    """The real one, that cannot be used while it `fails`."""

    fails = False

    def claim(self, holder: Holder) -> Holder:
        if self.fails:
            raise StateUnavailable("away")
        return super().claim(holder)


class Agent:
    """An agent's line, and the thread that serves it."""

    def __init__(self, worker: Worker, token: str | None, shown: str | None, hello: dict[str, Any]) -> None:
        self.line = Line()
        session = SessionV2(self.line.near)
        own = {"type": "hello", "models": ["m"], "session": "s", "resumes": True} | ({"token": token} if token else {}) | hello
        self.thread = threading.Thread(target=worker.agents.serve, args=(session, "" if shown is None else shown), daemon=True)
        self.thread.start()
        with contextlib.suppress(ChannelLost):  # where nobody is let in now
            self.line.say(own)

    def welcomed(self) -> Agent:
        welcome = self.line.hear()
        assert welcome["type"] == "welcome"
        ping = self.line.hear()
        self.line.say({"type": "pong", "at": ping["at"]})
        return self

    def closed(self) -> int:
        """The code that it is closed with; what is said before is passed over."""
        try:
            while True:
                self.line.hear()
        except SocketClosed as closed:
            return closed.code

    def close(self) -> None:
        self.line.drop()
        self.thread.join(5)
        self.line.__exit__()
        assert not self.thread.is_alive()


class Worker:
    """`wall`: what its clock on the wall says."""

    def __init__(self, stage: Stage, owner: str) -> None:
        self.wall = time.time()
        self.directory = Directory(stage.path / "run", lambda owner: owner in stage.alive)
        self.agents = Agents(
            UnixBus(stage.path / "run", owner), self.directory, stage.enrolments, owner, lambda: stage.generation, stage.clock, wall=lambda: self.wall
        )
        self.agents.start()


class Stage:
    """Two workers that share a database and a run directory."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path, self.database = path, database
        self.secrets = Secrets(KeyHasher(bytes(32)), Vault({1: bytes(32)}, 1), ())
        self.store: Any = database
        self.enrolments = Enrolments(self, self.secrets, lambda enrolment, models: models, self._closed_door)  # type: ignore[arg-type]
        self.generation, self.clock = 0, Clock()
        self.alive = {"0123abcd-one", "0123abcd-two"}
        self.pool = database.write(lambda: pools.create_pool("agents"))
        self.one, self.two = (Worker(self, owner) for owner in sorted(self.alive))
        self.made: list[Agent] = []

    def read(self, work: Callable[[], Any]) -> Any:
        return self.store.read(work)

    def write(self, work: Callable[[], Any]) -> Any:
        return self.store.write(work)

    def _closed_door(self) -> Enrolment:
        raise AssertionError("nobody comes without a token here")

    def enrol(self, name: str = "laptop", *models: str) -> str:
        token = mint_key("agent")
        digest = self.secrets.hasher.hash(token)
        self.database.write(lambda: rows.create_enrolment(name, digest, self.pool.id, models or ("m", "llama*"), now_ms(), shown=("", "")))
        return token

    def revoke(self, name: str = "laptop") -> None:
        found = self.database.read(lambda: rows.find_enrolment_by_name(name))
        assert found is not None
        self.database.write(lambda: rows.revoke_enrolment(found.id, now_ms()))
        self.generation += 1

    def agent(self, secret: str | None, worker: Worker | None = None, shown: str | None = None, **hello: Any) -> Agent:
        made = Agent(worker or self.one, secret, shown, hello)
        self.made.append(made)
        return made

    def close(self) -> None:
        for agent in self.made:
            agent.close()
        for worker in (self.one, self.two):
            worker.agents.close()

    def place(self, worker: Worker | None = None) -> str:
        """Of the only agent that is connected."""
        (holder,) = (worker or self.one).agents.holders()
        return holder.agent

    def connected(self, place: str, worker: Worker | None = None) -> Connected:
        found = (worker or self.one).agents.connected(place)
        assert found is not None
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        stage = Stage(tmp_path, database)
        yield stage
        stage.close()


def request(id: str = "r1") -> bytes:
    return json.dumps({"id": id, "type": "request", "credit": 64, "body": {}}).encode()


def on(place: str, model: str = "m", **fields: Any) -> Any:
    """A candidate whose credential has this place."""
    return candidate("d", model, credential_subject=f"{place}.1", **fields)


# reached from everywhere


@pytest.mark.parametrize("asking", ["one", "two"])
def test_an_agent_is_reached_from_every_worker(stage: Stage, asking: str) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    worker: Worker = getattr(stage, asking)
    connection = stage.connected(stage.place(), worker)
    assert (connection.session, connection.resumes, connection.models) == ("s", True, ("m",))
    channel = worker.agents.open(connection)
    channel.send(request())
    assert agent.line.hear()["id"] == "r1"
    agent.line.say({"type": "delta", "id": "r1", "seq": 1, "text": "x"})
    assert said(channel)["text"] == "x"
    channel.close()
    assert agent.line.hear()["type"] == "cancel"


def test_a_connection_that_was_replaced_is_never_reached(stage: Stage) -> None:
    token = stage.enrol()
    stage.agent(token).welcomed()
    before = stage.connected(stage.place())
    stage.agent(token).welcomed()
    for worker in (stage.one, stage.two):
        with pytest.raises(ChannelLost):
            worker.agents.open(before)


def test_a_channel_for_an_epoch_before_is_not_attended_to(stage: Stage) -> None:
    """As where the other worker opened it a moment too early."""
    agent = stage.agent(stage.enrol()).welcomed()
    (holder,) = stage.one.agents.holders()
    bus = stage.two.agents._bus
    channel = bus.open(holder.owner, Opening(holder.agent, holder.epoch - 1, "0123abcd-two"))
    with contextlib.suppress(ChannelLost):
        channel.send(request())
    with pytest.raises(ChannelLost):
        channel.receive(5)
    channel.close()
    assert agent.line.is_silent()


# who is let in


def test_a_token_before_the_first_frame_counts_and_that_of_the_hello_does_not(stage: Stage) -> None:
    assert stage.agent(stage.enrol(), shown=mint_key("agent")).closed() == UNKNOWN
    stage.agent(mint_key("agent"), shown=stage.enrol("other")).welcomed()


@pytest.mark.parametrize(
    ("hello", "code"), [({"token": "x"}, UNKNOWN), ({"token": ""}, UNKNOWN), ({"models": ["gpt"]}, FORBIDDEN), ({"models": 7}, PROTOCOL_ERROR)]
)
def test_who_is_not_let_in_is_told_why(stage: Stage, hello: dict[str, Any], code: int) -> None:
    agent = stage.agent(stage.enrol(), **hello)
    assert agent.closed() == code
    agent.thread.join(5)
    assert len(stage.one.agents) == 0


def test_where_the_database_is_away_an_agent_may_come_again(stage: Stage) -> None:
    class Away:
        def read(self, work: object) -> object:
            raise StoreUnavailable("away")

    token, stage.store = stage.enrol(), Away()
    assert stage.agent(token).closed() == UNAVAILABLE


def test_where_the_shared_state_is_away_an_agent_may_come_again(stage: Stage) -> None:
    stage.one.directory.fails = True
    assert stage.agent(stage.enrol()).closed() == UNAVAILABLE
    assert len(stage.one.agents) == 0


def test_an_agent_without_a_session_of_its_own_gets_another_each_time(stage: Stage) -> None:
    token = stage.enrol()
    stage.agent(token, session="").welcomed()
    first = stage.connected(stage.place())
    stage.agent(token, session="").welcomed()
    assert first.session
    assert stage.connected(stage.place()).session != first.session


# one connection at a time


@pytest.mark.parametrize("second", ["one", "two"])
def test_the_newest_connection_wins(stage: Stage, second: str) -> None:
    token = stage.enrol()
    before = stage.agent(token).welcomed()
    epoch = stage.connected(stage.place()).epoch
    after = stage.agent(token, getattr(stage, second)).welcomed()
    assert before.closed() == REPLACED
    wait(lambda: stage.connected(stage.place(stage.two)).epoch > epoch)
    assert after.line.is_silent()
    assert len(stage.one.agents) + len(stage.two.agents) == 1


@pytest.mark.parametrize("number", range(5))
def test_of_many_connections_at_one_moment_one_is_left(stage: Stage, number: int) -> None:
    token = stage.enrol()
    agents = [stage.agent(token, stage.one if number % 2 else stage.two) for number in range(8)]
    wait(lambda: sum(bool(agent.line.near.closed) for agent in agents) == 7)
    wait(lambda: len(stage.one.agents) + len(stage.two.agents) == 1)
    (holder,) = stage.one.agents.holders()
    held = stage.one.agents if holder.owner == "0123abcd-one" else stage.two.agents
    assert held._connections[holder.agent].holder.epoch == holder.epoch
    codes = [agent.closed() for agent in agents if agent.line.near.closed]
    assert codes == [REPLACED] * 7


# what is known of it


def test_a_connection_that_is_lost_is_likely_to_be_back_for_a_while(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    place = stage.place()
    assert stage.two.agents.rest(on(place)) is None
    agent.line.drop()
    agent.thread.join(5)
    wait(lambda: stage.two.agents.connected(place) is None)
    rest = stage.two.agents.rest(on(place))
    assert rest is not None
    assert rest.reason == RECONNECTING
    assert 0 < rest.until - stage.clock.now <= GRACE_S
    assert stage.two.agents.holders() == []
    stage.two.wall += GRACE_S + 1
    assert stage.two.agents.rest(on(place)) == Rest(NOT_CONNECTED, FOREVER)


def test_an_agent_that_never_came_is_not_connected(stage: Stage) -> None:
    assert stage.one.agents.rest(on("credential:77-1")) == Rest(NOT_CONNECTED, FOREVER)
    assert NoHosts().rest(on("credential:77-1")) == Rest(NOT_CONNECTED, FOREVER)
    assert stage.one.agents.connected("credential:77-1") is None
    with pytest.raises(ChannelLost):
        stage.one.agents.open(Connected("credential:77-1", 1, "s", True, ()))


def test_what_an_agent_does_not_serve_it_is_not_asked_for(stage: Stage) -> None:
    stage.agent(stage.enrol(), models=["m", "llama*"]).welcomed()
    place = stage.place()
    assert stage.two.agents.rest(on(place, "llama3")) is None
    assert stage.two.agents.rest(on(place, "gpt")) == Rest(NOT_SERVED, FOREVER)


def test_an_agent_takes_no_more_at_once_than_it_says_and_the_operator_allows(stage: Stage) -> None:
    stage.agent(stage.enrol(), concurrency=3).welcomed()
    place, limit = stage.place(), stage.two.agents.limit
    assert limit(place, None) == Limit(place, concurrency=3)
    assert limit(place, Limit(place, 7, concurrency=2)) == Limit(place, 7, concurrency=2)
    assert limit(place, Limit(place, 7, concurrency=9)) == Limit(place, 7, concurrency=3)
    assert limit(place, Limit(place, 7)) == Limit(place, 7, concurrency=3)
    own = Limit("x", concurrency=1)
    assert limit("x", own) is own
    assert NoHosts().limit("x", own) is own


def test_what_is_announced_anew_holds_for_every_worker(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    place = stage.place()
    agent.line.say({"type": "update", "models": ["llama3"], "concurrency": 5})
    wait(lambda: stage.two.agents.rest(on(place, "llama3")) is None)
    assert stage.two.agents.rest(on(place, "m")) == Rest(NOT_SERVED, FOREVER)
    assert stage.two.agents.limit(place, None) == Limit(place, concurrency=5)


def test_what_is_announced_anew_without_leave_is_not_served(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    place = stage.place()
    agent.line.say({"type": "update", "models": ["gpt"]})
    wait(lambda: stage.two.agents.rest(on(place)) is not None)
    rest = stage.two.agents.rest(on(place))
    assert rest is not None
    assert rest.reason == NOT_SERVED
    assert agent.line.is_silent()


def test_an_agent_that_leaves_gets_nothing_new(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    place = stage.place()
    agent.line.say({"type": "leaving"})
    wait(lambda: stage.two.agents.rest(on(place)) is not None)
    rest = stage.two.agents.rest(on(place))
    assert rest is not None
    assert rest.reason == LEFT, "it is not waited for"


def test_what_a_worker_that_died_held_is_gone(stage: Stage) -> None:
    stage.agent(stage.enrol(), stage.two).welcomed()
    place = stage.place()
    assert stage.one.agents.connected(place) is not None
    stage.alive.discard("0123abcd-two")
    wait(lambda: stage.one.agents.connected(place) is None)


# who may stay


def test_a_token_that_is_revoked_cuts_its_agents_off_wherever_they_are(stage: Stage) -> None:
    token, other = stage.enrol(), stage.enrol("other")
    agents = [stage.agent(token, worker, agent=name).welcomed() for name, worker in (("a", stage.one), ("b", stage.two))]
    stays = stage.agent(other).welcomed()
    stage.revoke()
    assert [agent.closed() for agent in agents] == [UNKNOWN] * 2
    assert stays.line.is_silent()
    assert stage.agent(token).closed() == UNKNOWN


def test_while_the_database_is_away_nobody_is_cut_off(stage: Stage) -> None:
    class Away:
        def read(self, work: object) -> object:
            looked.set()
            raise StoreUnavailable("away")

    looked = threading.Event()
    agent = stage.agent(stage.enrol()).welcomed()
    stage.store = Away()
    stage.revoke()
    assert looked.wait(5)
    assert agent.line.is_silent()
    stage.store = stage.database
    assert agent.closed() == UNKNOWN


def test_who_comes_while_tokens_are_looked_at_is_not_cut_off(stage: Stage) -> None:
    class Slow:
        def read(self, work: Callable[[], Any]) -> Any:
            found = stage.database.read(work)
            if isinstance(found, frozenset):
                looked.set()
                go_on.wait(5)
            return found

        def write(self, work: Callable[[], Any]) -> Any:
            return stage.database.write(work)

    looked, go_on = threading.Event(), threading.Event()
    token = stage.enrol()
    stage.agent(token).welcomed()
    stage.store = Slow()
    stage.generation += 1
    assert looked.wait(5)
    comes = stage.agent(token, agent="b").welcomed()
    go_on.set()
    wait(lambda: stage.one.agents._looked_at == stage.generation)
    assert comes.line.is_silent()


# the shared state is lost


def test_agents_are_told_of_again_where_the_shared_state_was_lost_and_go_on(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    place = stage.place()
    channel = stage.two.agents.open(stage.connected(place, stage.two))
    channel.send(request())
    assert agent.line.hear()["type"] == "request"
    epoch = stage.connected(place).epoch
    for path in (stage.path / "run").glob("state-*"):
        path.unlink()
    wait(lambda: stage.two.agents.connected(place) is not None and stage.one.agents.connected(place) is not None)
    time.sleep(0.3)
    assert stage.connected(place, stage.two).epoch == epoch
    agent.line.say({"type": "delta", "id": "r1", "seq": 1, "text": "x"})
    assert said(channel)["text"] == "x"
    channel.close()


# a worker's end


def test_a_worker_that_leaves_sends_idle_agents_on_at_once_and_the_others_when_they_have_answered(stage: Stage) -> None:
    token = stage.enrol()
    idle, busy, late = (stage.agent(token, agent=name).welcomed() for name in ("idle", "busy", "late"))
    places = {holder.name: holder.agent for holder in stage.one.agents.holders()}
    channels = []
    for agent, name in ((busy, "busy"), (late, "late")):
        channel = stage.two.agents.open(stage.connected(places[name], stage.two))
        channel.send(request(name))
        assert agent.line.hear()["type"] == "request"
        channels.append(channel)
    stage.one.agents.drain_beside(stage.clock.now + 3)
    assert idle.closed() == LEAVING
    wait(lambda: (rest := stage.two.agents.rest(on(places["busy"]))) is not None and rest.reason == RECONNECTING)
    assert stage.agent(token, agent="new").closed() == LEAVING
    busy.line.say({"type": "done", "id": "busy", "seq": 1})
    assert said(channels[0])["type"] == "done"
    assert busy.closed() == LEAVING
    assert late.line.is_silent()
    stage.clock.now += 2.5
    assert late.closed() == LEAVING
    assert said(channels[1])["type"] == "lost"
    for channel in channels:
        channel.close()


def test_a_worker_that_closes_ends_its_connections(stage: Stage) -> None:
    agent = stage.agent(stage.enrol()).welcomed()
    stage.one.agents.close()
    stage.one.agents.close()
    assert agent.closed() == LEAVING


def test_two_hundred_connections_leave_nothing(stage: Stage) -> None:
    token = stage.enrol()
    stage.agent(token).welcomed()
    wait(lambda: len(stage.one.agents) == 1)
    before = threading.active_count()
    for number in range(200):
        agent = stage.agent(token).welcomed()
        if number % 2:
            agent.close()
            stage.made.remove(agent)
    for agent in stage.made:
        agent.close()
    stage.made.clear()
    wait(lambda: threading.active_count() < before)
    assert len(stage.one.agents) == 0
    assert stage.one.agents.holders() == []
