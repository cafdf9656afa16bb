"""Redeem codes: an operator makes them, whoever has one redeems it once. A secret leaves here once, in a MintedCode; the database holds its hash."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations.keys import check_expiry
from gateway.operations.names import check_label
from gateway.secrets import KeyHasher, key_suffix, looks_like_key, mint_key
from gateway.store import accounts, budgets, codes, holds, ledger
from gateway.store.codes import NewCode, RedeemCode
from gateway.store.database import Conflict, Database

KIND = "code"
CODES = 1000
"""The most that are made at once."""


@dataclass(frozen=True, slots=True)
class MintedCode:
    """A new code and its secret, which is kept nowhere."""

    code: RedeemCode
    secret: Secret


@dataclass(frozen=True, slots=True)
class ListedCode:
    """`redeemed_by`: the user's name, empty where nobody did."""

    code: RedeemCode
    redeemed_by: str


@dataclass(frozen=True, slots=True)
class Redeemed:
    """`credit_id`: the id of the ledger's entry; `balance_nano`: what is left of the user's budget in total now. Nano-USD."""

    credit_id: str
    amount_nano: int
    balance_nano: int


def create_codes(
    database: Database, hasher: KeyHasher, amount_nano: int, at: int, *, count: int = 1, expires_at: int | None = None, note: str = ""
) -> list[MintedCode]:
    """`count` codes that are worth so much each. Raises BadRequest."""
    if amount_nano <= 0:
        raise BadRequest("a code is worth more than 0 USD")
    if not 1 <= count <= CODES:
        raise BadRequest(f"1 to {CODES} codes are made at once")
    check_label(note)
    check_expiry(expires_at, at)
    secrets = [mint_key(KIND) for _ in range(count)]
    minted = [NewCode(hasher.hash(secret), key_suffix(secret)) for secret in secrets]
    made = database.write(lambda: codes.create_codes(minted, amount_nano, at, note=note, expires_at=expires_at))
    return [MintedCode(code, Secret(secret)) for code, secret in zip(made, secrets, strict=True)]


def list_codes(database: Database) -> list[ListedCode]:
    """All of them, in any state."""
    found, users = database.read(lambda: (codes.list_codes(), accounts.list_users()))
    names = {user.id: user.name for user in users}
    return [ListedCode(code, "" if code.redeemed_by is None else names.get(code.redeemed_by, f"#{code.redeemed_by}")) for code in found]


def code_state(code: RedeemCode, at: int) -> str:
    """ "open", "redeemed", "revoked" or "expired"."""
    if code.redeemed_at is not None:
        return "redeemed"
    if code.revoked_at is not None:
        return "revoked"
    return "expired" if code.expires_at is not None and code.expires_at <= at else "open"


def revoke_code(database: Database, reference: str, at: int) -> RedeemCode:
    """By its id or its last characters. Raises NotFound; BadRequest where several are meant; Conflict for one that is redeemed."""

    def revoke() -> RedeemCode:
        found = codes.search_codes(reference.rpartition("…")[2])
        meant = [code for code in found if str(code.id) == reference] or [code for code in found if code_state(code, at) == "open"] or found
        if not meant:
            raise NotFound(f"there is no code {reference!r}; `gateway code list` shows them")
        if len(meant) > 1:
            raise BadRequest(f"{reference!r} may be any of the codes {', '.join(str(code.id) for code in meant)}; name one by its id")
        if not codes.revoke_code(meant[0].id, at) and meant[0].redeemed_at is not None:
            raise Conflict(f"code {meant[0].id} was redeemed already; its credit is booked")
        return meant[0]

    return database.write(revoke)


def redeem(database: Database, hasher: KeyHasher, secret: str, user_id: int, at: int, credit_id: str) -> Redeemed:
    """Book the code's amount to the user's budget in total, once, whoever tries at the same time; where that fails, nothing has changed.

    `credit_id` becomes the id of the entry. Raises NotFound for what is no code, BadRequest for one that is used, revoked or
    expired, and where the user has no budget in total; StoreUnavailable.
    """
    digest = hasher.hash(secret) if secret.startswith(f"gw_{KIND}_") and looks_like_key(secret) else None
    database.read(lambda: _redeemable(digest, user_id, at))  # who guesses takes no write lock

    def work() -> Redeemed:
        code, totals = _redeemable(digest, user_id, at)
        holds.total_windows(totals)  # locked before the code, as calls of the same user do not know it
        if not codes.claim_code(code.id, user_id, at):
            raise _refusal(codes.find_code(digest or "") or code, user_id, at)
        note = f"code …{code.suffix}" + (f": {code.note}" if code.note else "")
        ledger.book_credit("user", user_id, code.amount, at, credit_id, note, hasher.hash)
        return Redeemed(credit_id, code.amount, sum(window.remaining for window in budgets.windows_of(totals, at)))

    return database.write(work)


def _redeemable(digest: str | None, user_id: int, at: int) -> tuple[RedeemCode, list[int]]:
    """The code and the budgets that its amount goes to. For use inside a database work. Raises as `redeem`."""
    code = None if digest is None else codes.find_code(digest)
    if code is None:
        raise NotFound("There is no such code; a character may be wrong or missing.", code="code_unknown", param="code")
    if code_state(code, at) != "open":
        raise _refusal(code, user_id, at)
    totals = budgets.current_budgets("user", user_id, "total")
    if not totals:
        raise _without_balance(user_id)
    return code, totals


def _without_balance(user_id: int) -> BadRequest:
    name = next((user.name for user in accounts.list_users() if user.id == user_id), "NAME")
    told = "Your account has no balance that a code could top up, and the code is still good. Ask the operator to begin one: "
    return BadRequest(f"{told}gateway budget set --user {name} --period total --limit 0", code="no_balance", param="code")


def _refusal(code: RedeemCode, user_id: int, at: int) -> BadRequest:
    """400 also where 409 would fit: OpenAI's SDKs send again what is answered with that."""
    state = code_state(code, at)
    if state == "redeemed" and code.redeemed_by == user_id:
        return BadRequest("You redeemed this code already: its credit is booked.", code="code_redeemed", param="code")
    texts = {"redeemed": "This code was redeemed already.", "revoked": "This code was withdrawn."}
    return BadRequest(texts.get(state, "This code has expired."), code=f"code_{state}", param="code")
