"""Budget holds of this worker's calls: taken before an upstream is asked, never more than the budgets on the call's path have room for."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

import msgspec

from gateway.backend import Call
from gateway.core import periods
from gateway.core.claim import Claim
from gateway.core.exchange import Exchange
from gateway.core.metering import BINARY, BYTES_PER_TOKEN
from gateway.core.pricing import usd
from gateway.core.routing import Candidate
from gateway.dialects import CHAT_CODECS
from gateway.dialects.events import INPUT_BUCKETS, OUTPUT_BUCKETS
from gateway.errors import BudgetExceeded, GatewayError, IdempotencyKeyInUse, StoreUnavailable
from gateway.store import holds, idempotency
from gateway.store.budgets import Budget
from gateway.store.catalog import Price, Tier
from gateway.store.database import Batched, Conflict, Database
from gateway.store.holds import OpenHold, Period, Refused, Wanted
from gateway.store.idempotency import Opening, Taken

log = logging.getLogger(__name__)
GRACE_S = 60
"""How long a hold outlives its call's total deadline, so that a leak in a live worker ends."""
MOST_NANO = 10**16
"""More than any budget can have; a client may write any number as its `max_tokens`, and a soft budget takes it."""
OPENED = 10_000
BINARY_TOKENS = 2_000
"""For each picture or sound within a request, whose bytes tell nothing of its tokens."""
_NUMBER = re.compile(r"\s*\+?([0-9][0-9_]*)(?:\.0*)?\s*")
_UNKNOWN = "The budget could not be looked up: the database did not answer. Try again."
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_WHOSE: Mapping[str, str] = {"key": "The key's", "user": "The user's", "team": "The team's", "global": "The gateway's"}
_PERIOD: Mapping[str, str] = {"day": "for the day", "month": "for the month", "total": "in total"}


class Holds:
    """`default_output`: tokens for which a call is held that names no limit of its own, and whose model names none."""

    def __init__(self, database: Database, owner: str, default_output: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._owner, self._default_output, self._clock = database, owner, default_output, clock
        self._deadlines: dict[str, float] = {}
        self._maybe: dict[str, Wanted] = {}
        self._opened = set[tuple[int, int]]()
        """Budgets and starts of windows that are known to be there."""

    def reserve(self, exchange: Exchange, candidates: Sequence[Candidate], max_output: int | None) -> bool:
        """Hold the dearest that the call may cost in every budget on its path; False where there is none. With it goes the claim of its key.

        Raises BudgetExceeded, IdempotencyKeyInUse, and StoreUnavailable where the database does not say whether there is room.
        """
        budgets, claim = exchange.principal.budgets, exchange.claim
        if not budgets:
            if claim is not None:
                self._claim(exchange, claim, _lease_s(candidates), None)
            return False
        wanted = self._wanted(exchange, candidates, max_output)
        self._open(wanted.periods)
        self._deadlines[wanted.id] = self._clock() + wanted.lease_s
        try:
            if claim is None:
                refused = self._database.write(Batched(holds.reserve, wanted))
            else:
                refused = self._claim(exchange, claim, wanted.lease_s, wanted)
        except IdempotencyKeyInUse:
            self._deadlines.pop(wanted.id, None)
            raise
        except (StoreUnavailable, Conflict) as error:  # it may have been committed all the same
            self._deadlines.pop(wanted.id, None)
            self._maybe[wanted.id] = wanted
            raise StoreUnavailable(_UNKNOWN, retry_after_s=2.0) from error
        except BaseException:
            self._deadlines.pop(wanted.id, None)
            self._maybe[wanted.id] = wanted
            raise
        if refused is not None:
            self._deadlines.pop(wanted.id, None)
            raise _exceeded(refused, next(budget for budget in budgets if budget.id == refused.budget_id), wanted.amount)
        return True

    def _open(self, periods: Sequence[Period]) -> None:
        """Where other workers write at the same time, windows of a period that has just begun are made before any is locked."""
        fresh = [period for period in periods if (period.budget_id, period.starts_at) not in self._opened]
        if not fresh or not self._database.shared:
            return
        try:
            self._database.write(partial(holds.open_windows, fresh))
        except (StoreUnavailable, Conflict) as error:
            raise StoreUnavailable(_UNKNOWN, retry_after_s=2.0) from error
        if len(self._opened) > OPENED:
            self._opened.clear()
        self._opened.update((period.budget_id, period.starts_at) for period in fresh)

    def _claim(self, exchange: Exchange, claim: Claim, lease_s: int, wanted: Wanted | None) -> Refused | None:
        """Both or neither. Raises IdempotencyKeyInUse where another call was quicker."""
        opening = Opening(claim.opened(exchange.id, self._owner, lease_s, self._clock()), wanted)
        outcome = self._database.write(Batched(idempotency.begin, opening))
        if outcome is None:
            return None
        claim.refused()
        if isinstance(outcome, Taken):
            raise IdempotencyKeyInUse("Another call came with this Idempotency-Key at the same time. Ask again for its answer.", retry_after_s=1.0)
        return outcome

    def closed(self, exchange_id: str) -> None:
        """The call is booked."""
        self._deadlines.pop(exchange_id, None)

    def release_doubtful(self, release: Callable[[OpenHold], None]) -> int:
        """End the holds of which nobody knows whether they were made; how many. `release` ends one that was.

        Raises StoreUnavailable while the database is away.
        """
        doubtful = list(self._maybe.values())
        for wanted in doubtful:
            self._database.write(partial(holds.bury, wanted))  # from here on it is there or never will be
            release(OpenHold(wanted.id, wanted.owner, wanted.api_key, wanted.user, wanted.team, wanted.model, wanted.at))
            self._maybe.pop(wanted.id, None)
        return len(doubtful)

    def leaked(self) -> list[str]:
        """Holds of this worker that outlived their calls."""
        now = self._clock()
        return [id for id, deadline in self._deadlines.items() if deadline < now]

    def _wanted(self, exchange: Exchange, candidates: Sequence[Candidate], max_output: int | None) -> Wanted:
        principal = exchange.principal
        amount = max((self._upper_bound(exchange.call, candidate.price, max_output) for candidate in candidates), default=0)
        amount = min(max(0, -(-amount * (1_000_000 + principal.markup_ppm) // 1_000_000)), MOST_NANO)
        return Wanted(
            id=exchange.id,
            owner=self._owner,
            lease_s=_lease_s(candidates),
            api_key=principal.key_id,
            user=principal.user_id,
            team=principal.team_id,
            model=exchange.model_asked,
            at=exchange.at,
            amount=amount,
            periods=tuple([_period(budget, exchange.at) for budget in principal.budgets]),
        )

    def _upper_bound(self, call: Call, price: Price | None, max_output: int | None) -> int:
        """Nano-USD that the call may cost: all input at its dearest rate, and as much output as it may have."""
        if price is None:
            return 0
        steps: tuple[Price | Tier, ...] = (price, *price.tiers)
        dearest = [rates for step in steps for rates in (step.rates, *step.variants.values())]
        rate_in = max(rates.get(bucket, 0) for rates in dearest for bucket in INPUT_BUCKETS)
        rate_out = max(rates.get(bucket, 0) for rates in dearest for bucket in OUTPUT_BUCKETS)
        pico = (input_bound(call) * rate_in if rate_in else 0) + choices_bound(call) * output_bound(call, max_output, self._default_output) * rate_out
        return -(-pico // 1000) + price.per_call_nano


def output_bound(call: Call, max_output: int | None, default: int) -> int:
    """Tokens that the answer may have, for each of its choices: what the call says, at most what the model may; else the model's, else the default."""
    fields, most = call.fields, max_output if max_output is not None else default
    wishes = (fields.max_output_tokens,) if call.path == "/responses" else (fields.max_completion_tokens, fields.max_tokens)
    named = [limit if type(wish) is int else max(limit, most) for wish in wishes if (limit := _count(wish)) is not None]
    if named:  # an upstream may know but one of them
        return min([max(named), *([max_output] if max_output is not None else [])])
    if call.dialect not in CHAT_CODECS and call.path in ("/embeddings", "/moderations"):
        return 0
    return most


def choices_bound(call: Call) -> int:
    """Answers that the call has made: `n`, or the best of more, for each of a text completion's prompts."""
    prompts = call.body.member("prompt") if call.path == "/completions" and call.body.member is not None else None
    each = max(_count(call.fields.n) or 1, _count(call.fields.best_of) or 1)
    return each * (_prompts(prompts) if prompts is not None and prompts.lstrip().startswith(b"[") else 1)


def _prompts(raw: bytes) -> int:
    """Prompts in a list of them; one of numbers is a single prompt's tokens."""
    return max(sum(bytes(item).lstrip()[:1] in (b'"', b"[") for item in _list(raw)), 1)


def _count(value: object) -> int | None:
    """What some upstreams take for a whole number: 7.0 and "7" as well. None for what is none, or negative."""
    if type(value) is int:
        return value if value >= 0 else None
    if isinstance(value, float) and value.is_integer():
        return min(int(value), MOST_NANO) if value >= 0 else None
    if isinstance(value, float) and value > MOST_NANO:  # infinity: a number of hundreds of digits
        return MOST_NANO
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    return None if found is None else min(int(found[1].replace("_", "").lstrip("0")[:20] or "0"), MOST_NANO)


def _lease_s(candidates: Sequence[Candidate]) -> int:
    return math.ceil(max((candidate.deployment.deadlines.total_s for candidate in candidates), default=0.0)) + GRACE_S


def input_bound(call: Call) -> int:
    """Tokens that the request may have: its bytes of text, and a good deal for each picture or sound."""
    if call.body.member is None or not call.body.replayable:
        return (call.body.size or 0) // BYTES_PER_TOKEN
    found, text = 0, 0
    for chunk in call.body.open():
        rest, count = BINARY.subn(b"", chunk)
        found, text = found + count, text + len(rest)
    return -(-text // BYTES_PER_TOKEN) + found * BINARY_TOKENS


def _period(budget: Budget, at: int) -> Period:
    starts_at, ends_at = periods.window(budget.period, budget.timezone, at)
    return Period(budget.id, starts_at, ends_at, budget.soft)


def _exceeded(refused: Refused, budget: Budget, amount: int) -> GatewayError:
    until = "" if refused.ends_at is None else f" It begins anew at {_moment(refused.ends_at, budget.timezone)}."
    if budget.period == "total" and refused.limit_nano == 0:  # paid in advance: credits are negative amounts
        return BudgetExceeded(
            f"{_WHOSE[budget.kind]} balance of {usd(-refused.spent)} USD has no room for this call:"
            f" {usd(refused.held)} are held by calls under way, and this one may cost {usd(amount)}."
        )
    return BudgetExceeded(
        f"{_WHOSE[budget.kind]} budget of {usd(refused.limit_nano)} USD {_PERIOD[budget.period]} has no room for this call:"
        f" {usd(refused.spent)} are spent, {usd(refused.held)} held by calls under way, and this one may cost {usd(amount)}.{until}"
    )


def _moment(at: int, timezone: str) -> str:
    return datetime.fromtimestamp(at // 1000, UTC).astimezone(ZoneInfo(timezone)).isoformat(timespec="minutes")
