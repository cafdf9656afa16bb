"""The one place where a call's record is closed: price the usage, write the entry and the receipt in one commit, release everything.

Amounts are integers of nano-dollars, prices integers of pico-dollars a token; rounded up, once a call. No float touches money.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import msgspec

from gateway import logs
from gateway.core.exchange import Attempt, Ending, Exchange, ending_of
from gateway.core.holds import Holds
from gateway.core.metering import NOTHING, Metered, Source, reported
from gateway.core.pricing import priced
from gateway.dialects.events import Usage
from gateway.errors import GatewayError, SettleFailed, StoreUnavailable
from gateway.metrics import Metrics
from gateway.store.database import Batched, Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.holds import OpenHold
from gateway.store.idempotency import Completion
from gateway.store.journal import Journal
from gateway.store.ledger import WITHHELD, Booking, Entry, Seal, record

log = logging.getLogger(__name__)
REFUSALS_A_MINUTE = 10
_encode = msgspec.json.Encoder().encode


class RefusalQuota:
    """At most 10 rows of refused calls for each key and minute; the rest is only counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute, self._taken = -1, dict[int, int]()

    def take(self, key_id: int) -> bool:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._taken = minute, {}
        self._taken[key_id] = self._taken.get(key_id, 0) + 1
        return self._taken[key_id] <= REFUSALS_A_MINUTE


class Ledger:
    """Closes exchanges, each exactly once: `settle` for calls that answered, `close` for those that failed before.

    `seal` makes the seal of a row (HMAC); what the database does not take goes to the journal; what neither takes waits here.
    """

    def __init__(self, database: Database, journal: Journal, seal: Seal, holds: Holds, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._journal, self._holds, self._metrics, self._clock = database, journal, holds, metrics, clock
        self._record = partial(record, seal=seal)
        self._quota = RefusalQuota(clock)
        self._unbooked: deque[Booking] = deque()
        self.stuck = False
        """Neither the database nor the journal took the last call's end: the next would fare no better, and an upstream is paid for each."""

    def settle(self, exchange: Exchange, ending: Ending, metered: Metered) -> None:
        """Commit the entry; returns once it is on disk, in the database or in the journal. A second call does nothing.

        Raises SettleFailed where neither took it: the complete entry is then in the log, and the end of the answer must not leave.
        """
        if exchange.ending is not None:
            return
        exchange.ending, exchange.usage = ending, metered.usage
        entry: Entry | None = None
        attempts: tuple[Entry, ...] = ()
        try:
            entry = self._entry(exchange, ending, metered)
            attempts = self._attempts(exchange, entry)
            claim = self._claim_ended(exchange, ending, charged=_is_charged(ending, metered))
            charged = self._commit(Booking(entry, self._row(exchange), _is_held(exchange), claim, attempts))
            exchange.amount_nano = entry.amount if charged else 0  # shown to the client only once it is booked
            self._holds.closed(exchange.id)
        except BaseException as error:  # whatever the database raised, or whoever ends this greenlet: the entry must not be lost
            self._log_lost(exchange, entry, metered, error)
            if entry is not None:
                ended = self._claim_ended(exchange, ending, charged=False)  # what is not paid is not given again
                self._unbooked.append(Booking(_withheld(entry), self._row(exchange), _is_held(exchange), ended, attempts))
                self.stuck = self.stuck or isinstance(error.__cause__, StoreUnavailable)
            if not isinstance(error, Exception):
                raise
            raise SettleFailed("The answer could not be booked, so its end is withheld.") from error
        finally:
            self._finish(exchange)
        self._count(entry)

    def _commit(self, booking: Booking) -> bool:
        """Whether its amount is charged."""
        try:
            return self._database.write(Batched(self._record, booking))
        except StoreUnavailable as error:
            try:
                self._journal.append(booking)
            except Exception as failure:
                raise failure from error
            self._metrics.journaled()
            return True

    def book(self, bookings: Sequence[Booking]) -> None:
        """Book what was journaled, or what ended without its worker. Idempotent. Raises StoreUnavailable."""
        self._database.write(lambda: self._record(bookings))

    def retry(self) -> int:
        """Book what could not be booked before; how many. Nothing is charged for it: its answer's end never left. Raises StoreUnavailable."""
        count = 0
        while self._unbooked:
            booking = self._unbooked[0]
            try:
                self.book([booking])
                count += 1
            except GatewayError:
                raise
            except Exception as error:  # no fault of the database: it would not go in the next time either. Its hold ends at its deadline
                log.error("an entry cannot be booked at all: %s", type(error).__name__, exc_info=error, extra={"exchange": _id_of(booking)})
            else:
                self._holds.closed(_id_of(booking))
            self._unbooked.popleft()
        self.stuck = False
        return count

    def abandoned(self, hold: OpenHold, ending: Ending) -> Booking:
        """The end of a call that had a hold and nothing more: nothing is charged. WORKER_LOST shows the operator what stays unbilled."""
        receipt = {"id": hold.id, "at": hold.at, "model": hold.model, "status": None, "ending": ending, "attempts": []}
        row = ExchangeRow(hold.id, hold.owner, hold.api_key, hold.user, hold.model, 0, str(ending), _json(receipt), hold.at)
        entry = Entry(
            exchange=hold.id,
            kind="usage",
            attempt=0,
            api_key=hold.api_key,
            user=hold.user,
            team=hold.team,
            amount=0,
            cost=0,
            usage=Usage(),
            ending=str(ending),
            usage_source=str(Source.NONE),
            model_asked=hold.model,
            model_served="",
            deployment="",
            total_ms=0,
            at=hold.at,
        )
        return Booking(entry, row, held=True)

    def _log_lost(self, exchange: Exchange, entry: Entry | None, metered: Metered, error: BaseException) -> None:
        exchange.error = exchange.error or SettleFailed.code
        self._metrics.settle_failed()
        line = {"entry": _members(entry)} if entry is not None else {"metered": str(metered), "ending": exchange.ending}
        log.critical("entry not committed: %s", _reason(error), extra={"exchange": exchange.id, "fields": line})

    def close(self, exchange: Exchange, error: BaseException) -> None:
        """The one exit for every call that failed before an answer. Records and releases; never raises."""
        if exchange.ending is not None:
            return
        exchange.status = error.status if isinstance(error, GatewayError) else 500
        exchange.error = error.code if isinstance(error, GatewayError) else "internal_error"
        ending = ending_of(error, exchange)
        try:
            if exchange.attempts or _is_held(exchange):
                self.settle(exchange, ending, NOTHING)
            else:
                self._refuse(exchange, recordable=not isinstance(error, StoreUnavailable))
        except SettleFailed:
            return  # logged with its entry; nothing was charged
        except Exception as failure:  # the client is told why its call failed, not that this could not be written down
            reason = str(failure) if isinstance(failure, GatewayError) else type(failure).__name__
            log.warning("refusal not recorded: %s", reason, extra={"exchange": exchange.id})

    def _refuse(self, exchange: Exchange, recordable: bool) -> None:
        """Where the database was the reason, nobody waits for it once more."""
        exchange.ending = Ending.REFUSED
        try:
            freed = self._claim_ended(exchange, Ending.REFUSED, charged=False)
            row = self._row(exchange) if recordable and self._quota.take(exchange.principal.key_id) else None
            if row is None:
                self._metrics.refusal_unrecorded()
            if freed is not None and not recordable:
                self._journal.append(Booking(None, None, claim=freed))
            elif freed is not None:
                self._commit(Booking(None, row, claim=freed))
            elif row is not None:
                self._database.write(Batched(self._record, Booking(None, row)))
        finally:
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        exchange.release()
        deployment = exchange.attempts[-1].deployment if exchange.attempts else ""
        total_s = self._clock() - exchange.started
        self._metrics.ended(exchange.endpoint, deployment, exchange.status, str(exchange.ending), total_s, exchange.own_s(), exchange.heartbeats)
        logs.call_ended(log, exchange.id, exchange.line())

    def _count(self, entry: Entry) -> None:
        self._metrics.booked(entry.deployment, entry.usage.counted(), entry.amount, (*entry.flags, *entry.usage.flags))

    def _claim_ended(self, exchange: Exchange, ending: Ending, *, charged: bool) -> Completion | None:
        if exchange.claim is None:
            return None
        return exchange.claim.ended(exchange.id, self._clock(), charged=charged, good=ending in (Ending.COMPLETE, Ending.CLIENT_GONE))

    def _row(self, exchange: Exchange) -> ExchangeRow:
        return ExchangeRow(
            id=exchange.id,
            owner=exchange.owner,
            api_key=exchange.principal.key_id,
            user=exchange.principal.user_id,
            model=exchange.model_asked,
            status=exchange.status or 0,
            ending=str(exchange.ending),
            receipt=_json(exchange.receipt()),
            at=exchange.at,
        )

    def _entry(self, exchange: Exchange, ending: Ending, metered: Metered) -> Entry:
        attempt = exchange.attempts[-1] if exchange.attempts else None
        price = exchange.reservation.prices.get(attempt.deployment) if exchange.reservation and attempt else None
        markup_ppm = exchange.principal.markup_ppm
        due = priced(metered.usage, price, markup_ppm)
        charged = _is_charged(ending, metered)
        return Entry(
            exchange=exchange.id,
            kind="usage",
            attempt=len(exchange.attempts),
            api_key=exchange.principal.key_id,
            user=exchange.principal.user_id,
            team=exchange.principal.team_id,
            amount=due.amount if charged else 0,
            cost=due.cost if charged else 0,
            markup_ppm=markup_ppm,
            usage=metered.usage,
            flags=("unpriced",) if price is None and attempt else (),
            rates=due.rates,
            price=price.id if price else None,
            ending=str(ending),
            usage_source=str(metered.source),
            model_asked=exchange.model_asked,
            model_served=attempt.model if attempt else "",
            deployment=attempt.deployment if attempt else "",
            credential=attempt.credential if attempt else None,
            first_byte_ms=exchange.milliseconds(exchange.first_byte),
            total_ms=exchange.milliseconds(self._clock()) or 0,
            at=exchange.at,
        )

    def _attempts(self, exchange: Exchange, entry: Entry) -> tuple[Entry, ...]:
        """What providers bill for attempts that gave the client nothing is the operator's to pay: entries on nobody's account."""
        return tuple([self._attempt(exchange, entry, number, attempt) for number, attempt in enumerate(exchange.attempts, 1) if attempt.usage is not None])

    def _attempt(self, exchange: Exchange, entry: Entry, number: int, attempt: Attempt) -> Entry:
        used = reported(attempt.usage or Usage())
        price = exchange.reservation.prices.get(attempt.deployment) if exchange.reservation else None
        due = priced(used.usage, price, 0)
        return replace(
            entry,
            kind="attempt",
            attempt=number,
            api_key=0,
            user=0,
            team=None,
            amount=0,
            cost=due.cost,
            markup_ppm=0,
            usage=used.usage,
            flags=() if price else ("unpriced",),
            rates=due.rates,
            price=price.id if price else None,
            ending=str(Ending.UPSTREAM_ERROR),
            usage_source=str(used.source),
            model_served=attempt.model,
            deployment=attempt.deployment,
            credential=attempt.credential,
            first_byte_ms=None,
        )


def _is_charged(ending: Ending, metered: Metered) -> bool:
    return metered is not NOTHING or ending is Ending.COMPLETE


def _is_held(exchange: Exchange) -> bool:
    return exchange.reservation is not None and exchange.reservation.held


def _withheld(entry: Entry) -> Entry:
    """As it is booked later: the cost stays the operator's. Without the raw usage, which may have been what could not be written."""
    usage = replace(entry.usage, raw=None, flags=(*entry.usage.flags, WITHHELD))
    return replace(entry, amount=0, usage=usage)


def _id_of(booking: Booking) -> str:
    return booking.entry.exchange if booking.entry is not None else ""


def _reason(error: BaseException) -> str:
    """What failed, and what had failed before it, with the system's own words where it has any."""
    said = f"{type(error).__name__}{f' ({error.strerror})' if isinstance(error, OSError) else ''}"
    return said if error.__cause__ is None else f"{said} after {_reason(error.__cause__)}"


def _json(value: Any) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate in a stranger's word
        return json.dumps(value)


def _members(value: Any) -> dict[str, Any]:
    """An Entry as one JSON object. Not `asdict`: that copies, and so fails at a backend's unusual Mapping."""
    members = {item.name: getattr(value, item.name) for item in fields(value)}
    return members | ({"usage": _members(value.usage)} if isinstance(value, Entry) else {})
