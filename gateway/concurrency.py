"""Waiting and threads: gevent's where the process is patched, plain threads where it is not (tests, the CLI).

The only module below wsgi.py that knows gevent. Four verbs: `offload` and `NativeWorker` run what would stall the
hub (SQLite, fsync, argon2, a 20 MB scan) in native threads; `after` is a timer; `watch_readable` tells when a socket
can be read. Callbacks of the last two run in a greenlet (or thread) of their own and must not raise.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import select
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

T = TypeVar("T")
Item = TypeVar("Item")
Work = Callable[[list["Job"]], None]


def patched() -> bool:
    """True in a process whose threads are greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("threading"))


class OffloadTimeout(Exception):
    """The function was still running when the time was up; it goes on in its thread."""


_PLAIN_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="offload")


def offload(fn: Callable[[], T], timeout_s: float | None = None) -> T:
    """Run `fn` in a native thread and wait for it without stalling the hub. Raises what `fn` raises, or OffloadTimeout."""
    if not patched():
        future = _PLAIN_POOL.submit(fn)
        if not wait([future], timeout_s).done:
            raise OffloadTimeout
        return future.result()
    import gevent  # optional outside a server: see the module's docstring

    result = gevent.get_hub().threadpool.spawn(_outcome, fn)
    if not result.wait(timeout_s) and not result.ready():
        raise OffloadTimeout
    ok, value = cast("tuple[bool, Any]", result.get())
    if ok:
        return value  # type: ignore[no-any-return]
    raise value


def _outcome(fn: Callable[[], T]) -> tuple[bool, Any]:
    try:
        return True, fn()
    except BaseException as error:  # carried to the caller, who raises it
        return False, error


class _Mailbox:
    """Sets events of one hub's greenlets from other threads; what is posted before the hub looks costs it one wake-up."""

    __slots__ = ("_async", "_posted")

    def __init__(self, hub: Any) -> None:
        self._posted: collections.deque[threading.Event | None] = collections.deque()
        self._async = hub.loop.async_()
        self._async.start(self._deliver)

    def post(self, event: threading.Event) -> None:
        self._posted.append(event)
        self._async.send()

    def end(self) -> None:
        """No more will be posted: the loop's event goes, which nobody else would take from it."""
        self._posted.append(None)
        self._async.send()

    def _deliver(self) -> None:
        while self._posted:
            event = self._posted.popleft()
            if event is not None:
                event.set()
            else:
                self._async.stop()
                self._async.close()


class Job:
    """One item handed to a worker, and its outcome. `post` sets the waiting caller's event from the worker's thread; none: it may do so itself."""

    __slots__ = ("_event", "_post", "error", "item", "result")

    def __init__(self, item: Any, post: Callable[[threading.Event], None] | None = None) -> None:
        self.item = item
        self.result: Any = None
        self.error: BaseException | None = None
        self._event, self._post = threading.Event(), post

    def done(self) -> None:
        if self._post is None:
            self._event.set()
        else:
            self._post(self._event)

    def wait(self, timeout_s: float | None) -> Any:
        if not self._event.wait(timeout_s):
            raise OffloadTimeout
        if self.error is not None:
            raise self.error
        return self.result


class NativeWorker:
    """One native thread that takes whatever is queued, all at once: `run(jobs)` fills each job's result or error.

    Natural batching: what arrives while a batch runs makes the next batch. `submit` blocks the caller, not the hub.
    """

    def __init__(self, run: Work, name: str, limit: int = 512) -> None:
        self._run, self._name, self._limit = run, name, limit
        self._jobs: collections.deque[Job] = collections.deque()
        self._start, self._allocate = _native("start_new_thread"), _native("allocate_lock")
        self._ready = self._allocate()
        self._ready.acquire()
        self._guard = self._allocate()
        self._started = self._closed = False
        self._mailboxes: weakref.WeakKeyDictionary[Any, _Mailbox] = weakref.WeakKeyDictionary()

    def submit(self, item: Any, timeout_s: float | None = None) -> Any:
        """The result of `item`. Raises its error, OffloadTimeout, or RuntimeError after `close`."""
        hub = _hub()
        with self._guard:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            if not self._started:
                self._started = True
                self._start(self._loop, ())
            job = Job(item, self._mailbox(hub).post if hub is not None else None)
            self._jobs.append(job)
            self._wake()
        return job.wait(timeout_s)

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._guard:
            self._closed = True
            self._wake()

    def _mailbox(self, hub: Any) -> _Mailbox:
        box = self._mailboxes.get(hub)
        if box is None:
            box = self._mailboxes[hub] = _Mailbox(hub)
        return box

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # already awake
            self._ready.release()

    def _loop(self) -> None:
        while True:
            self._ready.acquire()
            while self._jobs:
                batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._limit))]
                self._run_batch(batch)
            if self._closed and not self._jobs:
                self._run_batch([])
                for box in list(self._mailboxes.values()):
                    box.end()
                return

    def _run_batch(self, batch: list[Job]) -> None:
        try:
            self._run(batch)
        except BaseException as error:  # the thread's outermost edge: every waiting caller gets it
            for job in batch:
                job.error = job.error or error
        for job in batch:
            job.done()


def _hub() -> Any:
    """The hub of this thread's greenlets; None where threads are threads."""
    if not patched():
        return None
    import gevent  # optional outside a server

    return gevent.get_hub()


def _native(name: str) -> Any:
    """`_thread`'s own function, whatever was patched."""
    if patched():
        from gevent import monkey  # optional outside a server

        return monkey.get_original("_thread", name)
    return getattr(_thread, name)


def spawn(fn: Callable[[], None], name: str) -> threading.Thread:
    """Run `fn` in a daemon thread (a greenlet where patched)."""
    thread = threading.Thread(target=fn, name=name, daemon=True)
    thread.start()
    return thread


def after(seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback()` once, `seconds` from now. Returns a function that cancels it; cancelling twice is fine."""
    if patched():
        import gevent  # optional outside a server

        timer = gevent.get_hub().loop.timer(seconds)
        timer.start(gevent.spawn, callback)

        def cancel() -> None:
            timer.stop()
            timer.close()

        return cancel
    plain = threading.Timer(seconds, callback)
    plain.daemon = True
    plain.start()
    return plain.cancel


def watch_readable(sock: socket.socket, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback()` once if the peer of `sock` goes away: end of file or an error. Bytes end the watch unheard.

    Returns a function that disarms the watch; disarming twice, or after the call, is fine. Nothing is read from the socket.
    """
    return _watch_with_hub(sock, callback) if patched() else _watch_with_thread(sock, callback)


def _watch_with_hub(sock: socket.socket, callback: Callable[[], None]) -> Callable[[], None]:
    import gevent  # optional outside a server

    watcher = gevent.get_hub().loop.io(sock.fileno(), 1)

    def disarm() -> None:
        watcher.stop()
        watcher.close()

    def readable() -> None:
        disarm()  # on data as well: a pipelined byte would call back for ever
        if _peer_is_gone(sock):
            gevent.spawn(callback)

    watcher.start(readable)
    return disarm


def _watch_with_thread(sock: socket.socket, callback: Callable[[], None]) -> Callable[[], None]:
    disarmed = threading.Event()

    def watch() -> None:
        while not disarmed.is_set():
            try:
                readable = select.select([sock], [], [], 0.05)[0]
            except (OSError, ValueError):
                return
            if readable and not disarmed.is_set():
                if _peer_is_gone(sock):
                    callback()
                return

    spawn(watch, "watch-readable")
    return disarmed.set


def _peer_is_gone(sock: socket.socket) -> bool:
    raw = getattr(sock, "_sock", sock)  # gevent's own recv would wait for bytes that another reader took first
    try:
        return bool(raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def every(seconds: float, fn: Callable[[], None], name: str, *, at_once: bool = False) -> Callable[[], None]:
    """Call `fn()` every `seconds`, the first time after that or `at_once`, in a thread of its own until the returned function is called.

    `fn` must not raise.
    """
    stopped = threading.Event()

    def loop() -> None:
        if at_once:
            fn()
        while not stopped.wait(seconds):
            fn()

    spawn(loop, name)
    return stopped.set
