"""Row 25: headers by which a proxy speaks for its client, sent by the client. Figure: 0 bypasses.

This gateway believes none of them but the X-Forwarded-For of a trusted proxy, which says where a key with networks is used from; its paths come from
the request line alone.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from tests.fakes.gateway import Answer, RawClient
from tests.fakes.nginx import NAME, RunningNginx
from tests.fakes.provider import Provider
from tests.faults.conftest import Measured
from tests.faults.front import CHAT, ROADS, THROUGH_NGINX, Front

ADDRESSES = (
    *("X-Forwarded-For", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "X-Originating-IP"),
    *("X-Remote-IP", "X-Remote-Addr", "Remote-Addr", "REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "X_Forwarded_For", "Client-IP", "X-ProxyUser-IP", "Via"),
)
SPOOFED = (
    *((name, value) for name, value in itertools.product(ADDRESSES, ("127.0.0.1", "::1", "127.0.0.1, 10.0.0.1", "localhost"))),
    *(("Forwarded", value) for value in ("for=127.0.0.1", 'for="[::1]"', "for=127.0.0.1;by=127.0.0.1;host=localhost;proto=https")),
    *((("X-Forwarded-Host", "localhost"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "443"), ("X-Forwarded-Server", "localhost"))),
    *((("Host", "localhost"), ("Host", "127.0.0.1"), ("X-Host", "localhost"), ("X-Forwarded-Ssl", "on"), ("Front-End-Https", "on"))),
)
REWRITES = (
    *(("X-Original-URL", path) for path in ("/metrics", "/healthz", CHAT)),
    *(("X-Rewrite-URL", path) for path in ("/metrics", "/healthz", CHAT)),
    *((("X-Original-URI", "/healthz"), ("X-Forwarded-Uri", "/healthz"), ("X-Forwarded-Path", "/healthz"), ("X-Envoy-Original-Path", "/healthz"))),
    *(("Path-Info", "/healthz"), ("PATH_INFO", "/healthz"), ("RAW_URI", "/healthz"), ("X-HTTP-Method-Override", "GET")),
)
PREFIXES = (
    *(("SCRIPT_NAME", "/outer"), ("Script-Name", "/outer"), ("X-Script-Name", "/outer"), ("X-Forwarded-Prefix", "/outer"), ("HTTP_SCRIPT_NAME", "/outer")),
    *(("X_Script_Name", "/outer"), ("Script_Name", "/outer"), ("X-Forwarded-Prefix", "/outer, /"), ("X-Ingress-Path", "/outer")),
)
METRICS_PATHS = ("/metrics", "/%6detrics", "//metrics", "/./metrics", "/metrics/", "/metrics;x", "/metrics%00", "/v1/../metrics", "/v1/%2e%2e/metrics")


def ask(client: RawClient, path: str, method: str = "GET", **headers: str) -> Answer:
    client.ask(path, method=method, headers={name.lower(): value for name, value in headers.items()})
    return client.answer()


def stranger_of(front: Front, key: str | None) -> RawClient:
    """Not from the address that /metrics answers, and whose proxies are trusted, although on this host."""
    client = front.gateway.client(key)
    client.sock.close()
    client.sock = socket.create_connection(("127.0.0.1", front.gateway.port), 20, ("127.0.0.2", 0))
    return client


@pytest.fixture
def stranger(front: Front) -> Iterator[RawClient]:
    with stranger_of(front, None) as client:
        yield client


def test_25_a_stranger_cannot_pass_for_the_local_host(front: Front, stranger: RawClient, measured: Measured) -> None:
    with front.gateway.client(None) as local:
        assert ask(local, "/metrics").status == 200
    passed = [(name, value) for name, value in SPOOFED if ask(stranger, "/metrics", **{name: value}).status != 403]
    measured(25, f"/metrics: {len(passed)} of {len(SPOOFED)} spoofed headers opened it to another address (0)")
    assert passed == []


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_25_what_a_proxy_on_this_host_forwards_is_not_the_local_host(front: Front, name: str) -> None:
    with front.gateway.client(None) as client:
        assert ask(client, "/metrics", **{name: "127.0.0.1"}).status == 403


def test_25_key_is_not_used_from_elsewhere_by_a_header(front: Front, measured: Measured) -> None:
    """nginx puts its client's own address in the place of what that says; who is no trusted proxy is not asked."""
    key = front.gateway.new_key(1, networks=("192.0.2.0/24",))
    claims = [(name, value.replace("127.0.0.1", "192.0.2.1").replace("::1", "192.0.2.1").replace("localhost", "192.0.2.1")) for name, value in SPOOFED]
    passed = []
    for road in (THROUGH_NGINX, "from another address"):
        with front.client(road, key) if road == THROUGH_NGINX else stranger_of(front, key) as client:
            passed += [(road, *claim) for claim in claims if claim[0] != "Host" and ask(client, "/v1/models", **{claim[0]: claim[1]}).status != 403]
    with front.gateway.client(key) as proxy:
        assert ask(proxy, "/v1/models", **{"X-Forwarded-For": "192.0.2.1"}).status == 200, "a trusted proxy is believed"
        assert ask(proxy, "/v1/models", **{"X-Forwarded-For": "192.0.2.1, 198.51.100.1"}).status == 403, "but not what its client says"
    measured(25, f"a key of one network: {len(passed)} of {2 * len(claims)} headers let it be used from another (0)")
    assert passed == []


@pytest.mark.parametrize("road", ROADS)
def test_25_no_header_leads_to_another_path_or_method(front: Front, road: str, measured: Measured) -> None:
    front.provider.requests.clear()
    passed = []
    for name, value in REWRITES:
        with front.client(road) as client:
            if ask(client, "/nowhere", **{name: value}).status != 404 or ask(client, "/v1/embeddings", "OPTIONS", **{name: value}).status != 405:
                passed.append((name, value))
    measured(25, f"{road}: {len(passed)} of {len(REWRITES)} headers led to another path or method (0)")
    assert passed == []
    assert not front.provider.requests


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("name", "value"), PREFIXES)
def test_25_no_header_takes_a_prefix_off_the_path(front: Front, road: str, name: str, value: str) -> None:
    with front.client(road) as client:
        for path in ("/outer/healthz", "/outer/metrics", "/outer/v1/models"):
            assert ask(client, path, **{name: value}).status == 404
        assert ask(client, "/healthz", **{name: value}).status == 200


@pytest.mark.parametrize("path", METRICS_PATHS)
def test_25_metrics_are_not_public_through_nginx(front: Front, path: str) -> None:
    for target in (path, f"http://{NAME}{path}"):
        with front.client("through nginx", key=None) as client:
            assert ask(client, target).status in (400, 403, 404)


@pytest.mark.parametrize("host", ["other.example", "localhost", "127.0.0.1", NAME + ".other.example", "x" + NAME])
def test_25_nginx_serves_its_own_name_only(front: Front, host: str) -> None:
    with front.client("through nginx") as client:
        answer = ask(client, "/healthz", host=host)
    assert (answer.status, answer.json()["error"]["type"]) == (421, "invalid_request_error")


def test_25_nginx_says_who_asks_and_nobody_else_does(front: Front) -> None:
    """What reaches the gateway of all that a client could say: nothing that speaks of the way it came."""
    with Provider() as behind, RunningNginx(front.nginx.directory / "beside", behind.port) as nginx, nginx.client() as client:
        for name, value in (*SPOOFED, *REWRITES, *PREFIXES):
            if name != "Host":
                assert ask(client, "/healthz", **{name: value}).status == 404, (name, value)
        requests = behind.requests
    spoken = {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https", "host": NAME}
    believed_somewhere = {name.lower() for name, _ in (*REWRITES, *PREFIXES) if name.startswith(("X-Original-URL", "X-Rewrite", "X-Script", "X-HTTP"))}
    for request in requests:
        names = [name for name, _ in request.fields]
        assert {name: request.headers[name] for name in spoken} == spoken
        assert all(names.count(name) == 1 for name in spoken)
        forwarded = {name for name in names if name.startswith(("x-forwarded-", "forwarded", "x-real-ip")) or "_" in name}
        assert forwarded - spoken.keys() <= {"x-forwarded-uri", "x-forwarded-path"}
        assert not believed_somewhere & set(names)
