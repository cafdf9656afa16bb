from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.api.endpoint import GunicornClient
from gateway.api.replies import exchange_headers
from gateway.backend import Call, Headers, Reply, Target
from gateway.core.exchange import Attempt
from gateway.errors import (
    Cancelled,
    GatewayError,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.factories import JSON, SSE, Chunks, Clock, exchange, reply
from tests.unit.api.served import Served, Server, logged, post_environ, serving

DONE = b"data: [DONE]\n\n"
CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def answering(*items: bytes | Exception, headers: Headers = JSON, status: int = 200) -> Callable[[Call, Target], Reply]:
    return lambda call, target: reply(items, headers, status)


# a whole answer


def test_whole_answer_comes_byte_for_byte_with_its_cost_and_its_way(served: Served) -> None:
    served.price("m", {"input_uncached": 1_000_000, "output_text": 2_500_000})
    answer = served.chat()
    assert (answer.status_code, answer.data, answer.content_type) == (200, served.backend.answer, "application/json")
    assert answer.headers["x-gateway-cost-usd"] == "0.000013000"
    assert answer.headers["x-gateway-receipt"] == 'attempts="m-d:answered"'
    assert ID.fullmatch(answer.headers["x-request-id"])
    entry = served.entry(answer)
    assert entry is not None
    assert entry.amount == 13_000
    assert len(served.gateway.exchanges) == 0


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/v1/files"), ("GET", "/nowhere"), ("PUT", "/v1/models"), ("GET", "/healthz")])
def test_answer_that_was_never_an_exchange_says_where_its_time_went_too(served: Served, method: str, path: str) -> None:
    answer = served.ask(method, path)
    assert ID.fullmatch(answer.headers["x-request-id"])
    assert re.fullmatch(r"gateway;dur=\d+\.\d", answer.headers["server-timing"])
    assert answer.headers["x-gateway-receipt"] == 'attempts=""'


def test_upstreams_headers_pass_by_an_allow_list(served: Served) -> None:
    allowed = {
        "content-type": "application/json; charset=utf-8",
        "openai-processing-ms": "12",
        "openai-version": "2020-10-01",
        "content-language": "de",
        "x-should-retry": "true",
        "retry-after": "3",
    }
    kept_back = {
        "set-cookie": "a=b",
        "x-ratelimit-remaining-tokens": "9",
        "connection": "close",
        "transfer-encoding": "chunked",
        "server": "upstream",
        "openai-organization": "org-secret",
        "content-encoding": "gzip",
        "x-gateway-cost-usd": "99",
        "strict-transport-security": "max-age=1",
    }
    served.backend.play(answering(b"{}", headers=(*allowed.items(), *kept_back.items(), ("x-request-id", "req_theirs"))))
    answer = served.chat()
    shown = {name.lower(): value for name, value in answer.headers.items()}
    assert {name: shown[name] for name in allowed} == allowed
    assert not set(shown) & (set(kept_back) - {"x-gateway-cost-usd"})
    assert shown["x-gateway-cost-usd"] == "0.000000000"
    assert shown["x-upstream-request-id"] == "req_theirs"
    assert shown["x-request-id"] != "req_theirs"


def test_clients_headers_pass_by_an_allow_list(served: Served) -> None:
    headers = {
        "Accept": "text/plain",
        "OpenAI-Beta": "x=1",
        "Cookie": "a=b",
        "OpenAI-Organization": "org",
        "X-Forwarded-For": "1.2.3.4",
        "X-Request-Id": "theirs",
    }
    served.post("/v1/chat/completions?api-version=1", {"model": "m", "messages": []}, headers=headers)
    (call,) = served.backend.calls
    assert dict(call.headers) == {"accept": "text/plain", "openai-beta": "x=1", "content-type": "application/json"}
    assert (call.path, call.query) == ("/chat/completions", "")
    assert served.key not in repr(call)


def test_clients_request_id_is_only_stored(served: Served) -> None:
    answer = served.post("/v1/chat/completions", {"model": "m"}, headers={"X-Request-Id": "theirs" * 100})
    assert "theirs" not in answer.headers["x-request-id"]
    row = served.row(answer)
    assert row is not None
    assert json.loads(row.receipt)["client_request_id"] == ("theirs" * 100)[:128]


def test_answer_without_a_body_is_settled_before_it_leaves(served: Served) -> None:
    served.backend.play(answering(headers=(("content-type", "audio/mpeg"),), status=204))
    answer = served.post("/v1/audio/speech", {"model": "m"})
    assert (answer.status_code, answer.data) == (204, b"")
    entry = served.entry(answer)
    assert entry is not None
    assert entry.ending == "complete"


# a streamed answer


def test_stream_comes_block_by_block_and_its_cost_is_not_known_yet(served: Served) -> None:
    served.backend.play(answering(CONTENT, CONTENT, DONE, headers=SSE))
    answer = served.chat(stream=True)
    assert "x-gateway-cost-usd" not in answer.headers
    assert (answer.content_type, answer.headers["x-accel-buffering"]) == ("text/event-stream", "no")
    assert served.entry(answer) is None
    assert answer.data == CONTENT + CONTENT + DONE
    entry = served.entry(answer)
    assert entry is not None
    assert entry.ending == "complete"


def test_answer_of_known_length_keeps_it(served: Served) -> None:
    size = (4 << 20) + 3
    headers = (("content-type", "audio/mpeg"), ("content-length", str(size)))
    served.backend.play(answering(b"x" * (4 << 20), b"abc", headers=headers))
    answer = served.post("/v1/audio/speech", {"model": "m"})
    assert answer.headers["content-length"] == str(size)
    assert len(answer.data) == size


def test_stream_that_nobody_reads_is_closed_and_booked(served: Served) -> None:
    made = reply([CONTENT, CONTENT, DONE], SSE)
    served.backend.play(lambda call, target: made)
    answer = served.chat(stream=True)
    answer.close()
    assert isinstance(made.chunks, Chunks)
    assert made.chunks.closed == 1
    entry = served.entry(answer)
    assert entry is not None
    assert entry.ending == "client_gone"
    assert len(served.gateway.exchanges) == 0


def test_answer_whose_headers_the_server_refuses_is_closed_and_booked(served: Served) -> None:
    made = reply([CONTENT, DONE], SSE)
    served.backend.play(lambda call, target: made)
    environ = post_environ(served, b'{"model":"m","stream":true}')
    with pytest.raises(ValueError, match="cannot be sent"):
        Server(served.app, refuses_headers=True).call(environ)
    assert isinstance(made.chunks, Chunks)
    assert made.chunks.closed == 1
    assert len(served.gateway.exchanges) == 0


def test_answer_whose_headers_cannot_be_written_is_closed_and_booked(served: Served) -> None:
    made = reply([CONTENT, DONE], (*SSE, ("content-language", "de\r\nset-cookie: a=b")))
    served.backend.play(lambda call, target: made)
    answer = served.chat(stream=True)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "internal_error")
    assert "set-cookie" not in answer.headers
    assert isinstance(made.chunks, Chunks)
    assert made.chunks.closed == 1
    assert served.entry(answer) is not None
    assert len(served.gateway.exchanges) == 0


# errors


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UpstreamUnreachable("The upstream refused the connection."), 502, "server_error", "upstream_unreachable"),
        (UpstreamTimeout("late", phase="total"), 504, "server_error", "upstream_timeout"),
        (UpstreamProtocolError("no HTTP"), 502, "server_error", "upstream_protocol_error"),
        (UpstreamInterrupted("cut"), 502, "server_error", "upstream_interrupted"),
        (UpstreamRefused(500, (), b"{}"), 502, "server_error", "upstream_error"),
        (UpstreamRefused(401, (), b"{}"), 502, "server_error", "upstream_refused_credential"),
        (UpstreamRefused(403, (), b"{}"), 502, "server_error", "upstream_refused_credential"),
        (UpstreamRefused(429, (), b"{}", reset_s=6.2), 429, "rate_limit_error", "upstream_rate_limited"),
        (Cancelled("draining"), 503, "server_error", "draining"),
        (KeyError("a stranger's mistake"), 500, "server_error", "internal_error"),
    ],
)
def test_failure_of_an_upstream_is_told_in_openais_shape(served: Served, error: Exception, status: int, kind: str, code: str) -> None:
    served.backend.play(error)
    answer = served.chat()
    told = answer.get_json()
    assert (answer.status_code, told["error"]["type"], told["error"]["code"]) == (status, kind, code)
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert served.row(answer) is not None
    assert answer.headers["x-gateway-receipt"].startswith('attempts="m-d:')
    assert answer.headers["x-gateway-cost-usd"] == "0.000000000"


def test_wait_is_told_in_whole_seconds_rounded_up(served: Served) -> None:
    served.backend.play(UpstreamRefused(429, (), b"{}", reset_s=6.2))
    assert served.chat().headers["Retry-After"] == "7"


def test_clients_own_mistake_is_told_in_the_upstreams_words(served: Served) -> None:
    body = b'{"error":{"message":"temperature too high","type":"invalid_request_error","param":"temperature","code":null}}'
    served.backend.play(UpstreamRefused(400, (("content-type", "application/json"), ("content-length", "1"), ("set-cookie", "a=b")), body))
    answer = served.chat()
    assert (answer.status_code, answer.data) == (400, body)
    assert "set-cookie" not in answer.headers
    entry = served.entry(answer)
    assert entry is not None
    assert (entry.amount, entry.ending) == (0, "upstream_error")


@pytest.mark.parametrize(("error", "said"), [(KeyError("a mistake"), "false"), (UpstreamError("no"), None), (UpstreamTimeout("late", phase="total"), None)])
def test_client_is_told_where_asking_again_is_no_use(served: Served, error: Exception, said: str | None) -> None:
    served.backend.play(error)
    assert served.chat().headers.get("x-should-retry") == said


def test_mistake_of_ours_is_logged_with_its_exchange_and_shown_to_nobody(served: Served) -> None:
    served.backend.play(ZeroDivisionError("the very details"))
    with logged() as lines:
        answer = served.chat()
    assert b"details" not in answer.data
    (line,) = [line for line in lines() if line["msg"] == "unexpected ZeroDivisionError"]
    assert line["exchange"] == answer.headers["x-request-id"]
    assert "the very details" in line["traceback"]


def test_refusal_before_the_exchange_is_logged_with_the_id_that_the_client_sees(served: Served) -> None:
    with logged() as lines:
        answer = served.post("/v1/chat/completions", b"nonsense")
    (line,) = [line for line in lines() if line["msg"] == "refused"]
    assert (line["exchange"], line["status"], line["path"]) == (answer.headers["x-request-id"], 400, "/v1/chat/completions")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/v1/models", 200),
        ("HEAD", "/v1/models", 200),
        ("GET", "/v1/models/m", 200),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/requests/none", 404),
        ("GET", "/v1/files", 501),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/chat/completions", 501),
        ("GET", "/v1/embeddings", 405),
        ("OPTIONS", "/v1/embeddings", 405),
        ("POST", "/v1/embeddings", 400),
        ("POST", "/v1/audio/transcriptions", 400),
    ],
)
def test_every_answer_has_an_id_and_every_error_a_shape(served: Served, method: str, path: str, status: int) -> None:
    answer = served.ask(method, path)
    assert answer.status_code == status
    assert ID.fullmatch(answer.headers["x-request-id"])
    if status >= 400:
        assert set(answer.get_json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("odd", ["%0A", "%0D%0A", "%00", "%7F", "%C2%85", "%E2%80%A8", "%FF", "%1B%5B31m"])
@pytest.mark.parametrize("path", ["/{}", "/v1/models/{}", "/v1/models/a{}b", "/v1/files/a{}b"])
def test_message_is_one_printable_line_whatever_stands_in_the_path(served: Served, path: str, odd: str) -> None:
    message = served.ask("GET", path.format(odd)).get_json()["error"]["message"]
    assert message.isprintable()


def test_method_that_is_not_taken_is_answered_with_those_that_are(served: Served) -> None:
    answer = served.ask("GET", "/v1/embeddings")
    assert answer.headers["Allow"] == "POST"
    assert {each.strip() for each in served.ask("DELETE", "/v1/models").headers["Allow"].split(",")} == {"GET", "HEAD"}


# headers of an exchange


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0.000000000"), (1, "0.000000001"), (999_999_999, "0.999999999"), (10**9, "1.000000000"), (12 * 10**9 + 34, "12.000000034")],
)
def test_cost_is_shown_exactly(amount: int, shown: str) -> None:
    made = exchange()
    made.amount_nano = amount
    assert dict(exchange_headers(made))["x-gateway-cost-usd"] == shown


def test_cost_that_is_not_known_is_not_shown() -> None:
    assert "x-gateway-cost-usd" not in dict(exchange_headers(exchange()))


def test_time_is_told_apart_into_ours_and_the_upstreams() -> None:
    clock = Clock()
    made = exchange(clock=clock)
    start = clock.now
    made.attempts = [
        Attempt("a", None, "m", start + 0.010, "upstream_timeout", None, start + 0.110),
        Attempt("b", None, "m", start + 0.110, "answered", 200, start + 0.150),
    ]
    made.first_byte = start + 0.150
    made.excluded = {"c": "unreachable"}
    clock.now += 0.200
    headers = dict(exchange_headers(made))
    assert headers["server-timing"] == "gateway;dur=60.0, upstream;dur=140.0, first_byte;dur=150.0"
    assert headers["x-gateway-receipt"] == 'attempts="a:upstream_timeout, b:answered"; excluded="c:unreachable"'


# the client's watcher


def test_client_that_goes_away_is_noticed_and_one_that_is_no_longer_watched_is_not() -> None:
    ours, theirs = socket.socketpair()
    left = threading.Event()
    with ours, theirs:
        client = GunicornClient({"gunicorn.socket": ours})
        client.on_leave(left.set)
        assert not left.wait(0.1)
        theirs.close()
        assert left.wait(5)
        client.disarm()
        client.disarm()
    ours, theirs = socket.socketpair()
    left = threading.Event()
    with ours, theirs:
        client = GunicornClient({"gunicorn.socket": ours})
        client.on_leave(left.set)
        client.disarm()
        theirs.close()
        assert not left.wait(0.2)


def test_client_without_a_socket_never_leaves() -> None:
    client = GunicornClient({})
    client.on_leave(lambda: pytest.fail("it left"))
    client.disarm()


def test_errors_carry_the_classes_own_words() -> None:
    assert GatewayError("x").code == "internal_error"


def test_receipt_of_a_large_pool_fits_into_a_header() -> None:
    ex = exchange()
    ex.excluded = {f"d/{number}": "rate_limited" for number in range(1000)} | {"e": "unreachable"}
    assert dict(exchange_headers(ex))["x-gateway-receipt"] == 'attempts=""; excluded="d:rate_limited, e:unreachable"'
