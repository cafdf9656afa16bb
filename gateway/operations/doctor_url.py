"""The doctor's look at the public address, as a client has it: TLS, clock, what must not be reachable, and whether streams arrive piece by piece."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.backend import Secret
from gateway.operations.findings import Finding, ok, problem, warning

TIMEOUT_S = 10.0
STREAM_S = 120.0
SKEW_S = 5.0
CERTIFICATE_DAYS = 14
TELLING_S = 0.3
"""A stream that its source sent over a shorter time tells nothing about what stands between."""
HELD_BACK = 0.3
"""A stream of which so small a share of its time is left was held back."""
FORGED: Mapping[str, str] = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Forwarded-Host": "localhost"}
PROMPT = "Repeat these words: " + "one two three four five six seven eight nine ten " * 2
PACED = "gateway deployment create paced --model paced --backend echo --option pause_s=0.1"


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer. `date` is Unix seconds; `certificate_end` too."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    certificate_end: float | None


class Site:
    """A base URL, asked without proxies and without following redirects."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for what is no http:// or https:// URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host")
        if "@" in parts.netloc:
            raise ValueError("must not hold a user name or password")
        self.secure, self.host = parts.scheme == "https", parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.prefix = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self.prefix}"

    @property
    def loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.secure:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=ssl.create_default_context())
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Heard:
        """Raises OSError or HTTPException."""
        connection = self.connect(TIMEOUT_S)
        try:
            connection.request("GET", self.prefix + path, headers=dict(headers or {}))
            end = _certificate_end(connection)
            response = connection.getresponse()
            return Heard(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read(65_536), end)
        finally:
            connection.close()


def _certificate_end(connection: http.client.HTTPConnection) -> float | None:
    if not isinstance(connection.sock, ssl.SSLSocket):
        return None
    until = (connection.sock.getpeercert() or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(until)) if isinstance(until, str) else None


def look_at_url(site: Site, key: Secret | None, model: str | None, direct: Site | None, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """`direct`: where this host itself reaches the same gateway, to compare with. With a key and a model, the model is called twice at most."""
    try:
        heard = site.get("/healthz")
    except ssl.SSLError as error:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        yield problem("TLS", f"{site.url}: {reason}; no SDK will connect. Renew the certificate, and serve the whole chain")
        return
    except (OSError, http.client.HTTPException) as error:
        yield problem("address", f"{site.url} does not answer: {error}")
        return
    if heard.status != 200 or b"alive" not in heard.body:
        to = f" to {heard.headers['location']}; give that address" if "location" in heard.headers else ""
        yield problem("address", f"{site.url}/healthz answers {heard.status}{to}: what stands there is no gateway, or a proxy that does not pass it on")
        return
    yield ok("address", f"a gateway answers at {site.url}")
    yield tls(site, heard, clock())
    yield skew(heard, clock())
    yield from _hidden(site)
    yield from _keys(site, key)
    if key is not None and model is not None:
        yield from _streams(site, key, model, direct)
    else:
        yield ok("streams", "not looked at: give --key and --model (two short calls of it) to see whether they arrive piece by piece")


def tls(site: Site, heard: Heard, now: float) -> Finding:
    if not site.secure:
        if site.loopback:
            return ok("TLS", "none, on this host alone")
        return warning("TLS", f"{site.url} is plain HTTP: API keys cross the network in the clear; put TLS in front")
    days = ((heard.certificate_end or now) - now) / 86_400
    if days < CERTIFICATE_DAYS:
        return warning("TLS", f"the certificate of {site.host} ends in {days:.0f} days: renew it")
    return ok("TLS", f"the certificate of {site.host} is good for {days:.0f} days")


def skew(heard: Heard, now: float) -> Finding:
    """The other side's `Date` has whole seconds."""
    try:
        there = parsedate_to_datetime(heard.headers.get("date", "")).timestamp()
    except ValueError:
        return warning("clock", "the answer has no Date header to compare this host's clock with")
    apart = now - there - 0.5
    if abs(apart) > SKEW_S:
        return warning("clock", f"this host and what answers there are {abs(apart):.0f} s apart: run chrony or systemd-timesyncd on both")
    return ok("clock", "this host and what answers there agree")


def _hidden(site: Site) -> Iterator[Finding]:
    """/metrics is for the local host or the token; nobody may claim to be local."""
    tries = [("/metrics", FORGED), ("//metrics", FORGED), ("/%6detrics", FORGED)]
    if not site.loopback:
        tries.insert(0, ("/metrics", {}))
    open_ways = []
    for path, headers in tries:
        try:
            heard = site.get(path, headers)
        except (OSError, http.client.HTTPException):
            continue
        if heard.status == 200 and b"# TYPE" in heard.body:
            open_ways.append(path + (" with forged X-Forwarded-For" if headers else ""))
    if open_ways:
        yield problem(
            "metrics", f"anybody can read {site.url}{open_ways[0]}: set GATEWAY_METRICS_TOKEN, and have the proxy set X-Forwarded-For and refuse /metrics"
        )
    else:
        yield ok("metrics", "not to be read from there, nor by who claims to be local")


def _keys(site: Site, key: Secret | None) -> Iterator[Finding]:
    heard = _asked_models(site, None)
    if heard != 401:
        yield problem(
            "keys", f"{site.url}/v1/models without a key is answered with {heard}, not with 401: something in front adds a key or takes the path away"
        )
    if key is None:
        return
    heard = _asked_models(site, key)
    if heard == 200:
        yield ok("keys", "the key is accepted")
    else:
        yield problem("keys", f"the key is answered with {heard}; where it works on the gateway's own host, the proxy drops the Authorization header")


def _asked_models(site: Site, key: Secret | None) -> int | str:
    try:
        return site.get("/v1/models", {"Authorization": f"Bearer {key.reveal()}"} if key else {}).status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


# streams


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a stream's events arrived: seconds from the request to the first, and from there to the last. `error` is "" or says why there is none."""

    events: int = 0
    first_s: float = 0.0
    spread_s: float = 0.0
    error: str = ""


def arrival(site: Site, key: Secret, model: str) -> Arrival:
    """Stream one short chat."""
    asked = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]})
    connection = site.connect(STREAM_S)
    try:
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {key.reveal()}", "Content-Type": "application/json"}
        connection.request("POST", f"{site.prefix}/v1/chat/completions", asked, headers)
        response = connection.getresponse()
        if response.status != 200:
            return Arrival(error=f"{response.status} {_message(response.read(65_536))}".strip())
        moments = [time.monotonic() for block in iter(lambda: response.read1(65_536), b"") for _ in range(block.count(b"data:"))]
    except (OSError, http.client.HTTPException) as error:
        return Arrival(error=str(error) or type(error).__name__)
    finally:
        connection.close()
    return Arrival(len(moments), moments[0] - began, moments[-1] - moments[0]) if moments else Arrival(error="no event came")


def _message(body: bytes) -> str:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return " ".join(str(message).split())[:200]


def _streams(site: Site, key: Secret, model: str, direct: Site | None) -> Iterator[Finding]:
    there = arrival(site, key, model)
    if there.error:
        yield problem("streams", f"a stream of {model} from {site.url} failed: {there.error}")
        return
    here = arrival(direct, key, model) if direct is not None and direct.url != site.url else None
    yield judged_streams(there, here if here is not None and not here.error else None)


def judged_streams(there: Arrival, here: Arrival | None) -> Finding:
    """`here` is the same without what stands in front, where that could be asked."""
    took_s = there.first_s + there.spread_s
    if there.spread_s >= TELLING_S and there.spread_s >= HELD_BACK * (here.spread_s if here else took_s * HELD_BACK):
        return ok("streams", f"{there.events} events arrived over {there.spread_s:.1f} s, the first after {there.first_s:.1f} s")
    todo = "proxy_buffering off in nginx (deploy/nginx.conf), and no compression or caching of text/event-stream in front"
    if here is not None and here.spread_s >= TELLING_S:
        sent = f"the gateway sent them over {here.spread_s:.1f} s, they arrived within {there.spread_s:.1f} s"
        return problem("streams", f"held back by a proxy: {sent}; {todo}")
    if took_s >= 2 * TELLING_S and there.events > 2:
        return warning(
            "streams", f"{there.events} events arrived within {there.spread_s:.1f} s at the end of {took_s:.1f} s: perhaps held back by a proxy; {todo}"
        )
    return warning("streams", f"too short to tell ({took_s:.1f} s): name a model that takes a second, or make one: {PACED}")
