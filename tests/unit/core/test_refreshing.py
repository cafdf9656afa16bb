"""Refreshes against an issuer on a real socket, whose refresh tokens work once: when, by whom, and what becomes of them when something breaks."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Deadlines, Refreshed, Refreshes, Secret, Services
from gateway.core.catalog import Backends, Catalog
from gateway.core.refreshing import APART_MS, ASK_S, AT_ONCE, LEASE_MS, REASON, Due, Refresher, refresh_at
from gateway.core.upstream_secrets import fingerprint
from gateway.errors import StoreUnavailable, UpstreamError
from gateway.operations import credentials as operations
from gateway.operations.credentials import CredentialWishes
from gateway.presence import Presence
from gateway.secrets import KeyHasher, Secrets, SecretsError, Vault
from gateway.store import catalog as rows
from gateway.store import pools, refreshes
from gateway.store.database import Database
from gateway.store.models_pools import ASKED, FAILED, GOT, REFUSED, RefreshRow
from gateway.store.pools import Credential
from tests.factories import Clock, Scripted, migrated, now_ms
from tests.fakes.answers import Json, Status
from tests.fakes.issuer import FIRST, Issuer

SECRETS = Secrets(KeyHasher(b"p" * 32), Vault({1: b"m" * 32}, 1), ())
LIFE_MS = 3_600_000
DUE_AT = now_ms() // 1000 * 1000
MADE_AT = DUE_AT - LIFE_MS * 4 // 5
OLD = "the-access-token-of-an-operator"


class Stray(Scripted):
    """A stranger's backend, which does what its class says."""

    outcome: Any = RuntimeError("surprise")

    def refresh(self, target: Any, deadline: float) -> Refreshed:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert isinstance(self.outcome, Refreshed)
        return self.outcome


class Unprintable(Stray):
    outcome = Refreshed(Secret("two words"))


class Grumpy(Stray):
    outcome = UpstreamError("not today")


class Broken:
    """A database that breaks at chosen works: `at` says of which, before it is committed or after."""

    def __init__(self, database: Database, at: Callable[..., Any], times: int, committed: bool) -> None:
        self._database, self._at, self.left, self._committed = database, at, times, committed

    def read(self, work: Any) -> Any:
        return self._database.read(work)

    def write(self, work: Any) -> Any:
        breaks = getattr(work, "func", None) is self._at and self.left > 0
        if breaks:
            self.left -= 1
        if not breaks or self._committed:
            result = self._database.write(work)
        if breaks:
            raise StoreUnavailable("away")
        return result


class Stage:
    """A worker that refreshes, and a credential with an hour's token. The wall clock is the test's, deadlines are in the database's time."""

    def __init__(self, database: Database, directory: Path, issuer: Issuer) -> None:
        self.database, self.directory, self.issuer = database, directory, issuer
        self.now = DUE_AT
        self.quarantined: list[tuple[str, int, str, Mapping[str, Any]]] = []
        self.learned: set[str] = set()
        self.presence = Presence(directory / "run")
        self.presence.start()
        self.catalog = Catalog(database, SECRETS.vault, Backends(Services()), Deadlines(), None, lambda *secrets: None)
        self.refresher = self.another()

    def another(self, database: Any = None, presence: Presence | None = None, **options: Any) -> Refresher:
        place = (database or self.database, self.catalog, SECRETS, presence or self.presence, self.quarantine)
        return Refresher(*place, lambda *secrets: self.learned.update(secrets), wall_ms=lambda: self.now, keep_again_s=0.01, **options)

    def quarantine(self, credential: Credential, reason: str, evidence: Mapping[str, Any]) -> None:
        self.quarantined.append((credential.label, credential.version, reason, evidence))

    def credential(self, label: str = "main", secret: str = OLD, **wishes: Any) -> Credential:
        given = {"extras": {"refresh_token": Secret(FIRST), "puid": Secret("a-cookie")}, "expires_at": MADE_AT + LIFE_MS} | wishes
        return operations.create_credential(self.database, SECRETS, label, Secret(secret), MADE_AT, CredentialWishes(**given))

    def deploy(self, credential: Credential | None, backend: str = "tests.fakes.issuer:Refreshing", name: str = "d", **fields: Any) -> None:
        options = {"refresh_url": self.issuer.token_url} if backend.endswith(":Refreshing") else {}

        def work() -> None:
            model = rows.find_model("m") or rows.create_model("m", 0)
            rows.create_deployment(name, model.id, backend, 0, options=options, credential_id=credential.id if credential else None, **fields)

        self.database.write(work)
        self.catalog.refresh()

    def refreshed(self, refresher: Refresher | None = None) -> list[bool]:
        """What came of all that is due now."""
        refresher = refresher or self.refresher
        self.catalog.refresh()
        return [refresher.refresh(due) for due in refresher.due()]

    def current(self, label: str = "main") -> Credential:
        found = self.database.read(lambda: pools.find_credential(label))
        assert found is not None
        return found

    def secret(self) -> str:
        found = self.current()
        return SECRETS.vault.open(found.sealed, pools.credential_place(found.id))

    def extras(self) -> dict[str, str]:
        found = self.current()
        return dict(json.loads(SECRETS.vault.open(found.extras or b"", pools.extras_place(found.id))))

    def states(self) -> list[str]:
        return [row.state for row in self.database.read(refreshes.under_way)]

    def later(self, milliseconds: int) -> None:
        """As if so much time had passed for the rows of refreshes."""
        self.database.write(lambda: RefreshRow.update(deadline=RefreshRow.deadline - milliseconds, at=RefreshRow.at - milliseconds).execute())

    def begun(self, owner: str) -> None:
        """A worker has written that it will ask."""
        made = self.current()
        self.database.write(partial(refreshes.begin, made.id, made.version, owner, LEASE_MS, None))

    def close(self) -> None:
        self.catalog.close()
        self.presence.close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def bare(tmp_path: Path, issuer: Issuer) -> Iterator[Stage]:
    with migrated(tmp_path) as database, closing(Stage(database, tmp_path, issuer)) as stage:
        yield stage


@pytest.fixture
def stage(bare: Stage) -> Stage:
    bare.deploy(bare.credential())
    return bare


def jwt(**claims: Any) -> str:
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims, 1))


def test_a_secret_is_replaced_when_four_fifths_of_its_life_are_over(stage: Stage, issuer: Issuer) -> None:
    stage.now = DUE_AT - 1
    assert stage.refreshed() == []
    stage.now = DUE_AT
    began = now_ms()
    assert stage.refreshed() == [True]
    new = stage.current()
    assert (stage.secret(), new.version, new.hint, new.replaced_at) == ("access-token-number-1", 2, "er-1", DUE_AT)
    assert new.fingerprint == fingerprint(SECRETS.hasher, "access-token-number-1")
    assert began + LIFE_MS <= (new.expires_at or 0) <= began + LIFE_MS + 10_000
    assert stage.extras() == {"refresh_token": "refresh-token-number-1", "puid": "a-cookie"}
    assert (issuer.issues, stage.states(), stage.quarantined) == (1, [], [])
    assert {"access-token-number-1", "refresh-token-number-1"} <= stage.learned
    assert stage.refreshed() == []


def test_the_next_refresh_presents_the_next_refresh_token(stage: Stage, issuer: Issuer) -> None:
    stage.refreshed()
    stage.now = (stage.current().expires_at or 0) - 1
    assert stage.refreshed() == [True]
    assert (stage.secret(), stage.current().version, issuer.issues, issuer.refused) == ("access-token-number-2", 3, 2, 0)


def test_an_expired_secret_is_replaced_all_the_same(stage: Stage) -> None:
    stage.now = MADE_AT + 10 * LIFE_MS
    assert stage.refreshed() == [True]


def test_a_refresh_token_that_is_not_rotated_stays(stage: Stage, issuer: Issuer) -> None:
    issuer.rotates = False
    before = stage.current().extras
    assert stage.refreshed() == [True]
    assert (stage.extras()["refresh_token"], stage.current().extras) == (FIRST, before)


def test_the_end_of_a_jwt_is_read_where_the_issuer_does_not_say_it(stage: Stage, issuer: Issuer) -> None:
    issuer.then(Json({"access_token": jwt(exp=2_000_000_000)}))
    stage.refreshed()
    assert stage.current().expires_at == 2_000_000_000_000


@pytest.mark.parametrize(
    ("secret", "expires_at", "created_at", "replaced_at", "expected"),
    [
        ("opaque", 1_000_000, 500_000, None, 900_000),
        ("opaque", 1_000_000, 500_000, 900_000, 980_000),
        ("opaque", 1_000_000, 0, 995_000, 995_000 + APART_MS),
        ("opaque", 1_000_000, 2_000_000, None, 1_000_000),
        (jwt(iat=800), 1_000_000, 0, None, 960_000),
        (jwt(iat=800), 1_000_000, 0, 500_000, 960_000),
        (jwt(iat="x"), 1_000_000, 0, None, 800_000),
    ],
)
def test_a_life_begins_when_the_issuer_made_the_secret(secret: str, expires_at: int, created_at: int, replaced_at: int | None, expected: int) -> None:
    credential = Credential(1, 1, "p", "c", b"", "", 1, created_at, None, expires_at=expires_at, replaced_at=replaced_at)
    assert refresh_at(credential, secret) == expected


@pytest.mark.parametrize("wishes", [{"expires_at": 0}, {"extras": {}}, {"extras": {"puid": Secret("a-cookie")}}])
def test_what_has_no_end_or_no_refresh_token_is_left_alone(bare: Stage, wishes: dict[str, Any]) -> None:
    bare.deploy(bare.credential(**wishes))
    assert bare.refreshed() == []


def test_what_no_backend_can_refresh_or_nobody_uses_is_left_alone(bare: Stage) -> None:
    made = bare.credential()
    assert bare.refreshed() == []
    bare.deploy(made, "tests.factories:Scripted")
    assert not isinstance(Scripted(), Refreshes)
    assert bare.refreshed() == []


def test_a_disabled_credential_is_left_alone(stage: Stage) -> None:
    operations.disable_credential(stage.database, "main", MADE_AT)
    assert stage.refreshed() == []


def test_a_credential_of_a_pool_is_refreshed_once_for_all_deployments(bare: Stage, issuer: Issuer) -> None:
    made = bare.credential(pool="shared")
    bare.deploy(None, name="a", pool_id=made.pool_id)
    bare.deploy(None, name="b", pool_id=made.pool_id)
    assert bare.refreshed() == [True]
    assert issuer.issues == 1


def test_of_many_that_found_it_due_one_asks(stage: Stage, issuer: Issuer) -> None:
    seen = [stage.refresher.due() for _ in range(5)]
    assert [stage.refresher.refresh(due) for (due,) in seen] == [True, False, False, False, False]
    assert len(issuer.requests) == 1


def test_what_an_operator_changes_while_the_issuer_is_asked_stays(stage: Stage, issuer: Issuer) -> None:
    """The cookie is new, the refresh token is another account's: neither is undone. The secret was not touched, and is the issuer's."""
    changed = {"refresh_token": Secret("of-another-account"), "puid": Secret("another-cookie")}
    issuer.meanwhile = lambda: operations.set_credential(stage.database, SECRETS.vault, "main", CredentialWishes(extras=changed))
    assert stage.refreshed() == [True]
    assert stage.extras() == {"refresh_token": "of-another-account", "puid": "another-cookie"}
    assert stage.secret() == "access-token-number-1"


def test_an_operator_s_new_secret_is_not_overwritten_and_the_next_refresh_token_is_not_lost(stage: Stage, issuer: Issuer) -> None:
    issuer.meanwhile = lambda: operations.replace_secret(stage.database, SECRETS, "main", Secret("the-operator-s-next-token"))
    stage.refreshed()
    assert (stage.secret(), stage.current().version) == ("the-operator-s-next-token", 2)
    assert stage.extras() == {"refresh_token": "refresh-token-number-1", "puid": "a-cookie"}
    assert stage.states() == []


def test_a_dead_refresh_token_quarantines_and_is_not_shown_again(stage: Stage, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.good = "another"
    assert stage.refreshed() == [False]
    ((label, version, reason, evidence),) = stage.quarantined
    assert (label, version, reason, evidence["status"], evidence["code"]) == ("main", 1, REASON, 400, "invalid_grant")
    assert evidence["message"] == (
        "the issuer no longer takes its refresh token: it was revoked, used elsewhere, or is too old; sign in again and give it both tokens anew"
    )
    assert stage.states() == [REFUSED]
    stage.later(LEASE_MS * 100)
    assert stage.refreshed() == []
    assert FIRST not in json.dumps(evidence) + caplog.text


def test_with_another_refresh_token_or_secret_it_is_asked_again(stage: Stage, issuer: Issuer) -> None:
    issuer.good = "good"
    stage.refreshed()
    operations.set_credential(stage.database, SECRETS.vault, "main", CredentialWishes(extras={"refresh_token": Secret("bad")}))
    assert stage.refreshed() == [False]
    operations.replace_secret(stage.database, SECRETS, "main", Secret("another-opaque-token"))
    operations.set_credential(stage.database, SECRETS.vault, "main", CredentialWishes(expires_at=stage.now, extras={"refresh_token": Secret("good")}))
    assert stage.refreshed() == [True]
    assert [version for _, version, _, _ in stage.quarantined] == [1, 1]


def test_a_secret_replaced_after_a_refusal_is_refreshed_when_its_time_comes(stage: Stage, issuer: Issuer) -> None:
    issuer.good = "good"
    stage.refreshed()
    issuer.good = FIRST
    operations.replace_secret(stage.database, SECRETS, "main", Secret(jwt(iat=DUE_AT // 1000, exp=DUE_AT // 1000 + 1000)))
    assert stage.refreshed() == []
    stage.now = DUE_AT + 800_000
    assert stage.refreshed() == [True]


def test_an_issuer_that_fails_is_asked_again_after_longer_and_longer(stage: Stage, issuer: Issuer) -> None:
    issuer.then(*[Status(503)] * 4)
    waits = []
    for _ in range(4):
        assert stage.refreshed() == [False]
        assert stage.states() == [FAILED]
        (row,) = stage.database.read(lambda: list(RefreshRow.select()))
        (seen,) = stage.database.read(refreshes.under_way)
        waits.append(round((row.deadline - row.at - seen.age_ms) / 1000))
        assert stage.refreshed() == []
        stage.later(waits[-1] * 1000 + 1000)
    assert (waits[0], waits) == (5, sorted(waits))
    assert 20 < waits[-1] < 40
    assert stage.refreshed() == [True]
    assert (stage.quarantined, issuer.refused) == ([], 0)


@pytest.mark.parametrize(("retry_after", "expected"), [("120", 120), ("999999", 3600), ("1", 5)])
def test_an_issuer_s_own_wait_is_kept_to(stage: Stage, issuer: Issuer, retry_after: str, expected: int) -> None:
    issuer.then(Json({}, 429, (("retry-after", retry_after),)))
    stage.refreshed()
    (row,) = stage.database.read(lambda: list(RefreshRow.select()))
    assert abs(row.deadline - row.at - expected * 1000) < 1000


@pytest.mark.parametrize("backend", ["Stray", "Unprintable", "Grumpy"])
def test_whatever_a_stranger_s_backend_does_is_a_failure(bare: Stage, backend: str) -> None:
    bare.deploy(bare.credential(), f"tests.unit.core.test_refreshing:{backend}")
    assert bare.refreshed() == [False]
    assert (bare.states(), bare.secret()) == ([FAILED], OLD)


def test_what_does_not_open_is_a_failure(stage: Stage, issuer: Issuer) -> None:
    (due,) = stage.refresher.due()
    stage.database.write(lambda: pools.set_credential(due.credential, extras=b"\0\0\0\1nonsense"))
    assert stage.refresher.refresh(due) is False
    assert (stage.states(), issuer.requests) == ([FAILED], [])


@pytest.mark.parametrize("committed", [False, True])
def test_what_the_issuer_gave_is_kept_however_often_the_database_is_away(stage: Stage, issuer: Issuer, committed: bool) -> None:
    broken = Broken(stage.database, refreshes.got, 3, committed)
    assert stage.refreshed(stage.another(broken)) == [True]
    assert (broken.left, stage.secret(), issuer.issues, stage.states()) == (0, "access-token-number-1", 1, [])


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_kept_is_put_in_force_by_whoever_finds_it(stage: Stage, issuer: Issuer, committed: bool) -> None:
    dies = stage.another(Broken(stage.database, refreshes.done, 1, committed))
    with pytest.raises(StoreUnavailable):
        stage.refreshed(dies)
    assert stage.states() == ([] if committed else [GOT])
    assert stage.refreshed() == ([] if committed else [True])
    assert (stage.secret(), stage.extras()["refresh_token"], issuer.issues) == ("access-token-number-1", "refresh-token-number-1", 1)


def test_what_is_kept_needs_no_deployment(stage: Stage) -> None:
    with pytest.raises(StoreUnavailable):
        stage.refreshed(stage.another(Broken(stage.database, refreshes.done, 1, False)))
    stage.database.write(lambda: rows.delete_deployment(1))
    assert stage.refreshed() == [True]
    assert stage.secret() == "access-token-number-1"


def test_what_is_kept_under_another_master_key_stays_kept(stage: Stage) -> None:
    with pytest.raises(StoreUnavailable):
        stage.refreshed(stage.another(Broken(stage.database, refreshes.done, 1, False)))
    stranger = Refresher(stage.database, stage.catalog, replace(SECRETS, vault=Vault({1: b"x" * 32}, 1)), stage.presence, stage.quarantine)
    (due,) = stranger.due()
    with pytest.raises(SecretsError):
        stranger.refresh(due)
    assert stage.states() == [GOT]
    assert stage.refreshed() == [True]


def test_who_asks_and_lives_is_not_disturbed(stage: Stage, issuer: Issuer) -> None:
    stage.begun(stage.presence.owner)
    assert stage.refreshed() == []
    operations.replace_secret(stage.database, SECRETS, "main", Secret(jwt(exp=MADE_AT // 1000)))
    assert stage.refreshed() == []
    assert issuer.requests == []


def test_the_refresh_of_a_dead_worker_is_asked_for_once_more(stage: Stage, issuer: Issuer) -> None:
    gone = Presence(stage.directory / "run")
    stage.begun(gone.owner)
    assert stage.refreshed() == [True]
    assert (issuer.issues, stage.quarantined, stage.states()) == (1, [], [])


def test_where_a_dead_worker_s_answer_is_lost_the_quarantine_says_so(stage: Stage, issuer: Issuer) -> None:
    gone = Presence(stage.directory / "run")
    stage.begun(gone.owner)
    issuer.good = "what-the-dead-worker-got"
    assert stage.refreshed() == [False]
    ((_, _, _, evidence),) = stage.quarantined
    assert "a worker ended after it had asked the issuer, whose answer is lost; sign in again" in evidence["message"]


def test_another_host_s_refresh_is_left_alone_until_its_deadline(stage: Stage, issuer: Issuer) -> None:
    stage.begun("elsewhere-0123456789abcdef")
    assert stage.refreshed() == []
    stage.later(LEASE_MS + 1)
    assert stage.refreshed() == [True]
    assert issuer.issues == 1


def test_a_slow_worker_s_late_answer_ends_the_quarantine_of_who_took_it_for_dead(stage: Stage, issuer: Issuer) -> None:
    """The first has its answer and is frozen; the second shows the spent token and is refused; then the first goes on."""
    issuer.meanwhile = lambda: taken_over()

    def taken_over() -> None:
        issuer.meanwhile = lambda: None
        stage.later(LEASE_MS + 1)
        assert stage.refreshed(stage.another()) == [False]

    assert stage.refreshed() == [True]
    assert (stage.secret(), stage.current().version, stage.states()) == ("access-token-number-1", 2, [])
    assert [version for _, version, _, _ in stage.quarantined] == [1]


def test_a_row_of_nobody_s_is_not_asked_for_while_the_catalog_still_has_the_older_secret(stage: Stage) -> None:
    operations.replace_secret(stage.database, SECRETS, "main", Secret(jwt(exp=MADE_AT // 1000)))
    assert stage.refresher.due() == []
    assert len(stage.refreshed()) == 1


def test_a_tick_waits_for_no_issuer_and_starts_each_refresh_once(stage: Stage, issuer: Issuer) -> None:
    issuer.delay_s = 0.3
    clock = Clock(time.monotonic())
    refresher = stage.another(clock=clock)
    began = time.monotonic()
    for _ in range(3):
        refresher.tick()
        clock.now += 10
    assert time.monotonic() - began < 0.25
    wait(lambda: stage.current().version == 2)
    assert (len(issuer.requests), issuer.requests[0].at >= began) == (1, True)


def test_more_than_may_run_at_once_go_on_at_the_next_tick(bare: Stage, issuer: Issuer) -> None:
    issuer.lenient, issuer.delay_s = True, 0.2
    for number in range(AT_ONCE + 2):
        bare.deploy(bare.credential(f"c{number}", f"{OLD}-{number}"), name=f"d{number}")
    bare.refresher.tick()
    issuer.wait_requests(AT_ONCE)
    wait(lambda: sum(item.version == 2 for item in bare.database.read(pools.list_credentials)) == AT_ONCE)
    assert len(issuer.requests) == AT_ONCE
    wait(lambda: bare.refresher.tick() is None and len(issuer.requests) == AT_ONCE + 2)
    wait(lambda: {item.version for item in bare.database.read(pools.list_credentials)} == {2})


def test_a_tick_looks_once_in_a_while(stage: Stage) -> None:
    clock, looked = Clock(), list[int]()
    refresher = stage.another(Counted(stage.database, looked), clock=clock)
    stage.now = MADE_AT
    for _ in range(10):
        refresher.tick()
        clock.now += 1
    assert len(looked) == 4  # two reads each


class Counted:
    def __init__(self, database: Database, looked: list[int]) -> None:
        self._database, self._looked = database, looked

    def read(self, work: Any) -> Any:
        self._looked.append(1)
        return self._database.read(work)


def test_nothing_that_goes_wrong_leaves_a_tick(stage: Stage, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.good = "another"

    def fails(credential: Credential, reason: str, evidence: Mapping[str, Any]) -> None:
        raise RuntimeError("no pool")

    Refresher(stage.database, stage.catalog, SECRETS, stage.presence, fails, wall_ms=lambda: stage.now).tick()
    wait(lambda: "a refresh failed: RuntimeError" in caplog.text)
    assert stage.states() == [ASKED]  # asked for once more after its deadline, and quarantined then
    stage.database.close()
    stage.another().tick()


def wait(met: Callable[[], bool], timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_no_token_is_in_a_log_or_a_repr(stage: Stage, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (due,) = stage.refresher.due()
    assert isinstance(due, Due)
    issuer.then(Status(500, {"error": FIRST}))
    stage.refresher.refresh(due)
    stage.later(LEASE_MS)
    stage.refreshed()
    for hidden in (OLD, FIRST, "access-token-number-1", "refresh-token-number-1"):
        assert hidden not in caplog.text + repr(due)
    assert ASK_S * 1000 < LEASE_MS
