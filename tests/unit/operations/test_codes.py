from __future__ import annotations

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.operations import budgets, codes, users
from gateway.operations.budgets import Subject
from gateway.operations.codes import CODES, code_state
from gateway.secrets import Secrets, mint_key
from gateway.store import audit, ledger
from gateway.store.accounts import User
from gateway.store.database import Conflict, Database
from tests.unit.operations.times import AT

USD = 10**9


@pytest.fixture
def ann(database: Database) -> User:
    """With a prepaid balance of nothing."""
    user = users.create_user(database, "ann", AT)
    budgets.set_budget(database, Subject("user", "ann"), "total", 0, AT)
    return user


def minted(database: Database, secrets: Secrets, amount: int = 5 * USD, **fields: object) -> str:
    return codes.create_codes(database, secrets.hasher, amount, AT, **fields)[0].secret.reveal()  # type: ignore[arg-type]


def redeem(database: Database, secrets: Secrets, user: User, code: str, at: int = AT, credit_id: str = "c1") -> codes.Redeemed:
    return codes.redeem(database, secrets.hasher, code, user.id, at, credit_id)


def booked(database: Database) -> list[tuple[str, int, str | None]]:
    return [(entry.exchange, entry.amount, entry.note) for entry in database.read(lambda: ledger.entries(0, AT + 10**9, 0, 100))]


def test_a_code_is_random_and_kept_as_a_hash(database: Database, secrets: Secrets) -> None:
    made = codes.create_codes(database, secrets.hasher, USD, AT, count=50, note="prize")
    shown = {one.secret.reveal() for one in made}
    assert len(shown) == 50
    assert all(code.startswith("gw_code_") and len(code) == len("gw_code_") + 38 for code in shown)
    assert {(one.code.amount, one.code.note, code_state(one.code, AT)) for one in made} == {(USD, "prize", "open")}
    assert not any(one.secret.reveal() in repr(one) for one in made)
    assert [item.code for item in codes.list_codes(database)] == [one.code for one in made]


def test_a_redeemed_code_is_a_credit_in_the_ledger(database: Database, secrets: Secrets, ann: User) -> None:
    code = minted(database, secrets, note="prize")
    redeemed = redeem(database, secrets, ann, code)
    assert (redeemed.credit_id, redeemed.amount_nano, redeemed.balance_nano) == ("c1", 5 * USD, 5 * USD)
    assert redeem(database, secrets, ann, minted(database, secrets, 1), credit_id="c2").balance_nano == 5 * USD + 1
    assert booked(database)[0] == ("c1", -5 * USD, f"code …{code[-4:]}: prize")
    listed = codes.list_codes(database)[0]
    assert (listed.redeemed_by, code_state(listed.code, AT)) == ("ann", "redeemed")
    assert database.read(lambda: audit.audit(secrets.hasher.hash)).differences == ()


def test_what_cannot_be_redeemed_is_told_and_changes_nothing(database: Database, secrets: Secrets, ann: User) -> None:
    bob = users.create_user(database, "bob", AT)
    budgets.set_budget(database, Subject("user", "bob"), "total", 0, AT)
    used, short, revoked = minted(database, secrets), minted(database, secrets, expires_at=AT + 1), minted(database, secrets)
    redeem(database, secrets, bob, used)
    codes.revoke_code(database, str(codes.list_codes(database)[2].code.id), AT)
    before = (codes.list_codes(database), booked(database), budgets.list_budgets(database, AT))
    for user, code, at, kind, word in [
        (ann, used, AT, BadRequest, "code_redeemed"),
        (bob, used, AT, BadRequest, "code_redeemed"),
        (ann, short, AT + 1, BadRequest, "code_expired"),
        (ann, revoked, AT, BadRequest, "code_revoked"),
        (ann, mint_key("code"), AT, NotFound, "code_unknown"),
        (ann, mint_key(), AT, NotFound, "code_unknown"),
        (ann, used[:-1], AT, NotFound, "code_unknown"),
        (ann, "", AT, NotFound, "code_unknown"),
        (ann, "gw_code_\ud800", AT, NotFound, "code_unknown"),
    ]:
        with pytest.raises(kind) as error:
            redeem(database, secrets, user, code, at, "c9")
        assert error.value.code == word  # type: ignore[attr-defined]
    with pytest.raises(BadRequest, match="You redeemed"):
        redeem(database, secrets, bob, used)
    assert (codes.list_codes(database), booked(database), budgets.list_budgets(database, AT)) == before


def test_who_has_no_balance_is_told_what_to_do_and_keeps_the_code(database: Database, secrets: Secrets) -> None:
    bob, code = users.create_user(database, "bob", AT), minted(database, secrets)
    budgets.set_budget(database, Subject("user", "bob"), "month", USD, AT)
    with pytest.raises(BadRequest, match="gateway budget set --user bob --period total --limit 0") as error:
        redeem(database, secrets, bob, code)
    assert error.value.code == "no_balance"
    budgets.set_budget(database, Subject("user", "bob"), "total", 0, AT)
    assert redeem(database, secrets, bob, code).balance_nano == 5 * USD


def test_what_is_no_code_is_refused_and_nothing_is_made(database: Database, secrets: Secrets) -> None:
    for told, fields in [
        ("more than 0", {"amount": 0}),
        ("1 to 1000", {"count": 0}),
        ("1 to 1000", {"count": CODES + 1}),
        ("past", {"expires_at": AT}),
        ("printable", {"note": "a\nb"}),
    ]:
        with pytest.raises(BadRequest, match=told):
            minted(database, secrets, **fields)  # type: ignore[arg-type]
    assert codes.list_codes(database) == []


def test_a_code_is_revoked_by_what_is_shown_of_it(database: Database, secrets: Secrets, ann: User) -> None:
    first, second = minted(database, secrets), minted(database, secrets)
    codes.revoke_code(database, f"…{first[-4:]}", AT)
    assert [code_state(item.code, AT) for item in codes.list_codes(database)] == ["revoked", "open"]
    assert codes.revoke_code(database, "1", AT + 5).id == 1
    redeem(database, secrets, ann, second)
    with pytest.raises(Conflict, match="redeemed already"):
        codes.revoke_code(database, "2", AT)
    with pytest.raises(NotFound, match="'99'"):
        codes.revoke_code(database, "99", AT)
