"""What the doctor says of a public address: a server that plays one, on real sockets."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.operations import doctor_url
from gateway.operations.doctor_url import Arrival, Heard, Site, judged_streams, look_at_url
from gateway.operations.findings import Finding, Verdict
from tests.fakes.gateway import free_port
from tests.unit.backends.conftest import Authority, authority  # noqa: F401

KEY = Secret("gw_user_of-this-test")
DAY = 86_400.0


class Front(http.server.ThreadingHTTPServer):
    """Answers like a gateway; a test changes what is wrong with it."""

    daemon_threads = True
    answers: dict[str, tuple[int, Mapping[str, str], bytes]]
    asks_for_a_key = True
    stream: tuple[float, int] = (0.05, 12)
    held_back = False


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Front
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path
        if path == "/v1/models" and path not in self.server.answers:
            known = self.headers["Authorization"] == f"Bearer {KEY.reveal()}" or not self.server.asks_for_a_key
            self._say(200 if known else 401, {}, b"{}")
        else:
            self._say(*self.server.answers.get(path, (404, {}, b"")))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        pause_s, count = self.server.stream
        if not count:
            self._say(404, {}, json.dumps({"error": {"message": "no such\nmodel"}}).encode())
            return
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        held = b""
        for _ in range(count):
            time.sleep(pause_s)
            held += b"data: {}\n\n"
            if not self.server.held_back:
                self.wfile.write(held)
                held = b""
        self.wfile.write(held)
        self.close_connection = True

    def _say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in {"date": formatdate(usegmt=True), "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def front() -> Iterator[Front]:
    with Front(("127.0.0.1", 0), _Handler) as front:
        front.answers = {"/healthz": (200, {}, b'{"status": "alive"}'), "/metrics": (403, {}, b"")}
        thread = threading.Thread(target=front.serve_forever, args=(0.02,))
        thread.start()
        yield front
        front.shutdown()
        thread.join()


def site(front: Front) -> Site:
    return Site(f"http://127.0.0.1:{front.server_address[1]}")


def found(front: Front, verdict: Verdict, **more: Any) -> dict[str, str]:
    arguments: dict[str, Any] = {"key": KEY, "model": None, "direct": None} | more
    return {finding.subject: finding.text for finding in look_at_url(site(front), **arguments) if finding.verdict is verdict}


def test_a_gateway_with_nothing_wrong(front: Front) -> None:
    assert found(front, Verdict.PROBLEM, model="m") == found(front, Verdict.WARNING, model="m") == {}
    assert set(found(front, Verdict.OK, model="m")) == {"address", "TLS", "clock", "metrics", "keys", "streams"}


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://h.example/v1/", "https://h.example"),
        ("http://h:81/llm/v1", "http://h:81/llm"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_address_is_taken_with_or_without_the_familys_path(url: str, base: str) -> None:
    assert Site(url).url == base


@pytest.mark.parametrize("url", ["h.example", "ftp://h", "https://", "http:///x", "http://h:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Site(url)


def test_where_nobody_answers() -> None:
    (finding,) = look_at_url(Site(f"http://127.0.0.1:{free_port()}"), None, None, None)
    assert (finding.verdict, finding.subject) == (Verdict.PROBLEM, "address")


def test_where_something_else_answers_or_leads_away(front: Front) -> None:
    front.answers["/healthz"] = (200, {}, b"<html>")
    assert "is no gateway" in found(front, Verdict.PROBLEM)["address"]
    front.answers["/healthz"] = (301, {"location": "https://elsewhere/healthz"}, b"")
    assert "301 to https://elsewhere/healthz" in found(front, Verdict.PROBLEM)["address"]


def test_metrics_that_anybody_can_read_are_a_problem(front: Front) -> None:
    front.answers["/%6detrics"] = (200, {}, b"# TYPE gateway_open_exchanges gauge")
    assert "/%6detrics" in found(front, Verdict.PROBLEM)["metrics"]


def test_a_key_that_is_refused_and_one_that_is_not_needed_are_problems(front: Front) -> None:
    assert "drops the Authorization header" in found(front, Verdict.PROBLEM, key=Secret("another"))["keys"]
    front.asks_for_a_key = False
    assert "without a key" in found(front, Verdict.PROBLEM)["keys"]


def test_clocks_that_are_apart_are_a_warning(front: Front) -> None:
    front.answers["/healthz"] = (200, {"date": formatdate(time.time() - 90, usegmt=True)}, b"alive")
    assert "90 s apart" in found(front, Verdict.WARNING)["clock"]
    front.answers["/healthz"] = (200, {"date": "yesterday"}, b"alive")
    assert "no Date" in found(front, Verdict.WARNING)["clock"]


def heard(end: float | None) -> Heard:
    return Heard(200, {}, b"", end)


@pytest.mark.parametrize(
    ("url", "end", "verdict", "says"),
    [
        ("https://h.example", 30 * DAY, Verdict.OK, "30 days"),
        ("https://h.example", 3 * DAY, Verdict.WARNING, "renew"),
        ("http://h.example", None, Verdict.WARNING, "in the clear"),
        ("http://localhost:8080", None, Verdict.OK, "this host"),
    ],
)
def test_certificate_that_ends_soon_and_plain_http_are_warnings(url: str, end: float | None, verdict: Verdict, says: str) -> None:
    finding = doctor_url.tls(Site(url), heard(end), 0.0)
    assert finding.verdict is verdict
    assert says in finding.text


def test_certificate_that_nobody_trusts_is_a_problem(front: Front, authority: Authority) -> None:  # noqa: F811
    front.socket = authority.server.wrap_socket(front.socket, server_side=True)
    (finding,) = look_at_url(Site(f"https://127.0.0.1:{front.server_address[1]}"), None, None, None)
    assert (finding.verdict, finding.subject) == (Verdict.PROBLEM, "TLS")
    assert "self" in finding.text


def test_certificate_that_is_trusted_is_looked_at(front: Front, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    front.socket = authority.server.wrap_socket(front.socket, server_side=True)
    findings = list(look_at_url(Site(f"https://127.0.0.1:{front.server_address[1]}"), KEY, None, None))
    assert {finding.subject: finding.text for finding in findings if finding.verdict is not Verdict.OK} == {
        "TLS": "the certificate of 127.0.0.1 ends in 0 days: renew it"
    }


# streams


def verdict(there: Arrival, here: Arrival | None = None) -> Finding:
    return judged_streams(there, here)


def test_stream_that_comes_piece_by_piece_is_fine(front: Front) -> None:
    assert "12 events arrived over 0." in found(front, Verdict.OK, model="m")["streams"]


def test_stream_that_comes_at_once_at_its_end_is_a_warning_and_with_something_to_compare_a_problem(front: Front) -> None:
    front.held_back = True
    assert "perhaps held back" in found(front, Verdict.WARNING, model="m")["streams"]
    with Front(("127.0.0.1", 0), _Handler) as direct:
        direct.answers = {}
        thread = threading.Thread(target=direct.serve_forever, args=(0.02,))
        thread.start()
        assert "proxy_buffering off" in found(front, Verdict.PROBLEM, model="m", direct=site(direct))["streams"]
        direct.shutdown()
        thread.join()


def test_stream_that_is_too_short_tells_nothing(front: Front) -> None:
    front.stream = (0.0, 12)
    assert "pause_s" in found(front, Verdict.WARNING, model="m")["streams"]


def test_stream_that_fails_says_how(front: Front) -> None:
    front.stream = (0.0, 0)
    assert found(front, Verdict.PROBLEM, model="m")["streams"].endswith("failed: 404 no such model")


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        (Arrival(40, 0.5, 3.0), None, "ok"),
        (Arrival(40, 0.5, 3.0), Arrival(40, 0.5, 3.1), "ok"),
        (Arrival(40, 3.4, 0.1), Arrival(40, 0.5, 3.0), "problem"),
        (Arrival(40, 2.0, 0.5), Arrival(40, 0.1, 5.0), "problem"),
        (Arrival(40, 3.4, 0.1), None, "warning"),
        (Arrival(40, 0.1, 0.05), Arrival(40, 0.1, 0.05), "warning"),
        (Arrival(1, 3.0, 0.0), None, "warning"),
        (Arrival(40, 6.0, 1.0), None, "ok"),
    ],
)
def test_judgement(there: Arrival, here: Arrival | None, expected: str) -> None:
    assert str(verdict(there, here).verdict) == expected
