"""Agents: the websockets of this worker's agents, and the way to those of every worker. Backends that host agents get it as their Frames."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.bus.base import Bus, Opening
from gateway.concurrency import every, spawn
from gateway.core.agent_frames import Hello, Refused, Update
from gateway.core.agent_session import LEAVING, REPLACED, UNAVAILABLE, UNKNOWN, Session, SocketClosed, Welcome
from gateway.core.enrolments import Admitted, Enrolments
from gateway.core.globs import matches
from gateway.core.rests import LEFT, NOT_CONNECTED, NOT_SERVED, RECONNECTING, Rest
from gateway.core.routing import Candidate
from gateway.core.standing import NEVER
from gateway.errors import GatewayError
from gateway.frames import GRACE_S, Channel, ChannelLost, Connected
from gateway.state.agents import AgentDirectory, Holder
from gateway.state.base import Limit, StateUnavailable
from gateway.state.conditions import FOREVER

log = logging.getLogger(__name__)
TICK_S = 0.1
TIDY_EVERY, NOTE_EVERY, LOOK_EVERY = 3, 10, 100
"""Of so many ticks one notes workers that died, one tells the others what is new of this worker's agents, one looks whether tokens expired, and
has the store know that its agents are still there."""
LAST_WORDS_S = 1.0
UNREACHABLE_S = 1.0
"""How long a worker that could not be reached is left alone: it has died, as a rule, and calls wait for its agents to come back instead of failing there."""


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
        self._unreachable: dict[str, float] = {}
        """Workers, and until when nobody is asked there (monotonic)."""
        self._lock = threading.Lock()
        self._draining = False
        self._stop: Callable[[], None] | None = None
        self._ticks, self._looked_at = 0, -1
        self._ghosts: set[tuple[str, int]] = set()

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
            self._end(connection, LEAVING, "the worker leaves")
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
        try:
            return self._bus.open(holder.owner, Opening(holder.agent, holder.epoch, self._owner))
        except ChannelLost:
            self._unreachable[holder.owner] = self._clock() + UNREACHABLE_S
            raise

    def rest(self, candidate: Candidate) -> Rest | None:
        """Why this agent cannot be asked for this model now. One that was lost a moment ago is likely to be back."""
        holder = self._directory.current().get(candidate.deployment.credential_place)
        if holder is None:
            return Rest(NOT_CONNECTED, FOREVER)
        if candidate.model not in holder.models and not any(matches(candidate.model, pattern) for pattern in holder.models):
            return Rest(NOT_SERVED, FOREVER)
        if holder.gone_at is not None:
            left_s = holder.gone_at + GRACE_S - self._wall()
            return Rest(RECONNECTING, self._clock() + left_s) if left_s > 0 else Rest(NOT_CONNECTED, FOREVER)
        if holder.leaving:
            return Rest(LEFT, FOREVER)
        if holder.draining or self._unreachable.get(holder.owner, 0.0) > self._clock():
            return Rest(RECONNECTING, self._clock() + GRACE_S)
        return None

    def limit(self, place: str, own: Limit | None) -> Limit | None:
        """What the agent says that it takes at once, and what the operator allows it."""
        holder = self._directory.current().get(place)
        if holder is None:
            return own
        if own is None:
            return Limit(place, concurrency=holder.concurrency)
        return replace(own, concurrency=holder.concurrency if own.concurrency is None else min(own.concurrency, holder.concurrency))

    def used_at(self, place: str, own: float) -> float:
        """One that connected again is as unused as a new one."""
        holder = self._directory.current().get(place)
        if holder is None:
            return own
        began = self._clock() - self._wall()
        told = NEVER if holder.used_at is None else began + holder.used_at
        return max(told, own if own >= began + holder.since else NEVER)

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
            self._end(before, REPLACED, "the agent connected again")
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
        with self._lock:
            if self._connections.get(connection.holder.agent) is connection:
                del self._connections[connection.holder.agent]
        self._close(connection, ending.code, ending.reason)
        log.info("an agent is gone", extra={"fields": _told(connection) | {"code": ending.code, "reason": ending.reason[:200]}})

    def _end(self, connection: _Connection, code: int, reason: str) -> None:
        """Nobody waits for the agent's part of it."""
        if not connection.ending:
            connection.ending = True
            spawn(lambda: self._close(connection, code, reason), "agent-end")

    def _close(self, connection: _Connection, code: int, reason: str) -> None:
        """May be called twice. The directory is told before those who wait: they look at once whether the agent is back."""
        try:
            self._directory.release(connection.holder.agent, connection.holder.epoch, self._wall())
        except StateUnavailable as error:
            log.warning("that an agent is gone cannot be told: %s", error)
        connection.session.end(code, reason)

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

    def _announced(self, connection: _Connection, said: Update) -> None:
        """Raises Refused. Where the shared state cannot be used now, the others are told later, as of all that is new."""
        try:
            connection.admitted = self._enrolments.announced(connection.admitted, said)
        except GatewayError as error:
            raise Refused(UNAVAILABLE, "the token cannot be looked up now") from error
        with contextlib.suppress(StateUnavailable):
            self._note(connection)

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
                if self._ticks % NOTE_EVERY == 0 or (connection.session.leaving and not connection.holder.leaving):
                    self._note(connection)
            if self._ticks % NOTE_EVERY == 0:
                self._lay_ghosts()
                self._unreachable = {owner: until for owner, until in self._unreachable.items() if until > self._clock()}
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
            if connection.ending:
                continue
            if known is None or known.epoch < connection.holder.epoch:
                self._directory.change(connection.holder)
            elif known.epoch > connection.holder.epoch:
                self._end(connection, REPLACED, "the agent connected again")

    def _note(self, connection: _Connection) -> None:
        """Tell the others what is new of an agent. Raises StateUnavailable."""
        session, holder, admitted = connection.session, connection.holder, connection.admitted
        new = replace(holder, used_at=session.used_at, heard_at=session.heard_at, rtt_ms=session.rtt_ms, draining=self._draining, leaving=session.leaving)
        new = replace(new, models=admitted.models, concurrency=admitted.hello.concurrency)
        if new != holder and not connection.ending and self._directory.change(new):
            connection.holder = new

    def _lay_ghosts(self) -> None:
        """Entries of this worker's that have no connection: that these were lost could not be told at the time. Raises StateUnavailable."""
        own = {agent: holder for agent, holder in self._directory.current().items() if holder.owner == self._owner and holder.gone_at is None}
        ghosts = {(agent, holder.epoch) for agent, holder in own.items() if agent not in self._connections}
        for agent, epoch in ghosts & self._ghosts:  # one that is just being let in is none
            self._directory.release(agent, epoch, self._wall())
        self._ghosts = ghosts

    def _check_tokens(self) -> None:
        """Cut off whose token was revoked, or whose credential was deleted, since."""
        generation = self._generation()
        if connections := list(self._connections.values()):  # whoever connects meanwhile was looked up meanwhile
            try:
                admitted = [each.admitted for each in connections]
                valid = self._enrolments.valid(admitted)
                if self._ticks % LOOK_EVERY == 0:
                    self._enrolments.seen(admitted)
            except GatewayError as error:
                log.debug("tokens are not looked at: %s", error)
                return
            for connection in [each for each in connections if each.admitted.agent not in valid]:
                self._end(connection, UNKNOWN, "the token is revoked")
        self._looked_at = generation

    def drain(self, deadline: float) -> None:
        """Agents go to other workers: those that answer nothing now at once, the others when they have, or shortly before `deadline` (monotonic)."""
        self._draining = True
        with contextlib.suppress(StateUnavailable):
            for connection in list(self._connections.values()):
                self._note(connection)
        while self._connections and self._clock() < deadline - LAST_WORDS_S:
            for connection in [each for each in list(self._connections.values()) if not each.session.in_flight]:
                self._end(connection, LEAVING, "the worker leaves")
            time.sleep(0.05)
        for connection in list(self._connections.values()):
            self._end(connection, LEAVING, "the worker leaves")

    def drain_beside(self, deadline: float) -> None:
        """The same, while something else goes on."""
        spawn(lambda: self.drain(deadline), "agents-drain")


def _told(connection: _Connection) -> dict[str, object]:
    holder = connection.holder
    return {"credential": connection.admitted.label, "protocol": holder.protocol, "epoch": holder.epoch, "models": list(holder.models)[:20]}
