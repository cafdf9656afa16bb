from __future__ import annotations

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations import conditions
from gateway.operations.catalog import Wishes, create_deployment
from gateway.operations.credentials import create_credential, replace_secret
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store import conditions as store
from gateway.store.conditions import Transition
from gateway.store.database import Database
from tests.fakes.answers import Status
from tests.fakes.provider import Provider
from tests.unit.operations.times import AT

MINE = f"credential:1-{AT}"
INVALID = Status(401, b'{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}')


@pytest.fixture
def label(database: Database, secrets: Secrets) -> str:
    return create_credential(database, secrets, "main", Secret("sk-0123456789abcdef"), AT).label


def cooled(subject: str, until_at: int | None = AT + 9000) -> Transition:
    return Transition(AT, subject, "main", None, None, "active", "cooling", until_at, "rate_limited", "worker", 2.0)


def states(database: Database) -> list[tuple[str, str]]:
    return [(row.subject, row.state) for row in database.read(store.conditions)]


def test_what_is_in_force_is_told_by_credential_and_of_its_present_secret_only(database: Database, secrets: Secrets, label: str) -> None:
    subjects = (f"{MINE}.1", f"{MINE}.1:m", f"{MINE}.2", "deployment:1", f"{MINE}.1:old")
    database.write(lambda: store.record([cooled(each, AT - 1 if each.endswith("old") else AT + 9000) for each in subjects]))
    in_force = conditions.conditions_in_force(database, AT)
    assert set(in_force) == {MINE, "deployment:1"}
    item = replace_secret(database, secrets, label, Secret("sk-another-0123456789"))
    assert [row.subject for row in conditions.of_credential(in_force, item)] == [f"{MINE}.2"]


def test_clearing_ends_everything_and_is_an_event(database: Database, label: str) -> None:
    database.write(lambda: store.record([cooled(f"{MINE}.1"), cooled(f"{MINE}.1:m")]))
    assert conditions.clear(database, label, AT + 1) == 2
    assert states(database) == []
    assert {(each.subject, each.after, each.reason, each.host) for each in conditions.events(database, label, 2)} == {
        (f"{MINE}.1", "active", "cleared", "operator"),
        (f"{MINE}.1:m", "active", "cleared", "operator"),
    }


def test_clearing_what_only_workers_know_is_told_all_the_same(database: Database, label: str) -> None:
    assert conditions.clear(database, label, AT) == 0
    assert [each.after for each in conditions.events(database, label, 9)] == ["active"]


def test_a_quarantine_lasts_until_it_is_cleared_and_has_its_reason(database: Database, label: str) -> None:
    conditions.quarantine(database, label, "leaked in a chat", AT)
    assert states(database) == [(f"{MINE}.1", "quarantined")]
    assert conditions.events(database, label, 1)[0].evidence == {"note": "leaked in a chat"}
    with pytest.raises(BadRequest, match="printable"):
        conditions.quarantine(database, label, "two\nlines", AT)


def test_a_credential_that_is_not_there_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        conditions.events(database, "nobody", 1)
    with pytest.raises(NotFound):
        conditions.clear(database, "nobody", AT)


def test_a_probe_clears_what_works_quarantines_what_is_invalid_and_leaves_the_rest(
    database: Database, secrets: Secrets, settings: Settings, label: str
) -> None:
    local = Settings.load({"GATEWAY_DATA_DIR": str(settings.data_dir), "GATEWAY_ALLOW_NETWORKS": "127.0.0.0/8"}, settings.data_dir)
    with Provider() as provider:
        create_deployment(database, "d", "m", "openai", AT, Wishes(credential=label, base_url=provider.url))
        provider.script("/v1/models", INVALID, INVALID, Status(500))
        assert conditions.test(database, secrets.vault, local, label).invalid
        assert states(database) == []
        assert conditions.probe(database, secrets.vault, local, label, AT).outcome == "quarantined"
        assert conditions.probe(database, secrets.vault, local, label, AT).outcome == ""
        assert states(database) == [(f"{MINE}.1", "quarantined")]
        assert conditions.probe(database, secrets.vault, local, label, AT + 1).outcome == "cleared"
        assert states(database) == []
