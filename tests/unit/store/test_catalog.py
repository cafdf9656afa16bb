"""Models, deployments, prices, credentials' pools, and the generation that tells of their changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.errors import NotFound
from gateway.store import accounts, catalog, pools
from gateway.store.database import Conflict, Database

SEAL: Callable[[int], bytes] = lambda credential_id: b"sealed for %d" % credential_id  # noqa: E731


def test_a_deployment_has_defaults_and_every_field_can_be_set(database: Database) -> None:
    model = database.write(lambda: catalog.create_model("gpt-*", 1))
    credential = database.write(lambda: pools.create_credential("main", "wxyz", 1, SEAL))
    made = database.write(lambda: catalog.create_deployment("d", model.id, "openai", 5))
    assert (made.base_url, made.priority, made.weight, made.include_usage, made.enabled, made.options) == ("", 0, 1, True, True, {})
    assert (made.upstream_model, made.credential_id, made.connect_s, made.first_byte_s, made.idle_s, made.total_s) == (None,) * 6

    fields: catalog.DeploymentFields = {
        "base_url": "https://x/v1",
        "upstream_model": "gpt-4o",
        "credential_id": credential.id,
        "pool_id": credential.pool_id,
        "priority": 2,
        "weight": 3,
        "connect_s": 0.5,
        "first_byte_s": 1.5,
        "idle_s": 2.5,
        "total_s": 3.5,
        "include_usage": False,
        "options": {"a": [1, {"b": None}]},
        "enabled": False,
        "proxy": "http://p:1",
        "proxy_sealed": b"sealed",
    }
    assert set(fields) == set(catalog.DeploymentFields.__annotations__)
    changed = database.write(lambda: catalog.set_deployment(made.id, **fields))
    assert {name: getattr(changed, name) for name in fields} == fields
    assert database.read(lambda: catalog.find_deployment("d")) == changed
    assert database.write(lambda: catalog.set_deployment(made.id)) == changed


def test_a_field_that_is_none_of_a_deployment_is_refused(database: Database) -> None:
    model = database.write(lambda: catalog.create_model("m", 1))
    with pytest.raises(TypeError, match="created_at"):
        database.write(lambda: catalog.create_deployment("d", model.id, "echo", 1, created_at=7))  # type: ignore[call-arg]


def test_what_is_in_use_cannot_go(database: Database) -> None:
    model = database.write(lambda: catalog.create_model("m", 1))
    credential = database.write(lambda: pools.create_credential("c", "", 1, SEAL))
    made = database.write(lambda: catalog.create_deployment("d", model.id, "echo", 1, credential_id=credential.id))

    for going in (lambda: catalog.delete_model(model.id), lambda: pools.delete_credential(credential.id)):
        with pytest.raises(Conflict, match="in use"):
            database.write(going)

    database.write(lambda: catalog.delete_deployment(made.id))
    database.write(lambda: catalog.delete_model(model.id))
    database.write(lambda: pools.delete_credential(credential.id))
    rows = database.read(catalog.load)
    assert (rows.models, rows.deployments, rows.credentials) == ((), (), ())


def test_load_is_everything_with_its_generation(database: Database) -> None:
    model = database.write(lambda: catalog.create_model("m", 1, on_client_gone="drain"))
    credential = database.write(lambda: pools.create_credential("c", "wxyz", 1, SEAL))
    deployment = database.write(lambda: catalog.create_deployment("d", model.id, "echo", 1))
    price = database.write(lambda: catalog.add_price("m", 0, {"input_uncached": 2_500_000}, 1, per_call_nano=3, source="ours"))

    generation = database.read(catalog.generation)
    assert database.read(catalog.load) == catalog.CatalogRows(
        generation, (model,), (deployment,), (credential,), (price,), (pools.Pool(credential.pool_id, "c"),)
    )
    assert database.read(catalog.list_models) == [database.read(lambda: catalog.find_model("m"))]


def test_prices_are_whole_numbers_of_any_size(database: Database) -> None:
    huge = 10**24
    database.write(lambda: catalog.add_price("m", 0, {"output_text": huge}, 1))
    (price,) = database.read(catalog.list_prices)
    assert price.rates == {"output_text": huge}
    assert type(price.rates["output_text"]) is int


def test_a_price_s_tiers_rise_and_keep_their_variants(database: Database) -> None:
    batch = {"batch": {"output_text": 2}}
    tiers = (catalog.Tier(200, {"output_text": 5}, batch), catalog.Tier(100, {"output_text": 4}))
    made = database.write(lambda: catalog.add_price("m", 0, {"output_text": 3}, 1, tiers=tiers, variants=batch))
    assert database.read(catalog.list_prices) == [made]
    assert made.tiers == tiers[::-1]
    assert made.variants == batch


@pytest.mark.parametrize("tier", [catalog.Tier(1, {"output_text": -1}), catalog.Tier(1, {}, {"batch": {"tokens": 1}})])
def test_a_tier_s_rates_are_checked_too(sqlite_database: Database, tier: catalog.Tier) -> None:
    with pytest.raises(ValueError, match="whole number"):
        sqlite_database.write(lambda: catalog.add_price("m", 0, {}, 1, tiers=(tier,)))


def test_a_price_can_be_deleted(database: Database) -> None:
    made = database.write(lambda: catalog.add_price("m", 0, {}, 1))
    database.write(lambda: catalog.delete_price(made.id))
    assert database.read(catalog.list_prices) == []
    with pytest.raises(NotFound):
        database.write(lambda: catalog.delete_price(made.id))


@pytest.mark.parametrize("rates", [{"output_text": 0.5}, {"output_text": -1}, {"output_text": True}, {"tokens": 1}])
def test_a_price_that_is_none_is_refused(sqlite_database: Database, rates: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        sqlite_database.write(lambda: catalog.add_price("m", 0, rates, 1))


def test_a_model_has_one_price_from_a_moment_on(database: Database) -> None:
    database.write(lambda: catalog.add_price("m", 7, {}, 1))
    with pytest.raises(Conflict):
        database.write(lambda: catalog.add_price("m", 7, {}, 1))
    database.write(lambda: catalog.add_price("m", 8, {}, 1))


def test_every_change_raises_the_generation(database: Database) -> None:
    """Ids count from 1 in a fresh database."""
    changes: list[Callable[[], object]] = [
        lambda: accounts.create_user("u", 1),
        lambda: accounts.create_key(1, "h", 1, prefix="", suffix=""),
        lambda: accounts.expire_key(1, 5),
        lambda: accounts.revoke_key(1, 5),
        lambda: accounts.set_user_disabled(1, 5),
        lambda: pools.create_credential("c", "", 1, SEAL),
        lambda: pools.replace_secret(1, "", SEAL),
        lambda: pools.set_credential_disabled(1, 5),
        lambda: catalog.create_model("m", 1),
        lambda: catalog.set_model(1, on_client_gone="drain"),
        lambda: catalog.create_deployment("d", 1, "echo", 1),
        lambda: catalog.set_deployment(1, weight=2),
        lambda: catalog.delete_deployment(1),
        lambda: catalog.delete_model(1),
        lambda: pools.delete_credential(1),
        lambda: catalog.add_price("m", 0, {}, 1),
        lambda: catalog.delete_price(catalog.list_prices()[0].id),
    ]
    before = database.read(catalog.generation)
    for number, change in enumerate(changes, 1):
        database.write(change)
        assert database.read(catalog.generation) == before + number


def test_a_change_that_fails_leaves_the_generation(database: Database) -> None:
    before = database.read(catalog.generation)
    for change in (
        lambda: catalog.set_model(9, on_client_gone="drain"),
        lambda: catalog.delete_model(9),
        lambda: catalog.set_deployment(9, weight=2),
        lambda: catalog.set_deployment(9),
        lambda: catalog.delete_deployment(9),
        lambda: pools.replace_secret(9, "", SEAL),
        lambda: pools.set_credential_disabled(9, 1),
        lambda: pools.delete_credential(9),
    ):
        with pytest.raises(NotFound):
            database.write(change)
    assert database.read(catalog.generation) == before
