"""OpenAI's usage objects -> disjoint buckets. Sources: the API reference's CompletionUsage, ResponseUsage and the audio and image usages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.events import Usage

MAX_TOKENS = 1_000_000_000
"""No call uses more: a larger figure is a mistake or an attack, and is clamped."""


class _Counts:
    """Reads non-negative integers out of a usage object and remembers what had to be put right."""

    def __init__(self) -> None:
        self.flags: set[str] = set()

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


def usage(document: Mapping[str, Any]) -> Usage | None:
    """The usage of an answer or event, under `usage` or `response.usage`. None where there is none, or it is counted in seconds of audio."""
    raw = document.get("usage")
    if raw is None and isinstance(document.get("response"), Mapping):
        raw = document["response"].get("usage")
    if not isinstance(raw, Mapping) or raw.get("type") == "duration":
        return None
    prompt, answer = ("prompt", "completion") if "prompt_tokens" in raw else ("input", "output")
    if f"{prompt}_tokens" not in raw:
        return None
    return _buckets(raw, prompt, answer)


def _buckets(raw: Mapping[str, Any], prompt: str, answer: str) -> Usage:
    counts = _Counts()
    total_in = counts.count(raw, f"{prompt}_tokens")
    total_out = _answered(raw.get("total_tokens"), total_in, counts.count(raw, f"{answer}_tokens"), counts)
    details_in = raw.get(f"{prompt}_tokens_details") or raw.get("input_token_details")
    details_out = raw.get(f"{answer}_tokens_details")
    cached, audio_in = counts.count(details_in, "cached_tokens"), counts.count(details_in, "audio_tokens")
    image_in = counts.count(details_in, "image_tokens")
    reasoning, audio_out = counts.count(details_out, "reasoning_tokens"), counts.count(details_out, "audio_tokens")
    uncached, text = total_in - cached - audio_in - image_in, total_out - reasoning - audio_out
    if uncached < 0:  # the details overlap or lie: all of it at the plain rate is the safe bound
        counts.flags.add("inconsistent")
        uncached, cached, audio_in, image_in = total_in, 0, 0, 0
    if text < 0:
        counts.flags.add("inconsistent")
        text, reasoning, audio_out = total_out, 0, 0
    return Usage(
        input_uncached=uncached,
        cache_read=cached,
        audio_in=audio_in,
        image_in=image_in,
        output_text=text,
        reasoning=reasoning,
        audio_out=audio_out,
        raw=raw,
        flags=tuple(sorted(counts.flags)),
    )


def _answered(stated: Any, total_in: int, total_out: int, counts: _Counts) -> int:
    """The answer's tokens. Some providers leave the reasoning out of these, but not out of `stated`, the total of the call."""
    if stated is None or stated == total_in + total_out:
        return total_out
    counts.flags.add("inconsistent")
    plausible = isinstance(stated, int) and not isinstance(stated, bool) and stated <= MAX_TOKENS
    return max(total_out, stated - total_in) if plausible else total_out
