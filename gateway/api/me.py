"""What whoever holds a key may ask and do about their own account, under /v1/me, whatever API family they use."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from gateway.api import PREFIXES
from gateway.api.body import read_body
from gateway.api.web import policy
from gateway.core.exchange import new_id
from gateway.core.identity import REDEEM, SCOPES, USAGE_READ
from gateway.core.listing import Listing
from gateway.core.overview import Overview, Overviews, OwnBudget, OwnLimit
from gateway.errors import BadRequest
from gateway.operations import codes
from gateway.secrets import KeyHasher
from gateway.settings import Settings
from gateway.store.database import Database

BODY_BYTES = 64_000


def blueprint(database: Database, hasher: KeyHasher, settings: Settings, overviews: Overviews, listing: Listing) -> Blueprint:
    """The routes of one's own account."""
    me = Blueprint("me", __name__, url_prefix=PREFIXES["me"])
    limits = dataclasses.replace(settings, json_limit=BODY_BYTES)

    @me.get("", provide_automatic_options=False)
    @policy("key", USAGE_READ)
    def overview() -> Response:
        return jsonify({**_document(overviews.of(g.principal)), "models": listing.names(g.principal)})

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


def _document(own: Overview) -> dict[str, Any]:
    key = own.key
    return {
        "key": {"id": key.id, "label": key.label, "expires_at": key.expires_at, "scopes": list(SCOPES if key.scopes is None else key.scopes)},
        "user": key.user_name,
        "team": own.team,
        "limits": [_limit(each) for each in own.limits],
        "budgets": [_budget(each) for each in own.budgets],
    }


def _limit(own: OwnLimit) -> dict[str, Any]:
    now = own.standing
    return {
        "of": own.of,
        "model": own.model,
        "resource": now.resource,
        "limit": now.limit,
        "used": now.limit - now.remaining,
        "remaining": now.remaining,
        "reset_s": round(now.reset_s, 3),
        "binding": own.binding,
    }


def _budget(own: OwnBudget) -> dict[str, Any]:
    return {
        "of": own.budget.kind,
        "period": own.budget.period,
        "timezone": own.budget.timezone,
        "soft": own.budget.soft,
        "limit_nano_usd": own.budget.limit_nano,
        "spent_nano_usd": own.spent,
        "held_nano_usd": own.held,
        "remaining_nano_usd": own.remaining,
        "resets_at": own.resets_at,
        "binding": own.binding,
    }
