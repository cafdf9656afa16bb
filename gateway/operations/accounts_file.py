"""The files of chatgpt-to-api's accounts: accounts.txt, authenticated_accounts.txt, and what is remembered of each account without its password.

Lines are handled as bytes: one that cannot be read stays where it is, as it is. No error repeats what stands in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.backend import Secret
from gateway.core.upstream_secrets import fingerprint
from gateway.errors import BadRequest
from gateway.operations.token_files import read_if_there, write_whole
from gateway.secrets import KeyHasher

ACCOUNTS, AUTHENTICATED = "accounts.txt", "authenticated_accounts.txt"
REMEMBERED = ".chatgpt-to-api.accounts"
"""In the data directory: by an account's key, what became of it. Written whole."""
SHOWN = 5
"""How many lines that are none are told by their number."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Account:
    """A line. `waits`: it stands in accounts.txt. The e-mail address is not for logs, and no part of the repr."""

    email: str
    password: Secret
    waits: bool = True

    def __repr__(self) -> str:
        return "<Account>"


@dataclass(frozen=True, slots=True)
class Listed:
    """The accounts of both files, each once: a line of accounts.txt comes first, and counts.

    `moves`: a line goes to authenticated_accounts.txt once its account is signed in. `problems` are for the operator. `whole`: both files were read.
    """

    accounts: tuple[Account, ...]
    moves: bool
    problems: tuple[str, ...]
    whole: bool


class Remembered(msgspec.Struct, frozen=True):
    """What became of an account; times are in Unix milliseconds. It holds neither its address nor its password.

    `mark` tells whether the password has changed. `again_at`: when it is signed in next. `place`: its credential's. `tries`: how often it failed in a row.
    `mirrored`: access_tokens.json was written when it was signed in, so that its time says something.
    """

    mark: str
    again_at: int
    signed_in_at: int | None = None
    place: str = ""
    tries: int = 0
    mirrored: bool = True


def listed(directory: Path) -> Listed:
    """What the files hold now."""
    found: dict[str, Account] = {}
    problems: list[str] = []
    whole = True
    for name in (ACCOUNTS, AUTHENTICATED):
        try:
            raw = read_if_there(directory / name)
        except BadRequest as error:
            problems.append(str(error))
            whole = False
            continue
        wrong = []
        for number, line in _lines(raw or b""):
            account = _account(line, waits=name == ACCOUNTS)
            if account is None:
                wrong.append(number)
            else:
                found.setdefault(account.email.lower(), account)
        if wrong:
            problems.append(_told(name, wrong))
    return Listed(tuple(found.values()), (directory / AUTHENTICATED).is_file(), tuple(problems), whole)


def move(directory: Path, account: Account) -> None:
    """Take an account's line out of accounts.txt, and put it into authenticated_accounts.txt in the place of its older one.

    Whatever happens in between, it stands in one of them at least. Raises BadRequest and OSError.
    """
    waiting = read_if_there(directory / ACCOUNTS) or b""
    if not any(_same(line, account) for _, line in _lines(waiting)):
        return
    authenticated = read_if_there(directory / AUTHENTICATED) or b""
    if not any(_same(line, account) for _, line in _lines(authenticated)):
        others = b"".join(line for line in _whole_lines(authenticated) if not _of(line, account))
        line = f"{account.email}:{account.password.reveal()}\n".encode()
        write_whole(directory, AUTHENTICATED, others + (b"" if not others or others.endswith(b"\n") else b"\n") + line)
    write_whole(directory, ACCOUNTS, b"".join(line for line in _whole_lines(waiting) if not _same(line, account)))


def remembered(directory: Path) -> dict[str, Remembered]:
    """By an account's key. Nothing, where it cannot be read: then accounts are signed in once more."""
    try:
        return msgspec.json.decode(read_if_there(directory / REMEMBERED) or b"{}", type=dict[str, Remembered])
    except (BadRequest, msgspec.MsgspecError, RecursionError):
        return {}


def remember(directory: Path, known: Mapping[str, Remembered]) -> None:
    """Raises OSError."""
    write_whole(directory, REMEMBERED, msgspec.json.encode(dict(known)))


def key_of(hasher: KeyHasher, account: Account) -> str:
    """By which an account is known again."""
    return fingerprint(hasher, f"account {account.email.lower()}")


def mark_of(hasher: KeyHasher, account: Account) -> str:
    """By which a line is known again: another password makes another mark. Nobody without the pepper can try passwords on it."""
    return fingerprint(hasher, f"account {account.email}:{account.password.reveal()}")


def told_of_accounts(directory: Path, hasher: KeyHasher) -> Iterator[str]:
    """What the operator should know at a start, a line each."""
    found, known = listed(directory), remembered(directory)
    yield from found.problems
    records = {account: known.get(key_of(hasher, account)) for account in found.accounts}
    waiting = sum(
        account.waits and (record is None or record.mark != mark_of(hasher, account) or not record.signed_in_at) for account, record in records.items()
    )
    failed = sum(record is not None and record.tries > 0 for record in records.values())
    if waiting or failed:
        yield f"{ACCOUNTS}: {waiting} accounts wait to be signed in" + (f"; the last try of {failed} accounts failed" if failed else "")


def _told(name: str, wrong: list[int]) -> str:
    shown = ", ".join(map(str, wrong[:SHOWN])) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    return f"{name}, line {shown}: it must be email:password, in UTF-8; the other lines count"


def _lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Those that say something, each with its number."""
    for number, line in enumerate(_whole_lines(raw), 1):
        if line.removeprefix(_BOM).strip() and not line.removeprefix(_BOM).lstrip().startswith(b"#"):
            yield number, line


def _whole_lines(raw: bytes) -> list[bytes]:
    """With their line breaks, which are line feeds and nothing else: a password may hold what else a text editor takes for one."""
    lines = [line + b"\n" for line in raw.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _account(line: bytes, *, waits: bool) -> Account | None:
    """Divided at the first colon: a password may hold others. None for what is no account."""
    try:
        text = line.removeprefix(_BOM).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return None
    email, _, password = text.partition(":")
    email = email.strip()
    if not email or not password or not email.isprintable() or "\0" in password:
        return None
    return Account(email, Secret(password), waits)


def _same(line: bytes, account: Account) -> bool:
    found = _account(line, waits=True)
    return found is not None and (found.email, found.password.reveal()) == (account.email, account.password.reveal())


def _of(line: bytes, account: Account) -> bool:
    """Whether it is the same account's, whatever its password."""
    found = _account(line, waits=False)
    return found is not None and found.email.lower() == account.email.lower()
