"""Checks of our own, which Schemathesis loads as its hooks: what every answer of this gateway keeps, and a record of all that came."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.generation.meta import REQUEST_SHAPE_PROBES, coverage_scenario

RECORD = os.environ.get("EXPLORATION_RECORD")
NEVER_RELAYED = (401, 402, 403, 429)
IDEMPOTENCY_KEY = re.compile("[ -~]{1,255}")
EXCHANGE_ID = re.compile("[0-9A-HJKMNP-TV-Z]{26}")


def header(response: Any, name: str) -> str:
    return str(response.headers.get(name, [""])[0])


def is_relayed(response: Any) -> bool:
    """Whether these are an upstream's own words: its refusal of the request, or a success of a kind that is seldom."""
    if not 400 <= response.status_code < 500:
        return 200 < response.status_code < 300
    return response.status_code not in NEVER_RELAYED and "upstream_refused" in header(response, "x-gateway-receipt")


@schemathesis.check
def error_has_our_shape(ctx: Any, response: Any, case: Any) -> None:
    assert EXCHANGE_ID.fullmatch(header(response, "x-request-id")), "no id of ours"
    assert "set-cookie" not in response.headers
    if response.status_code < 400 or is_relayed(response) or response.request.method == "HEAD" or case.path == "/readyz":
        return
    assert header(response, "content-type") == "application/json"
    document = json.loads(response.content)
    assert set(document) == {"error"}, document
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert error["message"].isprintable(), "the message is not one line of plain text"
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)


@schemathesis.check
def status_is_described_by_itself(ctx: Any, response: Any, case: Any) -> None:
    """Ranges such as 4XX describe what upstreams answer, and nothing of ours."""
    if coverage_scenario(case) in REQUEST_SHAPE_PROBES or is_relayed(response):
        return
    assert str(response.status_code) in case.operation.responses.status_codes


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """One Idempotency-Key with several requests is refused, however valid they are: equal requests keep a common key, others get their own."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and IDEMPOTENCY_KEY.fullmatch(key):
        digest = hashlib.sha256(f"{case.path} {case.media_type} {case.body!r}".encode(errors="replace")).hexdigest()
        case.headers["Idempotency-Key"] = f"{key[:180]}-{digest}"


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    if RECORD:
        line = {"method": response.request.method, "path": case.path, "status": response.status_code, "receipt": header(response, "x-gateway-receipt")}
        with Path(RECORD).open("a") as record:
            record.write(json.dumps(line) + "\n")
