"""Proxies: what is said to them, what they may answer, and which connections they share."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.http import Transport
from backends.http_address import Place
from backends.http_proxy import MAX_ANSWER_BYTES, Handshake, ProxyRefused, handshake
from gateway.backend import Cancellation, Deadlines, Proxy
from gateway.errors import BadRequest, Cancelled, UpstreamUnreachable
from tests.fakes.answers import Default, Delay, Status
from tests.fakes.provider import Provider
from tests.fakes.proxy import Proxy as FakeProxy
from tests.unit.backends.conftest import Client
from tests.unit.backends.test_http_dial import FixedNames

PATH = "/v1/chat/completions"
IDENTITY = ("us er", "p@ss:w/rd%")
WRITTEN = "us%20er:p%40ss%3Aw%2Frd%25"
NAMED = "api.example.com"
SCHEMES = ["http", "socks5", "socks5h"]
UPSTREAM = Place("upstream", "h.example", 443)


@pytest.fixture
def proxy() -> Iterator[FakeProxy]:
    with FakeProxy(names={NAMED: "127.0.0.1", "127.0.0.1": "127.0.0.1"}) as proxy:
        yield proxy


class Through(Client):
    """Sends through a proxy."""

    def __init__(self, transport: Transport, root: str, url: str) -> None:
        super().__init__(transport, root)
        self.proxy = Proxy.parse(url)

    def send(self, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
        return super().send(*arguments, **{"proxy": self.proxy, **options})  # type: ignore[arg-type]


# over real sockets


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("identity", [None, IDENTITY])
@pytest.mark.parametrize("piecemeal", [False, True])
def test_plain_upstream_is_reached_through_a_proxy(
    provider: Provider, client: Client, proxy: FakeProxy, scheme: str, identity: tuple[str, str] | None, piecemeal: bool
) -> None:
    proxy.identity, proxy.piecemeal = identity, piecemeal
    through = Through(client.transport, client.root, proxy.url(scheme, WRITTEN if identity else ""))
    for _ in range(2):
        assert b"chatcmpl" in through.whole(PATH)
    assert [received.path for received in provider.requests] == [PATH] * 2
    assert provider.requests[0].headers["host"] == f"127.0.0.1:{provider.port}"
    assert proxy.connections_seen == 1
    assert {(asked.way, asked.host, asked.port) for asked in proxy.asked} == {("absolute" if scheme == "http" else "socks", "127.0.0.1", provider.port)}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_secure_upstream_is_reached_through_a_tunnel(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str, identity: tuple[str, str] | None) -> None:
    proxy.identity = identity
    provider, client = secure
    through = Through(client.transport, client.root, proxy.url(scheme, WRITTEN if identity else ""))
    for _ in range(2):
        assert b"[DONE]" in through.whole(PATH, b'{"stream": true}')
    assert len(provider.requests) == 2
    assert proxy.connections_seen == provider.connections_seen == 1
    assert proxy.asked[0].way == ("connect" if scheme == "http" else "socks")
    assert b"proxy-authorization" not in b"".join(name.encode() for received in provider.requests for name, _ in received.fields)


def test_connect_request_is_exactly_this(secure: tuple[Provider, Client], proxy: FakeProxy) -> None:
    provider, client = secure
    Through(client.transport, client.root, proxy.url("http")).whole(PATH)
    assert proxy.asked[0].head == f"CONNECT 127.0.0.1:{provider.port} HTTP/1.1\r\nhost: 127.0.0.1:{provider.port}\r\n\r\n".encode()


@pytest.mark.parametrize(("scheme", "asked"), [("http", NAMED), ("socks5h", NAMED), ("socks5", "127.0.0.1")])
def test_who_resolves_the_upstreams_name(provider: Provider, proxy: FakeProxy, scheme: str, asked: str) -> None:
    """The proxy's own scheme says: with socks5 it is us, and then the address is checked."""
    transport = Transport(names=FixedNames("127.0.0.1"))
    through = Through(transport, f"http://{NAMED}:{provider.port}", proxy.url(scheme))
    if scheme == "socks5":
        with pytest.raises(UpstreamUnreachable, match="does not connect to"):
            through.whole(PATH)
        assert proxy.connections_seen == 0
        return
    assert b"chatcmpl" in through.whole(PATH)
    assert proxy.asked[0].host == asked
    transport.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "0.0.0.0"])
def test_written_address_is_checked_also_behind_a_proxy(client: Client, proxy: FakeProxy, scheme: str, host: str) -> None:
    through = Through(client.transport, f"http://{host}:80", proxy.url(scheme))
    with pytest.raises(UpstreamUnreachable, match="does not connect to"):
        through.send()
    assert proxy.connections_seen == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proxys_own_name_is_checked(provider: Provider, proxy: FakeProxy, scheme: str) -> None:
    transport = Transport(names=FixedNames("127.0.0.1"))
    through = Through(transport, provider.root, f"{scheme}://proxy.example.com:{proxy.port}")
    with pytest.raises(UpstreamUnreachable, match=r"The proxy's address is one that .* does not connect to"):
        through.send()
    assert proxy.connections_seen == 0


def test_socks_tries_the_next_address_of_the_upstream(provider: Provider, proxy: FakeProxy) -> None:
    proxy.names = {"::1": "127.0.0.2"}  # where nobody listens
    transport = Transport(names=FixedNames("::1", "127.0.0.1"))
    assert b"chatcmpl" in Through(transport, f"http://localhost:{provider.port}", proxy.url("socks5")).whole(PATH)
    assert [asked.host for asked in proxy.asked] == ["::1", "127.0.0.1"]
    transport.close()


# what fails


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("given_identity", ["", "someone:else"])
def test_proxy_that_does_not_know_us_is_said_to_ask(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str, given_identity: str) -> None:
    proxy.identity = IDENTITY
    for root in (secure[1].root, secure[1].root.replace("https", "http")):
        with pytest.raises(UpstreamUnreachable, match=r"The proxy (asks|refused)") as refused:
            Through(secure[1].transport, root, proxy.url(scheme, given_identity)).send()
        assert "else" not in str(refused.value)
        assert str(proxy.port) not in str(refused.value)
    assert secure[0].connections_seen == 0


@pytest.mark.parametrize(("scheme", "refuse"), [*(("http", code) for code in (302, 403, 503)), *(("socks5h", code) for code in range(1, 9))])
def test_refusal_is_told_in_one_line(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str, refuse: int) -> None:
    proxy.refuse = refuse
    with pytest.raises(UpstreamUnreachable, match="proxy") as refused:
        Through(secure[1].transport, secure[1].root, proxy.url(scheme, WRITTEN)).send()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 OK\r\n\r\n", b"\x04\x5b", b"\x05\x09", b"HTTP/1.1 200 OK\r\n", b"\x05"])
def test_garbage_is_no_tunnel(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str, said: bytes) -> None:
    proxy.say = said
    with pytest.raises(UpstreamUnreachable, match="proxy"):
        Through(secure[1].transport, secure[1].root, proxy.url(scheme)).send()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_silent_proxy_ends_at_the_connect_deadline(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str) -> None:
    proxy.hang = True
    begun = time.monotonic()
    with pytest.raises(UpstreamUnreachable, match="Connecting to the proxy timed out"):
        Through(secure[1].transport, secure[1].root, proxy.url(scheme)).send(deadlines=Deadlines(connect_s=0.3))
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_abort_ends_the_wait_for_a_proxy(secure: tuple[Provider, Client], proxy: FakeProxy, scheme: str) -> None:
    proxy.hang = True
    cancel = Cancellation()
    threading.Timer(0.2, cancel.fire, ("client_gone",)).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        Through(secure[1].transport, secure[1].root, proxy.url(scheme)).send(deadlines=Deadlines(connect_s=30), total_s=40.0, cancel=cancel)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proxy_that_is_not_there_is_unreachable(provider: Provider, client: Client, scheme: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamUnreachable, match="The proxy refused the connection"):
            Through(client.transport, provider.root, f"{scheme}://127.0.0.1:{probe.getsockname()[1]}").send()


def test_407_of_an_upstream_is_the_upstreams_own(provider: Provider, client: Client, proxy: FakeProxy) -> None:
    provider.script(PATH, Status(407), Status(407))
    for way in (client, Through(client.transport, client.root, proxy.url("socks5"))):
        response = way.send(PATH)
        assert response.status == 407
        response.close()


# which connections are shared


def test_connections_are_kept_apart_by_proxy(provider: Provider, client: Client, proxy: FakeProxy) -> None:
    with FakeProxy() as other:
        ways: list[Client] = [client, *(Through(client.transport, client.root, each.url(scheme)) for each in (proxy, other) for scheme in SCHEMES)]
        ways.append(Through(client.transport, client.root, proxy.url("socks5", "u:p")))
        for _ in range(2):
            for way in ways:
                way.whole(PATH)
        assert (proxy.connections_seen, other.connections_seen) == (4, 3)
    direct = {received.connection for received in (provider.requests[0], provider.requests[len(ways)])}
    assert len(direct) == 1


def test_connections_are_kept_apart_by_tls_and_port(secure: tuple[Provider, Client], provider: Provider) -> None:
    transport = secure[1].transport
    plain = Client(transport, provider.root)
    for _ in range(2):
        plain.whole(PATH)
        secure[1].whole(PATH)
    assert (provider.connections_seen, secure[0].connections_seen) == (1, 1)


def test_equal_proxies_share_whenever_they_were_made(client: Client, proxy: FakeProxy) -> None:
    for _ in range(3):
        Through(client.transport, client.root, proxy.url("socks5h")).whole(PATH)
    assert proxy.connections_seen == 1


def test_kept_connection_that_the_proxy_closed_is_replaced(provider: Provider, client: Client, proxy: FakeProxy) -> None:
    through = Through(client.transport, client.root, proxy.url("socks5"))
    through.whole(PATH)
    provider.script(PATH, Delay(0.0, Default()))
    for sock in list(proxy._open):
        with contextlib.suppress(OSError):  # the end of one is the end of the other
            sock.shutdown(socket.SHUT_RDWR)
    time.sleep(0.1)
    assert b"chatcmpl" in through.whole(PATH)
    assert proxy.connections_seen == 2


def test_environment_proxies_are_ignored(provider: Provider, client: Client, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy.url("http"))
    client.whole(PATH)
    assert (provider.connections_seen, proxy.connections_seen) == (1, 0)


# the handshakes, without a socket


def play(steps: Handshake, *received: bytes) -> list[bytes]:
    """What is sent, up to the tunnel."""
    sent = [next(steps)]
    try:
        for data in received:
            sent.append(steps.send(data))
    except StopIteration:
        return sent
    raise AssertionError("the handshake waits for more")


PLAIN = Proxy("socks5", "p", 1)
KNOWN = replace(PLAIN, user="user", password="pass")
REPLY = b"\x05\x00\x00\x01" + bytes(6)


def test_socks_asks_in_the_words_of_its_rfcs() -> None:
    assert play(handshake(PLAIN, UPSTREAM, "h.example"), b"\x05\x00", REPLY) == [b"\x05\x01\x00", b"\x05\x01\x00\x03\x09h.example\x01\xbb"]
    assert play(handshake(PLAIN, UPSTREAM, "1.2.3.4"), b"\x05\x00", REPLY)[1] == b"\x05\x01\x00\x01\x01\x02\x03\x04\x01\xbb"
    assert play(handshake(PLAIN, UPSTREAM, "::1"), b"\x05\x00", REPLY)[1] == b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb"
    signed = play(handshake(KNOWN, UPSTREAM, "h.example"), b"\x05\x02", b"\x01\x00", REPLY)
    assert signed[:2] == [b"\x05\x02\x00\x02", b"\x01\x04user\x04pass"]
    assert play(handshake(KNOWN, UPSTREAM, "h.example"), b"\x05\x00", REPLY)[1][:3] == b"\x05\x01\x00"


@pytest.mark.parametrize("reply", [REPLY, b"\x05\x00\x00\x04" + bytes(18), b"\x05\x00\x00\x03\x00\x00\x00", b"\x05\x00\x00\x03\xff" + bytes(257)])
def test_socks_reply_may_name_any_address_and_come_in_pieces(reply: bytes) -> None:
    play(handshake(PLAIN, UPSTREAM, "h"), b"\x05", b"\x00", *(bytes([byte]) for byte in reply))


@pytest.mark.parametrize(
    "received",
    [
        (b"\x04\x00",),
        (b"\x05\x01",),
        (b"\x05\x02",),
        (b"\x05\xff",),
        (b"\x05\x00\x00",),
        (b"\x05\x00", b"H"),
        (b"\x05\x00", b"\x05\x09"),
        (b"\x05\x00", b"\x05\x02"),
        (b"\x05\x00", b"\x05\x00\x00\x02\x00\x00"),
        (b"\x05\x00", REPLY + b"x"),
    ],
)
def test_what_socks_must_not_answer(received: tuple[bytes, ...]) -> None:
    with pytest.raises(ProxyRefused):
        play(handshake(PLAIN, UPSTREAM, "h"), *received)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 204 \r\n\r\n",
        b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\n",
    ],
)
def test_any_2xx_opens_the_tunnel(answer: bytes) -> None:
    for cut in range(1, len(answer)):
        play(handshake(Proxy("http", "p", 1), UPSTREAM, "h"), answer[:cut], answer[cut:])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nx",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_ANSWER_BYTES,
    ],
)
def test_what_is_no_answer_to_connect(answer: bytes) -> None:
    with pytest.raises(ProxyRefused):
        play(handshake(Proxy("http", "p", 1), UPSTREAM, "h"), answer, b"")


@given(received=st.lists(st.binary(min_size=1, max_size=40), max_size=12), scheme=st.sampled_from(SCHEMES), known=st.booleans())
def test_handshakes_end_in_a_tunnel_or_a_refusal_whatever_comes(received: list[bytes], scheme: str, known: bool) -> None:
    steps = handshake(replace(KNOWN if known else PLAIN, scheme=scheme), UPSTREAM, "h.example")
    next(steps)
    try:
        for data in received:
            assert isinstance(steps.send(data), bytes)
    except (StopIteration, ProxyRefused):
        return


# the value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("socks5://Proxy.Example:1080/", "socks5://proxy.example:1080"),
        ("socks5h://u:s%20cret@[::1]:1080", "socks5h://u@[::1]:1080"),
        ("http://a%40b:s%3Ac@p:1", "http://a%40b@p:1"),
        ("http://u@p:1", "http://u@p:1"),
    ],
)
def test_proxy_shows_all_but_its_password(url: str, shown: str) -> None:
    proxy = Proxy.parse(url)
    assert str(proxy) == repr(proxy) == f"{proxy}" == shown
    assert Proxy.parse(proxy.url) == proxy


@pytest.mark.parametrize(
    "url",
    [
        *("", "p:1", "p", "http://p", "http://:1", "https://secretp:1", "socks4://p:1", "http://p:0", "http://p:99999", "http://p:x"),
        *("http://secret@", "http://@p:1", "http://:secret@p:1", "http://p:1/secret", "http://p:1?secret", "http://p:1#secret", "http://p:1 secret"),
        *("http://u:secret%0d%0a@p:1", "http://u:secret%ff@p:1", f"http://u:{'secret' * 50}@p:1", "http://u%3Ax:secret@p:1", "http://p_é:1", "http://[::1:1"),
        *("http://u:se\ncret@p:1", "http://a b:1"),
    ],
)
def test_what_is_no_proxy_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Proxy.parse(url)
    assert "secret" not in str(refused.value)
