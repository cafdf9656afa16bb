from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gateway.operations import codes
from gateway.store import accounts, budgets, catalog, ledger
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


def own(served: Served, key: str | None = "") -> Any:
    answer = served.ask("GET", "/v1/me", key=key)
    assert answer.status_code == 200
    document = answer.get_json()
    jsonschema_rs.validate(served.ask("GET", "/openapi.json").get_json()["components"]["schemas"]["Overview"], document)
    return document


def test_a_key_without_limits_sees_that_it_has_none(served: Served) -> None:
    stranger = served.new_key(served.new_user("bob"), label="laptop")
    document = own(served, stranger)
    assert (document["user"], document["team"], document["limits"], document["budgets"]) == ("bob", None, [], [])
    assert (document["key"]["label"], document["models"]) == ("laptop", ["echo", "m"])


def test_the_limit_and_the_budget_that_bind_are_named_also_where_they_are_the_teams(served: Served) -> None:
    """Peers say "unlimited" on the key's page where the team's cap is what refuses."""

    def work() -> None:
        team = accounts.create_team("blue", 0)
        accounts.set_user_team(served.ann, team.id)
        budgets.set_limits("user", served.ann, 100, None, 9)
        budgets.set_limits("team", team.id, 10, None, None)
        budgets.set_budget("team", team.id, "month", "Europe/Berlin", USD, 0)
        budgets.set_budget("key", 1, "day", "UTC", 5 * USD, 0)
        budgets.set_budget("global", 0, "day", "UTC", 1, 0, soft=True)

    served.database.write(work)
    served.price("m", {"input_uncached": 10**9, "output_text": 10**9})
    served.gateway.catalog.refresh()
    assert served.chat(max_tokens=10).status_code == 402  # the account's total of the fixture has room for nothing
    served.database.write(lambda: budgets.end_budget(1, 1))
    served.gateway.catalog.refresh()
    assert served.chat(max_tokens=10).status_code == 200
    document = own(served)
    assert document["team"] == "blue"
    assert [(each["of"], each["resource"], each["limit"], each["used"], each["binding"]) for each in document["limits"]] == [
        ("user", "requests", 100, 1, False),
        ("user", "concurrency", 9, 0, True),
        ("team", "requests", 10, 1, True),
    ]
    assert [(each["of"], each["period"], each["spent_nano_usd"], each["remaining_nano_usd"], each["binding"]) for each in document["budgets"]] == [
        ("key", "day", 7 * 10**6, 5 * USD - 7 * 10**6, False),
        ("team", "month", 7 * 10**6, USD - 7 * 10**6, True),
        ("global", "day", 7 * 10**6, 1 - 7 * 10**6, False),
    ]
    assert all(each["resets_at"] > now_ms() for each in document["budgets"])


def test_a_models_limit_is_shown_to_those_who_may_use_it(served: Served) -> None:
    served.database.write(lambda: catalog.set_model(catalog.find_model("m").id, rpm=5))
    served.gateway.catalog.refresh()
    assert [(each["of"], each["model"], each["remaining"]) for each in own(served)["limits"]] == [("model", "m", 5)]
    assert own(served, served.new_key(served.ann, models=("other",)))["limits"] == []


def test_who_may_not_read_usage_sees_nothing(served: Served) -> None:
    assert served.ask("GET", "/v1/me", key=served.new_key(served.ann, scopes=("inference",))).status_code == 403
    assert served.ask("GET", "/v1/me", key="gw_user_wrong").status_code == 401
