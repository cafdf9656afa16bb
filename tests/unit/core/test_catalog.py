from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.backend import Deadlines, Proxy, Secret, Services, Target
from gateway.core.catalog import Backends, Catalog, Deployment, EnvironmentDeployment, Snapshot
from gateway.errors import PluginError, StoreUnavailable
from gateway.secrets import Vault
from gateway.state.base import Limit
from gateway.store import catalog as rows
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.models import database as bound
from tests.factories import Hosting, Scripted, deployment, migrated, price

SCRIPTED, HOSTING = "tests.factories:Scripted", "tests.factories:Hosting"
DEFAULTS = Deadlines(1, 2, 3, 4)


class Picky(Scripted):
    """A backend that refuses what it is given, and fails to close."""

    class Options:
        def __init__(self, colour: str = "red") -> None:
            if colour != "red":
                raise ValueError("only red")

    def close(self) -> None:
        super().close()
        raise OSError("stuck")


class Roomy(Scripted):
    Options = dict


class NeedsSecret(Scripted):
    needs_secret = True
    default_base_url = "https://default.example/v1"


class NoBackend:
    pass


class Stage:
    """A catalog over a real database, and what an operator does to it."""

    def __init__(self, database: Database) -> None:
        self.database, self.vault = database, Vault({1: b"m" * 32}, 1)
        self.learned: set[str] = set()
        self.backends = Backends(Services())

    def catalog(self, environment: EnvironmentDeployment | None = None) -> Catalog:
        return Catalog(self.database, self.vault, self.backends, DEFAULTS, environment, lambda *secrets: self.learned.update(secrets))

    def loaded(self, environment: EnvironmentDeployment | None = None) -> Snapshot:
        catalog = self.catalog(environment)
        catalog.refresh()
        return catalog.snapshot

    def deploy(self, name: str, model: str = "m", backend: str = SCRIPTED, **fields: Any) -> rows.Deployment:
        def work() -> rows.Deployment:
            row = rows.find_model(model) or rows.create_model(model, 0)
            return rows.create_deployment(name, row.id, backend, 0, **fields)

        return self.database.write(work)

    def credential(self, secret: str, label: str = "key") -> pools.Credential:
        return self.database.write(lambda: pools.create_credential(label, secret[-4:], 0, lambda id: self.vault.seal(secret, pools.credential_place(id))))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        yield Stage(database)


def snapshot(*names: str, prices: dict[str, list[Any]] | None = None) -> Snapshot:
    by_model: dict[str, list[Deployment]] = {name: [deployment(name)] for name in names}
    globs = sorted((name for name in names if "*" in name or "[" in name), key=len, reverse=True)
    price_globs = sorted((name for name in prices or {} if "*" in name or "[" in name), key=len, reverse=True)
    return Snapshot(1, by_model, globs, prices or {}, price_globs)


# names


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-mini", "gpt-4*"),
        ("gpt-3", "gpt-*"),
        ("GPT-3", "*"),
        ("mistral", "*"),
        ("gpt-*", "gpt-*"),
        ("claude[1m]", "claude[1m]"),
        ("claude1", "*"),
    ],
)
def test_exact_name_wins_then_the_longest_glob(asked: str, found: str) -> None:
    made = snapshot("*", "gpt-*", "gpt-4*", "gpt-4o", "claude[1m]")
    assert [each.name for each in made.find(asked)] == [found]


def test_name_that_nothing_matches_has_no_deployments() -> None:
    assert list(snapshot("gpt-*", "m").find("claude")) == []


def test_price_of_the_exact_name_wins_then_the_longest_globs() -> None:
    exact, long, short = price("gpt-4o", rate=3), price("gpt-*", rate=2), price("*", rate=1)
    made = snapshot(prices={"*": [short], "gpt-*": [long], "gpt-4o": [exact]})
    assert [made.price(name, 0) for name in ("gpt-4o", "gpt-3", "mistral")] == [exact, long, short]


def test_newest_price_that_is_in_force_counts() -> None:
    new, old = price("m", rate=2, valid_from=200), price("m", rate=1, valid_from=100)
    made = snapshot(prices={"m": [new, old]})
    assert [made.price("m", at) for at in (99, 100, 199, 200, 10**15)] == [None, old, old, new, new]


def test_exact_price_of_the_future_leaves_a_globs_in_force() -> None:
    later, now = price("m", valid_from=200), price("*")
    made = snapshot(prices={"m": [later], "*": [now]})
    assert made.price("m", 100) is now


def test_price_of_a_name_with_brackets_is_found() -> None:
    bracketed = price("claude[1m]")
    made = snapshot(prices={"claude[1m]": [bracketed]})
    assert made.price("claude[1m]", 0) is bracketed


# what a snapshot is made of


def test_nothing_is_there_before_the_first_load(stage: Stage) -> None:
    catalog = stage.catalog()
    assert catalog.generation == -1
    assert not catalog.snapshot.deployments


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01 00:00:00')", "newer than this program"),
        ("DELETE FROM schema_migration WHERE name = '0003_money'", "migrations are pending (0003_money"),
    ],
)
def test_schema_that_is_not_this_program_s_is_not_begun_with_and_told(stage: Stage, caplog: pytest.LogCaptureFixture, change: str, told: str) -> None:
    stage.database.write(lambda: bound.execute_sql(change))
    catalog = stage.catalog()
    catalog.refresh()
    assert catalog.generation == -1
    assert told in caplog.text


def test_schema_that_a_newer_program_migrates_meanwhile_is_gone_on_with(stage: Stage) -> None:
    catalog = stage.catalog()
    catalog.refresh()
    loaded = catalog.generation
    stage.database.write(lambda: bound.execute_sql("INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01 00:00:00')"))
    stage.database.write(lambda: rows.create_model("later", 0))
    catalog.refresh()
    assert catalog.generation > loaded >= 0


def test_deployment_carries_what_was_configured(stage: Stage) -> None:
    secret = stage.credential("sk-upstream-secret")
    fields: dict[str, Any] = {
        "base_url": "http://u/v1",
        "upstream_model": "real",
        "credential_id": secret.id,
        "priority": 3,
        "weight": 5,
        "include_usage": False,
        "idle_s": 9.0,
    }
    stage.deploy("d", **fields)
    (made,) = stage.loaded().find("m")
    assert (made.name, made.model, made.base_url, made.upstream_name("m")) == ("d", "m", "http://u/v1", "real")
    assert (made.priority, made.weight, made.include_usage, made.owner, made.problem) == (3, 5, False, "database", "")
    assert (made.credential, made.secret.reveal()) == ("key", "sk-upstream-secret")
    assert made.deadlines == Deadlines(1, 2, 9, 4)
    assert isinstance(made.backend, Scripted)


def test_secrets_are_taught_to_whoever_keeps_them_out_of_the_logs(stage: Stage) -> None:
    stage.deploy("d", credential_id=stage.credential("sk-upstream-secret").id)
    stage.loaded(EnvironmentDeployment(Secret("sk-environment"), "http://e/v1"))
    assert {"sk-upstream-secret", "sk-environment"} <= stage.learned


def test_disabled_deployment_is_not_there(stage: Stage) -> None:
    stage.deploy("off", enabled=False)
    stage.deploy("on")
    assert [each.name for each in stage.loaded().find("m")] == ["on"]


def test_backend_gives_the_base_url_that_is_not_set(stage: Stage) -> None:
    secret = stage.credential("sk-upstream-secret")
    stage.deploy("d", backend=f"{__name__}:NeedsSecret", credential_id=secret.id)
    (made,) = stage.loaded().find("m")
    assert made.base_url == "https://default.example/v1"


@pytest.mark.parametrize(
    ("backend", "options", "problem"),
    [
        ("echoo", {}, "Did you mean 'echo'?"),
        ("nowhere:Nothing", {}, "cannot be loaded"),
        (f"{__name__}:Picky", {"colour": "blue"}, "refuses its options"),
        (f"{__name__}:Picky", {"size": 1}, "refuses its options"),
        (f"{__name__}:NoBackend", {}, "is not a Backend"),
        (f"{__name__}:NeedsSecret", {}, "needs a credential"),
    ],
)
def test_deployment_that_cannot_be_used_says_why_and_harms_no_other(stage: Stage, backend: str, options: dict[str, Any], problem: str) -> None:
    stage.deploy("bad", backend=backend, options=options)
    stage.deploy("good")
    bad, good = stage.loaded().find("m")
    assert problem in bad.problem
    assert good.problem == ""


def test_disabled_credential_takes_its_deployment_out(stage: Stage) -> None:
    secret = stage.credential("sk-upstream-secret")
    stage.deploy("d", credential_id=secret.id)
    stage.database.write(lambda: pools.set_credential_disabled(secret.id, 1))
    (made,) = stage.loaded().find("m")
    assert "disabled" in made.problem
    assert not made.secret


def test_credential_that_does_not_open_takes_its_deployment_out(stage: Stage) -> None:
    stage.deploy("d", credential_id=stage.credential("sk-upstream-secret").id)
    stage.vault = Vault({1: b"x" * 32}, 1)
    (made,) = stage.loaded().find("m")
    assert "does not open" in made.problem


def test_new_secret_is_a_new_subject_for_cooldowns(stage: Stage) -> None:
    secret = stage.credential("sk-upstream-secret")
    stage.deploy("d", credential_id=secret.id)
    (before,) = stage.loaded().find("m")
    stage.database.write(lambda: pools.replace_secret(secret.id, "cret", lambda id: stage.vault.seal("sk-next-secret", pools.credential_place(id))))
    (after,) = stage.loaded().find("m")
    assert after.secret.reveal() == "sk-next-secret"
    assert after.credential_subject != before.credential_subject
    assert after.subject == before.subject


def test_deployments_of_one_credential_share_its_subject_and_those_of_none_share_nothing(stage: Stage) -> None:
    secret = stage.credential("sk-upstream-secret")
    for name in ("a", "b"):
        stage.deploy(name, "kept", credential_id=secret.id)
        stage.deploy(f"{name}-keyless", "keyless")
    made = stage.loaded()
    assert len({each.credential_subject for each in made.find("kept")}) == 1
    assert len({each.credential_subject for each in made.find("keyless")}) == 2
    assert len({each.subject for each in (*made.find("kept"), *made.find("keyless"))}) == 4


def test_globs_and_prices_are_loaded_in_their_order(stage: Stage) -> None:
    for model in ("*", "gpt-4*", "gpt-*"):
        stage.deploy(f"any-{len(model)}", model)
    for name, since in (("*", 0), ("gpt-4*", 0), ("gpt-*", 0), ("gpt-4*", 300), ("gpt-4*", 200)):
        stage.database.write(partial(rows.add_price, name, since, {}, 0))
    made = stage.loaded()
    assert [each.name for each in (*made.find("gpt-4o"), *made.find("gpt-3"), *made.find("m"))] == ["any-6", "any-5", "any-1"]
    found = [made.price(name, at) for name, at in (("gpt-4o", 1000), ("gpt-4o", 250), ("gpt-4o", 100), ("gpt-3", 1000), ("m", 1000))]
    assert [(each.model, each.valid_from) for each in found if each] == [("gpt-4*", 300), ("gpt-4*", 200), ("gpt-4*", 0), ("gpt-*", 0), ("*", 0)]


def test_environments_deployment_serves_every_name_and_is_never_written(stage: Stage) -> None:
    stage.deploy("own", "m")
    stage.deploy("any", "*")
    made = stage.loaded(EnvironmentDeployment(Secret("sk-environment"), "http://e/v1"))
    assert [each.name for each in made.find("m")] == ["own"]
    found = {each.name: each for each in made.find("gpt-9")}
    assert set(found) == {"any", "environment"}
    assert (found["environment"].owner, found["environment"].base_url, found["environment"].upstream_name("gpt-9")) == ("environment", "http://e/v1", "gpt-9")
    assert [each.name for each in stage.database.read(rows.list_deployments)] == ["own", "any"]


# following the database


def test_change_is_seen_within_a_second(stage: Stage) -> None:
    catalog = stage.catalog()
    catalog.start()
    try:
        stage.deploy("d")
        deadline = time.monotonic() + 1.0
        while not catalog.snapshot.find("m") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [each.name for each in catalog.snapshot.find("m")] == ["d"]
    finally:
        catalog.close()


def test_same_generation_is_not_loaded_again(stage: Stage) -> None:
    stage.deploy("d")
    catalog = stage.catalog()
    catalog.refresh()
    before = catalog.snapshot
    catalog.refresh()
    assert catalog.snapshot is before


def test_database_that_does_not_answer_leaves_the_last_snapshot_in_force(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.deploy("d")
    catalog = stage.catalog()
    catalog.refresh()
    stage.database.close()
    with caplog.at_level(logging.WARNING):
        catalog.refresh()
    assert [each.name for each in catalog.snapshot.find("m")] == ["d"]
    assert "the catalog was not refreshed" in caplog.text


def test_failure_that_lasts_is_told_at_once_then_once_a_minute_and_its_end_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    now, away = 1000.0, True

    def read(work: Any) -> Any:
        if away:
            raise StoreUnavailable("The database did not answer.")
        return stage.database.read(work)

    database: Any = SimpleNamespace(read=read, pending=lambda: read(list))
    catalog = Catalog(database, stage.vault, stage.backends, DEFAULTS, None, lambda *secrets: None, lambda: now)
    with caplog.at_level(logging.INFO):
        for second in range(0, 121, 20):
            now = 1000.0 + second
            catalog.refresh()
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
        away = False
        catalog.refresh()
        catalog.refresh()
    assert [record.getMessage() for record in caplog.records][3:] == ["the catalog is refreshed again"]


# backends


def test_order_of_the_options_makes_no_other_backend() -> None:
    backends = Backends(Services())
    assert backends.get(f"{__name__}:Roomy", {"a": 1, "b": 2}) is backends.get(f"{__name__}:Roomy", {"b": 2, "a": 1})


def test_backend_is_built_once_for_the_same_options() -> None:
    backends = Backends(Services())
    same = f"{__name__}:Picky"
    assert backends.get(same, {"colour": "red"}) is backends.get(same, {"colour": "red"})
    assert backends.get(same, {"colour": "red"}) is not backends.get(same, {})
    with pytest.raises(PluginError):
        backends.get(same, {"colour": "blue"})


def test_every_backend_is_closed_once_even_where_another_fails_to(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stuck, good = stage.backends.get(f"{__name__}:Picky", {}), stage.backends.get(SCRIPTED, {})
    catalog = stage.catalog()
    with caplog.at_level(logging.ERROR):
        catalog.close()
        catalog.close()
    assert isinstance(stuck, Scripted)
    assert isinstance(good, Scripted)
    assert (stuck.closed, good.closed) == (1, 1)
    assert "did not close" in caplog.text


# proxies


def test_proxy_is_unsealed_and_its_password_is_learned(stage: Stage) -> None:
    url = "socks5h://user:proxy-password@p.example:1080"
    row = stage.deploy("d")
    sealed = stage.vault.seal(url, rows.proxy_place(row.id))
    stage.database.write(lambda: rows.set_deployment(row.id, proxy="socks5h://user@p.example:1080", proxy_sealed=sealed))
    (made,) = stage.loaded().find("m")
    assert made.proxy == Proxy.parse(url)
    assert made.target("u") == Target(made.base_url, "u", made.secret, made.deadlines, made.proxy)
    assert "proxy-password" in stage.learned
    assert "proxy-password" not in repr(made) + repr(made.target("u"))


@pytest.mark.parametrize(("url", "place"), [("http://p:1", "deployment:7:proxy_sealed"), ("gopher://p:1", "deployment:1:proxy_sealed")])
def test_proxy_that_cannot_be_read_puts_its_deployment_out_of_use(stage: Stage, url: str, place: str) -> None:
    """Never is such an upstream called without its proxy."""
    row = stage.deploy("d")
    stage.database.write(lambda: rows.set_deployment(row.id, proxy="shown", proxy_sealed=stage.vault.seal(url, place)))
    (made,) = stage.loaded().find("m")
    assert made.problem


# pools


def test_a_deployment_over_a_pool_is_there_once_for_each_credential_that_may_be_used(stage: Stage) -> None:
    def member(label: str, **fields: Any) -> pools.Credential:
        seal = lambda id: stage.vault.seal(f"sk-{label}", pools.credential_place(id))  # noqa: E731
        return stage.database.write(lambda: pools.create_credential(label, "", 0, seal, "shared", **fields))

    first = member("a", weight=3, rpm=7)
    member("b", expires_at=5, draining_at=6)
    member("c", disabled_at=1)
    stage.deploy("d", pool_id=first.pool_id, backend=f"{__name__}:NeedsSecret")
    one, two = stage.loaded().find("m")
    assert [(each.place, each.secret.reveal(), each.share, each.problem) for each in (one, two)] == [("d/a", "sk-a", 0.75, ""), ("d/b", "sk-b", 0.25, "")]
    assert (one.limit, two.limit) == (Limit(first.place, rpm=7), None)
    assert (one.draining, two.draining, one.expires_at, two.expires_at) == (False, True, None, 5)
    assert one.subject == two.subject
    assert {"sk-a", "sk-b"} <= stage.learned


def test_a_deployment_over_an_empty_pool_says_so(stage: Stage) -> None:
    pool = stage.database.write(lambda: pools.create_pool("empty"))
    stage.deploy("d", pool_id=pool.id)
    (made,) = stage.loaded().find("m")
    assert made.problem == "its pool empty has no credential that may be used"


def test_a_pool_that_no_agent_came_to_says_so_and_lacks_no_credential(stage: Stage) -> None:
    pool = stage.database.write(lambda: pools.create_pool("agents"))
    stage.deploy("d", pool_id=pool.id, backend=HOSTING)
    (made,) = stage.loaded().find("m")
    assert (made.hosted, made.credential_place, made.problem) == (True, "", "no agent of its pool agents has come yet")


def test_an_agent_is_named_to_its_backend_by_its_credential_s_place_whatever_its_secret_is(stage: Stage) -> None:
    member = stage.database.write(lambda: pools.create_credential("a", "", 0, lambda id: stage.vault.seal("", pools.credential_place(id)), "agents"))
    stage.deploy("d", pool_id=member.pool_id, backend=HOSTING)
    stage.deploy("other", "n")
    places = []
    for secret in ("", "another"):
        stage.database.write(lambda secret=secret: pools.replace_secret(member.id, "", lambda id: stage.vault.seal(secret, pools.credential_place(id))))
        (made,) = stage.loaded().find("m")
        assert (made.hosted, made.problem) == (True, "")
        places.append(made.credential_place)
        assert made.target("m").credential == made.credential_place
    assert set(places) == {member.place}
    (other,) = stage.loaded().find("n")
    assert (other.hosted, other.credential_place, other.target("n").credential) == (False, "", "")


def test_a_backend_that_hosts_agents_gets_the_way_to_them_once() -> None:
    frames: Any = object()
    backends = Backends(Services(), frames)
    made = backends.get(HOSTING, {})
    assert made is backends.get(HOSTING, {})
    assert isinstance(made, Hosting)
    assert made.attached is frames
    plain = Backends(Services()).get(HOSTING, {})
    assert isinstance(plain, Hosting)
    assert plain.attached is None


def test_a_credential_s_proxy_goes_before_the_deployment_s_and_its_extras_are_learned(stage: Stage) -> None:
    made = stage.credential("sk-secret")
    sealed = stage.vault.seal("http://u:proxy-password@p:1", pools.credential_proxy_place(made.id))
    extras = stage.vault.seal('{"puid":"user-cookie"}', pools.extras_place(made.id))
    stage.database.write(lambda: pools.set_credential(made.id, proxy="http://u@p:1", proxy_sealed=sealed, extras=extras))
    stage.deploy("d", credential_id=made.id)
    (found,) = stage.loaded().find("m")
    assert found.target("m").proxy == Proxy.parse("http://u:proxy-password@p:1")
    assert found.target("m").extras["puid"].reveal() == "user-cookie"
    assert {"proxy-password", "user-cookie"} <= stage.learned
    assert "user-cookie" not in repr(found)
