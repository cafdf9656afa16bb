"""`gateway code`."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.accounts import EXPIRY
from gateway.cli.budgets import AMOUNT
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.core.pricing import usd
from gateway.operations import codes
from gateway.operations.codes import CODES, ListedCode, code_state
from gateway.store.codes import RedeemCode


@click.group()
def code() -> None:
    """Redeem codes: credit for whoever has one, once.

    CODE is a code's id, or the last characters that the list shows.
    """


@code.command("create")
@click.option("--amount", type=AMOUNT, required=True, metavar="USD", help="What each is worth, such as 5 or 0.50.")
@click.option("--count", type=click.IntRange(1, CODES), default=1, help="How many. Default: 1.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When they end. Default: never.")
@click.option("--note", default="", help="What they are for, such as 'prize'; it stands in the ledger.")
@json_option
def create_codes(amount: int, count: int, expires: int | None, note: str, as_json: bool) -> None:
    """Create codes. They are shown once, now; POST /v1/me/redeem takes them."""
    at = now_ms()
    with opened() as here:
        minted = codes.create_codes(here.database, here.secrets().hasher, amount, at, count=count, expires_at=expires, note=note)
    document = [{**_document(ListedCode(one.code, ""), at), "code": one.secret.reveal()} for one in minted]
    title = f"{count} of {usd(amount)} USD, good until {moment(expires, 'redeemed')}. Shown only this once:"
    emit(as_json, document, lambda: [title, "", *(f"    {one.secret.reveal()}" for one in minted), ""])


@code.command("list")
@json_option
def list_codes(as_json: bool) -> None:
    """List the codes, without their secrets."""
    at = now_ms()
    with opened() as here:
        found = codes.list_codes(here.database)
    headings = ("ID", "CODE", "USD", "NOTE", "CREATED", "EXPIRES", "STATE")
    empty = ["No codes yet. Create one: gateway code create --amount 5"]
    emit(as_json, [_document(item, at) for item in found], lambda: table(headings, [_row(item, at) for item in found], right=("USD",)) if found else empty)


@code.command("revoke")
@click.argument("reference", metavar="CODE")
@json_option
def revoke_code(reference: str, as_json: bool) -> None:
    """Let nobody redeem a code any more."""
    with opened() as here:
        revoked = codes.revoke_code(here.database, reference, now_ms())
    emit(as_json, {"id": revoked.id, "suffix": revoked.suffix, "revoked": True}, lambda: [f"code {revoked.id} (…{revoked.suffix}) revoked"])


def _row(item: ListedCode, at: int) -> tuple[object, ...]:
    one = item.code
    state = f"redeemed {moment(one.redeemed_at)} by {item.redeemed_by}" if one.redeemed_at is not None else code_state(one, at)
    return one.id, f"…{one.suffix}", usd(one.amount), one.note, moment(one.created_at), moment(one.expires_at, "never"), state


def _document(item: ListedCode, at: int) -> dict[str, Any]:
    one: RedeemCode = item.code
    return {
        "id": one.id,
        "suffix": one.suffix,
        "amount_nano_usd": one.amount,
        "note": one.note,
        "created_at": one.created_at,
        "expires_at": one.expires_at,
        "revoked_at": one.revoked_at,
        "redeemed_at": one.redeemed_at,
        "redeemed_by": item.redeemed_by or None,
        "state": code_state(one, at),
    }
