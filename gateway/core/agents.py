"""Agents: the websockets of this worker's agents, and the way to those of every worker. Backends that host agents get it as their Frames."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.bus.base import Bus, Opening
from gateway.concurrency import every, spawn
from gateway.core.agent_session import (
    GRACE_S,
    LEAVING,
    REPLACED,
    UNAVAILABLE,
    UNKNOWN,
    Hello,
    Refused,
    Session,
    SocketClosed,
    Welcome,
)
from gateway.core.enrolments import Admitted, Enrolments
from gateway.core.globs import matches
from gateway.core.rests import NOT_CONNECTED, NOT_SERVED, RECONNECTING, Rest
from gateway.core.routing import Candidate
from gateway.errors import GatewayError
from gateway.frames import Channel, ChannelLost, Connected
from gateway.state.agents import AgentDirectory, Holder
from gateway.state.base import Limit, StateUnavailable
from gateway.state.conditions import FOREVER

log = logging.getLogger(__name__)
TICK_S = 0.1
TIDY_EVERY, NOTE_EVERY, LOOK_EVERY = 3, 10, 100
"""Of so many ticks one notes workers that died, one tells the others what is new of this worker's agents, one looks whether tokens expired, and
has the store know that its agents are still there."""
LAST_WORDS_S = 1.0


@dataclass(eq=False, slots=True)
class _Connection:
    """An agent's websocket, here. `admitted`: under which token, and as which credential."""

    holder: Holder
    session: Session
    admitted: Admitted
    ending: bool = False


class Agents:
    """Of one worker. `start` after the fork."""

    def __init__(
        self,
        bus: Bus,
        directory: AgentDirectory,
        enrolments: Enrolments,
        owner: str,
        generation: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus, self._directory, self._enrolments, self._owner, self._generation = bus, directory, enrolments, owner, generation
        self._clock, self._wall = clock, wall
        self._connections: dict[str, _Connection] = {}
        self._lock = threading.Lock()
        self._draining = False
        self._stop: Callable[[], None] | None = None
        self._ticks, self._looked_at = 0, -1

    def __len__(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        """Be reachable for other workers, and follow what they say of agents."""
        self._bus.start(self._accept)
        self._stop = every(TICK_S, self._tick, "agents")

    def close(self) -> None:
        """Idempotent."""
        if self._stop is not None:
            self._stop()
            self._stop = None
        for connection in list(self._connections.values()):
            _end(connection, LEAVING, "the worker leaves")
        self._bus.close()
        self._directory.close()

    # the way to an agent, wherever it is

    def connected(self, agent: str) -> Connected | None:
        holder = self._directory.current().get(agent)
        if holder is None or holder.gone_at is not None:
            return None
        return Connected(agent, holder.epoch, holder.session, holder.resumes, holder.models)

    def open(self, connection: Connected) -> Channel:
        holder = self._directory.current().get(connection.agent)
        if holder is None or holder.epoch != connection.epoch:
            raise ChannelLost("gone")
        return self._bus.open(holder.owner, Opening(holder.agent, holder.epoch, self._owner))

    def rest(self, candidate: Candidate) -> Rest | None:
        """Why this agent cannot be asked for this model now. One that was lost a moment ago is likely to be back."""
        holder = self._directory.current().get(candidate.deployment.credential_place)
        if holder is None:
            return Rest(NOT_CONNECTED, FOREVER)
        if holder.gone_at is not None:
            left_s = holder.gone_at + GRACE_S - self._wall()
            return Rest(RECONNECTING, self._clock() + left_s) if left_s > 0 else Rest(NOT_CONNECTED, FOREVER)
        if holder.draining:
            return Rest(RECONNECTING, self._clock() + GRACE_S)
        served = candidate.model in holder.models or any(matches(candidate.model, pattern) for pattern in holder.models)
        return None if served else Rest(NOT_SERVED, FOREVER)

    def limit(self, place: str, own: Limit | None) -> Limit | None:
        """What the agent says that it takes at once, and what the operator allows it."""
        holder = self._directory.current().get(place)
        if holder is None:
            return own
        if own is None:
            return Limit(place, concurrency=holder.concurrency)
        return replace(own, concurrency=holder.concurrency if own.concurrency is None else min(own.concurrency, holder.concurrency))

    def holders(self) -> Sequence[Holder]:
        """Every agent that is connected now, to whatever worker."""
        return [holder for holder in self._directory.current().values() if holder.gone_at is None]

    # an agent's websocket, here

    def serve(self, session: Session, token: str | None) -> None:
        """Let an agent in and serve its websocket to the end. `token`: what came before its first frame; None where none is needed."""
        try:
            if self._draining:
                raise Refused(LEAVING, "the worker leaves")
            hello = session.hello()
            session_hello = hello if hello.session else replace(hello, session=f"{self._owner}-{id(session):x}-{self._clock()}")
            admitted = self._admitted(session, hello.token if token == "" else token, hello)
            self._hold(session, session_hello, admitted)
        except Refused as refused:
            log.info("an agent is refused: %s", refused.reason, extra={"fields": {"code": refused.code}})
            session.end(refused.code, refused.reason)
        except SocketClosed:
            session.end(1000, "")

    def _admitted(self, session: Session, token: str | None, hello: Hello) -> Admitted:
        try:
            return self._enrolments.admit(token, hello, session.protocol)
        except GatewayError as error:  # the database is away
            log.warning("an agent cannot be looked up: %s", error)
            raise Refused(UNAVAILABLE, "the token cannot be looked up now") from error

    def _hold(self, session: Session, hello: Hello, admitted: Admitted) -> None:
        connection = _Connection(self._claimed(self._holder(session, hello, admitted)), session, admitted)
        session.announced = lambda said: self._announced(connection, said)
        with self._lock:
            before = self._connections.get(admitted.agent)
            if before is not None and before.holder.epoch > connection.holder.epoch:
                raise Refused(REPLACED, "the agent connected again")
            self._connections[admitted.agent] = connection
        if before is not None:
            _end(before, REPLACED, "the agent connected again")
        log.info("an agent is connected", extra={"fields": _told(connection)})
        ending = Refused(1000, "")
        try:
            session.welcome(Welcome(admitted.label, hello.session, admitted.models))
            session.run()
        except SocketClosed as closed:
            ending = Refused(closed.code, closed.reason)
        except Refused as refused:
            ending = refused
        finally:
            self._let_go(connection, ending)

    def _let_go(self, connection: _Connection, ending: Refused) -> None:
        agent, epoch = connection.holder.agent, connection.holder.epoch
        with self._lock:
            if self._connections.get(agent) is connection:
                del self._connections[agent]
        try:  # before those who wait are told: they look at once whether it is back
            self._directory.release(agent, epoch, self._wall())
        except StateUnavailable as error:
            log.warning("that an agent is gone cannot be told: %s", error)
        connection.session.end(ending.code, ending.reason)
        log.info("an agent is gone", extra={"fields": _told(connection) | {"code": ending.code, "reason": ending.reason[:200]}})

    def _holder(self, session: Session, hello: Hello, admitted: Admitted) -> Holder:
        return Holder(
            agent=admitted.agent,
            name=hello.name,
            enrolment=admitted.enrolment,
            owner=self._owner,
            epoch=0,
            session=hello.session,
            protocol=session.protocol,
            models=admitted.models,
            concurrency=hello.concurrency,
            since=self._wall(),
            resumes=hello.resumes,
            software=hello.software,
            used_at=session.used_at,
            heard_at=session.heard_at,
        )

    def _claimed(self, holder: Holder) -> Holder:
        try:
            return self._directory.claim(holder)
        except StateUnavailable as error:
            log.warning("an agent cannot be let in: %s", error)
            raise Refused(UNAVAILABLE, "the gateway cannot take note of it now") from error

    def _announced(self, connection: _Connection, said: Hello) -> None:
        """Raises Refused."""
        admitted = self._admitted_again(connection, said)
        self._changed(connection, replace(connection.holder, models=admitted.models, concurrency=said.concurrency))

    def _admitted_again(self, connection: _Connection, said: Hello) -> Admitted:
        try:
            return self._enrolments.announced(connection.admitted, said)
        except GatewayError as error:
            raise Refused(UNAVAILABLE, "the token cannot be looked up now") from error

    def _changed(self, connection: _Connection, holder: Holder) -> None:
        try:
            if self._directory.change(holder):
                connection.holder = holder
        except StateUnavailable as error:
            log.debug("what is new of an agent is not told: %s", error)

    def _accept(self, opening: Opening, channel: Channel) -> None:
        connection = self._connections.get(opening.agent)
        if connection is not None and connection.holder.epoch == opening.epoch:
            connection.session.attend(channel)

    # what goes on by itself

    def _tick(self) -> None:
        self._ticks += 1
        try:
            if self._ticks % TIDY_EVERY == 0:
                self._directory.tidy(self._wall())
            self._follow()
            for connection in list(self._connections.values()):
                if self._ticks % NOTE_EVERY == 0 or (connection.session.leaving and not connection.holder.draining):
                    self._note(connection)
            if self._generation() != self._looked_at or self._ticks % LOOK_EVERY == 0:
                self._check_tokens()
        except StateUnavailable as error:
            log.debug("agents of other workers are not followed: %s", error)
        except Exception as error:  # the loop's outermost edge
            log.error("agents are not looked after: %s", type(error).__name__, exc_info=error)

    def _follow(self) -> None:
        """An agent that connected elsewhere is there now. One that nobody knows of any more is told of again: the shared state was lost."""
        current = self._directory.current()
        if any(each.holder.agent not in current for each in list(self._connections.values())):
            self._directory.tidy(self._wall())  # it may tell of them as they were: who asks them now need not open a channel anew
            current = self._directory.current()
        for connection in list(self._connections.values()):
            known = current.get(connection.holder.agent)
            if known is None or (known.epoch < connection.holder.epoch):
                connection.holder = self._directory.claim(connection.holder)
            elif known.epoch > connection.holder.epoch:
                _end(connection, REPLACED, "the agent connected again")

    def _note(self, connection: _Connection) -> None:
        session, holder = connection.session, connection.holder
        new = replace(holder, used_at=session.used_at, heard_at=session.heard_at, rtt_ms=session.rtt_ms, draining=self._draining or session.leaving)
        if new != holder:
            self._changed(connection, new)

    def _check_tokens(self) -> None:
        """Cut off whose token was revoked, or whose credential was deleted, since."""
        generation, looked_at = self._generation(), list(self._connections.values())  # who comes meanwhile is not among the valid
        if looked_at:
            try:
                admitted = [each.admitted for each in looked_at]
                valid = self._enrolments.valid(admitted)
                if self._ticks % LOOK_EVERY == 0:
                    self._enrolments.seen(admitted)
            except GatewayError as error:
                log.debug("tokens are not looked at: %s", error)
                return
            for connection in [each for each in looked_at if each.admitted.agent not in valid]:
                _end(connection, UNKNOWN, "the token is revoked")
        self._looked_at = generation

    def drain(self, deadline: float) -> None:
        """Agents go to other workers: those that answer nothing now at once, the others when they have, or shortly before `deadline` (monotonic)."""
        self._draining = True
        for connection in list(self._connections.values()):
            self._note(connection)
        while self._connections and self._clock() < deadline - LAST_WORDS_S:
            for connection in [each for each in list(self._connections.values()) if not each.session.in_flight]:
                _end(connection, LEAVING, "the worker leaves")
            time.sleep(0.05)
        for connection in list(self._connections.values()):
            _end(connection, LEAVING, "the worker leaves")

    def drain_beside(self, deadline: float) -> None:
        """The same, while something else goes on."""
        spawn(lambda: self.drain(deadline), "agents-drain")


def _end(connection: _Connection, code: int, reason: str) -> None:
    """Nobody waits for the agent's part of it."""
    if not connection.ending:
        connection.ending = True
        spawn(lambda: connection.session.end(code, reason), "agent-end")


def _told(connection: _Connection) -> dict[str, object]:
    holder = connection.holder
    return {"credential": connection.admitted.label, "protocol": holder.protocol, "epoch": holder.epoch, "models": list(holder.models)[:20]}
