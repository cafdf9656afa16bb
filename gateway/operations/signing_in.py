"""Signs in with the accounts of chatgpt-to-api, so that the pool's tokens do not run out: those of accounts.txt, and OPENAI_EMAIL's for the cookie `_puid`.

Called by housekeeping, of one worker of a host, and by PATCH /admin/openai; a lock of the host lets one sign-in happen at a time, with a pause behind it.
Each has a thread (or greenlet) of its own. Passwords are read when they are needed, and kept nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.backend import Body, Call, Cancellation, Proxy, Reply, Secret, Target
from gateway.concurrency import spawn
from gateway.core.caller import CallersUpstream
from gateway.core.upstream_secrets import checked
from gateway.dialects.document import Fields
from gateway.errors import BadRequest, GatewayError, UpstreamProtocolError, UpstreamRefused
from gateway.operations import accounts_file
from gateway.operations.account_tokens import APART_MS, WEEK_MS, Session, again_at, keep_token, next_proxy, opened, opened_proxy, own_credential, owners
from gateway.operations.accounts_file import ACCOUNTS, AUTHENTICATED, Account, Listed, Remembered
from gateway.operations.chatgpt_to_api import POOL, mirror_pool, serve_pool_once, set_puid
from gateway.operations.import_formats import as_label
from gateway.operations.token_files import TOKENS, Stamp, stamp_of
from gateway.secrets import Secrets, SecretsError
from gateway.settings import Settings
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.pools import Credential

log = logging.getLogger(__name__)
LOOK_EVERY_S = 5.0
ASK_S = 60.0
WAIT_MS = (300_000, 21_600_000)
"""After the first failure, and at most; it doubles from one to the next."""
GIVEN_WAITS_S = 120.0
"""How long an account that was given waits for its turn."""
TURN_S = 0.1
PUID_ACCOUNT = "OPENAI_EMAIL"
"""The key of what is remembered of the settings' account."""
GIVEN = "PATCH /admin/openai"
COOKIE = "_puid="
TOLD_CHARACTERS = 200
LIMITED = 429


class SigningIn:
    """`upstream` is the service, behind the proxy of accounts that have none; `learn` is told what must not be shown in a log."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        secrets: Secrets,
        upstream: CallersUpstream,
        learn: Callable[..., None] = lambda *secrets: None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings, self._database, self._secrets, self._upstream = settings, database, secrets, upstream
        self._learn, self._clock, self._wall_ms = learn, clock, wall_ms
        self._directory, self._lock_path = settings.data_dir.resolve(), settings.run_path / "sign-in.lock"
        self._busy = False
        self._look_at = 0.0
        self._seen: tuple[Stamp, ...] = ()
        self._next_at = 0
        self._told: tuple[str, ...] = ()
        self._unsaved: dict[str, Remembered] | None = None
        self._given: Account | None = None

    def tick(self) -> None:
        """Reads no file that did not change, and waits for no service."""
        if self._busy or self._clock() < self._look_at:
            return
        self._look_at = self._clock() + LOOK_EVERY_S
        if self._stamps() == self._seen and self._wall_ms() < self._next_at:
            return
        self._busy = True
        spawn(self._run, "sign-in")

    def give(self, email: Secret, password: Secret) -> None:
        """Have an account signed in once, now and in the background, for the pool's cookie. One that was given before and still waits is forgotten."""
        waits = self._given is not None
        self._given = Account(email.reveal().strip(), password)
        if not waits:
            spawn(self._run_given, "sign-in")

    def _run(self) -> None:
        try:
            with self._turn() as mine:
                if mine and self.step():
                    time.sleep(self._settings.sign_in_pause_s)
        except GatewayError as error:
            log.debug("sign-ins wait: %s", error)
        except Exception as error:  # a thread's outermost edge
            log.error("sign-ins failed: %s", type(error).__name__, exc_info=error)
        finally:
            self._busy = False

    def _run_given(self) -> None:
        until = self._clock() + GIVEN_WAITS_S
        try:
            while self._given is not None:
                with self._turn() as mine:
                    if mine:
                        account, self._given = self._given, None
                        self._sign_in_given(account)
                        time.sleep(self._settings.sign_in_pause_s)
                    elif self._clock() >= until:
                        self._given = None
                        log.warning("%s: others sign in just now; the account is forgotten: give it again", GIVEN)
                time.sleep(TURN_S)
        except Exception as error:  # a thread's outermost edge
            self._given = None
            log.error("a sign-in failed: %s", type(error).__name__, exc_info=error)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether nobody else of this host signs in, nor will until the end."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        try:
            yield mine
        finally:
            os.close(file)

    def step(self) -> bool:
        """Sign in with the first account that is due. Whether there was one. Raises StoreUnavailable before anybody was asked."""
        stamps, listed = self._stamps(), accounts_file.listed(self._directory)
        self._tell(listed.problems)
        stored = self._database.read(pools.list_credentials)
        now = self._wall_ms()
        known = self._known(listed, stored, now)
        due = {account: self._due_at(account, known) for account in listed.accounts}
        account = next((account for account, at in due.items() if at <= now), None)
        if account is not None:
            self._sign_in(account, known, stored, moves=listed.moves)
            return True
        puid = self._puid_account() if any(item.pool_name == POOL for item in stored) else None
        puid_at = [] if puid is None else [self._puid_due_at(puid, known)]
        if puid is not None and puid_at[0] <= now:
            self._refresh_puid(puid, known)
            return True
        if listed.moves:  # what a worker left undone, or the file came later
            self._move([account for account in listed.accounts if account.waits and not known[self._key(account)].tries])
        old_at = (self._written_at() or now) + WEEK_MS
        self._seen, self._next_at = stamps, min((*due.values(), *puid_at, old_at if old_at > now else now + WEEK_MS))
        return False

    def _tell(self, problems: tuple[str, ...]) -> None:
        """Once, while they stay."""
        for problem in problems if problems != self._told else ():
            log.warning("%s", problem)
        self._told = problems

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(stamp_of(self._directory / name) for name in (ACCOUNTS, AUTHENTICATED, TOKENS))

    # what is remembered, and when who is due

    def _known(self, listed: Listed, stored: Sequence[Credential], now: int) -> dict[str, Remembered]:
        """Of the accounts that are listed. Those of an older program's authenticated_accounts.txt signed in when it wrote their tokens."""
        before = self._recalled()
        keys = {self._key(account): account for account in listed.accounts}
        known = {key: record for key, record in before.items() if key in keys or key == PUID_ACCOUNT or not listed.whole}
        written = self._written_at()
        strange = {key: account for key, account in keys.items() if key not in known and not account.waits}
        if strange and written is not None:
            known |= self._adopted(strange, stored, written)
        if written is not None and written + WEEK_MS <= now:  # the first of them that signs in writes it anew: the others are not forgotten then
            known = {key: record if key == PUID_ACCOUNT else _aged(record, now) for key, record in known.items()}
        if known != before:
            self._remember(known)
        return known

    def _adopted(self, strange: Mapping[str, Account], stored: Sequence[Credential], written: int) -> dict[str, Remembered]:
        """Nobody, where the pool is empty: then they sign in now."""
        found, owned = dict[str, Remembered](), owners(self._secrets.vault, stored)
        for key, account in strange.items() if owned else ():
            own = own_credential(account, "", stored, owned)
            token, place = ("", "") if own is None else (opened(self._secrets.vault, own), own.place)
            found[key] = Remembered(self._mark(account), again_at(token, written), written, place)
        return found

    def _recalled(self) -> dict[str, Remembered]:
        return accounts_file.remembered(self._directory) if self._unsaved is None else dict(self._unsaved)

    def _remember(self, known: dict[str, Remembered]) -> None:
        try:
            accounts_file.remember(self._directory, known)
            self._unsaved = None
        except OSError as error:
            self._unsaved = dict(known)
            log.warning("%s cannot be written (%s): after a restart, accounts are signed in once more", accounts_file.REMEMBERED, error.strerror)

    def _written_at(self) -> int | None:
        """When access_tokens.json was, in Unix milliseconds; None where there is none."""
        changed_ns, size, _ = stamp_of(self._directory / TOKENS)
        return changed_ns // 1_000_000 if size > 0 else None

    def _key(self, account: Account) -> str:
        return accounts_file.key_of(self._secrets.hasher, account)

    def _mark(self, account: Account) -> str:
        return accounts_file.mark_of(self._secrets.hasher, account)

    def _due_at(self, account: Account, known: Mapping[str, Remembered]) -> int:
        record = known.get(self._key(account))
        return 0 if record is None or record.mark != self._mark(account) else record.again_at

    def _puid_account(self) -> Account | None:
        email, password = self._settings.openai_email, self._settings.openai_password
        return None if email is None or password is None else Account(email.reveal(), password)

    def _puid_due_at(self, account: Account, known: Mapping[str, Remembered]) -> int:
        record = known.get(PUID_ACCOUNT)
        return 0 if record is None or record.mark != self._mark(account) else record.again_at

    # signing in

    def _sign_in(self, account: Account, known: dict[str, Remembered], stored: Sequence[Credential], *, moves: bool) -> None:
        key, now = self._key(account), self._wall_ms()
        record = known.get(key)
        others = {each.place for other, each in known.items() if other != key}
        owned = {place: whose for place, whose in owners(self._secrets.vault, stored).items() if place not in others}
        own = own_credential(account, "" if record is None else record.place, stored, owned)
        self._look_at = 0.0
        try:
            number = sum(item.pool_name == POOL for item in stored)
            proxy = next_proxy(self._directory, number) if own is None else opened_proxy(self._secrets.vault, own)
            session = self._asked(account, proxy)
            kept = keep_token(self._database, self._secrets, account, own, session, proxy, now)
            serve_pool_once(self._database, self._secrets, self._settings, now)
        except Exception as error:  # whatever went wrong: the others go on, and the service is not asked for this one at once
            self._remember(known | {key: self._failed(account, ACCOUNTS, record, error)})
            return
        done = Remembered(self._mark(account), again_at(session.token.reveal(), now), now, kept.place, mirrored=False)
        left = {other: each for other, each in known.items() if own is not None or other != PUID_ACCOUNT or each.tries}  # its cookie is for new tokens, too
        self._remember(left | {key: done})
        log.info("%s: %s is signed in", ACCOUNTS, _name(account), extra={"fields": {"credential": kept.label}})
        if self._mirrored():
            self._remember(left | {key: msgspec.structs.replace(done, mirrored=True)})
        if moves and account.waits:
            self._move([account])

    def _mirrored(self) -> bool:
        """Whether access_tokens.json is written; the pool is what counts."""
        try:
            return mirror_pool(self._database, self._secrets, self._settings, self._wall_ms())
        except (GatewayError, SecretsError) as error:
            log.warning("%s is not written: %s", TOKENS, error)
            return False

    def _move(self, accounts: Sequence[Account]) -> None:
        try:
            for account in accounts:
                accounts_file.move(self._directory, account)
        except (OSError, BadRequest) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("a line of %s cannot be moved to %s (%s): it stays, and is remembered as done", ACCOUNTS, AUTHENTICATED, why)

    def _refresh_puid(self, account: Account, known: dict[str, Remembered]) -> None:
        self._look_at = 0.0
        now = self._wall_ms()
        try:
            self._take_puid(account, PUID_ACCOUNT)
            record = Remembered(self._mark(account), now + WEEK_MS, now)
        except Exception as error:  # as above
            record = self._failed(account, PUID_ACCOUNT, known.get(PUID_ACCOUNT), error)
        self._remember(known | {PUID_ACCOUNT: record})

    def _sign_in_given(self, account: Account) -> None:
        try:
            self._take_puid(account, GIVEN)
        except Exception as error:  # as above
            log.warning("%s: %s is not signed in, and is forgotten: %s", GIVEN, _name(account), _problem(account, error))

    def _take_puid(self, account: Account, whose: str) -> None:
        session = self._asked(account, next_proxy(self._directory, 0))
        if session.puid is None:
            log.warning("%s: the service sets no cookie _puid for it; the pool's tokens keep theirs", whose)
            return
        set_puid(self._database, self._secrets, session.puid)
        self._mirrored()
        log.info("%s: the pool's tokens have a new cookie _puid", whose)

    def _asked(self, account: Account, proxy: Proxy | None) -> Session:
        """Without a proxy, through the environment's. Raises UpstreamError, and BadRequest for a token that cannot be one."""
        password, place = account.password.reveal(), self._upstream
        self._learn(password)
        login = {"username": account.email, "password": password}
        call = Call("chatgpt_web", "POST", "/login", "", (), Body.of(b""), Fields(), lambda: login, False, self._clock() + ASK_S, Cancellation())
        reply = place.backend.send(call, Target(place.base_url, "", Secret(""), place.deadlines, proxy or place.proxy))
        try:
            session = _parsed(b"".join(reply.chunks))
        finally:
            reply.close()
        token = session.get("accessToken") if isinstance(session, dict) else None
        if not isinstance(token, str):
            raise UpstreamProtocolError("The session that it was given holds no access token.")
        self._learn(checked(Secret(token)))
        return Session(Secret(checked(Secret(token))), self._cookie(reply))

    def _cookie(self, reply: Reply) -> Secret | None:
        value = next((value for name, value in reply.headers if name == "set-cookie" and value.startswith(COOKIE)), "").removeprefix(COOKIE)
        try:
            cookie = checked(Secret(value))
        except BadRequest:
            return None
        self._learn(cookie)
        return Secret(cookie)

    def _failed(self, account: Account, where: str, record: Remembered | None, error: Exception) -> Remembered:
        """What is to be remembered of it. A service that has had enough of us is left alone with the others, too."""
        mark = self._mark(account)
        tries = record.tries if record is not None and record.mark == mark else 0
        wait_ms = min(WAIT_MS[0] << min(tries, 10), WAIT_MS[1])
        if isinstance(error, UpstreamRefused) and error.upstream_status == LIMITED:
            self._look_at = self._clock() + wait_ms / 1000
        log.warning("%s: %s is not signed in, again in %d min: %s", where, _name(account), wait_ms // 60_000, _problem(account, error))
        before = Remembered(mark, 0) if record is None else record
        return msgspec.structs.replace(before, mark=mark, again_at=self._wall_ms() + wait_ms, tries=tries + 1)


def _aged(record: Remembered, now: int) -> Remembered:
    """Due, since access_tokens.json is old; one that is due after a failure, or whose token could not be written there, is as it was."""
    if record.tries or record.signed_in_at is None or not record.mirrored:
        return record
    return msgspec.structs.replace(record, again_at=min(record.again_at, max(now, record.signed_in_at + APART_MS)))


def _name(account: Account) -> str:
    """For a log: the label that it has, or would have."""
    return as_label(account.email) or "an account"


def _problem(account: Account, error: Exception) -> str:
    """In one line, and in the service's own words where it has some, unless they repeat what it was sent."""
    if isinstance(error, UpstreamRefused):
        said = _parsed(error.body)
        text = " ".join(str(said.get("errorMessage", "")).split()) if isinstance(said, dict) else ""
        if text and account.password.reveal() not in text and account.email not in text:
            return text[:TOLD_CHARACTERS]
    if not isinstance(error, (GatewayError, SecretsError)):
        log.error("a sign-in failed", exc_info=error)
        return type(error).__name__
    return str(error)


def _parsed(body: bytes) -> Any:
    """The JSON value that a body is; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
