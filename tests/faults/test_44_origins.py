"""Row 44: a page of a foreign origin cannot connect through its visitor's browser, and no cookie lets anybody in. Raw sockets, both protocols."""

from __future__ import annotations

import socket

import pytest

from tests.fakes.agents import SUBPROTOCOL
from tests.fakes.gateway import RunningGateway
from tests.fakes.websocket import Closed, WebSocketClient, upgrade_bytes
from tests.faults.hosting import enrolled

FOREIGN = (
    "https://evil.example",
    "http://127.0.0.1",
    "http://localhost:8080",
    "null",
    "",
    " ",
    "file://",
    "https://chat.openai.com.evil.example",
    "https://evil.example/https://chat.openai.com",
    "moz-extension",
    "xmoz-extension://a",
    "MOZ-EXTENSION",
)
OWN = "moz-extension://6ecf8c4a-0f8b-4f2c-9c0e-0d6d2f3f0d1a"
PATHS = ("/client/register", "/{token}/client/register", "/api-server/client/register")
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture(scope="module")
def token(hosts: RunningGateway) -> str:
    return enrolled(hosts, "origins", "origins-model")


def status_of(gateway: RunningGateway, path: str, *headers: str) -> int:
    """Of the answer to a request for a websocket with these header lines as they are."""
    raw = upgrade_bytes(path, {}, KEY).removesuffix(b"\r\n") + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as sock:
        sock.sendall(raw)
        return int(sock.recv(65_536).split(b" ")[1])


@pytest.mark.parametrize("subprotocol", ["", SUBPROTOCOL])
@pytest.mark.parametrize("origin", FOREIGN)
def test_44_page_of_a_foreign_origin_is_refused_before_the_handshake(hosts: RunningGateway, token: str, origin: str, subprotocol: str) -> None:
    """Also where it knows a token."""
    more = [f"sec-websocket-protocol: {subprotocol}"] if subprotocol else []
    for path in PATHS:
        assert status_of(hosts, path.format(token=token), f"Origin: {origin}", f"authorization: Bearer {token}", *more) == 403, path


def test_44_second_origin_beside_an_allowed_one_is_refused(hosts: RunningGateway) -> None:
    assert status_of(hosts, "/client/register", f"Origin: {OWN}", "Origin: https://evil.example") in (400, 403)
    assert status_of(hosts, "/client/register", "Origin: https://evil.example", f"Origin: {OWN}") in (400, 403)


def test_44_extension_and_programs_are_let_to_the_handshake(hosts: RunningGateway) -> None:
    assert status_of(hosts, "/client/register", f"Origin: {OWN}") == 101
    assert status_of(hosts, "/client/register") == 101


def closed_of(gateway: RunningGateway, headers: dict[str, str], origin: str | None = None) -> Closed:
    with WebSocketClient(gateway.port, headers=headers, subprotocols=(SUBPROTOCOL,), origin=origin) as client:
        client.send_json({"type": "hello", "models": ["origins-model"]})
        return client.end()


@pytest.mark.parametrize("origin", [None, OWN])
def test_44_cookie_is_no_token(hosts: RunningGateway, token: str, origin: str | None) -> None:
    for cookie in (f"token={token}", f"authorization=Bearer {token}", f"Authorization={token}; session={token}", token):
        assert closed_of(hosts, {"cookie": cookie}, origin).code == 4401, cookie


def test_44_header_or_first_frame_is_one(hosts: RunningGateway, token: str) -> None:
    for headers, hello in (({"authorization": f"Bearer {token}"}, {}), ({}, {"token": token})):
        with WebSocketClient(hosts.port, headers=headers, subprotocols=(SUBPROTOCOL,), origin=OWN) as client:
            client.send_json({"type": "hello", "models": ["origins-model"], **hello})
            assert client.receive_json()["type"] == "welcome"
