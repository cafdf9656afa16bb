"""What leaves: a Relay or an error as a status, headers and blocks, in the family's shape. Knows no Flask."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from gateway.api.body import breaks_off, linger
from gateway.api.shapes import shape_of
from gateway.core.exchange import Exchange, fresh_id
from gateway.core.idempotency import Kept
from gateway.core.relay import Relay
from gateway.errors import AnswerNotKept, GatewayError, UpstreamError, UpstreamRefused
from gateway.state.base import REQUESTS, TOKENS, Standing

log = logging.getLogger(__name__)
Fields = list[tuple[str, str]]
_STATUS_LINES = MappingProxyType({status.value: f"{status.value} {status.phrase}" for status in HTTPStatus})
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

RESPONSE_HEADERS = frozenset(
    {"content-type", "content-disposition", "content-language", "openai-processing-ms", "openai-version", "openai-model", "retry-after", "x-should-retry"}
)
"""An upstream's headers that reach the client. Never cookies, its rate limits, or anything about the connection."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as WSGI takes it. Names of headers are lower case. Where `blocks` has a `close`, the server calls it, come what may."""

    status: int
    headers: Fields
    blocks: Iterable[bytes]

    @property
    def line(self) -> str:
        """The status with its phrase."""
        return _STATUS_LINES.get(self.status) or f"{self.status} Unknown"


def of_relay(relay: Relay, exchange: Exchange) -> Answered:
    """Closes the Relay itself where the whole body is in hand."""
    try:
        headers = [(name, _sendable(value)) for name, value in relay.headers if name in RESPONSE_HEADERS]
        upstream_id = next((value for name, value in relay.headers if name == "x-request-id"), None)
        headers += exchange_headers(exchange)
        if upstream_id:
            headers.append(("x-upstream-request-id", _sendable(upstream_id)))
        body = relay.body
        if body is not None:
            relay.close()
            headers.append(("content-length", str(len(body))))
            return Answered(relay.status, headers, (body,))
        if relay.length is not None:
            headers.append(("content-length", str(relay.length)))
        headers.append(("x-accel-buffering", "no"))  # what is not whole in hand passes as it comes, whoever asked for it
        return Answered(relay.status, headers, relay)
    except BaseException:
        relay.close()
        raise


def of_kept(kept: Kept) -> Answered:
    """An answer given once more, under the id of the call that gave it first."""
    headers = [(name, _sendable(value)) for name, value in kept.headers]
    headers += [("x-request-id", kept.exchange), ("idempotent-replayed", "true"), ("content-length", str(len(kept.body)))]
    return Answered(kept.status, headers, (kept.body,))


def of_refusal(error: UpstreamRefused, exchange: Exchange, body: bytes, content_type: str) -> Answered:
    """A refusal of the client's own credential or request, under the upstream's status, in these words."""
    headers = [("content-type", _sendable(content_type)), ("content-length", str(len(body)))]
    headers += [(name, _sendable(value)) for name, value in error.headers if name in RESPONSE_HEADERS and name != "content-type"]
    if error.upstream_status == 401:
        headers.append(("www-authenticate", "Bearer"))
    return Answered(error.upstream_status, headers + exchange_headers(exchange), (body,))


def _sendable(value: str) -> str:
    """A header's value as it is. Raises ValueError: HTTP lets none through that could end a header, but a backend's author may."""
    if not _VALUE.fullmatch(value):
        raise ValueError("a header of the backend's answer cannot be sent")
    return value


def of_error(error: GatewayError, exchange: Exchange | None, path: str) -> Answered:
    """An error in the shape of the path's family, with the exchange's headers; a request that was refused before it became an exchange
    gets an id all the same."""
    body = json.dumps(shape_of(path).document(error, _one_line(error.message))).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    if exchange is not None:
        headers += exchange_headers(exchange)
    else:
        refusal_id = fresh_id()
        headers.append(("x-request-id", refusal_id))
        log.info("refused", extra={"exchange": refusal_id, "fields": {"path": path, "status": error.status, "error": error.code}})
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(math.ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if (error.status in (500, 501) and not isinstance(error, UpstreamError)) or isinstance(error, AnswerNotKept):
        headers.append(("x-should-retry", "false"))  # OpenAI's SDKs retry every 5xx and 409: these would fail, or be paid, again
    return Answered(error.status, headers, (body,))


def _one_line(text: str) -> str:
    """What a client sent, and we repeat, may hold line breaks and terminal escapes."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def unexpected(error: Exception, exchange: Exchange | None) -> GatewayError:
    """A bug's error, told to the log in full and to the client in one line."""
    log.error("unexpected %s", type(error).__name__, exc_info=error, extra={"exchange": exchange.id if exchange else None})
    return GatewayError("The gateway failed; the operator finds the reason in its log.")


def exchange_headers(exchange: Exchange) -> Fields:
    """What every answer of an exchange carries: its id, where the time went, how it was routed, and its cost where that is known."""
    headers = [("x-request-id", exchange.id), ("server-timing", _server_timing(exchange)), ("x-gateway-receipt", _compact_receipt(exchange))]
    if exchange.standings:
        headers += _limit_headers(exchange.standings)
    if exchange.amount_nano is not None:
        headers.append(("x-gateway-cost-usd", f"{exchange.amount_nano // 10**9}.{exchange.amount_nano % 10**9:09d}"))
    return headers


def _limit_headers(standings: Sequence[Standing]) -> Fields:
    """OpenAI's `x-ratelimit-*`, of the limit that has the smallest part of it left."""
    headers: Fields = []
    for resource in (REQUESTS, TOKENS):
        ours = [each for each in standings if each.resource == resource]
        if ours:
            binding = min(ours, key=lambda each: each.remaining / each.limit)
            headers += [
                (f"x-ratelimit-limit-{resource}", str(binding.limit)),
                (f"x-ratelimit-remaining-{resource}", str(binding.remaining)),
                (f"x-ratelimit-reset-{resource}", _period(binding.reset_s)),
            ]
    return headers


def _period(seconds: float) -> str:
    """As OpenAI writes it: "850ms", "12s", "1m30s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _server_timing(exchange: Exchange) -> str:
    now = exchange.clock()
    total = (now - exchange.started) * 1000
    upstream = sum((attempt.ended or now) - attempt.started for attempt in exchange.attempts) * 1000
    first = f", first_byte;dur={(exchange.first_byte - exchange.started) * 1000:.1f}" if exchange.first_byte is not None else ""
    return f"gateway;dur={max(total - upstream, 0):.1f}, upstream;dur={upstream:.1f}{first}"


def _compact_receipt(exchange: Exchange) -> str:
    attempts = ", ".join([f"{attempt.deployment}:{attempt.outcome}" for attempt in exchange.attempts])
    # By deployment: a pool may have a thousand credentials, and a header is for every proxy on the way to read.
    excluded = ", ".join(dict.fromkeys([f"{place.partition('/')[0]}:{reason}" for place, reason in exchange.excluded.items()]))
    return f'attempts="{attempts}"' + (f'; excluded="{excluded}"' if excluded else "")


def common_headers(status: int, began: float) -> Fields:
    """What an answer carries that never was an exchange: an id, where the time went (`began` is monotonic), and that nobody was asked."""
    headers = [("x-request-id", fresh_id()), ("x-gateway-receipt", 'attempts=""')]
    if status != 401:  # where a wrong key's time goes is nobody's business: an unknown one would differ from a revoked one
        headers.append(("server-timing", f"gateway;dur={(time.monotonic() - began) * 1000:.1f}"))
    return headers


def finished(answered: Answered, environ: dict[str, Any], began: float) -> Answered:
    """The answer to a request that may not have become an exchange, or whose body was not read to its end."""
    present = {name for name, _ in answered.headers}
    headers = answered.headers + [field for field in common_headers(answered.status, began) if field[0] not in present]
    blocks = _Lingering(answered.blocks, environ) if breaks_off(environ) else answered.blocks
    return Answered(answered.status, headers, blocks)


class _Lingering:
    """Blocks after which the connection stays open until the client has read them."""

    def __init__(self, blocks: Iterable[bytes], environ: dict[str, Any]) -> None:
        self._blocks, self._environ = blocks, environ

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._blocks)

    def close(self) -> None:
        linger(self._environ)
