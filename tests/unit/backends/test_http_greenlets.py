"""The transport in a process whose sockets and threads are gevent's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fakes.answers import BeforeBody, Delay, End, RawBytes, Silent
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Authority, Client

PATH = "/v1/chat/completions"
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
ROOT = Path(__file__).parents[3]


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import gevent, json, sys, time
from backends.http import Transport
from gateway.backend import Body, Cancellation, Deadlines
from gateway.errors import Cancelled, UpstreamTimeout, UpstreamUnreachable
import ssl
root, tls_root, certificate, black_hole = sys.argv[1:]
transport = Transport(ssl_context=ssl.create_default_context(cafile=certificate), tick_s=0.2)
out, counted = {}, []

def send(path, base=root, body=b'{"stream": true}', cancel=None, total_s=20, **deadlines):
    until, cancel = time.monotonic() + total_s, cancel or Cancellation()
    return transport.send("POST", base + path, (), Body.of(body), deadlines=Deadlines(**deadlines), deadline=until, cancel=cancel)

def whole(path, **options):
    return b"".join(send(path, **options).chunks)

def kind(run):
    try:
        run()
    except Exception as error:
        return type(error).__name__ + getattr(error, "phase", "")
    return "none"

def cancelled(run):
    cancel = Cancellation()
    fired = []
    def fire():
        fired.append(time.monotonic())
        cancel.fire("client_gone")
    gevent.spawn_later(0.2, fire)
    got = kind(lambda: run(cancel))
    return [got, time.monotonic() - fired[0] < 0.5]

out["plain"] = [b"[DONE]" in whole("/v1/chat/completions") for _ in range(3)]
out["tls"] = [b"[DONE]" in whole("/v1/chat/completions", base=tls_root) for _ in range(3)]
out["name"] = b"[DONE]" in whole("/v1/chat/completions", base=root.replace("127.0.0.1", "localhost"))
jobs = [gevent.spawn(whole, "/slow") for _ in range(50)]
begun = time.monotonic()
gevent.joinall(jobs, raise_error=True)
out["together"] = len({job.value for job in jobs})
out["seconds"] = time.monotonic() - begun
out["first_byte"] = kind(lambda: send("/silent", first_byte_s=0.2))
out["idle"] = kind(lambda: whole("/stall", idle_s=0.2))
out["total"] = kind(lambda: whole("/stall", total_s=0.3))
out["connect"] = kind(lambda: send("/x", base=black_hole, connect_s=0.3))
out["ticks"] = kind(lambda: counted.extend(send("/stall", idle_s=0.5).chunks)) + str(counted.count(b""))
begun = time.monotonic()
out["early"] = [send("/early", base=base, body=b"x" * 30_000_000, idle_s=20).status for base in (root, tls_root)]
out["noticed"] = time.monotonic() - begun < 5
out["cancel_head"] = cancelled(lambda cancel: send("/silent", cancel=cancel))
out["cancel_body"] = cancelled(lambda cancel: whole("/stall", cancel=cancel))
out["cancel_tls"] = cancelled(lambda cancel: whole("/stall", base=tls_root, cancel=cancel))
out["cancel_connect"] = cancelled(lambda cancel: send("/x", base=black_hole, connect_s=5, cancel=cancel))
transport.close()
print(json.dumps(out))
"""


def test_transport_works_with_greenlets(provider: Provider, secure: tuple[Provider, Client], authority: Authority, black_hole: str) -> None:
    for each in (provider, secure[0]):
        each.always("/slow", Delay(0.5))
        each.always("/silent", Silent())
        each.always("/stall", RawBytes(HELLO[:-1], End.HOLD))
        each.always("/early", BeforeBody(RawBytes(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n", End.HOLD)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GREENLETS, provider.root, secure[0].root, str(authority.file), black_hole],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out.pop("seconds") < 10  # one after another they would take 25
    assert out == {
        "plain": [True] * 3,
        "tls": [True] * 3,
        "name": True,
        "together": 1,
        "first_byte": "UpstreamTimeoutfirst_byte",
        "idle": "UpstreamTimeoutidle",
        "total": "UpstreamTimeouttotal",
        "connect": "UpstreamUnreachable",
        "ticks": "UpstreamTimeoutidle2",
        "early": [413, 413],
        "noticed": True,
        "cancel_head": ["Cancelled", True],
        "cancel_body": ["Cancelled", True],
        "cancel_tls": ["Cancelled", True],
        "cancel_connect": ["Cancelled", True],
    }
    provider.wait_open(0)
