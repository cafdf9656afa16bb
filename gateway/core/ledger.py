"""The one place where a call's record is closed: price the usage, write the entry and the receipt in one commit, release everything.

Amounts are integers of nano-dollars, prices integers of pico-dollars a token; rounded up, once a call. No float touches money.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgspec

from gateway import logs
from gateway.core.exchange import Ending, Exchange, ending_of
from gateway.core.metering import NOTHING, Metered
from gateway.errors import GatewayError, SettleFailed
from gateway.metrics import Metrics
from gateway.store.catalog import Price
from gateway.store.database import Batched, Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry, record

log = logging.getLogger(__name__)
REFUSALS_A_MINUTE = 10
_encode = msgspec.json.Encoder().encode
PICO_PER_NANO = 1000


def amount_nano(metered: Metered, price: Price | None) -> int:
    """What the usage costs, in nano-dollars; 0 without a price. Rounded up, so that no call is free by rounding."""
    if price is None:
        return 0
    pico = sum(tokens * price.rates.get(bucket, 0) for bucket, tokens in metered.usage.buckets().items())
    return -(-pico // PICO_PER_NANO) + price.per_call_nano


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
    """Closes exchanges, each exactly once: `settle` for calls that answered, `close` for those that failed before."""

    def __init__(self, database: Database, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._metrics, self._clock = database, metrics, clock
        self._quota = RefusalQuota(clock)

    def settle(self, exchange: Exchange, ending: Ending, metered: Metered) -> None:
        """Commit the entry; returns once it is on disk. A second call does nothing.

        Raises SettleFailed where the commit failed: the complete entry is then in the log, and the end of the answer must not leave.
        """
        if exchange.ending is not None:
            return
        exchange.ending, exchange.usage = ending, metered.usage
        entry: Entry | None = None
        try:
            entry = self._entry(exchange, ending, metered)
            self._database.write(Batched(record, (entry, self._row(exchange))))
            exchange.amount_nano = entry.amount  # shown to the client only once it is booked
        except BaseException as error:  # whatever the database raised, or whoever ends this greenlet: the entry must not be lost
            self._log_lost(exchange, entry, metered, error)
            if not isinstance(error, Exception):
                raise
            raise SettleFailed("The answer could not be booked, so its end is withheld.") from error
        finally:
            self._finish(exchange)
        self._count(entry)

    def _log_lost(self, exchange: Exchange, entry: Entry | None, metered: Metered, error: BaseException) -> None:
        exchange.error = exchange.error or SettleFailed.code
        self._metrics.settle_failed()
        line = {"entry": _members(entry)} if entry is not None else {"metered": str(metered), "ending": exchange.ending}
        log.critical("entry not committed: %s", type(error).__name__, extra={"exchange": exchange.id, "fields": line})

    def close(self, exchange: Exchange, error: BaseException) -> None:
        """The one exit for every call that failed before an answer. Records and releases; never raises."""
        if exchange.ending is not None:
            return
        exchange.status = error.status if isinstance(error, GatewayError) else 500
        exchange.error = error.code if isinstance(error, GatewayError) else "internal_error"
        ending = ending_of(error, exchange)
        try:
            if exchange.attempts:
                self.settle(exchange, ending, NOTHING)
            else:
                self._refuse(exchange)
        except SettleFailed:
            return  # logged with its entry; nothing was charged
        except Exception as failure:  # the client is told why its call failed, not that this could not be written down
            reason = str(failure) if isinstance(failure, GatewayError) else type(failure).__name__
            log.warning("refusal not recorded: %s", reason, extra={"exchange": exchange.id})

    def _refuse(self, exchange: Exchange) -> None:
        exchange.ending = Ending.REFUSED
        try:
            if self._quota.take(exchange.principal.key_id):
                self._database.write(Batched(record, (None, self._row(exchange))))
            else:
                self._metrics.refusal_unrecorded()
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
        attempt = exchange.attempts[-1]
        price = exchange.reservation.prices.get(attempt.deployment) if exchange.reservation else None
        amount = amount_nano(metered, price) if metered is not NOTHING or ending is Ending.COMPLETE else 0
        return Entry(
            exchange=exchange.id,
            kind="usage",
            attempt=len(exchange.attempts),
            api_key=exchange.principal.key_id,
            user=exchange.principal.user_id,
            amount=amount,
            cost=amount,
            usage=metered.usage,
            flags=("unpriced",) if price is None else (),
            rates=dict(price.rates) if price else {},
            price=price.id if price else None,
            ending=str(ending),
            usage_source=str(metered.source),
            model_asked=exchange.model_asked,
            model_served=attempt.model,
            deployment=attempt.deployment,
            credential=attempt.credential,
            first_byte_ms=exchange.milliseconds(exchange.first_byte),
            total_ms=exchange.milliseconds(self._clock()) or 0,
            at=exchange.at,
        )


def _json(value: Any) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate in a stranger's word
        return json.dumps(value)


def _members(value: Any) -> dict[str, Any]:
    """An Entry as one JSON object. Not `asdict`: that copies, and so fails at a backend's unusual Mapping."""
    members = {item.name: getattr(value, item.name) for item in fields(value)}
    return members | ({"usage": _members(value.usage)} if isinstance(value, Entry) else {})
