"""Redeem codes: what they are worth, and that each is redeemed once. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peewee import Expression, chunked

from gateway.store.models_money import RedeemCodeRow

CHUNK = 200


@dataclass(frozen=True, slots=True)
class RedeemCode:
    """A code in any state, without its hash. `amount` is nano-USD, `redeemed_by` the user's id; times are Unix milliseconds."""

    id: int
    suffix: str
    amount: int
    note: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    redeemed_at: int | None
    redeemed_by: int | None


@dataclass(frozen=True, slots=True)
class NewCode:
    """What tells a code from those that are made with it."""

    hash: str
    suffix: str


def create_codes(minted: Sequence[NewCode], amount: int, at: int, *, note: str = "", expires_at: int | None = None) -> list[RedeemCode]:
    """In the order in which they are given. Raises Conflict for a hash that is known."""
    alike = {"amount": amount, "note": note, "created_at": at, "expires_at": expires_at}
    for some in chunked([{"hash": one.hash, "suffix": one.suffix, **alike} for one in minted], CHUNK):
        RedeemCodeRow.insert_many(some).execute()
    found: dict[str, RedeemCode] = {}
    for hashes in chunked([one.hash for one in minted], CHUNK):
        found |= {row.hash: _code(row) for row in RedeemCodeRow.select().where(RedeemCodeRow.hash.in_(hashes))}
    return [found[one.hash] for one in minted]


def find_code(hash: str) -> RedeemCode | None:
    """The code with this hash, whatever its state."""
    row = RedeemCodeRow.get_or_none(RedeemCodeRow.hash == hash)
    return None if row is None else _code(row)


def list_codes() -> list[RedeemCode]:
    return [_code(row) for row in RedeemCodeRow.select().order_by(RedeemCodeRow.id)]


def search_codes(text: str) -> list[RedeemCode]:
    """The codes that an operator may mean by `text`: an id, or last characters."""
    by_id = text.isascii() and text.isdigit() and len(text) < 10
    named = RedeemCodeRow.suffix == text
    return [_code(row) for row in RedeemCodeRow.select().where(named | (RedeemCodeRow.id == int(text)) if by_id else named).order_by(RedeemCodeRow.id)]


def claim_code(code_id: int, user_id: int, at: int) -> bool:
    """Mark it as redeemed by this user, if it still can be. Of several who try at once, on any worker, one is told True."""
    claimed: int = RedeemCodeRow.update(redeemed_at=at, redeemed_by=user_id).where((RedeemCodeRow.id == code_id) & _is_open(at)).execute()
    return claimed == 1


def revoke_code(code_id: int, at: int) -> bool:
    """False where it was redeemed or revoked before."""
    open_still = RedeemCodeRow.redeemed_at.is_null() & RedeemCodeRow.revoked_at.is_null()
    revoked: int = RedeemCodeRow.update(revoked_at=at).where((RedeemCodeRow.id == code_id) & open_still).execute()
    return revoked == 1


def _is_open(at: int) -> Expression:
    unspent = RedeemCodeRow.redeemed_at.is_null() & RedeemCodeRow.revoked_at.is_null()
    return unspent & (RedeemCodeRow.expires_at.is_null() | (RedeemCodeRow.expires_at > at))


def _code(row: RedeemCodeRow) -> RedeemCode:
    times = (row.created_at, row.expires_at, row.revoked_at, row.redeemed_at)
    return RedeemCode(row.id, row.suffix, row.amount, row.note, *times, row.redeemed_by)
