from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations import catalog
from gateway.operations.catalog import Wishes, checked_base_url
from gateway.operations.credentials import create_credential
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store import catalog as store_catalog
from gateway.store.database import Conflict, Database
from tests.unit.operations.times import AT


def test_a_model_is_created_once_listed_and_deleted(database: Database) -> None:
    created = catalog.create_model(database, "gpt-*", AT)
    with pytest.raises(Conflict, match="already"):
        catalog.create_model(database, "gpt-*", AT)
    assert [(served.model, served.deployments) for served in catalog.list_models(database)] == [(created, ())]
    catalog.delete_model(database, "gpt-*")
    with pytest.raises(NotFound):
        catalog.delete_model(database, "gpt-*")


def test_a_model_with_deployments_is_kept(database: Database) -> None:
    catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    with pytest.raises(Conflict, match=r"has deployments \(d\)"):
        catalog.delete_model(database, "m")


def test_a_deployment_brings_its_model_and_says_so(database: Database) -> None:
    placed = catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    assert placed.model == "m"
    assert placed.notes == ("the model m did not exist and was created",)
    assert catalog.create_deployment(database, "e", "m", "echo", AT, Wishes()).notes == ()


def test_a_refused_deployment_leaves_no_model_behind(database: Database) -> None:
    with pytest.raises(NotFound, match="'lost'"):
        catalog.create_deployment(database, "d", "m", "openai", AT, Wishes(credential="lost"))
    assert catalog.list_models(database) == []


def test_everything_that_was_wished_is_kept(database: Database, secrets: Secrets) -> None:
    credential = create_credential(database, secrets, "main", Secret("sk-secret"), AT)
    wishes = Wishes(
        base_url="https://api.example.com/v1/",
        upstream_model="big",
        credential="main",
        priority=2,
        weight=0,
        connect_s=1.5,
        first_byte_s=0,
        total_s=60,
        include_usage=False,
        enabled=False,
        options={"organization": "org"},
    )
    placed = catalog.create_deployment(database, "d", "m", "openai", AT, wishes)
    row = placed.deployment
    assert (row.base_url, row.upstream_model, row.credential_id, row.priority, row.weight) == ("https://api.example.com/v1", "big", credential.id, 2, 0)
    assert (row.connect_s, row.first_byte_s, row.idle_s, row.total_s) == (1.5, None, None, 60)
    assert (row.include_usage, row.enabled, row.options) == (False, False, {"organization": "org"})
    assert placed.credential == "main"


def test_a_backend_without_the_credential_it_needs_is_remarked_on(database: Database) -> None:
    placed = catalog.create_deployment(database, "d", "m", "openai", AT, Wishes())
    assert "needs a credential" in placed.notes[-1]


def test_only_what_is_named_changes_and_empty_values_bring_the_default_back(database: Database, secrets: Secrets) -> None:
    create_credential(database, secrets, "main", Secret("sk-secret"), AT)
    before = Wishes(base_url="http://h/v1", credential="main", upstream_model="u", idle_s=3, weight=5, options={"organization": "o", "project": "p"})
    catalog.create_deployment(database, "d", "m", "openai", AT, before)
    changes = Wishes(base_url="", credential="", upstream_model="", idle_s=0, options={"organization": "", "project": "q"})
    placed = catalog.set_deployment(database, "d", changes)
    row = placed.deployment
    assert (row.base_url, row.upstream_model, row.idle_s, row.weight, row.options) == ("", None, None, 5, {"project": "q"})
    assert (placed.credential, row.credential_id) == (None, None)


def test_a_change_reaches_the_workers(database: Database) -> None:
    catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    before = database.read(store_catalog.generation)
    catalog.set_deployment(database, "d", Wishes(weight=3))
    assert database.read(store_catalog.generation) > before


def test_naming_nothing_to_change_is_a_mistake(database: Database) -> None:
    catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    with pytest.raises(BadRequest, match="nothing to change"):
        catalog.set_deployment(database, "d", Wishes())


def test_deployments_are_listed_in_the_order_in_which_they_are_tried(database: Database) -> None:
    for name, model, priority, weight in (("c", "m", 1, 9), ("b", "m", 0, 1), ("a", "m", 0, 5), ("z", "a", 0, 1)):
        catalog.create_deployment(database, name, model, "echo", AT, Wishes(priority=priority, weight=weight))
    assert [placed.deployment.name for placed in catalog.list_deployments(database)] == ["z", "a", "b", "c"]


def test_a_deleted_deployment_leaves_its_model(database: Database) -> None:
    catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    assert catalog.delete_deployment(database, "d").model == "m"
    assert [served.deployments for served in catalog.list_models(database)] == [()]
    with pytest.raises(NotFound, match="'d'"):
        catalog.delete_deployment(database, "d")


@pytest.mark.parametrize(
    "wishes",
    [
        {"priority": -1},
        {"weight": 10_000_000},
        {"idle_s": 0.001},
        {"total_s": 1e9},
        {"idle_s": float("nan")},
        {"base_url": "h"},
        {"upstream_model": "a b"},
        {"options": {"x": "1"}},
    ],
)
def test_values_out_of_bounds_are_refused(database: Database, wishes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        catalog.create_deployment(database, "d", "m", "echo", AT, Wishes(**wishes))
    assert catalog.list_deployments(database) == []


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_a_deployment_needs_a_name_that_can_be_one(database: Database, name: str) -> None:
    with pytest.raises(BadRequest):
        catalog.create_deployment(database, name, "m", "echo", AT, Wishes())


def test_a_base_url_is_kept_without_its_last_slash() -> None:
    assert checked_base_url("http://[::1]:8000/v1/") == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "h:80",
        "http://h/?a",
        "http://h/#a",
        "http://u:pw@h/",
        "http://@h",
        "http://h:99999",
        "http://[::1",
        "http://h/\r\nx",
        "http://h /",
    ],
)
def test_a_base_url_with_anything_else_in_it_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadRequest) as refused:
        checked_base_url(url)
    assert "pw" not in str(refused.value)


# proxies

PROXY = "socks5h://user:proxy-password@p.example:1080"
SHOWN = "socks5h://user@p.example:1080"


def test_a_proxy_is_shown_without_its_password_and_kept_sealed(database: Database, secrets: Secrets, settings: Settings) -> None:
    placed = catalog.create_deployment(database, "d", "m", "echo", AT, Wishes(proxy=Secret(PROXY)), secrets.vault)
    row = placed.deployment
    assert row.proxy == SHOWN
    assert row.proxy_sealed is not None
    assert secrets.vault.open(row.proxy_sealed, store_catalog.proxy_place(row.id)) == PROXY
    assert catalog.list_deployments(database) == [dataclasses.replace(placed, notes=())]
    assert "proxy-password" not in repr(placed)
    assert not [path for path in settings.data_dir.rglob("*") if path.is_file() and b"proxy-password" in path.read_bytes()]


def test_a_proxy_is_set_kept_and_taken_away(database: Database, secrets: Secrets) -> None:
    catalog.create_deployment(database, "d", "m", "echo", AT, Wishes())
    assert catalog.set_deployment(database, "d", Wishes(proxy=Secret(PROXY)), secrets.vault).deployment.proxy == SHOWN
    kept = catalog.set_deployment(database, "d", Wishes(weight=2)).deployment
    assert (kept.proxy, kept.weight) == (SHOWN, 2)
    gone = catalog.set_deployment(database, "d", Wishes(proxy=Secret(""))).deployment
    assert (gone.proxy, gone.proxy_sealed) == (None, None)


def test_what_is_no_proxy_is_refused_and_not_repeated(database: Database, secrets: Secrets) -> None:
    wishes = Wishes(proxy=Secret("ftp://user:proxy-password@p:1"))
    with pytest.raises(BadRequest) as refused:
        catalog.create_deployment(database, "d", "m", "echo", AT, wishes, secrets.vault)
    assert "proxy-password" not in str(refused.value) + repr(wishes)
    assert catalog.list_deployments(database) == []
