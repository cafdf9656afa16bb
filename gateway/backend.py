"""The contract between the gateway and the plugins that reach a model. A plugin author reads this file.

A backend is a class with one method, `send`: one attempt, no retries, no routing, no money. The gateway decides
who is called and what is done with the outcome; docs/backend.md writes one in 30 lines, and
`gateway.testing.BackendContract` is the test class that proves it.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.parse import quote, unquote, urlsplit

from gateway.dialects import CHAT_CODECS
from gateway.dialects.document import Fields
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, Usage
from gateway.errors import BadRequest, Cancelled, UpstreamInterrupted, UpstreamTimeout

Headers = tuple[tuple[str, str], ...]
"""Header fields in order; names are lower case."""
Network = IPv4Network | IPv6Network
_HOST_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz.-_:"


class Secret:
    """An upstream's secret. Only `reveal()` shows it: neither repr nor str nor a format does."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. `connect_s`: until connected, TLS included. `first_byte_s`: from then to the answer's first byte.
    `idle_s`: between two blocks. `total_s`: from the client's call to the answer's last byte, all attempts together."""

    connect_s: float = 2.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Body:
    """A request body. `open()` starts it anew where `replayable`; `size` is None when it is not known beforehand.

    `edit` sets top-level members (multipart: form fields) in the bytes as they were received, `member` reads one as raw
    JSON; None where a body has no members.
    """

    open: Callable[[], Iterator[bytes]]
    replayable: bool
    size: int | None
    edit: Callable[[Mapping[str, Any]], Body] | None = None
    member: Callable[[str], bytes | None] | None = None

    @staticmethod
    def of(raw: bytes) -> Body:
        return Body(open=lambda: iter((raw,)), replayable=True, size=len(raw))


class Cancellation:
    """Gives a call up from outside, also while `send` has not returned. Fires once; safe from any thread or greenlet: each step on
    the dict is one, so that no call pays for a lock."""

    __slots__ = ("_callbacks", "reason")

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}
        self.reason: str | None = None
        """None until fired, then why: "client_gone", "draining"."""

    def on_cancel(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback()` called when the call is given up (at once, if it already is). It must not block or raise.

        Returns a function that takes the callback back: a backend calls it before it hands its connection to another call.
        """
        token = object()
        self._callbacks[token] = callback
        if self.reason is not None and self._callbacks.pop(token, None) is not None:  # else whoever fires calls it
            callback()
        return lambda: self._forget(token)

    def _forget(self, token: object) -> None:
        self._callbacks.pop(token, None)

    def fire(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
        for token in list(self._callbacks):
            callback = self._callbacks.pop(token, None)
            if callback is not None:  # else another thread took it
                callback()


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client, on its way to an upstream.

    `path` is relative to the deployment's base URL ("/chat/completions"), `query` without "?". `headers` are end to
    end and allow-listed: the client's key is not among them. `fields` are the members that routing, metering and
    policy read; `document()` parses the whole body, at a cost. `deadline` is monotonic.
    """

    dialect: str
    method: str
    path: str
    query: str
    headers: Headers
    body: Body
    fields: Fields
    document: Callable[[], Mapping[str, Any]]
    stream: bool
    deadline: float
    cancel: Cancellation

    def edited(self, **members: Any) -> Call:
        """The same call with these top-level members set. The rest of the body keeps every byte."""
        if not members:
            return self
        if self.body.edit is None:
            raise TypeError("this body cannot be edited")
        return replace(self, body=self.body.edit(members))


@dataclass(frozen=True, slots=True)
class Proxy:
    """What stands between the gateway and an upstream. Its repr and str are its URL without the password.

    `scheme`: "http", "socks5" (we resolve the upstream's name, and check what it leads to), "socks5h" (the proxy resolves it).
    A value: equal proxies share connections, whenever they were made.
    """

    scheme: str
    host: str
    port: int
    user: str = ""
    password: str = ""

    @staticmethod
    def parse(url: str) -> Proxy:
        """`scheme://[user:password@]host:port`, user and password percent-encoded. Raises BadRequest, which does not repeat it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            user, password = (unquote(part or "", errors="strict") for part in (parts.username, parts.password))
        except ValueError:
            raise BadRequest("the proxy's URL is malformed") from None
        if parts.scheme not in ("http", "socks5", "socks5h") or not host or host.strip(_HOST_CHARACTERS) or not port:
            raise BadRequest("the proxy must be http://, socks5:// or socks5h://, with a host and a port")
        if parts.path not in ("", "/") or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
            raise BadRequest("the proxy's URL ends with its port")
        if bool(user) != ("@" in parts.netloc) or not (user + password).isprintable() or max(len(user.encode()), len(password.encode())) > 255:
            raise BadRequest("the proxy's user name and password must be printable, of 255 bytes at most each, and % / @ : in them percent-encoded")
        if ":" in user:
            raise BadRequest("the proxy's user name must not hold a colon")
        return Proxy(parts.scheme, host, port, user, password)

    @property
    def url(self) -> str:
        """With the password."""
        return self._url(f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@")

    def __repr__(self) -> str:
        return self._url(f"{quote(self.user, safe='')}@")

    __str__ = __repr__

    def _url(self, identity: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{identity if self.user else ''}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an attempt goes, and through which proxy. `model` is the upstream's name; the call's body already carries it.

    `extras`: what the operator keeps beside the secret and some upstreams want with it, such as a cookie. `credential`: what the gateway calls
    the credential, which another secret does not change; empty where there is none.
    """

    base_url: str
    model: str
    secret: Secret
    deadlines: Deadlines
    proxy: Proxy | None = None
    extras: Mapping[str, Secret] = field(default_factory=dict, hash=False)
    credential: str = ""


@dataclass(slots=True)
class Reply:
    """An answer that the client should see.

    `chunks` is lazy and pulled by one consumer. It may yield b"" as a tick while the upstream is silent, so that the client
    hears that its call lives (a ChatBackend's has none). It ends with StopIteration only where the upstream ended cleanly;
    a break raises UpstreamInterrupted, a passed deadline UpstreamTimeout, a fired `call.cancel` Cancelled.
    `close()` aborts the upstream; it is idempotent, safe before the first pull, and always called, once at least.
    `usage()` is asked after the last chunk; backends that relay bytes return None: the gateway reads the bytes.
    """

    status: int
    headers: Headers
    chunks: Iterator[bytes]
    close: Callable[[], None]
    usage: Callable[[], Usage | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Services:
    """What the gateway lends to backends. Grows as backends need more; a backend takes what it knows.

    `allow_networks`: the networks besides the public ones that an upstream's name may lead to.
    `heartbeat_s`: how often `Reply.chunks` is to yield a tick while the upstream is silent.
    """

    clock: Callable[[], float] = time.monotonic
    allow_networks: tuple[Network, ...] = ()
    heartbeat_s: float = math.inf


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The Options of a backend that has none."""


class Backend(ABC):
    """One way to reach models. Built once per worker with the operator's options; used by many calls at once.

    `dialects`: the request dialects that `send` takes ("openai_chat", "openai_completions", "openai_rest" ...).
    `Options`: a dataclass of the operator's settings for this backend, built from a deployment's `options`.
    `needs_secret`: whether a deployment must name a credential. `default_base_url`: used where a deployment names none.
    """

    dialects: ClassVar[frozenset[str]]
    Options: ClassVar[type] = NoOptions
    needs_secret: ClassVar[bool] = True
    default_base_url: ClassVar[str] = ""

    def __init__(self, options: Any, services: Services) -> None:
        self.options = options
        self.services = services

    @abstractmethod
    def send(self, call: Call, target: Target) -> Reply:
        """Make one attempt, without retries.

        Returns a Reply only for an answer that the client should see, once its status and headers are known.
        Raises an UpstreamError if the upstream refused or could not be reached, Cancelled if `call.cancel` fired.
        The implementer keeps the target's deadlines and the call's, registers its abort with `call.cancel`, and
        leaves nothing open when it raises. The caller closes every Reply it is given, and pulls from one thread.
        """

    def close(self) -> None:  # noqa: B027
        """Release what the backend keeps between calls. Called once, when the worker ends."""


class ChatBackend(Backend):
    """A backend that thinks in chat events: implement `chat`, and every chat dialect of the gateway works."""

    dialects = frozenset(CHAT_CODECS)

    @abstractmethod
    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        """Yield the answer's events; the last is Finished. Raises UpstreamError; called once per attempt.

        Until the first event is there, another upstream may still be tried. Between events the gateway looks whether the
        call was given up or is past its total deadline; then, and at the end, it calls `close` on what was returned (a
        generator's `finally` runs). The implementer keeps the target's other deadlines, and waits no longer than those.
        """

    def send(self, call: Call, target: Target) -> Reply:
        codec = CHAT_CODECS[call.dialect]
        request = codec.request(call.document())
        encoder = codec.encoder(target.model, int(time.time()), request)
        answer = _Answer(self.chat(request, target), call, self.services.clock)
        try:
            if request.stream:
                chunks = encoder.stream(itertools.chain((next(answer),), answer))  # a refusal is raised here, not behind a status of 200
                return Reply(200, (("content-type", "text/event-stream; charset=utf-8"),), chunks, answer.close, answer.usage)
            body = encoder.whole(answer)
        except BaseException:
            answer.close()
            raise
        answer.close()
        return Reply(200, (("content-type", "application/json"), ("content-length", str(len(body)))), iter((body,)), answer.close, answer.usage)


class _Answer:
    """The events of a ChatBackend up to Finished, given up when the call is. `close` closes what the backend returned."""

    def __init__(self, events: Iterator[ChatEvent], call: Call, clock: Callable[[], float]) -> None:
        self._events, self._call, self._clock = events, call, clock
        self._finished: Finished | None = None

    def __iter__(self) -> Iterator[ChatEvent]:
        return self

    def __next__(self) -> ChatEvent:
        if self._finished is not None:
            raise StopIteration
        event = next(self._events, None)
        if self._call.cancel.reason is not None:
            raise Cancelled(self._call.cancel.reason)
        if self._clock() >= self._call.deadline:
            raise UpstreamTimeout("The call took longer than it may.", phase="total")
        if event is None:
            raise UpstreamInterrupted("The answer ended before it was complete.")
        if isinstance(event, Finished):
            self._finished = event
        return event

    def usage(self) -> Usage | None:
        return None if self._finished is None else self._finished.usage

    def close(self) -> None:
        close: Callable[[], None] | None = getattr(self._events, "close", None)
        if close is not None:
            close()


@runtime_checkable
class ListsModels(Protocol):
    """A backend that can name the models behind a target, at no cost."""

    def models(self, target: Target, deadline: float) -> list[str]:
        """Upstream names, before `deadline` (monotonic). Raises UpstreamError."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What an issuer gave in place of a secret.

    `extras`: those that change with it, such as the next "refresh_token"; what is not named stays. `expires_at`: Unix milliseconds,
    None where the issuer did not say: then a JWT says it itself.
    """

    secret: Secret
    extras: Mapping[str, Secret] = field(default_factory=dict)
    expires_at: int | None = None


@runtime_checkable
class Refreshes(Protocol):
    """A backend that can have a target's secret replaced by its issuer, with what `target.extras` holds: "refresh_token"."""

    def refresh(self, target: Target, deadline: float) -> Refreshed:
        """Ask the issuer once, before `deadline` (monotonic).

        A refresh token may work only once. The caller sees to it that one worker at a time asks for a credential, has written that it
        will before it calls, and keeps what is returned before it is used. The implementer makes one upstream call, and none again,
        whatever it is answered. Raises UpstreamError: an UpstreamRefused whose `blame` is CREDENTIAL_INVALID says that the refresh token
        is dead, and the credential is quarantined; after any other the caller asks again later. Raises BadRequest where it was not told
        whom to ask.
        """
