"""The Python agent: an OpenAI-compatible server behind NAT (Ollama, vLLM) serves its models over a websocket that this program opens to the gateway.

`python -m agents.openai_agent --connect wss://gateway.example --token ... --upstream http://127.0.0.1:11434/v1`; docs/agents.md has the protocol, v2.
Needs the standard library and wsproto. One thread owns the websocket; each request has one of its own, which reads its upstream as credit comes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsproto.utilities import ProtocolError

from agents.link import Link, Stop, checked, say
from agents.upstream import Upstream
from agents.work import Failed, GivenUp, Work, whole

HELLO_S, STEADY_S, DRAIN_S, KEEP_S = 10.0, 10.0, 30.0, 60.0
FINAL: Mapping[int, str] = MappingProxyType(
    {
        1007: "a frame was not UTF-8: update this agent",
        1009: "a frame was larger than the gateway takes: raise the gateway's limit, or ask for less",
        4400: "a frame broke the protocol: update this agent, or the gateway",
        4401: "the token is missing, unknown, expired or revoked: make another with `gateway agent enrol`",
        4403: "the token may not do that: make one that may with `gateway agent enrol`",
        4409: "another agent of this name has connected: stop that one, or give this one another --name",
    }
)
PATIENT = frozenset({4408, 4429, 4503})
AT_ONCE = frozenset({1001, 1012})


class Pauses:
    """How long to wait before the next connection: random, longer each time, at most 30 s."""

    def __init__(self) -> None:
        self._last = 0.0

    def next(self, code: int, lasted_s: float) -> float:
        """`code`: what the last connection was closed with; `lasted_s`: how long it lasted."""
        least = 3.0 if code in PATIENT else 0.2
        last = least if lasted_s > STEADY_S or code in AT_ONCE else max(least, self._last)
        self._last = min(30.0, random.uniform(least, last * 3))  # noqa: S311
        return self._last


class Agent:
    """Serves the upstream's models until it is stopped. Only the thread that serves changes what it holds."""

    def __init__(self, upstream: Upstream, models: Sequence[str], concurrency: int, name: str, stop: threading.Event) -> None:
        self._upstream = upstream
        self._models = tuple(models)
        self._concurrency = concurrency
        self._name = name
        self._stop = stop
        self._session = secrets.token_urlsafe(16)
        self._works: dict[str, Work] = {}
        self._pauses = Pauses()
        self._grace_s, self._silence_s = 5.0, HELLO_S
        self._leaving_at: float | None = None

    def serve(self, connect: str, token: str) -> int:
        """The exit status: 0 where it was stopped, 1 where to connect again makes no sense."""
        try:
            while not self._stop.is_set():
                begun = time.monotonic()
                if not self._models:
                    code, reason = self._list_models()
                else:
                    code, reason = self._connection(connect, token)
                if code in FINAL:
                    raise Stop(f"closed with {code}: {FINAL[code]}")
                if code and not self._stop.is_set():
                    pause_s = self._pauses.next(code, time.monotonic() - begun)
                    say(f"{reason or 'the connection is closed'} ({code}); again in {pause_s:.1f} s")
                    self._stop.wait(pause_s)
        except Stop as stop:
            say(str(stop))
            return 1
        say("stopped")
        return 0

    def _list_models(self) -> tuple[int, str]:
        try:
            self._models = self._upstream.models()
        except Failed as failed:
            if failed.frame["cause"] in ("unauthorised", "bad_request"):
                raise Stop(f"{failed} its list of models: check --upstream and its key, or name the models with --model") from failed
            return 1006, str(failed)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            return 1006, f"the upstream's list of models cannot be read: {type(error).__name__}"
        return (0, "") if self._models else (1006, "the upstream has no models")

    def _connection(self, connect: str, token: str) -> tuple[int, str]:
        """One connection, from its beginning to its end; how it ended."""
        link: Link | None = None
        try:
            link = Link(connect)
            link.begin(token)
            self._converse(link)
            return link.closed or (1006, "")
        except (OSError, ValueError, ProtocolError) as error:
            return 1006, f"{error}"
        finally:
            if link is not None:
                link.release()
                for work in self._works.values():
                    work.lost(link, self._grace_s)

    def _converse(self, link: Link) -> None:
        self._silence_s = HELLO_S
        named = {"agent": self._name} if self._name else {}
        hello = {"type": "hello", "models": self._models, "concurrency": self._concurrency, "resumes": True, "session": self._session}
        link.post(hello | named | {"software": "chat-gateway openai_agent"})
        while link.closed is None:
            for text in link.turn(0.2):
                try:
                    self._take(link, json.loads(text))
                except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
                    raise link.broken(4400, "a frame that is none") from error
            if time.monotonic() - link.heard_at > self._silence_s:
                raise TimeoutError("nothing is heard of the gateway")
            if self._stop.is_set():
                self._leave(link)

    def _leave(self, link: Link) -> None:
        """Announce it, finish what runs, close; each within its time."""
        if self._leaving_at is None:
            self._leaving_at = time.monotonic()
            link.post({"type": "leaving"})
            say(f"leaving, {self._running} requests are under way")
        waited_s = time.monotonic() - self._leaving_at
        if waited_s > DRAIN_S or (link.flushed and all(work.sent for work in self._works.values())):
            link.close(1000, "leaving")
        if waited_s > DRAIN_S + 2:
            raise TimeoutError("the gateway does not close")

    @property
    def _running(self) -> int:
        return sum(work.running for work in self._works.values())

    def _take(self, link: Link, frame: Mapping[str, Any]) -> None:
        kind, work = frame["type"], self._works.get(frame.get("id", ""))
        if kind == "welcome":
            self._welcome(frame)
        elif kind == "ping":
            link.post({"type": "pong", "at": frame.get("at")})
            self._forget()
        elif kind == "request":
            if work is None:
                self._begin(Work(frame, link), link)
        elif kind == "credit" and work is not None:
            work.credited(whole(frame, "n"), whole(frame, "received"))
        elif kind == "cancel" and work is not None:
            work.give_up()
        elif kind == "resume":
            self._resume(link, frame, work)
        elif kind not in ("pong", "credit", "cancel"):
            raise ValueError("of no known type")

    def _welcome(self, frame: Mapping[str, Any]) -> None:
        self._grace_s = min(300.0, float(frame.get("grace_s", 5)))
        self._silence_s = min(600.0, max(1.0, 2.5 * float(frame.get("ping_s", 20))))
        models = frame.get("models", self._models)
        uncovered = sorted(set(self._models) - set(models))
        say(f"connected as {frame.get('agent')}: serves {', '.join(map(str, models)) or 'nothing'}")
        if uncovered:
            say(f"its token does not cover {', '.join(uncovered)}")

    def _begin(self, work: Work, link: Link) -> None:
        self._works[work.id] = work
        if self._stop.is_set() or self._running > self._concurrency:
            work.end({"type": "error", "cause": "busy", "message": "the agent takes no more requests now"})
        elif work.body.get("model") not in self._models:
            work.end({"type": "error", "cause": "model_not_served", "message": "the agent does not serve this model"})
        else:
            threading.Thread(target=self._answer, args=(work,), daemon=True, name="request").start()

    def _resume(self, link: Link, frame: Mapping[str, Any], work: Work | None) -> None:
        received, credit = whole(frame, "received"), whole(frame, "credit")
        if frame.get("session") != self._session or work is None or not work.resumed(link, received, credit):
            link.post({"type": "error", "id": frame["id"], "seq": received + 1, "cause": "unknown_request", "message": "the agent forgot this request"})

    def _forget(self) -> None:
        """What the gateway has, what nobody waits for, and what ended long ago."""
        past = time.monotonic() - KEEP_S
        self._works = {key: work for key, work in self._works.items() if not work.arrived and (work.ended_at or past) >= past}

    def _answer(self, work: Work) -> None:
        """In the request's own thread."""
        try:
            last = self._upstream.answer(work)
        except GivenUp:
            last = Failed("internal", "nobody waits").frame
        except Failed as failed:
            last = failed.frame
        except TimeoutError:
            last = Failed("timeout", "the upstream was silent for too long").frame
        except (OSError, http.client.HTTPException, ValueError) as error:
            last = Failed("upstream_failed", f"the upstream's answer broke off: {type(error).__name__}").frame
        except Exception as error:
            last = Failed("internal", f"the agent failed: {type(error).__name__}").frame
        gone = work.given_up
        work.end(last)
        told = "nobody waits for it any more" if gone else last.get("reason") or f"{last['cause']}, {last['message']}"
        say(f"request {work.id[:64]}: {told}, {work.made} frames, {time.monotonic() - work.begun_at:.2f} s")


def run(
    connect: str,
    token: str,
    upstream: str,
    *,
    models: Sequence[str] = (),
    concurrency: int = 4,
    upstream_key: str = "",
    name: str = "",
    stop: threading.Event | None = None,
) -> int:
    """Serve until `stop` is set (by default: SIGTERM, Ctrl-C) or it makes no sense to go on; the exit status. Raises ValueError for what is no URL or token.

    `models`: which to announce; all that the upstream lists, unless given. `name`: of this agent, where several use one token.
    """
    parts = checked(connect, ("ws", "wss"))
    if not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ValueError("the token must be printable ASCII characters")
    if parts.scheme == "ws" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        say("ws:// is not encrypted: who listens on the way reads the token; wss:// keeps it")
    return Agent(Upstream(upstream, upstream_key), models, concurrency, name, stop or on_signals()).serve(connect, token)


def on_signals() -> threading.Event:
    """Set by SIGTERM and Ctrl-C; a second one ends the program at once."""
    stop = threading.Event()

    def begin(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, begin)
        signal.signal(signal.SIGINT, begin)
    return stop


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m agents.openai_agent", description="Serves an OpenAI-compatible server's models through a gateway.")
    parser.add_argument("--connect", required=True, help="the gateway: wss://host or ws://host:port")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--token", help="what `gateway agent enrol` printed; others on this machine can see it in the list of processes")
    secret.add_argument("--token-file", type=Path, help="a file with it")
    parser.add_argument("--upstream", required=True, help="base URL of the server, with its /v1")
    parser.add_argument("--upstream-key-file", type=Path, help="a file with the server's API key, where it asks for one")
    parser.add_argument("--model", action="append", default=[], help="announce this one; may be repeated (default: all that the server lists)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once (default: 4)")
    parser.add_argument("--name", default="", help="of this agent, where several use one token")
    given = parser.parse_args(arguments)
    try:
        token = given.token or given.token_file.read_text().strip()
        key = given.upstream_key_file.read_text().strip() if given.upstream_key_file else ""
        return run(given.connect, token, given.upstream, models=given.model, concurrency=given.concurrency, upstream_key=key, name=given.name)
    except (OSError, ValueError) as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
