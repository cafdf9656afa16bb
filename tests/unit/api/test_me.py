from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gateway.operations import codes
from gateway.store import budgets, ledger
from tests.factories import now_ms
from tests.unit.api.served import Served, serving

USD = 10**9


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        served.database.write(lambda: budgets.set_budget("user", served.ann, "total", "UTC", 0, 0))
        yield served


def minted(served: Served, **fields: Any) -> str:
    return codes.create_codes(served.database, served.secrets.hasher, 5 * USD, now_ms(), **fields)[0].secret.reveal()


def credits(served: Served) -> list[ledger.Entry]:
    return served.database.read(lambda: ledger.entries(0, 2**62, 0, 10))


def test_code_is_redeemed_once_and_answered_as_described(served: Served) -> None:
    code = minted(served)
    answer = served.post("/v1/me/redeem", {"code": f" {code}\n"})
    assert answer.status_code == 200
    document = answer.get_json()
    assert (document["amount_nano_usd"], document["balance_nano_usd"]) == (5 * USD, 5 * USD)
    jsonschema_rs.validate(served.ask("GET", "/openapi.json").get_json()["components"]["schemas"]["Redeemed"], document)
    (entry,) = credits(served)
    assert (entry.exchange, entry.amount, entry.user, entry.at) == (document["id"], -5 * USD, served.ann, document["at"])

    again = served.post("/v1/me/redeem", {"code": code})
    assert (again.status_code, again.get_json()["error"]["code"], again.get_json()["error"]["param"]) == (400, "code_redeemed", "code")
    assert len(credits(served)) == 1


def test_credit_is_there_for_the_next_call(served: Served) -> None:
    served.price("m", {"output_text": 10**6})
    assert served.chat().status_code == 402
    assert served.post("/v1/me/redeem", {"code": minted(served)}).status_code == 200
    assert served.chat().status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"code": "gw_code_guessed"}, 404),
        ({"code": 7}, 400),
        ({}, 400),
        (b"[]", 400),
        (b"{", 400),
        (b"", 400),
        ({"code": "x" * 70_000}, 413),
    ],
)
def test_what_is_no_code_is_refused(served: Served, body: Any, status: int) -> None:
    answer = served.post("/v1/me/redeem", body)
    assert (answer.status_code, answer.get_json()["error"]["type"]) == (status, "invalid_request_error")
    assert credits(served) == []


def test_key_needs_the_scope_and_is_judged_first(served: Served) -> None:
    code = minted(served)
    for scopes, status in ((("inference", "usage:read"), 403), (("redeem",), 200)):
        assert served.post("/v1/me/redeem", {"code": code}, key=served.new_key(served.ann, scopes=scopes)).status_code == status
    assert served.post("/v1/me/redeem", {"code": code}, key="gw_user_wrong").status_code == 401


def test_who_has_no_balance_is_told_what_to_do(served: Served) -> None:
    answer = served.post("/v1/me/redeem", {"code": minted(served)}, key=served.new_key(served.new_user("bob")))
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "no_balance")
    assert "--user bob --period total" in answer.get_json()["error"]["message"]
