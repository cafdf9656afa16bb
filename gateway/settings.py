"""The settings: one field, one environment variable and one line in `.env` each. The only module that reads the environment.

Precedence: the environment, then `.env.local`, then `.env`, both of the working directory; an empty value means unset.
"""

from __future__ import annotations

import dataclasses
import difflib
import hmac
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values

from gateway.backend import Deadlines, Network, Proxy, Secret
from gateway.errors import BadRequest, SettingsError

PUBLIC_PASSWORD = b"TotallySecurePassword"
"""What ADMIN_PASSWORD was in chatgpt-to-api where nobody set it."""


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 86_400:
        raise ValueError("must be a number of seconds from 0.01 to 86400")
    return value


def _seconds_or_never(text: str) -> float:
    try:
        return math.inf if re.fullmatch(r"0+(\.0+)?", text) else _seconds(text)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for never") from None


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return text.lower()

    return parse


_BASE_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[^\s?#]*)?", re.ASCII)


def _base_url(text: str) -> str:
    if not _BASE_URL.fullmatch(text) or urlsplit(text).port == 0:
        raise ValueError("must be an http:// or https:// URL without user name, query or fragment")
    return text.rstrip("/")


def _yes_or_no(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1, true or yes; or 0, false or no")


def _database_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return text


def _redis_url(text: str) -> Secret:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return Secret(text)


def _host(text: str) -> str:
    if any(character in text for character in "/ \t@") or not text.strip():
        raise ValueError("must be a host name or an address")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8,192.168.1.0/24, each without bits behind its length") from None


def _proxies(text: str) -> tuple[Network, ...]:
    return () if text.lower() == "none" else _networks(text)


_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:*\[\]_-]+", re.ASCII)
ORIGINS = "https://chat.openai.com,https://chatgpt.com,moz-extension://*,chrome-extension://*"


def _origins(text: str) -> tuple[str, ...]:
    origins = () if text.lower() == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("must be origins such as https://chatgpt.com,moz-extension://*, separated by commas, without a path; * for any, or none")
    return origins


def _token(text: str) -> Secret:
    if len(text) < 16:
        raise ValueError("must have at least 16 characters")
    return Secret(text)


def _proxy(text: str) -> Proxy:
    try:
        return Proxy.parse(text)
    except BadRequest:  # its words are for a body; none of them repeats the URL, and nor does this
        raise ValueError("must be http://, socks5:// or socks5h://, as scheme://[user:password@]host:port") from None


def _setting(name: str, default: Any, parse: Callable[[str], Any], *, shown: bool = True, instead: tuple[str, ...] = ()) -> Any:
    """`instead`: names of older programs that count, in this order, where `name` is not set in the same place."""
    return dataclasses.field(default=default, repr=shown, metadata={"name": name, "parse": parse, "instead": instead})


@dataclass(frozen=True, slots=True)
class Settings:
    """Frozen; made by `load`. Sizes are in bytes, times in seconds."""

    host: str = _setting("GATEWAY_HOST", "127.0.0.1", _host, instead=("SERVER_HOST",))
    port: int = _setting("GATEWAY_PORT", 8080, _integer(1, 65535), instead=("GO_CHATGPT_API_PORT", "SERVER_PORT", "PORT"))
    workers: int = _setting("WEB_CONCURRENCY", 1, _integer(1, 64))
    data_dir: Path = _setting("GATEWAY_DATA_DIR", Path("data"), Path)
    secrets_dir: Path | None = _setting("GATEWAY_SECRETS_DIR", None, Path)
    run_dir: Path | None = _setting("GATEWAY_RUN_DIR", None, Path)
    database_url: str | None = _setting("DATABASE_URL", None, _database_url, shown=False)  # it may hold a password
    redis_url: Secret | None = _setting("REDIS_URL", None, _redis_url)
    master_key: Secret | None = _setting("GATEWAY_MASTER_KEY", None, _token)
    pepper: Secret | None = _setting("GATEWAY_PEPPER", None, _token)
    openai_api_key: Secret | None = _setting("OPENAI_API_KEY", None, Secret)
    openai_base_url: str = _setting("OPENAI_BASE_URL", "https://api.openai.com/v1", _base_url)
    policy: str = _setting("GATEWAY_POLICY", "weighted", str)
    unpriced: str = _setting("GATEWAY_UNPRICED", "free", _one_of("free", "refuse"))
    hold_output: int = _setting("GATEWAY_HOLD_OUTPUT", 4096, _integer(1, 10_000_000))
    without_database: str = _setting("GATEWAY_WITHOUT_DATABASE", "refuse", _one_of("refuse", "serve"))
    json_limit: int = _setting("GATEWAY_JSON_LIMIT", 20_000_000, _integer(1_000, 100_000_000))
    upload_limit: int = _setting("GATEWAY_UPLOAD_LIMIT", 100_000_000, _integer(1_000, 10_000_000_000))
    body_s: float = _setting("GATEWAY_BODY_S", 60.0, _seconds)
    send_s: float = _setting("GATEWAY_SEND_S", 60.0, _seconds)
    connect_s: float = _setting("GATEWAY_CONNECT_S", 2.0, _seconds)
    first_byte_s: float = _setting("GATEWAY_FIRST_BYTE_S", 300.0, _seconds)
    idle_s: float = _setting("GATEWAY_IDLE_S", 120.0, _seconds)
    total_s: float = _setting("GATEWAY_TOTAL_S", 900.0, _seconds)
    heartbeat_s: float = _setting("GATEWAY_HEARTBEAT_S", 15.0, _seconds_or_never)
    allow_networks: tuple[Network, ...] | None = _setting("GATEWAY_ALLOW_NETWORKS", None, _networks)
    trusted_proxies: tuple[Network, ...] = _setting("GATEWAY_TRUSTED_PROXIES", _networks("127.0.0.1,::1"), _proxies)
    drain_s: int = _setting("GATEWAY_DRAIN_S", 30, _integer(1, 3600))
    log_level: str = _setting("GATEWAY_LOG_LEVEL", "info", _one_of("debug", "info", "warning", "error"))
    metrics_token: Secret | None = _setting("GATEWAY_METRICS_TOKEN", None, _token)
    caller_tokens: str = _setting("GATEWAY_CALLER_TOKENS", "on", _one_of("on", "off"))
    chatgpt_base_url: str = _setting("CHATGPT_BASE_URL", "https://chat.openai.com", _base_url)
    platform_base_url: str = _setting("PLATFORM_BASE_URL", "https://api.openai.com", _base_url)
    auth0_base_url: str = _setting("AUTH0_BASE_URL", "https://auth0.openai.com", _base_url)
    conversation_url: str | None = _setting("API_REVERSE_PROXY", None, _base_url)
    callers_proxy: Proxy | None = _setting("GO_CHATGPT_API_PROXY", None, _proxy, instead=("PROXY",))
    imitate_access_token: Secret | None = _setting("IMITATE_ACCESS_TOKEN", None, Secret)
    continue_signal: str | None = _setting("CONTINUE_SIGNAL", None, str)
    admin_password: Secret | None = _setting("ADMIN_PASSWORD", None, Secret)
    access_tokens: Secret | None = _setting("ACCESS_TOKENS", None, Secret)
    puid: Secret | None = _setting("PUID", None, Secret)
    official_api_key: Secret | None = _setting("OFFICIAL_API_KEY", None, Secret)
    openai_email: Secret | None = _setting("OPENAI_EMAIL", None, Secret)
    openai_password: Secret | None = _setting("OPENAI_PASSWORD", None, Secret)
    sign_in_pause_s: float = _setting("GATEWAY_SIGN_IN_PAUSE_S", 10.0, _seconds)
    http_proxy: Secret | None = _setting("http_proxy", None, Secret)  # looked at where it is used: most who have it set have it for other programs
    history: bool = _setting("ENABLE_HISTORY", True, _yes_or_no)
    chatgpt_to_api_open: bool = _setting("CHATGPT_TO_API_OPEN", False, _yes_or_no)
    admin_key: Secret | None = _setting("GATEWAY_ADMIN_KEY", None, Secret)
    agent_list_tokens: bool = _setting("AGENT_LIST_TOKENS", True, _yes_or_no)
    agent_open: bool = _setting("AGENT_OPEN", False, _yes_or_no)
    agent_origins: tuple[str, ...] = _setting("AGENT_ORIGINS", _origins(ORIGINS), _origins)

    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
        """Read the environment (default: the process's) and the `.env` files of `directory` (default: the working one).

        Raises SettingsError with every problem at once.
        """
        environment = os.environ if environment is None else environment
        directory = Path.cwd() if directory is None else directory
        problems: list[str] = []
        values: dict[str, str] = {}
        for name in (".env", ".env.local"):
            found = _file(directory / name, problems)
            problems += [f"{name}: {_unknown(key)}" for key in found if key.startswith("GATEWAY_") and key not in NAMES]
            values |= _under_their_names(found)
        warnings = [_unknown(key) for key in environment if key.startswith("GATEWAY_") and key not in NAMES and key not in CLIENT_NAMES]
        warnings += [text for key in (*environment, *values) if (text := _lookalike(key))]
        given = {key: value for key, value in environment.items() if value.strip() and not _is_service_link(key, value, warnings)}
        values |= _under_their_names(given)
        parsed = _parse(values, problems)
        settings = cls(**parsed, warnings=tuple(warnings))
        problems += _contradictions(settings)
        if problems:
            raise SettingsError(problems)
        return settings

    @staticmethod
    def environment(**instead: str) -> dict[str, str]:
        """The process's, with these in the place of its own: for `load`, and for the program that takes this one's place."""
        return {**os.environ, **instead}

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(self.connect_s, self.first_byte_s, self.idle_s, self.total_s)

    @property
    def database(self) -> str:
        """The database's URL: SQLite in the data directory where none is set."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'gateway.db'}"

    @property
    def secrets_path(self) -> Path:
        """Beside the data directory, never inside it: who copies the data has not copied the keys."""
        data = self.data_dir.resolve()
        return (self.secrets_dir or data.parent / (data.name + "-secrets")).resolve()

    @property
    def journal_path(self) -> Path:
        """Where bookings wait that the database did not take. It must outlast a restart of the host, as the run directory need not."""
        return self.data_dir.resolve() / "journal"

    @property
    def run_path(self) -> Path:
        return (self.run_dir or self.data_dir / "run").resolve()


_FIELDS = MappingProxyType({field.metadata["name"]: field for field in dataclasses.fields(Settings) if "name" in field.metadata})
NAMES: frozenset[str] = frozenset(_FIELDS)
CLIENT_NAMES = frozenset({"GATEWAY_KEY", "GATEWAY_AGENT_TOKEN", "GATEWAY_AGENT_UPSTREAM_KEY"})
"""What a client's shell may hold: the key that the printed curl line uses, and what the reference agent presents."""


def _unknown(name: str) -> str:
    # Without the prefix that all have in common, or every name would be close to every other.
    known = {other.removeprefix("GATEWAY_"): other for other in NAMES}
    close = difflib.get_close_matches(name.removeprefix("GATEWAY_"), known, 1)
    return f"unknown setting {name}" + (f"; did you mean {known[close[0]]}?" if close else "")


def _lookalike(name: str) -> str:
    """What to say of a name without our prefix that is a letter away from a setting's."""
    if name in NAMES or name.startswith("GATEWAY_"):
        return ""
    near = [known for known in NAMES if abs(len(known) - len(name)) <= 1]
    close = difflib.get_close_matches(name, near, 1, 0.9)
    return f"{name} is no setting; did you mean {close[0]}?" if close else ""


def _file(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        return {key: value for key, value in dotenv_values(path, interpolate=False).items() if value and value.strip()}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}")
        return {}


def _is_service_link(name: str, value: str, warnings: list[str]) -> bool:
    """Whether Kubernetes put this value into the environment, for a service that is called "gateway"."""
    is_link = name in NAMES and name.startswith("GATEWAY_") and value.startswith(("tcp://", "udp://"))
    if is_link:
        warnings.append(f"{name} is ignored: its value looks like a Kubernetes service link")
    return is_link


def _under_their_names(values: Mapping[str, str]) -> dict[str, str]:
    """The same, where an older program's name stands in for a setting's own that is not there: under that one."""
    found = dict(values)
    for name, field in _FIELDS.items():
        older = next((each for each in field.metadata["instead"] if each in values), None)
        if name not in values and older is not None:
            found[name] = values[older]
    return found


def _parse(values: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    parsed = {}
    for name, field in _FIELDS.items():
        text = values.get(name, "").strip()
        if not text:
            continue
        try:
            parsed[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{name} {error}")
    return parsed


def is_loopback(host: str) -> bool:
    """Whether only this host reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.secrets_path.is_relative_to(settings.data_dir.resolve()):
        problems.append("GATEWAY_SECRETS_DIR must not be inside GATEWAY_DATA_DIR: a copy of the data would carry the keys")
    password = settings.admin_password
    if password is not None and hmac.compare_digest(password.reveal().encode(), PUBLIC_PASSWORD) and not is_loopback(settings.host):
        problems.append("ADMIN_PASSWORD is an older program's default, which everybody knows: choose another, or listen on 127.0.0.1 only")
    if settings.first_byte_s > settings.total_s:
        problems.append("GATEWAY_FIRST_BYTE_S must not be above GATEWAY_TOTAL_S")
    return problems
