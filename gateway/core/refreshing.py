"""Refreshes secrets that are about to expire, so that neither a crash nor a crowd of workers can lose one.

Called by housekeeping, of one worker of a host; hosts agree by the row that is committed before an issuer is asked (store/refreshes.py). Each refresh
has a thread (or greenlet) of its own. What an issuer gave is committed, sealed, before it is used; whoever finds it puts it in force.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gateway.backend import Refreshed, Refreshes, Secret, Target
from gateway.concurrency import spawn
from gateway.core.catalog import Catalog, Deployment
from gateway.core.upstream_secrets import checked, expiry, fingerprint, hint, issued
from gateway.errors import Blame, GatewayError, StoreUnavailable, UpstreamError, UpstreamRefused
from gateway.presence import Presence
from gateway.secrets import Secrets, SecretsError
from gateway.store import pools, refreshes
from gateway.store.database import Database
from gateway.store.models_pools import ASKED, FAILED, GOT
from gateway.store.pools import Credential, credential_place, extras_place
from gateway.store.refreshes import Refresh, Replacement, refresh_place

log = logging.getLogger(__name__)
TOKEN = "refresh_token"  # noqa: S105
LOOK_EVERY_S = 5.0
ASK_S = 30.0
LEASE_MS = 90_000
"""After that, hosts that cannot see the owner take it for gone; its own call has long ended."""
WAIT_MS = (5_000, 300_000)
"""Until the next try: as long as it has been tried already, within these."""
LONGEST_RESET_MS = 3_600_000
APART_MS = 30_000
"""Between two refreshes of one credential, whatever its issuer says of its life."""
KEEP_AGAIN_S = 1.0
AT_ONCE = 8
REASON = "refresh_refused"
Quarantine = Callable[[Credential, str, Mapping[str, Any]], None]
"""Told of a credential whose refresh token is dead: the reason, and the evidence, which is JSON and holds no secret. May be told twice."""


@dataclass(frozen=True, slots=True)
class Due:
    """A credential whose secret is to be replaced, as `place` presents it. `place` is None where the issuer's answer is there already."""

    credential: int
    version: int
    seen: Refresh | None
    place: Deployment | None


class Refresher:
    """`learn` is told what must not be shown in a log. `keep_again_s`: between tries to commit what an issuer gave, while the database is away."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        secrets: Secrets,
        presence: Presence,
        quarantine: Quarantine,
        learn: Callable[..., None] = lambda *secrets: None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        keep_again_s: float = KEEP_AGAIN_S,
    ) -> None:
        self._database, self._catalog, self._secrets, self._presence = database, catalog, secrets, presence
        self._quarantine, self._learn, self._clock, self._wall_ms = quarantine, learn, clock, wall_ms
        self._keep_again_s = keep_again_s
        self._busy: set[int] = set()
        self._look_at = 0.0

    def tick(self) -> None:
        """Never raises, and waits for no issuer: what a database that is away leaves undone is done later."""
        if self._clock() < self._look_at:
            return
        self._look_at = self._clock() + LOOK_EVERY_S
        try:
            for due in self.due():
                if due.credential in self._busy:
                    continue
                if len(self._busy) >= AT_ONCE:
                    self._look_at = self._clock()  # more wait than may run: the next tick goes on
                    return
                self._busy.add(due.credential)
                spawn(partial(self._run, due), "refresh")
        except GatewayError as error:
            log.debug("refreshes wait: %s", error)
        except Exception as error:  # housekeeping's task: the loop must go on
            log.error("refreshes failed: %s", type(error).__name__, exc_info=error)

    def due(self) -> list[Due]:
        """What is to be refreshed, or finished, now. Raises StoreUnavailable."""
        places = self._places()
        rows = {row.credential: row for row in self._database.read(refreshes.under_way)}
        found = [Due(row.credential, row.version, row, None) for row in rows.values() if row.state == GOT]
        if not places:
            return found
        for credential in self._database.read(pools.expiring_credentials):
            place, seen = places.get(credential.subject), rows.get(credential.id)
            if place is not None and self._is_due(credential, place, seen):
                found.append(Due(credential.id, credential.version, seen, place))
        return found

    def _places(self) -> dict[str, Deployment]:
        """A deployment for each secret that can be refreshed: its backend, its address and its proxy."""
        deployments = (item for some in self._catalog.snapshot.deployments.values() for item in some)
        fit = (item for item in deployments if not item.problem and item.expires_at is not None and TOKEN in item.extras)
        return {item.credential_subject: item for item in fit if isinstance(item.backend, Refreshes)}

    def _is_due(self, credential: Credential, place: Deployment, seen: Refresh | None) -> bool:
        if seen is not None and seen.version == credential.version:
            return (seen.state == FAILED and seen.late) or (seen.state == ASKED and self._abandoned(seen))
        if seen is not None and seen.state == ASKED and not self._abandoned(seen):
            return False  # for an older secret, but with the same refresh token
        return (seen is None or seen.state != GOT) and self._wall_ms() >= refresh_at(credential, place.secret.reveal())

    def _abandoned(self, seen: Refresh) -> bool:
        return seen.late or (self._presence.local(seen.owner) and not self._presence.alive(seen.owner))

    def _run(self, due: Due) -> None:
        try:
            self.refresh(due)
        except GatewayError as error:
            log.debug("a refresh waits: %s", error)
        except Exception as error:  # a thread's outermost edge
            log.error("a refresh failed: %s", type(error).__name__, exc_info=error)
        finally:
            self._busy.discard(due.credential)

    def refresh(self, due: Due) -> bool:
        """Whether this call put another secret in force. Of any number that are called for one credential, one asks its issuer.

        Raises StoreUnavailable, and SecretsError where what is kept does not open: it stays kept.
        """
        if due.place is None:
            return self._finish(due.credential)
        begin = partial(refreshes.begin, due.credential, due.version, self._presence.owner, LEASE_MS, due.seen)
        credential = self._database.write(begin)
        if credential is None:
            return False
        sealed = self._ask(credential, due.place, due.seen)
        if sealed is None:
            return False
        self._keep(credential, sealed)
        return self._finish(credential.id)

    def _ask(self, credential: Credential, place: Deployment, seen: Refresh | None) -> bytes | None:
        """What the issuer gave, sealed; None where it gave nothing, which is noted."""
        try:
            extras = self._extras(credential)
            if TOKEN not in extras:
                raise SecretsError("its refresh token is gone")
            secret = Secret(self._secrets.vault.open(credential.sealed, credential_place(credential.id)))
            target = replace(place.target(""), secret=secret, extras={name: Secret(value) for name, value in extras.items()})
            return self._sealed(credential, extras, self._asked(place, target))
        except UpstreamError as error:
            if error.blame is Blame.CREDENTIAL_INVALID:
                self._refused(credential, error, seen)
            else:
                self._failed(credential, str(error), seen, getattr(error, "reset_s", None))
        except (GatewayError, SecretsError) as error:
            self._failed(credential, str(error), seen)
        except Exception as error:  # a stranger's backend
            log.error("the backend %s failed to refresh", place.backend_name, exc_info=error)
            self._failed(credential, type(error).__name__, seen)
        return None

    def _asked(self, place: Deployment, target: Target) -> Refreshed:
        backend = place.backend
        assert isinstance(backend, Refreshes)  # _places chose it for that
        return backend.refresh(target, self._clock() + ASK_S)

    def _sealed(self, credential: Credential, before: Mapping[str, str], given: Refreshed) -> bytes:
        """`before`: the extras that it replaces, so that another hand's change of one of them is seen."""
        secret, extras = checked(given.secret), {name: checked(value) for name, value in given.extras.items()}
        self._learn(secret, *extras.values())
        expires_at = given.expires_at if given.expires_at is not None else expiry(secret)
        kept = {"secret": secret, "extras": extras, "before": {name: before.get(name) for name in extras}, "expires_at": expires_at}
        return self._secrets.vault.seal(json.dumps(kept), refresh_place(credential.id))

    def _keep(self, credential: Credential, sealed: bytes) -> None:
        """Until it is committed: a refresh token works once, and this is all that is left of it."""
        while True:
            try:
                kept = self._database.write(partial(refreshes.got, credential.id, credential.version, self._presence.owner, sealed))
            except StoreUnavailable as error:
                log.error("what the issuer gave for credential %s cannot be kept yet: %s", credential.label, error)
                time.sleep(self._keep_again_s)
                continue
            if not kept:
                log.warning("the secret of credential %s was refreshed by another worker at the same time", credential.label)
            return

    def _finish(self, credential_id: int) -> bool:
        credential = self._database.write(partial(refreshes.done, credential_id, self._replacement))
        if credential is not None:
            log.info("the secret of credential %s was refreshed", credential.label, extra={"fields": {"credential": credential.label}})
        return credential is not None

    def _replacement(self, credential: Credential, sealed: bytes) -> Replacement:
        """What an operator changed while the issuer was asked is left as it is."""
        vault = self._secrets.vault
        kept = json.loads(vault.open(sealed, refresh_place(credential.id)))
        extras = self._extras(credential)
        changed = {name: value for name, value in kept["extras"].items() if extras.get(name) == kept["before"].get(name)}
        merged = json.dumps(extras | changed)
        return Replacement(
            sealed=vault.seal(kept["secret"], credential_place(credential.id)),
            hint=hint(kept["secret"]),
            fingerprint=fingerprint(self._secrets.hasher, kept["secret"]),
            extras=vault.seal(merged, extras_place(credential.id)) if changed else credential.extras,
            expires_at=kept["expires_at"],
            at=self._wall_ms(),
        )

    def _extras(self, credential: Credential) -> dict[str, str]:
        if credential.extras is None:
            return {}
        return dict(json.loads(self._secrets.vault.open(credential.extras, extras_place(credential.id))))

    def _failed(self, credential: Credential, problem: str, seen: Refresh | None, reset_s: float | None = None) -> None:
        tried_ms = seen.age_ms if seen is not None and seen.version == credential.version else 0
        wait_ms = max(min(max(tried_ms, WAIT_MS[0]), WAIT_MS[1]), min(int((reset_s or 0) * 1000), LONGEST_RESET_MS))
        self._database.write(partial(refreshes.failed, credential.id, credential.version, self._presence.owner, wait_ms))
        log.warning("the secret of credential %s was not refreshed, again in %d s: %s", credential.label, wait_ms // 1000, problem)

    def _refused(self, credential: Credential, error: UpstreamError, seen: Refresh | None) -> None:
        """Quarantine first: a worker that ends between the two lines leaves a row that is asked for again, and refused again."""
        why = _why(seen if seen is not None and seen.version == credential.version else None)
        evidence: dict[str, Any] = {
            "status": error.upstream_status if isinstance(error, UpstreamRefused) else None,
            "code": error.upstream_code if isinstance(error, UpstreamRefused) else None,
            "message": f"the issuer no longer takes its refresh token: {why}; sign in again and give it both tokens anew",
        }
        log.error("credential %s: %s", credential.label, evidence["message"], extra={"fields": {"credential": credential.label, "reason": REASON}})
        self._quarantine(credential, REASON, evidence)
        self._database.write(partial(refreshes.refused, credential.id, credential.version, self._presence.owner))


def _why(before: Refresh | None) -> str:
    """What may have made the refresh token useless."""
    if before is None:
        return "it was revoked, used elsewhere, or is too old"
    if before.state == ASKED:
        return "a worker ended after it had asked the issuer, whose answer is lost"
    return "it was revoked, or the issuer's answer to an earlier try was lost"


def refresh_at(credential: Credential, secret: str) -> int:
    """When four fifths of the secret's life are over, in Unix milliseconds: from when its issuer made it, as far as that is known, to its end."""
    end = credential.expires_at
    assert end is not None  # expiring_credentials gives no other
    given = credential.created_at if credential.replaced_at is None else credential.replaced_at
    start = min(issued(secret) or given, end)
    due = start + (end - start) * 4 // 5
    return due if credential.replaced_at is None else max(due, credential.replaced_at + APART_MS)
