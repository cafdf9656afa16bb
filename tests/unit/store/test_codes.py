from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from subprocess import PIPE, Popen

import pytest

from gateway.operations import codes as operations
from gateway.operations.users import create_user
from gateway.secrets import KeyHasher
from gateway.store import audit, budgets, codes, ledger
from gateway.store.codes import NewCode
from gateway.store.database import Conflict, Database

AT = 1_000


def one_code(database: Database, hash: str = "h1", expires_at: int | None = None) -> codes.RedeemCode:
    return database.write(lambda: codes.create_codes([NewCode(hash, "wxyz")], 5, AT, expires_at=expires_at))[0]


def test_codes_are_made_in_order_and_found_by_hash_id_and_last_characters(database: Database) -> None:
    new = [NewCode(f"h{number}", f"{number:04}") for number in range(codes.CHUNK + 3)]
    made = database.write(lambda: codes.create_codes(new, 2**60, AT, note="prize"))
    assert [code.suffix for code in made] == [one.suffix for one in new]
    assert {(code.amount, code.note, code.created_at, code.expires_at, code.redeemed_by) for code in made} == {(2**60, "prize", AT, None, None)}
    assert database.read(codes.list_codes) == made
    assert database.read(lambda: codes.find_code("h7")) == made[7]
    assert database.read(lambda: codes.find_code("h")) is None
    assert database.read(lambda: codes.search_codes("0007")) == sorted([made[7], made[6]], key=lambda code: code.id)
    with pytest.raises(Conflict):
        database.write(lambda: codes.create_codes([NewCode("h7", "")], 1, AT))


def test_a_code_is_claimed_once_and_only_while_it_is_open(database: Database) -> None:
    code, short, revoked = one_code(database), one_code(database, "h2", AT + 10), one_code(database, "h3")
    assert database.write(lambda: codes.revoke_code(revoked.id, AT))
    assert [database.write(lambda: codes.claim_code(code.id, user, AT)) for user in (7, 8)] == [True, False]  # noqa: B023
    assert not database.write(lambda: codes.claim_code(short.id, 7, AT + 10))
    assert not database.write(lambda: codes.claim_code(revoked.id, 7, AT))
    assert not database.write(lambda: codes.claim_code(99, 7, AT))
    assert not database.write(lambda: codes.revoke_code(code.id, AT))
    found = database.read(lambda: codes.find_code("h1"))
    assert found is not None
    assert (found.redeemed_at, found.redeemed_by, found.revoked_at) == (AT, 7, None)


REDEEM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from gateway.errors import BadRequest
from gateway.operations import codes
from gateway.secrets import KeyHasher
from gateway.store.database import Database

url, name, users, *secrets = sys.argv[1:]
database, users = Database(url), [int(user) for user in users.split(",")]
database.bind()

def attempt(number):
    try:
        user = users[number % len(users)]
        codes.redeem(database, KeyHasher(b"p" * 32), secrets[number // 2 % len(secrets)], user, 1_000, f"{name}-{number}")
        return "won"
    except BadRequest as error:
        return error.code

database.read(lambda: None)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(8) as pool:
    print(*pool.map(attempt, range(4 * len(secrets))))
database.close()
"""
CODES = 12


def test_of_many_who_redeem_a_code_at_once_on_several_workers_one_is_credited(database: Database, url: str) -> None:
    users = [create_user(database, name, AT) for name in ("ann", "bob")]
    for user in users:
        database.write(lambda user=user: budgets.set_budget("user", user.id, "total", "UTC", 0, AT))  # type: ignore[misc]
    minted = [one.secret.reveal() for one in operations.create_codes(database, KeyHasher(b"p" * 32), 5, AT, count=CODES)]
    command = [sys.executable, "-c", REDEEM, url]
    ids = ",".join(str(user.id) for user in users)
    with ExitStack() as stack:
        workers = [stack.enter_context(Popen([*command, name, ids, *minted], stdin=PIPE, stdout=PIPE, text=True)) for name in ("a", "b")]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        outcomes = Counter(word for answered in [worker.communicate(timeout=30)[0] for worker in _begun(workers)] for word in answered.split())
    assert outcomes == {"won": CODES, "code_redeemed": 2 * 4 * CODES - CODES}
    entries = database.read(lambda: ledger.entries(0, AT + 1, 0, 1_000))
    assert sorted(entry.note or "" for entry in entries) == sorted(f"code …{secret[-4:]}" for secret in minted)
    assert database.read(lambda: audit.audit(KeyHasher(b"p" * 32).hash)).differences == ()
    assert sum(window.spent for window in database.read(lambda: budgets.windows_of([1, 2], AT))) == -5 * CODES


def _begun(workers: list[Popen[str]]) -> list[Popen[str]]:
    """All told to begin before any is waited for."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return workers
