"""OpenAI's usage objects -> disjoint buckets. Sources: the API reference's CompletionUsage, ResponseUsage and the audio and image usages.

Some providers of the same interface say the same in members of their own: DeepSeek's `prompt_cache_hit_tokens`, Moonshot's `cached_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.events import Usage

MAX_TOKENS = 1_000_000_000
"""No call uses more: a larger figure is a mistake or an attack, and is clamped."""
PLAIN_TIERS = frozenset({"auto", "default", "standard"})
"""What answers call the service tier that a price's plain rates are for."""
TIER_CHARACTERS = 32


@dataclass(slots=True)
class _Counts:
    """Reads non-negative integers out of a usage object and remembers what had to be put right."""

    flags: set[str] = field(default_factory=set)

    def count(self, source: Any, name: str) -> int:
        value = source.get(name) if isinstance(source, Mapping) else None
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            self.flags.add("clamped")
            return 0
        if not 0 <= value <= MAX_TOKENS:
            self.flags.add("clamped")
        return min(max(value, 0), MAX_TOKENS)

    def rest(self, total: int, parts: dict[str, int]) -> tuple[int, dict[str, int]]:
        """What is left of the total, and the parts. Where these are more, they overlap or lie: all of it at the plain rate is the safe bound."""
        left = total - sum(parts.values())
        if left >= 0:
            return left, parts
        self.flags.add("inconsistent")
        return total, dict.fromkeys(parts, 0)


def usage(document: Mapping[str, Any]) -> Usage | None:
    """The usage of an answer or event, under `usage` or `response.usage`. None where there is none, or it is counted in seconds of audio.

    Its `raw` is the provider's object, and the answer's `service_tier` with it where another than the plain one served.
    """
    raw = document.get("usage")
    if raw is None and isinstance(document.get("response"), Mapping):
        raw = document["response"].get("usage")
    if not isinstance(raw, Mapping) or raw.get("type") == "duration":
        return None
    prompt, answer = ("prompt", "completion") if "prompt_tokens" in raw else ("input", "output")
    if f"{prompt}_tokens" not in raw:
        return None
    tier = service_tier(document)
    return _buckets({**raw, "service_tier": tier} if tier else raw, prompt, answer, spoken=document.get("type") == "speech.audio.done")


def service_tier(document: Mapping[str, Any]) -> str | None:
    """Which service tier served an answer or event ("flex", "priority", "batch" ...); None where it says none, or the plain one."""
    response = document.get("response")
    for place in (document, response, document.get("usage")):
        named = place.get("service_tier") if isinstance(place, Mapping) else None
        if isinstance(named, str) and named and named not in PLAIN_TIERS and len(named) <= TIER_CHARACTERS:
            return named
    return None


def _buckets(raw: Mapping[str, Any], prompt: str, answer: str, spoken: bool) -> Usage:
    """`spoken`: the answer is sound, whether its usage says so or not."""
    counts = _Counts()
    total_in = counts.count(raw, f"{prompt}_tokens")
    total_out = _answered(raw.get("total_tokens"), total_in, counts.count(raw, f"{answer}_tokens"), counts)
    uncached, told = counts.rest(total_in, _told(raw, raw.get(f"{prompt}_tokens_details") or raw.get("input_token_details"), counts))
    details = raw.get(f"{answer}_tokens_details")
    answered = {"reasoning": counts.count(details, "reasoning_tokens"), "audio_out": counts.count(details, "audio_tokens")}
    text, answered = counts.rest(total_out, answered)
    if spoken and not details:
        text, answered = 0, {"audio_out": total_out}
    return Usage(input_uncached=uncached, output_text=text, raw=raw, flags=tuple(sorted(counts.flags)), **told, **answered)


def _told(raw: Mapping[str, Any], details: Any, counts: _Counts) -> dict[str, int]:
    """The parts of the input that have rates of their own. Sounds and images that were cached are cached tokens.

    OpenAI keeps what is written to its cache for 30 minutes or for 12 hours: the shorter is our 5 minutes, the longer our hour.
    """
    named = isinstance(details, Mapping) and details.get("cached_tokens") is not None
    elsewhere = "prompt_cache_hit_tokens" if raw.get("prompt_cache_hit_tokens") is not None else "cached_tokens"
    cached = counts.count(details, "cached_tokens") if named else counts.count(raw, elsewhere)
    kinds, spans = (details.get(f"{name}_details") if isinstance(details, Mapping) else None for name in ("cached_tokens", "cache_write_tokens"))
    written = counts.count(details, "cache_write_tokens")
    long = min(counts.count(spans, "ttl_12h_tokens"), written)
    return {
        "cache_read": cached,
        "cache_write_5m": written - long,
        "cache_write_1h": long,
        "audio_in": max(counts.count(details, "audio_tokens") - counts.count(kinds, "audio_tokens"), 0),
        "image_in": max(counts.count(details, "image_tokens") - counts.count(kinds, "image_tokens"), 0),
    }


def _answered(stated: Any, total_in: int, total_out: int, counts: _Counts) -> int:
    """The answer's tokens. Some providers leave the reasoning out of these, but not out of `stated`, the total of the call."""
    if stated is None or stated == total_in + total_out:
        return total_out
    counts.flags.add("inconsistent")
    plausible = isinstance(stated, int) and not isinstance(stated, bool) and stated <= MAX_TOKENS
    return max(total_out, stated - total_in) if plausible else total_out
