"""Keys that users present, and the sealing of secrets that we present upstream. A leaf; `load_secrets` reads the key files.

`master.key` holds a line `version:base64` for each master key, the newest last; `pepper.key` one line of base64.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECK = 32, 6
_FORM = re.compile(rf"gw_[a-z]+_[0-9A-Za-z]{{{_RANDOM + _CHECK}}}")
_KEY_BYTES, _NONCE_BYTES, _VERSION_BYTES = 32, 12, 4


class SecretsError(Exception):
    """A key file or a sealed secret cannot be used. One line; it shows no secret."""


def mint_key(kind: str = "user") -> str:
    """A new API key: `gw_`, its kind, 32 random characters and 6 that check them. `kind` is lower-case letters."""
    if not re.fullmatch(r"[a-z]+", kind):
        raise ValueError("the kind of a key is lower-case letters")
    body = f"gw_{kind}_" + "".join(secrets.choice(BASE62) for _ in range(_RANDOM))
    return body + _check(body)


def looks_like_key(text: str) -> bool:
    """Whether `text` has the form and the check characters of a key: tells a typo or a leak without a look-up."""
    return bool(_FORM.fullmatch(text)) and text[-_CHECK:] == _check(text[:-_CHECK])


def key_prefix(key: str) -> str:
    """What is shown of a key, together with its suffix: its kind, which all keys share, and 4 of the random characters."""
    return key[: key.rindex("_") + 5]


def key_suffix(key: str) -> str:
    return key[-4:]


def _check(body: str) -> str:
    number, characters = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(BASE62))
        characters = BASE62[digit] + characters
    return characters


class KeyHasher:
    """What is stored of a user's key. A fast hash is right: keys are random, and the pepper is not in the database."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper

    def hash(self, key: str) -> str:
        """Hexadecimal HMAC-SHA256; any text has one."""
        return hmac.new(self._pepper, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    @property
    def mark(self) -> str:
        """Tells this pepper from another without telling it: the hash of what is no key."""
        return self.hash("the pepper of this database")


class Vault:
    """Seals secrets with AES-256-GCM. A sealed secret opens only at its own place, "table:id:column"."""

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}
        self._current = current
        if current not in self._ciphers:
            raise SecretsError(f"there is no master key of version {current}")

    def seal(self, plain: str, place: str) -> bytes:
        """The key's version, a random nonce and the sealed text."""
        return self.seal_bytes(plain.encode(), place)

    def seal_bytes(self, plain: bytes, place: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, plain, _bound(place, self._current))
        return self._current.to_bytes(_VERSION_BYTES, "big") + nonce + sealed

    def open(self, sealed: bytes, place: str) -> str:
        """Raises SecretsError for another place, another master key, or a changed byte."""
        try:
            return self.open_bytes(sealed, place).decode()
        except ValueError as error:
            raise SecretsError(f"the secret of {place} is not text") from error

    def open_bytes(self, sealed: bytes, place: str) -> bytes:
        """Raises SecretsError, as `open` does."""
        version = int.from_bytes(sealed[:_VERSION_BYTES], "big")
        cipher = self._ciphers.get(version)
        if cipher is None:
            raise SecretsError(f"the secret of {place} was sealed with master key {version}, which is not in master.key")
        nonce, text = sealed[_VERSION_BYTES : _VERSION_BYTES + _NONCE_BYTES], sealed[_VERSION_BYTES + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, text, _bound(place, version))
        except (InvalidTag, ValueError) as error:
            raise SecretsError(f"the secret of {place} does not open: another master key sealed it, or it was changed or moved") from error


def _bound(place: str, version: int) -> bytes:
    return f"{place}:{version}".encode()


@dataclass(frozen=True, slots=True)
class Secrets:
    """`created`: the files that `load_secrets` had to make, for a line that says to back them up."""

    hasher: KeyHasher
    vault: Vault
    created: tuple[Path, ...]


def load_secrets(directory: Path, env_master: str | None, env_pepper: str | None, create: bool) -> Secrets:
    """The master keys and the pepper, from the environment's values or the files in `directory`; made where `create` allows it.

    Raises SecretsError for what is missing, malformed, or readable by others than the owner.
    """
    created: list[Path] = []
    master = env_master or _stored(directory / "master.key", f"1:{_fresh()}", create, created)
    pepper = env_pepper or _stored(directory / "pepper.key", _fresh(), create, created)
    keys = _master_keys(master, "GATEWAY_MASTER_KEY" if env_master else str(directory / "master.key"))
    hasher = KeyHasher(_decoded(pepper.strip(), "GATEWAY_PEPPER" if env_pepper else str(directory / "pepper.key")))
    return Secrets(hasher, Vault(keys, next(reversed(keys))), tuple(created))


def _fresh() -> str:
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def _master_keys(text: str, source: str) -> dict[int, bytes]:
    """Versions and keys in the order of `text`, whose lines may be split by commas too; a bare key is version 1."""
    keys: dict[int, bytes] = {}
    for line in text.replace(",", "\n").split():
        version, _, key = line.rpartition(":")
        if not (version or "1").isdecimal():
            raise SecretsError(f"{source}: a line reads version:base64, with a whole number as version")
        keys[int(version or "1")] = _decoded(key, source)
    if not keys:
        raise SecretsError(f"{source}: it is empty")
    return keys


def _decoded(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise SecretsError(f"{source}: a key is {_KEY_BYTES} bytes in base64")
    return key


def _stored(path: Path, fresh: str, create: bool, created: list[Path]) -> str:
    try:
        if create and not path.exists() and _written(path, fresh + "\n"):
            created.append(path)
        status = path.stat()
        if status.st_mode & 0o077:
            raise SecretsError(f"{path} can be read by others than its owner: chmod 600 {path}")
        return path.read_text("ascii")
    except FileNotFoundError as error:
        raise SecretsError(f"{path} is missing: restore it from your backup, or let `gateway migrate` create it for a new installation") from error
    except (OSError, UnicodeError) as error:
        raise SecretsError(f"{path} cannot be used: {getattr(error, 'strerror', None) or 'it is not text'}") from error


def _written(path: Path, text: str) -> bool:
    """Create the file with its whole content at once, 0600 in a 0700 directory. False if another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
            _sync(path.parent)
            return True
        return False
    finally:
        draft.unlink()


def _sync(directory: Path) -> None:
    """A key that seals committed secrets must not vanish with a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
