from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.core import upstream_secrets
from gateway.errors import BadRequest
from gateway.operations import credentials, import_formats, imports
from gateway.operations.catalog import Wishes, create_deployment
from gateway.operations.imports import Import, Imported, Outcome
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store import pools
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, credential_place, extras_place
from tests.fakes.answers import Status
from tests.fakes.provider import Provider
from tests.unit.operations.test_import_formats import jwt
from tests.unit.operations.times import AT

LOCAL = {"GATEWAY_ALLOW_NETWORKS": "127.0.0.0/8"}


def run(database: Database, secrets: Secrets, document: Any, **how: Any) -> list[Imported]:
    return imports.import_credentials(database, secrets, import_formats.of_json(document), Import(**how), AT)


def outcomes(results: Sequence[Imported]) -> list[Outcome]:
    return [each.outcome for each in results]


def stored(database: Database) -> list[Credential]:
    return database.read(pools.list_credentials)


def test_each_entry_becomes_a_credential_of_the_pool(database: Database, secrets: Secrets) -> None:
    run(database, secrets, ["sk-first-0123456789", {"token": "sk-second", "label": "two", "pool": "own", "rpm": 3, "proxy": "http://u:pw@p:1", "puid": "x"}])
    first, second = stored(database)
    assert (first.label, first.pool_name, first.hint) == ("imported-1", "imported", "6789")
    assert secrets.vault.open(first.sealed, credential_place(first.id)) == "sk-first-0123456789"
    assert (second.label, second.pool_name, second.rpm, second.proxy) == ("two", "own", 3, "http://u@p:1")
    assert second.extras is not None
    assert json.loads(secrets.vault.open(second.extras, extras_place(second.id))) == {"puid": "x"}


def test_second_import_finds_everything_there(database: Database, secrets: Secrets) -> None:
    document = ["sk-a", "sk-b"]
    assert outcomes(run(database, secrets, document)) == [Outcome.CREATED] * 2
    again = run(database, secrets, document, pool="other")
    assert [(each.outcome, each.label) for each in again] == [(Outcome.KNOWN, "imported-1"), (Outcome.KNOWN, "imported-2")]
    assert len(stored(database)) == 2


def test_secrets_that_stand_twice_are_made_once(database: Database, secrets: Secrets) -> None:
    assert outcomes(run(database, secrets, ["sk-a", "sk-a"])) == [Outcome.CREATED, Outcome.KNOWN]


def test_credentials_without_a_fingerprint_are_recognised(database: Database, secrets: Secrets) -> None:
    made = credentials.create_credential(database, secrets, "old", Secret("sk-a"), AT)
    database.write(lambda: pools.set_credential(made.id, fingerprint=None))
    assert [(each.outcome, each.label) for each in run(database, secrets, ["sk-a"])] == [(Outcome.KNOWN, "old")]


def test_labels_come_from_a_tokens_address_and_expiry_from_its_end(database: Database, secrets: Secrets) -> None:
    end = AT // 1000 + 60
    run(database, secrets, [jwt(1, email="ann@example.com", exp=end), jwt(2, **{upstream_secrets.PROFILE: {"email": "bob@example.com"}})])
    first, second = stored(database)
    assert (first.label, first.expires_at) == ("ann-example.com", end * 1000)
    assert (second.label, second.expires_at) == ("bob-example.com", None)


def test_two_tokens_of_one_address_get_two_labels(database: Database, secrets: Secrets) -> None:
    run(database, secrets, [jwt(1, email="a@b.c"), jwt(2, email="a@b.c"), jwt(3, email="a@b.c")])
    assert [item.label for item in stored(database)] == ["a-b.c", "a-b.c-1", "a-b.c-2"]


def test_numbers_pass_over_labels_that_are_taken(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "k-2", Secret("sk-x"), AT)
    run(database, secrets, ["sk-a", "sk-b", {"token": "sk-c", "label": "k-3"}, "sk-d"], prefix="k")
    assert [item.label for item in stored(database)] == ["k-2", "k-1", "k-4", "k-3", "k-5"]


def test_expired_entries_and_taken_labels_are_refused_and_the_rest_is_made(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "mine", Secret("sk-x"), AT)
    results = run(database, secrets, [jwt(1, exp=1_700_000_000), {"token": "sk-a", "label": "mine"}, "sk-b"])
    assert outcomes(results) == [Outcome.REFUSED, Outcome.REFUSED, Outcome.CREATED]
    assert [each.detail for each in results[:2]] == ["it expired on 2023-11-14", "there is another credential mine"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"token": "sk-z", "proxy": "gopher://canary@h:1"}, "entry 3: the proxy must be http://"),
        ({"token": "sk canary"}, "entry 3: the secret must be printable"),
        ({"token": "sk-z", "label": "a b"}, "entry 3: 'a b' cannot be a credential's name"),
        ({"token": "sk-z", "weight": -1}, "entry 3: weight must be"),
        ({"token": "sk-z", "puid": "two words"}, "entry 3: the secret must be printable"),
    ],
)
def test_one_wrong_entry_imports_nothing(database: Database, secrets: Secrets, entry: Any, told: str) -> None:
    with pytest.raises(BadRequest) as refused:
        run(database, secrets, ["sk-a", "sk-b", entry])
    assert told in str(refused.value)
    assert "canary" not in str(refused.value)
    assert stored(database) == []


def test_only_access_tokens_are_taken_where_it_is_asked(database: Database, secrets: Secrets) -> None:
    with pytest.raises(BadRequest, match="entry 2: it is not an access token"):
        run(database, secrets, [jwt(), "sk-a"], jwt=True)
    assert stored(database) == []
    assert outcomes(run(database, secrets, [jwt()], jwt=True)) == [Outcome.CREATED]


def test_plan_changes_nothing_and_says_what_the_import_does(database: Database, secrets: Secrets) -> None:
    found = import_formats.of_json(["sk-a", "sk-a", jwt(1, exp=1)])
    planned = imports.plan_import(database, secrets, found, Import(), AT)
    assert stored(database) == []
    assert imports.import_credentials(database, secrets, found, Import(), AT) == planned


def test_progress_is_told(database: Database, secrets: Secrets) -> None:
    told: list[int] = []
    imports.import_credentials(database, secrets, import_formats.of_json(["sk-a", "sk-b"]), Import(), AT, told.append)
    assert told == [1, 2]


def test_more_than_one_statement_holds_is_all_or_nothing(database: Database, secrets: Secrets) -> None:
    count = pools.CHUNK + 50
    assert len(run(database, secrets, [f"sk-{number}" for number in range(count)])) == count
    assert [secrets.vault.open(item.sealed, credential_place(item.id)) for item in stored(database)] == [f"sk-{number}" for number in range(count)]
    new = [credentials.new_credential(secrets, Secret(f"sk-new-{number}"), credentials.CredentialWishes(pool="p")) for number in range(count)]
    labelled = [imports.replace(one, label=f"new-{number}") for number, one in enumerate(new)]
    with pytest.raises(Conflict):
        database.write(lambda: pools.create_credentials([*labelled, imports.replace(new[0], label="imported-7")], AT))
    assert len(stored(database)) == count


def test_probe_asks_for_the_list_of_models_and_nothing_else(database: Database, secrets: Secrets, settings: Settings) -> None:
    local = Settings.load({"GATEWAY_DATA_DIR": str(settings.data_dir), **LOCAL}, settings.data_dir)
    with Provider() as provider:
        provider.script("/v1/models", Status(401, b'{"error":{"code":"invalid_api_key"}}'))
        run(database, secrets, ["sk-bad", "sk-good"], pool="p")
        run(database, secrets, ["sk-idle"], pool="unused")
        create_deployment(database, "d", "m", "openai", AT, Wishes(pool="p", base_url=provider.url))
        probed = list(imports.probe_credentials(database, secrets.vault, local, ["p-1", "p-2", "unused-1"]))
        assert [(each.label, each.deployment) for each in probed] == [("p-1", "d"), ("p-2", "d"), ("unused-1", "")]
        assert [each.problem for each in probed] == ["The upstream answered with status 401.", "", "no deployment presents it"]
        assert [(request.method, request.path) for request in provider.requests] == [("GET", "/v1/models")] * 2


def test_backends_that_list_no_models_are_not_called(database: Database, secrets: Secrets, settings: Settings) -> None:
    run(database, secrets, ["sk-a"], pool="p")
    create_deployment(database, "d", "m", "tests.factories:Scripted", AT, Wishes(pool="p"))
    (probed,) = imports.probe_credentials(database, secrets.vault, settings, ["p-1"])
    assert "cannot be tested for free" in probed.problem
