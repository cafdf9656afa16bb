"""The files of chatgpt-to-api: access_tokens.json, proxies.txt and api_keys.txt, so that a volume of its can be mounted; accounts_file.py has accounts.txt.

The database holds what counts; access_tokens.json is read when it changed, and written as a mirror. No error repeats what stands in a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from gateway.backend import Proxy, Secret
from gateway.errors import BadRequest

log = logging.getLogger(__name__)
TOKENS, PROXIES, API_KEYS = "access_tokens.json", "proxies.txt", "api_keys.txt"
MAX_BYTES = 5_000_000
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An entry of access_tokens.json; `puid` may be empty."""

    token: Secret
    puid: Secret = field(default_factory=lambda: Secret(""))


def read_if_there(path: Path) -> bytes | None:
    """A file's content; None where it does not exist. Raises BadRequest in one line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadRequest(f"{path.name} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise BadRequest(f"{path.name} has more than {MAX_BYTES // 1_000_000} MB")
    return raw


def read_proxies(raw: bytes) -> tuple[Proxy, ...]:
    """A URL a line, or HOST:PORT or HOST:PORT:USER:PASS, which are socks5; a line without a colon is none. Raises BadRequest."""
    proxies = []
    for number, line in enumerate(map(str.strip, _text(raw, PROXIES).splitlines()), 1):
        if ":" not in line or line.startswith("#"):
            continue
        try:
            proxies.append(Proxy.parse(line if "://" in line else _socks(line)))
        except BadRequest as error:
            raise BadRequest(f"{PROXIES}, line {number}: {error}") from error
    return tuple(proxies)


def _socks(line: str) -> str:
    host, port, *identity = line.split(":", 3)
    if len(identity) == 1:
        raise BadRequest("it must be HOST:PORT or HOST:PORT:USER:PASS")
    user = ":".join(quote(part, safe="") for part in identity)
    return f"socks5://{user}{'@' if user else ''}{host}:{port}"


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not text in UTF-8") from None


def write_tokens(directory: Path, tokens: Sequence[AccessToken]) -> None:
    """Put a whole new access_tokens.json in the old one's place. Raises OSError."""
    document = [{"token": each.token.reveal(), "puid": each.puid.reveal()} for each in tokens]
    write_whole(directory, TOKENS, json.dumps(document, indent=1).encode())


def write_whole(directory: Path, name: str, raw: bytes) -> None:
    """Put a new file in the old one's place, for its owner's eyes only: whatever happens, one of the two is there. Raises OSError."""
    place = directory / f".{name}.{secrets.token_hex(8)}"
    file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(raw)
            opened.flush()
            os.fsync(opened.fileno())
        place.replace(directory / name)
    except BaseException:
        with contextlib.suppress(OSError):
            place.unlink()
        raise
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class ApiKeysFile:
    """api_keys.txt as it is now: read again when it changed. Its keys are kept as hashes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / API_KEYS
        self._guard = threading.Lock()
        self._read: tuple[Stamp, frozenset[bytes] | None] = (_ABSENT, frozenset())

    @property
    def in_use(self) -> bool:
        """Whether it names a key, or is there and cannot be read: then nobody's key is right."""
        return self._keys() != frozenset()

    def holds(self, key: str) -> bool:
        return _hashed(key) in (self._keys() or ())

    def _keys(self) -> frozenset[bytes] | None:
        """None where they cannot be read."""
        stamp = stamp_of(self._path)
        if self._read[0] != stamp:
            with self._guard:
                if self._read[0] != stamp:
                    self._read = (stamp, frozenset() if stamp == _ABSENT else self._again())
        return self._read[1]

    def _again(self) -> frozenset[bytes] | None:
        try:
            text = _text(read_if_there(self._path) or b"", API_KEYS)
        except BadRequest as error:
            log.warning("no key of the file is taken: %s", error)
            return None
        return frozenset(_hashed(line.strip()) for line in text.splitlines() if line.strip())


_ABSENT: Stamp = (0, 0, 0)
_OUT_OF_REACH: Stamp = (-1, -1, -1)


def stamp_of(path: Path) -> Stamp:
    """What changes when a file does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return _ABSENT
    except OSError:
        return _OUT_OF_REACH
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
