"""How the far side of the tests' channels behaves, within the process or in one of its own: what it does is in the agent's name.

As a program: `serving.py KIND PLACE OWNER` prints a line when it can be reached, and serves until it is killed. With "patched" as its first
argument it runs under gevent.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "patched":
    from gevent import monkey

    monkey.patch_all()
    del sys.argv[1]

import contextlib
import tempfile
import threading
import time
from pathlib import Path

from gateway.backend import Secret
from gateway.bus.base import Bus, Opening
from gateway.bus.redis import RedisBus
from gateway.bus.unix import UnixBus
from gateway.frames import Channel, ChannelLost

SILENT, ECHO, FLOOD, LEAVING = "silent", "echo", "flood", "leaving"


class Serving:
    """`with_channel` is set when a channel came; `seen` is what came with it, `ended` set when serving one is over."""

    def __init__(self) -> None:
        self.openings = list[Opening]()
        self.channels = list[Channel]()
        self.frames = list[bytes]()
        self.lost = list[str]()
        self.ended = threading.Event()
        self.go_on = threading.Event()

    def accept(self, opening: Opening, channel: Channel) -> None:
        self.openings.append(opening)
        self.channels.append(channel)
        try:
            self._serve(opening.agent, channel)
        except ChannelLost as lost:
            self.lost.append(lost.cause)
        self.ended.set()

    def _serve(self, agent: str, channel: Channel) -> None:
        if agent == SILENT:
            self.go_on.wait(30)
        if agent == LEAVING:
            channel.send(b"1")
            channel.send(b"2")
            return
        while True:
            frame = channel.receive(30)
            if frame is None:
                return
            self.frames.append(frame)
            if agent == ECHO:
                channel.send(frame)
            elif agent == FLOOD:
                _flood(channel, int(frame))


def _flood(channel: Channel, count: int) -> None:
    """So many numbered frames; one that comes gives credit for so many more than the first 500."""
    credit = 500
    for number in range(count):
        while not credit:
            credit += int(channel.receive(30) or b"")
        credit -= 1
        channel.send(b"%d" % number)


def bus(kind: str, place: str, owner: str) -> Bus:
    """`place`: the run directory, or the URL of Redis, where every other worker is another host's."""
    if kind == "unix":
        return UnixBus(Path(place), owner)
    local = UnixBus(Path(tempfile.mkdtemp(prefix="gateway-bus-")), owner)
    return RedisBus(Secret(place), owner, local, lambda asked: asked == owner)


if __name__ == "__main__":
    served = bus(*sys.argv[1:])
    served.start(Serving().accept)
    print("reachable", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(120)
