"""Why a provider's figures and ours may differ: the likely cause of one line of a reconciliation. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MISSING_HERE, MISSING_THERE, PRICE, UNPRICED, BUCKET = "missing_here", "missing_there", "price", "unpriced", "cache_bucket"
RETRIES, ESTIMATED, LATE, ROUNDING, FEE, COUNTS, UNCLEAR = "retries", "estimated", "late_day", "rounding", "fee", "counts", "unclear"

CAUSES: Mapping[str, str] = MappingProxyType(
    {
        MISSING_HERE: "calls that did not come through the gateway: somebody uses the account's keys elsewhere",
        MISSING_THERE: "calls that the provider does not list: they went to another account, or the export was made too early",
        PRICE: "the same tokens at another price: set the provider's (gateway price set --valid-from), then gateway price rerate",
        UNPRICED: "calls that had no price here: set it (gateway price set --valid-from), then gateway price rerate",
        BUCKET: "the same sum of tokens, split otherwise: cached tokens that one side counts as others",
        RETRIES: "attempts that failed here, and that the provider bills",
        ESTIMATED: "calls that were cut: their usage is an estimate of ours",
        LATE: "calls around midnight (UTC): the day beside it differs by as much the other way",
        ROUNDING: "amounts were rounded",
        FEE: "billed by something else than tokens (hosted tools, storage): no part of a call's usage",
        COUNTS: "the same calls, counted otherwise by the provider",
        UNCLEAR: "the costs differ, and the files have no tokens: give the usage export as well",
    }
)
HARMLESS = frozenset({ROUNDING, LATE})
"""Causes that explain a difference completely."""
PLAUSIBLE = 3
"""A call that was cut or failed may have used so many times the average."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side's figures of a day and model. `tokens` by the bill's counters; None: this side does not say. `cost`: nano-USD."""

    tokens: Mapping[str, int] | None
    calls: int | None
    cost: int | None

    @property
    def total(self) -> int:
        return sum((self.tokens or {}).values())


@dataclass(frozen=True, slots=True)
class Evidence:
    """What our entries say about themselves: see store.served.Served."""

    estimated: int = 0
    estimated_tokens: int = 0
    unmetered: int = 0
    unpriced: int = 0
    late: int = 0
    further: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """`tolerance`: by how many nano-USD both costs together may be rounded."""

    ours: Side
    theirs: Side
    evidence: Evidence
    tolerance: int

    def token_deltas(self) -> dict[str, int]:
        """Theirs without ours, by counter; empty where they do not say."""
        if self.theirs.tokens is None or self.ours.tokens is None:
            return {}
        return {counter: count - self.ours.tokens.get(counter, 0) for counter, count in self.theirs.tokens.items()}

    @property
    def cost_delta(self) -> int:
        """0 where they do not say."""
        return 0 if self.theirs.cost is None or self.ours.cost is None else self.theirs.cost - self.ours.cost

    @property
    def differs(self) -> bool:
        calls = self.theirs.calls is not None and self.theirs.calls != self.ours.calls
        return any(self.token_deltas().values()) or self.cost_delta != 0 or (calls and not self._calls_agree())

    def _calls_agree(self) -> bool:
        """Providers may or may not count calls that failed."""
        ours, theirs = self.ours.calls or 0, self.theirs.calls or 0
        return ours - self.evidence.unmetered <= theirs <= ours


def cause(one: Compared, beside: tuple[Compared | None, Compared | None] = (None, None)) -> str | None:
    """The likely cause of a difference, one of CAUSES; None without one. `beside`: the same model the day before, and the day after."""
    if not one.differs:
        return None
    deltas = one.token_deltas()
    if not any(deltas.values()):
        return _of_cost(one, counted=bool(deltas), beside=beside)
    if any(_cancels(deltas, other.token_deltas()) for other in beside if other is not None):
        return LATE
    if not one.ours.calls:
        return MISSING_HERE
    if not one.theirs.total and not one.theirs.calls and not one.evidence.estimated:
        return MISSING_THERE
    if not deltas.get("output") and not sum(deltas.values()):
        return BUCKET
    return _of_tokens(one, sum(deltas.values()))


def _cancels(deltas: Mapping[str, int], others: Mapping[str, int]) -> bool:
    return bool(others) and all(delta == -others.get(counter, 0) for counter, delta in deltas.items())


def _of_cost(one: Compared, counted: bool, beside: tuple[Compared | None, Compared | None]) -> str:
    """The tokens agree, or nobody told them."""
    if not one.cost_delta:
        return RETRIES if (one.theirs.calls or 0) > (one.ours.calls or 0) else COUNTS
    if abs(one.cost_delta) <= one.tolerance:
        return ROUNDING
    if not one.ours.calls:
        return FEE if counted else MISSING_HERE
    if one.evidence.unpriced and one.cost_delta > 0:
        return UNPRICED
    if counted:
        return PRICE
    if any(other is not None and other.cost_delta and abs(one.cost_delta + other.cost_delta) <= one.tolerance + other.tolerance for other in beside):
        return LATE
    return UNCLEAR if one.theirs.cost else MISSING_THERE


def _of_tokens(one: Compared, surplus: int) -> str:
    """`surplus`: tokens that they have and we have not, of calls that both have."""
    ours, theirs, evidence = one.ours.calls or 0, one.theirs.calls, one.evidence
    if theirs is None:
        return _without_calls(one, surplus)
    if theirs > ours:
        return RETRIES if theirs <= ours + evidence.further else MISSING_HERE
    if theirs < ours - evidence.unmetered:
        return MISSING_THERE
    if evidence.estimated:
        return ESTIMATED
    return RETRIES if evidence.unmetered and surplus > 0 else COUNTS


def _without_calls(one: Compared, surplus: int) -> str:
    """They do not say how many calls there were: what is too much for the calls that went wrong is of others."""
    evidence = one.evidence
    if evidence.estimated and _plausible(one, surplus, evidence.estimated, evidence.estimated_tokens):
        return ESTIMATED
    if surplus > 0 and _plausible(one, surplus, evidence.unmetered + evidence.further):
        return RETRIES
    return MISSING_HERE if surplus > 0 else MISSING_THERE


def _plausible(one: Compared, surplus: int, calls: int, known: int = 0) -> bool:
    """Whether so many calls may have used so many tokens more than `known`."""
    metered = max((one.ours.calls or 0) - one.evidence.unmetered, 1)
    return calls > 0 and (abs(surplus) - PLAUSIBLE * known) * metered <= PLAUSIBLE * calls * one.ours.total
