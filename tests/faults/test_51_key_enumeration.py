"""Row 51: one 401 for a key that is unknown, revoked, expired, malformed, missing, or of a disabled user. Figure: byte-identical answers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest

from gateway.secrets import mint_key
from gateway.store import accounts
from tests.fakes.gateway import RunningGateway, now
from tests.faults.conftest import Measured

ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/audio/transcriptions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("GET", "/v1/requests/01M7YAK7D89W3XD77VZ4TQV1R9"),
    ("POST", "/v1/files"),
    ("DELETE", "/v1/assistants/a"),
)
VARYING = re.compile(rb"(?im)^(date|x-request-id): [^\r\n]*\r\n")


@dataclass(frozen=True)
class Refused:
    """Authorization headers by the reason for which each is refused; None sends none."""

    headers: dict[str, str | None]


@pytest.fixture(scope="module")
def refused(gateway: RunningGateway) -> Refused:
    user = gateway.new_user("enumerated")
    keys = {name: gateway.new_key(user) for name in ("revoked", "revoked after use")}
    keys["expired"] = gateway.new_key(user, expires_at=now() - 1000)
    gone = gateway.new_user("disabled")
    keys["of a disabled user"] = gateway.new_key(gone)
    assert gateway.get("/v1/models", key=keys["revoked after use"]).status == 200
    ids = {key.suffix: key.id for key in gateway.read(lambda: accounts.list_keys(user))}
    for name in ("revoked", "revoked after use"):
        gateway.write(lambda number=ids[keys[name][-4:]]: accounts.revoke_key(number, now()))
    gateway.write(lambda: accounts.set_user_disabled(gone, now()))
    time.sleep(1.0)  # by then every worker knows
    known, unknown = gateway.key, mint_key()
    shown = {name: f"Bearer {key}" for name, key in keys.items()}
    shown |= {
        "unknown": f"Bearer {unknown}",
        "of another kind": f"Bearer {mint_key('admin')}",
        "malformed": "Bearer gw_user_short",
        "of another maker": "Bearer sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
        "mistyped": f"Bearer {known[:-1]}{'a' if known[-1] != 'a' else 'b'}",
        "in capitals": f"Bearer {known.upper()}",
        "cut": f"Bearer {known[:-1]}",
        "longer": f"Bearer {known}x",
        "followed by more": f"Bearer {known} {known}",
        "in quotes": f'Bearer "{known}"',
        "of a wrong scheme": f"Basic {known}",
        "without a scheme": known,
        "empty": "Bearer ",
        "huge": "Bearer " + "a" * 4000,
        "not ASCII": "Bearer gw_user_ü\xff",
        "SQL": "Bearer ' OR 1=1 --",
    }
    return Refused({"missing": None, **shown})


def test_51_every_refusal_is_the_same_bytes(gateway: RunningGateway, refused: Refused, measured: Measured) -> None:
    seen = {(method, path): {_answer(gateway, method, path, header) for header in refused.headers.values()} for method, path in ROUTES}
    measured(51, f"{max(map(len, seen.values()))} different answers of a route to {len(refused.headers)} kinds of bad key (1)")
    assert all(len(answers) == 1 for answers in seen.values()), seen
    assert len(set.union(*seen.values())) == 1, "one text on every route"
    (answer,) = set.union(*seen.values())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'"code": "invalid_api_key"' in answer


def _answer(gateway: RunningGateway, method: str, path: str, header: str | None) -> bytes:
    """The whole answer as it came, but for its time and its id."""
    with gateway.client(key=None) as client:
        headers = {} if header is None else {"authorization": header}
        client.ask(path, method=method, headers=headers | {"connection": "close"})
        raw = b""
        while block := client.sock.recv(65_536):
            raw += block
    assert re.search(rb"(?im)^x-request-id: [0-9A-Z]{26}\r$", raw)
    return VARYING.sub(b"", raw)


def test_51_the_working_key_still_works(gateway: RunningGateway, refused: Refused) -> None:
    assert gateway.get("/v1/models").status == 200
    assert gateway.get("/v1/models", headers={"Authorization": f"bearer   {gateway.key}  "}, key=None).status == 200


def test_51_a_bad_key_is_refused_before_the_body_is_read(gateway: RunningGateway) -> None:
    with gateway.client(key=mint_key()) as client:
        client.ask("/v1/chat/completions", b"", headers={"content-length": "10000000"})
        assert client.head().status == 401
