"""Which workers serve, and which leave: what gunicorn.conf.py changes in gunicorn's arbiter.

A reload (SIGHUP) is tried out first by a process of its own; then new workers begin, and the old ones leave when the new ones
serve. gunicorn's own reload ends the whole server where the configuration fails, and tells the old workers to leave at once.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from typing import Any

from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

TRIAL_S = 30.0
_TOLD_BYTES = 2000
_TOLD_BY = frozenset({signal.SIGTERM, signal.SIGQUIT})
"""How a worker is told to leave."""


class _Begun(Exception):
    """The new workers are started: gunicorn's reload would now wait for the old ones' end, and hear no signal meanwhile."""


class Succession:
    """Takes the place of some of an arbiter's methods."""

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._leaving: set[int] = set()
        self._reloading = False

    def install(self) -> None:
        """Called before the first worker starts."""
        arbiter = self._arbiter
        arbiter.handle_term = arbiter.handle_int = arbiter.handle_quit = self.end
        arbiter.handle_hup, arbiter.manage_workers = self.reload, self.manage
        arbiter.spawn_worker, arbiter.reap_workers = self.spawn, self.reap
        arbiter.setup = self.setup

    def end(self) -> None:
        """Ctrl-C too lets open answers end, and books them. SIGQUIT tells the workers that nobody follows."""
        self._arbiter.kill_workers(signal.SIGQUIT)
        raise StopIteration

    def reload(self) -> None:
        """New settings and new code, if they work; else everything stays as it is."""
        problem = self._trial()
        if problem:
            self._arbiter.log.error("the reload is refused, and nothing was changed: %s", problem)
            return
        self._reloading = True
        with contextlib.suppress(_Begun):
            type(self._arbiter).handle_hup(self._arbiter)
        self._reloading = False

    def setup(self, app: Any) -> None:
        """A reload keeps the address: gunicorn's closes the old listeners first, and ends where the new ones cannot be had."""
        bound = self._arbiter.cfg.settings["bind"].get()
        type(self._arbiter).setup(self._arbiter, app)
        if self._arbiter.cfg.settings["bind"].get() != bound:
            self._arbiter.log.error("the server's address changes at a restart only")
            self._arbiter.cfg.set("bind", bound)
            self._arbiter.address = self._arbiter.cfg.address

    def _trial(self) -> str:
        """What goes wrong when the configuration and the application are loaded; empty where nothing does."""
        command = [sys.executable, "-m", "gunicorn", *sys.argv[1:], "--check-config"]
        try:
            tried = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TRIAL_S, check=False)  # noqa: S603  our own command line
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        told = tried.stdout.decode(errors="replace")[-_TOLD_BYTES:].strip()
        return told or f"status {tried.returncode}" if tried.returncode else ""

    def manage(self) -> None:
        """Start what is missing; tell the oldest to leave where enough newer ones serve.

        gunicorn's counts workers that leave as if they served, and so replaces none that dies meanwhile.
        """
        arbiter = self._arbiter
        self._leaving &= arbiter.WORKERS.keys()
        staying = sorted((worker for pid, worker in arbiter.WORKERS.items() if pid not in self._leaving), key=lambda worker: worker.age)
        for _ in range(arbiter.num_workers - len(staying)):
            arbiter.spawn_worker()
        serving = [worker for worker in staying if _serves(worker)]
        for worker in serving[: max(len(serving) - arbiter.num_workers, 0)]:
            self._leaving.add(worker.pid)
            arbiter.kill_worker(worker.pid, signal.SIGTERM)
        if self._reloading:
            raise _Begun

    def spawn(self) -> int:
        """Start a worker. Until it has handlers of its own it would hear a signal with the arbiter's, and forget it: it waits for `hear`."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD_BY)
        try:
            return int(type(self._arbiter).spawn_worker(self._arbiter))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def reap(self) -> None:
        """Note which workers ended. One that cannot start ends the server only where no other serves."""
        while True:
            try:
                return type(self._arbiter).reap_workers(self._arbiter)  # type: ignore[no-any-return]
            except HaltServer as halt:
                if not any(map(_serves, self._arbiter.WORKERS.values())):
                    raise
                self._arbiter.log.error("a new worker did not start (%s); the others go on", halt.reason)


def hear() -> None:
    """In a worker that is ready to serve: whatever it was told while it started, it hears now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_BY)


def _serves(worker: Any) -> bool:
    """Whether it has begun to beat: until then its file has the time of its making, by the clock on the wall, which is far ahead of the monotonic one."""
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except (OSError, ValueError):  # its file is closed: it is gone
        return False
