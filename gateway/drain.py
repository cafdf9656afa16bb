"""The end of a worker: it stops listening at once, lets open connections end, and is gone when the last one is.

gunicorn's own loop looks up once a second, which delays the end of the listening and of the process by as much each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

LOOK_S = 0.1
SAME_S = 0.3
"""A terminal's signal goes to every process, and the arbiter passes it on: what comes twice within so long was given once."""
BEAT_S = 1.0
KILL_S = 0.8
"""How long before the arbiter kills the process the connections that are left are ended, so that their calls are booked."""
IDLE_S = 6.0
"""How long a kept connection may stay idle in a worker that others follow: longer than OpenAI's SDKs keep one (5 s), which so never lose a call."""
IDLE_AT_THE_END_S = 0.5
"""The same where the whole server ends, and who asks again finds nobody anyway."""


class DrainingWorker(GeventWorker):  # type: ignore[misc]
    """Told to leave by SIGTERM where others follow it (a reload), by SIGQUIT where the server ends."""

    ending = hurried = False
    _told_at = 0.0
    on_leave: Callable[[], None] | None = None
    """Called in a greenlet of its own when the worker is told to leave."""

    def handle_quit(self, sig: int, frame: Any) -> None:
        """gunicorn's would end the process under its open answers."""
        now = time.monotonic()
        if not self.ending:
            self.ending, self._told_at = True, now
        elif now - self._told_at > SAME_S:  # Ctrl-C again, after which the arbiter gives 2 s
            self.hurried = True
        self.handle_exit(sig, frame)

    def notify(self) -> None:
        """gunicorn's ends the process at once where the arbiter is gone, and with it calls that are not booked."""
        self.tmp.notify()
        if self.alive and self.ppid != os.getppid():
            self.log.error("the arbiter is gone: leaving")
            self.handle_quit(0, None)

    @property
    def idle_s(self) -> float:
        """How long a kept connection may wait for its next request."""
        if self.alive:
            return float(self.cfg.keepalive)
        # Gone before the last seconds of the drain, in which a call would be refused.
        return float(min(IDLE_AT_THE_END_S if self.ending else IDLE_S, self.cfg.graceful_timeout / 5, self.cfg.keepalive))

    def run(self) -> None:
        """Serve until told to leave, then until the last connection is closed, or the time is up."""
        pools = [Pool(self.worker_connections) for _ in self.sockets]
        servers = [self._listening(*pair) for pair in zip(self.sockets, pools, strict=True)]
        beat = 0.0
        while self.alive:
            if (now := time.monotonic()) - beat >= BEAT_S:
                beat = now
                self.notify()
            gevent.sleep(LOOK_S)
        for server in servers:
            server.close()
        if self.on_leave is not None:
            gevent.spawn(self.on_leave)
        self._wait(pools, time.monotonic() + self.cfg.graceful_timeout - KILL_S)

    def _listening(self, listener: Any, pool: Pool) -> StreamServer:
        listener.setblocking(1)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1  # leave the next connection to whoever is idle
        server.start()
        return server

    def _wait(self, pools: list[Pool], until: float) -> None:
        while any(map(len, pools)) and time.monotonic() < until and not self.hurried:
            self.notify()
            gevent.sleep(LOOK_S)
        for pool in pools:
            if len(pool):
                self.log.warning("%d connections are cut: the time to drain is over", len(pool))
                pool.kill(timeout=KILL_S / 2)
