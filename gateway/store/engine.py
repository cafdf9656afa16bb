"""SQLite and PostgreSQL behind one face: connections, transactions, and what an error means.

A connection belongs to the thread (or greenlet) that opened it: only the workers of `Database` open any. SQLite's
workers are native threads, since its calls would stall the hub; PostgreSQL's are ordinary threads, greenlets in a
server, since psycopg waits through the patched `select` and must not build a hub of its own in a native thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

import peewee
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from gateway.concurrency import Job, NativeWorker
from gateway.errors import AWAY_S, SettingsError, StoreUnavailable
from gateway.store.worker import CooperativeWorker

DRIVER_ERRORS = (peewee.PeeweeException, sqlite3.Error, psycopg.Error)
_REFUSALS = (peewee.IntegrityError, sqlite3.IntegrityError, psycopg.IntegrityError)
_MIGRATION_LOCK = 0x6761746577617931
"""Any constant 64-bit number: PostgreSQL's advisory locks are named by one."""


class Conflict(Exception):
    """The database refused a row: what should be unique exists, or what should go is in use. One line, no values."""


class CannotOpen(Exception):
    """The database cannot be opened. One line for the operator; it names the place, never a password."""


class TransactionLost(Exception):
    """The transaction ended before its COMMIT: nothing of it is stored."""


class Worker(Protocol):
    """What a queue in front of a connection can do."""

    def submit(self, item: Any, timeout_s: float | None = None) -> Any: ...
    def close(self) -> None: ...


class Engine(ABC):
    """One database. Every method but `worker` and `create` is for the thread that owns the connection."""

    read_mode: ClassVar[str]
    write_mode: ClassVar[tuple[str, ...]]
    shared: ClassVar[bool]
    peewee: Any
    """The peewee.Database."""
    place: str
    """Where the database is, for people; without a password."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    @property
    def connections(self) -> int:
        """How many are open, in all threads of this process."""
        return len(self._open)

    @abstractmethod
    def worker(self, run: Callable[[list[Job]], None], name: str, limit: int) -> Worker:
        """A queue whose thread suits this driver."""

    @abstractmethod
    def intact(self) -> bool:
        """Whether the open transaction can still be committed."""

    @abstractmethod
    def recoverable(self) -> bool:
        """Whether the open transaction can go on from a savepoint."""

    @abstractmethod
    def lost(self) -> bool:
        """Whether the connection is dead."""

    @abstractmethod
    def migration_lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by one runner of migrations at a time; waits for it. A new SQLite file must not be opened before: turning WAL on does not wait."""

    @abstractmethod
    def _prepare(self, read_only: bool, patient: bool) -> None:
        """Set up a fresh connection. `patient`: without a limit on a statement's time."""

    @abstractmethod
    def _refused(self, error: BaseException) -> str:
        """Which constraint an integrity error names."""

    def current(self) -> bool:
        """Whether this thread's connection still leads to the place that was configured."""
        return True

    @abstractmethod
    def create(self) -> None:
        """Make the place for a database that is not there yet, where the program may. Raises CannotOpen."""

    def open(self, *, read_only: bool, patient: bool = False) -> None:
        """Connect, unless this thread is connected. Raises CannotOpen."""
        if not self.peewee.is_closed():
            if self.current():
                return
            self.drop()
        try:
            self.peewee.connect()
            self._open.add(id(self.peewee.connection()))
            self._prepare(read_only, patient)
        except DRIVER_ERRORS as error:
            self.drop()
            raise CannotOpen(f"cannot open the database {self.place}: {self._reason(error)}") from error

    @contextlib.contextmanager
    def migrating(self) -> Iterator[None]:
        """A connection that may change the schema, under the migration lock. Raises CannotOpen for whatever goes wrong inside."""
        self.create()
        try:
            with self.migration_lock():
                self.open(read_only=False, patient=True)
                yield
        except (*DRIVER_ERRORS, OSError) as error:
            raise CannotOpen(f"cannot migrate the database {self.place}: {self._reason(error)}") from error

    def _reason(self, error: BaseException) -> str:
        return (str(error).strip() or type(error).__name__).splitlines()[0]

    def drop(self) -> None:
        """Close this thread's connection, whatever state it is in."""
        connection = None if self.peewee.is_closed() else self.peewee.connection()
        self.peewee.dispose()
        if connection is not None:
            with contextlib.suppress(*DRIVER_ERRORS):  # a dead connection is as good as closed
                connection.close()
            self._open.discard(id(connection))

    def begin(self, *, read_only: bool) -> None:
        self.peewee.begin(*((self.read_mode,) if read_only else self.write_mode))
        self.peewee.push_transaction(self.peewee.transaction())  # makes `atomic()` inside a work a savepoint

    def commit(self) -> None:
        """Raises TransactionLost where a COMMIT would quietly do nothing."""
        if not self.intact():
            raise TransactionLost("the transaction ended early: an error inside it was swallowed")
        self.peewee.pop_transaction()
        self.peewee.commit()

    def rollback(self) -> bool:
        """Undo what is open; never raises. True if the connection was dead: it is dropped then, the next `open` makes another."""
        if self.peewee.is_closed():
            return False
        while self.peewee.in_transaction():
            self.peewee.pop_transaction()
        lost = self.lost()
        if not lost and self.recoverable():
            with contextlib.suppress(*DRIVER_ERRORS):  # what it hides is the cause, which the caller has
                self.peewee.rollback()
        if lost or self.recoverable():
            self.drop()
        return lost

    def isolated(self, work: Callable[[], Any]) -> Any:
        """`work()` under a savepoint: what it raises harms nothing else. Raises TransactionLost if it took the transaction along."""
        self.peewee.execute_sql("SAVEPOINT work")
        try:
            value = work()
        except BaseException as error:
            if not self.recoverable():
                raise TransactionLost("the transaction did not survive an error inside it") from error
            self.peewee.execute_sql("ROLLBACK TO SAVEPOINT work")
            self.peewee.execute_sql("RELEASE SAVEPOINT work")
            raise
        if not self.intact():
            raise TransactionLost("an error inside the transaction was swallowed")
        self.peewee.execute_sql("RELEASE SAVEPOINT work")
        return value

    def translate(self, error: BaseException) -> BaseException:
        """What a caller should see: a driver's error becomes Conflict or StoreUnavailable, anything else stays."""
        if isinstance(error, _REFUSALS):
            conflict = Conflict(self._refused(error))
            conflict.__suppress_context__ = True  # PostgreSQL's own text shows the values of the row
            return conflict
        if not isinstance(error, (*DRIVER_ERRORS, CannotOpen, TransactionLost)):
            return error
        unavailable = StoreUnavailable("The database did not answer.", retry_after_s=AWAY_S)
        unavailable.__cause__ = error
        return unavailable


def deadlocked(error: BaseException | None) -> bool:
    """Whether PostgreSQL broke this transaction off because it and another waited for each other: run again, it succeeds."""
    return isinstance(getattr(error, "orig", None) or getattr(error, "__cause__", None) or error, psycopg.errors.DeadlockDetected)


class _UnlockedSqlite(peewee.SqliteDatabase):
    """Peewee's lock guards a connection that several threads share; here each thread has its own, and dials outside any lock."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lock = contextlib.nullcontext()


class _UnlockedPostgres(peewee.PostgresqlDatabase):
    """See _UnlockedSqlite."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lock = contextlib.nullcontext()


class SqliteEngine(Engine):
    """A file, 0600. WAL with synchronous=FULL: a commit is on the disk when it returns."""

    read_mode = "DEFERRED"
    write_mode = ("IMMEDIATE",)
    shared = False

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path = path
        self.place = str(path)
        # The wait for a lock ends before the caller's does, so that the caller learns of the lock.
        options = {"pragmas": {"synchronous": "FULL", "foreign_keys": 1}, "lock_type": "IMMEDIATE", "timeout": 0.8 * timeout_s}
        self.peewee = _UnlockedSqlite(f"file:{quote(str(path))}?mode=rw", autoconnect=False, uri=True, **options)
        self._opened = threading.local()

    def worker(self, run: Callable[[list[Job]], None], name: str, limit: int) -> Worker:
        return NativeWorker(run, name, limit)

    def create(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            if self._path.stat().st_uid == os.geteuid():
                self._path.chmod(0o600)
        except OSError as error:
            raise CannotOpen(f"cannot open the database {self.place}: {error.strerror}") from error

    def _reason(self, error: BaseException) -> str:
        try:
            self._path.stat()
        except FileNotFoundError:
            return "the file does not exist; run this where the server's data is (GATEWAY_DATA_DIR), or create it: gateway migrate"
        except OSError as obstacle:
            return obstacle.strerror or "it cannot be reached"
        return super()._reason(error)

    def current(self) -> bool:
        """A file that was moved away or replaced takes commits that nobody will ever find."""
        return bool(self._identity() == self._opened.identity)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _prepare(self, read_only: bool, patient: bool) -> None:
        self._opened.identity = self._identity()
        if read_only:
            self.peewee.execute_sql("PRAGMA query_only = 1")
        elif self.peewee.execute_sql("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise peewee.OperationalError("its filesystem does not allow WAL")

    def intact(self) -> bool:
        return bool(self.peewee.connection().in_transaction)

    recoverable = intact

    def lost(self) -> bool:
        return False

    @contextlib.contextmanager
    def migration_lock(self) -> Iterator[None]:
        lock = os.open(f"{self._path}.migrate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _refused(self, error: BaseException) -> str:
        text = str(error).strip()
        if "UNIQUE constraint failed: " in text:
            return f"already exists: {text.split(': ', 1)[1]}"
        return "in use, or names something that does not exist" if "FOREIGN KEY" in text else f"refused: {text}"


class PostgresEngine(Engine):
    """A server. A statement may take `timeout_s`; a dead connection is noticed within about that time."""

    read_mode = "REPEATABLE READ, READ ONLY"
    write_mode = ()
    shared = True

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__()
        self.place = _place(url)
        self._timeout_ms = int(timeout_s * 1000)
        alive = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": self._timeout_ms}
        self.peewee = _UnlockedPostgres(url, prefer_psycopg3=True, autoconnect=False, connect_timeout=2, application_name="chat-gateway", **alive)

    def worker(self, run: Callable[[list[Job]], None], name: str, limit: int) -> Worker:
        return CooperativeWorker(run, name, limit)

    def create(self) -> None:
        """A server's databases are its administrator's."""

    def _prepare(self, read_only: bool, patient: bool) -> None:
        if not patient:
            limit, frozen = self._timeout_ms, 4 * self._timeout_ms
            self.peewee.execute_sql(f"SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {frozen}")

    def _status(self) -> TransactionStatus:
        return TransactionStatus(self.peewee.connection().pgconn.transaction_status)

    def intact(self) -> bool:
        return self._status() is TransactionStatus.INTRANS

    def recoverable(self) -> bool:
        return self._status() in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def lost(self) -> bool:
        return bool(self.peewee.connection().closed) or self._status() is TransactionStatus.UNKNOWN

    @contextlib.contextmanager
    def migration_lock(self) -> Iterator[None]:
        self.open(read_only=False, patient=True)
        self.peewee.execute_sql("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        yield  # the lock ends with the connection, which a migration does not share

    def _refused(self, error: BaseException) -> str:
        cause = getattr(error, "orig", error)
        diagnosis = getattr(cause, "diag", None)
        constraint, table = getattr(diagnosis, "constraint_name", None), getattr(diagnosis, "table_name", None)
        if isinstance(cause, psycopg.errors.UniqueViolation):
            return f"already exists: {table}.{str(constraint).removeprefix(f'{table}_')}"
        if isinstance(cause, psycopg.errors.ForeignKeyViolation):
            return "in use, or names something that does not exist"
        return f"refused: {constraint or getattr(diagnosis, 'message_primary', None) or type(cause).__name__}"


def _place(url: str) -> str:
    """A server's URL without the parts that are nobody's business. Raises SettingsError, without showing the URL."""
    try:
        known = conninfo_to_dict(url)
        host, port, name = (str(known.get(part) or default) for part, default in (("host", ""), ("port", "5432"), ("dbname", "")))
    except psycopg.Error:
        host, port, name = "", "", ""
    # A password with an unescaped / or @ splits the URL elsewhere and would show up as one of the other parts.
    if not port.replace(",", "").isdecimal() or "@" in host + name:
        raise SettingsError(["the database URL is malformed; it should read postgresql://user:password@host:port/name, special characters as %XX"])
    return f"postgresql://{host}:{port}/{name}"


def engine_for(url: str, timeout_s: float) -> Engine:
    """The engine of a database URL. Raises SettingsError for a URL of neither kind; it never shows the URL, which may hold a password."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest.strip("/"):
        return SqliteEngine(Path("/" + rest.lstrip("/")), timeout_s)
    if scheme in ("postgresql", "postgres") and rest:
        return PostgresEngine(f"postgresql://{rest}", timeout_s)
    raise SettingsError(["the database URL is neither sqlite:///absolute/path nor postgresql://user:password@host/name"])
