"""What whoever holds a key may ask and do about their own account, under /v1/me, whatever API family they use."""

from __future__ import annotations

import dataclasses
import time

from flask import Blueprint, Response, g, jsonify, request

from gateway.api import PREFIXES
from gateway.api.body import read_body
from gateway.api.web import policy
from gateway.core.exchange import new_id
from gateway.core.identity import REDEEM
from gateway.errors import BadRequest
from gateway.operations import codes
from gateway.secrets import KeyHasher
from gateway.settings import Settings
from gateway.store.database import Database

BODY_BYTES = 64_000


def blueprint(database: Database, hasher: KeyHasher, settings: Settings) -> Blueprint:
    """The routes of one's own account."""
    me = Blueprint("me", __name__, url_prefix=PREFIXES["me"])
    limits = dataclasses.replace(settings, json_limit=BODY_BYTES)

    @me.post("/redeem", provide_automatic_options=False)
    @policy("key", REDEEM)
    def redeem() -> Response:
        code = read_body(request.environ, "json", request.content_type or "", limits).document().get("code")
        if not isinstance(code, str):
            raise BadRequest("The body is a JSON object with a 'code', a string.", param="code")
        at = time.time_ns() // 1_000_000
        redeemed = codes.redeem(database, hasher, code.strip(), g.principal.user_id, at, new_id(at))
        return jsonify({"id": redeemed.credit_id, "at": at, "amount_nano_usd": redeemed.amount_nano, "balance_nano_usd": redeemed.balance_nano})

    return me
