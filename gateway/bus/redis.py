"""Between the workers of several hosts: over Redis. The workers of one host reach each other as they do without it.

Each worker subscribes to one topic and takes everything from there; one greenlet publishes for all its channels, so that their messages keep their order.
Whoever loses Redis loses its channels: nobody knows what was missed.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gateway.backend import Secret
from gateway.bus.base import Accept, Bus, Opening
from gateway.bus.windowed_channel import ACCEPTER, OPEN, OPENER, SILENCE_S, Message, WindowedChannel
from gateway.concurrency import every, spawn
from gateway.frames import Channel, ChannelLost
from gateway.redis import RedisErrors, connect

BEAT_S, LOOK_S = 1.0, 0.25
OPEN_S = 0.6
"""How long a worker's topic is looked for: somewhat longer than Redis may take to answer what stands before it."""
START_S = 0.5
RETRY_S = 0.25
_BATCH, _BATCH_BYTES = 128, 512_000
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Post:
    """A message on its way to a worker. `heard` is set when it is known how many subscribers there were: one, or none."""

    owner: str
    data: bytes
    channel: WindowedChannel | None = None
    heard: threading.Event | None = None
    subscribers: int = field(default=0)


class RedisBus:
    """Of the worker `owner`. `local` reaches the workers of this host, which `is_local` knows."""

    def __init__(self, url: Secret, owner: str, local: Bus, is_local: Callable[[str], bool]) -> None:
        self._redis, self._owner, self._local, self._is_local = connect(url), owner, local, is_local
        self._accept: Accept | None = None
        self._lock = threading.Lock()
        self._channels: dict[tuple[bytes, int], WindowedChannel] = {}
        self._outbox: deque[_Post] = deque()
        self._posted, self._up, self._closed, self._over = (threading.Event() for _ in range(4))
        self._subscription, self._told = 0, False
        self._heard_at = self._beat_at = self._looked_at = 0.0
        self._stop_looking: Callable[[], None] = lambda: None

    def start(self, accept: Accept) -> None:
        self._accept = accept
        self._local.start(accept)
        reader = spawn(self._read, "bus-read")
        spawn(partial(self._write, reader), "bus-write")
        self._looked_at = time.monotonic()
        self._stop_looking = every(LOOK_S, self._look, "bus-look")
        self._up.wait(START_S)

    def open(self, owner: str, opening: Opening) -> Channel:
        if self._closed.is_set():
            raise ChannelLost("closed")
        if self._is_local(owner):
            return self._local.open(owner, opening)
        if not _OWNER.fullmatch(owner) or not self._up.is_set():
            raise ChannelLost("gone")
        channel = self._add(secrets.token_bytes(16), OPENER, owner)
        head = json.dumps({"agent": opening.agent, "epoch": opening.epoch, "by": opening.by, "answer": self._owner}).encode()
        post = _Post(owner, Message(OPEN, ACCEPTER, channel.key[0], 0, 0, head).packed(), channel, threading.Event())
        self._post(post)
        if post.heard is None or not post.heard.wait(OPEN_S) or not post.subscribers:
            channel.lose()
            raise ChannelLost("gone")
        return channel

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._local.close()
        for channel in self._all():
            channel.close()
        self._posted.set()

    def _all(self) -> list[WindowedChannel]:
        with self._lock:
            return list(self._channels.values())

    def _add(self, name: bytes, side: int, owner: str) -> WindowedChannel:
        channel = WindowedChannel(name, side, lambda channel, data: self._post(_Post(owner, data, channel)), self._forget)
        with self._lock:
            self._channels[channel.key] = channel
        return channel

    def _forget(self, channel: WindowedChannel) -> None:
        with self._lock:
            self._channels.pop(channel.key, None)

    def _lose_all(self, why: str) -> None:
        """Redis is away, or what it sent us has a hole. The reader subscribes anew."""
        if not (self._told or self._closed.is_set()):
            self._told = True
            _LOG.warning("workers of other hosts cannot be reached: %s", why)
        self._up.clear()
        self._subscription += 1
        posts = list[_Post]()
        while self._outbox:
            posts.append(self._outbox.popleft())
        for post in posts:
            if post.heard is not None:
                post.heard.set()
        for channel in self._all():
            channel.lose()

    # Sending.

    def _post(self, post: _Post) -> None:
        self._outbox.append(post)
        if not self._posted.is_set():
            self._posted.set()

    def _write(self, reader: threading.Thread) -> None:
        # After the end of the bus until nothing is left that must still arrive: `_look` sees to it that this does not take long.
        while not self._closed.is_set() or self._channels or self._outbox:
            self._posted.wait(RETRY_S)
            self._posted.clear()
            while self._outbox:
                self._publish(self._batch())
        self._over.set()
        reader.join(SILENCE_S)  # its connection is one of those that are closed now
        self._redis.close()

    def _batch(self) -> list[_Post]:
        batch, size = list[_Post](), 0
        while self._outbox and len(batch) < _BATCH and size < _BATCH_BYTES:
            batch.append(self._outbox.popleft())
            size += len(batch[-1].data)
        return batch

    def _publish(self, batch: list[_Post]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for post in batch:
            pipeline.publish(_topic(post.owner), post.data)
        try:
            counts = pipeline.execute()
        except RedisErrors as error:
            counts = []
            self._lose_all(str(error))
        for post, count in zip(batch, counts or [0] * len(batch), strict=True):
            post.subscribers = count
            if post.heard is not None:
                post.heard.set()
            if not count and post.channel is not None:
                post.channel.lose()

    def _look(self) -> None:
        now = time.monotonic()
        stalled, self._looked_at = now - self._looked_at > LOOK_S + BEAT_S, now
        channels, beats = self._all(), now >= self._beat_at
        for channel in channels:
            if stalled:
                channel.excuse(now)
            if beats:
                channel.beat()
            channel.look(now)
        if beats:
            self._beat_at = now + BEAT_S
            if self._up.is_set() and not self._closed.is_set():
                self._post(_Post(self._owner, b""))
        if stalled:
            self._heard_at = now
        elif self._up.is_set() and now - self._heard_at > SILENCE_S:
            self._lose_all("nothing comes from Redis any more")
        if self._over.is_set():
            self._stop_looking()

    # Receiving.

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                self._follow(self._subscription)
            except RedisErrors as error:
                self._lose_all(str(error))
            if not self._closed.is_set():
                time.sleep(RETRY_S)

    def _follow(self, subscription: int) -> None:
        """Take what comes until the subscription is given up. Raises what Redis raises."""
        topic = self._redis.pubsub()  # type: ignore[no-untyped-call]
        began = time.monotonic()
        try:
            topic.subscribe(_topic(self._owner))
            while subscription == self._subscription and not self._over.is_set():
                message = topic.get_message(timeout=RETRY_S)
                if message is None:
                    if not self._up.is_set() and time.monotonic() - began > SILENCE_S:
                        return
                elif message["type"] == "subscribe":
                    self._heard_at, self._told = time.monotonic(), False
                    self._up.set()
                elif message["type"] == "message":
                    self._came(message["data"])
        finally:
            topic.close()

    def _came(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        message = Message.unpacked(data)
        if message is None:  # our own beat, or nothing of ours
            return
        if message.kind == OPEN:
            self._welcome(message)
            return
        channel = self._channels.get((message.channel, message.side))
        if channel is not None:
            channel.came(message)

    def _welcome(self, message: Message) -> None:
        found = _opening(message.content)
        if found is None or (message.channel, ACCEPTER) in self._channels:
            return
        opening, answer = found
        channel = self._add(message.channel, ACCEPTER, answer)
        if self._closed.is_set():
            channel.close()
        else:
            spawn(partial(self._serve, opening, channel), "bus-serve")

    def _serve(self, opening: Opening, channel: WindowedChannel) -> None:
        try:
            if self._accept is not None:
                self._accept(opening, channel)
        finally:
            channel.close()


def _topic(owner: str) -> str:
    return f"gateway:bus:{owner}"


def _opening(head: bytes) -> tuple[Opening, str] | None:
    """And the worker to answer. None where it is none."""
    try:
        fields = json.loads(head)
        agent, epoch, by, answer = fields["agent"], fields["epoch"], fields["by"], fields["answer"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    well = isinstance(agent, str) and isinstance(by, str) and isinstance(answer, str) and _OWNER.fullmatch(answer) is not None
    return (Opening(agent, epoch, by), answer) if well and isinstance(epoch, int) and not isinstance(epoch, bool) else None
