"""Makes gateway/operations/price_book.json, the price book that `gateway price import` reads, from the package genai-prices (MIT, Pydantic).

The gateway needs the file alone: the package brings a model library and an HTTP client, and prices must not change under a running server.
To renew it, in an environment that is thrown away afterwards:

    python3 -m venv /tmp/book && /tmp/book/bin/pip install --upgrade genai-prices
    /tmp/book/bin/python deploy/price_book.py && git diff --stat gateway/operations/price_book.json

What becomes of the data: a model's start dates become dated prices, its batch, flex, priority and fast prices variants, its thresholds
tiers. Where a price depends on the hour, the dearer is taken. A model is known by its id, by the names that it equals, and by globs that
stand for "starts with", "contains" and for dated names; a glob that would price a known name differently than the package does is left
out. Our buckets hold all cached tokens in one, and all tokens of text and images that are answered in one: the first has the plain
rate, the second the dearer. What is billed by anything but tokens and calls (hours, characters, pages, searches) has no place here:
such a model is listed under "left_out".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, date, datetime, time
from importlib import metadata
from pathlib import Path

from genai_prices.data import providers

TARGET = Path(__file__).parents[1] / "gateway" / "operations" / "price_book.json"
PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "groq": "groq",
    "x-ai": "xai",
    "cohere": "cohere",
    "perplexity": "perplexity",
    "moonshotai": "moonshotai",
    "zai": "zai",
    "cerebras": "cerebras",
    "together": "together",
    "fireworks": "fireworks",
    "novita": "novita",
}
"""The package's name of each provider, and ours."""
BUCKETS = {
    "input_uncached": ("input_mtok", "input_text_mtok"),
    "cache_read": ("cache_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok"),
    "audio_in": ("input_audio_mtok",),
    "image_in": ("input_image_mtok",),
    "output_text": ("output_mtok", "output_text_mtok"),
    "reasoning": ("output_reasoning_mtok",),
    "audio_out": ("output_audio_mtok",),
}
"""The package's prices that make a bucket's rate: the first that is there."""
DATED = re.compile(r"\^((?:[^\\^$.*+?()\[\]{}|]|\\\.)+)-(\\d\{8\}|\\d\{4\}-\\d\{2\}-\\d\{2\})\$\Z")
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
ENDINGS = ("", "-latest", "-20260101", "-2026-01-01", "-001")


def names(match) -> list[str]:
    """The names and globs that a clause stands for; nothing for what no glob can say."""
    kind = type(match).__name__
    if kind == "ClauseOr":
        return [name for each in match.or_ for name in names(each)]
    if kind == "ClauseEquals":
        return [match.equals]
    if kind == "ClauseStartsWith":
        return [match.starts_with + "*"]
    if kind == "ClauseContains":
        return [f"*{match.contains}*"]
    if kind == "ClauseEndsWith":
        return [f"*{match.ends_with}"]
    dated = DATED.match(match.regex) if kind == "ClauseRegex" else None
    if dated is None:
        return []
    return [dated[1].replace("\\.", ".") + "-" + ("????????" if "8" in dated[2] else "????-??-??")]


def is_glob(name: str) -> bool:
    return "*" in name or "?" in name


def samples(name: str) -> list[str]:
    """Names that a name or glob stands for."""
    if not is_glob(name):
        return [name]
    plain = name.strip("*").replace("????????", "20260101").replace("????-??-??", "2026-01-01")
    before = ("", "models/") if name.startswith("*") else ("",)
    return [start + plain.rstrip("-") + end if end else start + plain for start in before for end in (ENDINGS if name.endswith("*") else ("",))]


def resolved(name: str, known: dict[str, object]):
    """What the gateway finds: the exact name, else the longest glob."""
    if name in known:
        return known[name]
    globs = sorted((glob for glob in known if is_glob(glob) and re.fullmatch(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."), name)), key=len)
    return known[globs[-1]] if globs else None


def named_models(provider) -> dict[str, object]:
    """Every name and glob of the provider, with its model: those by which the gateway finds what the package finds."""
    known: dict[str, object] = {}
    for model in provider.models:
        for name in dict.fromkeys((model.id, *names(model.match))):
            known.setdefault(name.lower(), model)
    for name in [name for name in known if not is_glob(name)]:
        found = first(provider, name)
        if found is not None:  # an id that another model's clause takes, or none
            known[name] = found
    probes = sorted({sample for name in known for sample in samples(name)})
    while wrong := [probe for probe in probes if (mine := resolved(probe, known)) is not None and first(provider, probe) not in (mine, None)]:
        known = without(known, wrong[0], provider.id)
    return known


def first(provider, name: str):
    return next((model for model in provider.models if model.is_match(name)), None)


def without(known: dict[str, object], probe: str, provider: str) -> dict[str, object]:
    """Less the glob that answers for the probe."""
    model = resolved(probe, known)
    glob = max((name for name in known if known[name] is model and is_glob(name) and resolved(probe, {name: model}) is model), key=len)
    sys.stderr.write(f"{provider}: {glob} would price {probe} as {model.id}: left out\n")
    return {name: each for name, each in known.items() if name != glob}


def moments(model) -> list[date | None]:
    """When its prices change; None is always."""
    conditional = [*(model.prices if isinstance(model.prices, list) else []), *(model.price_variants or [])]
    return [None, *sorted({each.constraint.start_date for each in conditional if hasattr(each.constraint, "start_date")})]


def hours(model) -> list[time]:
    conditional = model.prices if isinstance(model.prices, list) else []
    return [time(), *(each.constraint.start_time.replace(tzinfo=None) for each in conditional if hasattr(each.constraint, "start_time"))]


def prices_of(model, since: date | None, context: dict[str, str] | None = None) -> dict[str, object]:
    """The package's prices from that day on, at the dearest hour."""
    day = ALWAYS.date() if since is None else since
    found = [model.get_prices(datetime.combine(day, hour, UTC), context).__dict__ for hour in hours(model)]
    return max(found, key=lambda prices: [at(prices.get(name), 0) or 0 for name in ("input_mtok", "output_mtok")])


def at(value, told: int):
    """The package's price for a call of so many input tokens."""
    if value is None or not hasattr(value, "tiers"):
        return value
    return next((tier.price for tier in reversed(value.tiers) if told > tier.start), value.base)


def rates(prices: dict[str, object], told: int) -> dict[str, str]:
    """The buckets' rates as text, in USD per million tokens."""
    found = {}
    for bucket, keys in BUCKETS.items():
        amount = next((at(prices[key], told) for key in keys if prices.get(key) is not None), None)
        if amount is not None:
            found[bucket] = amount
    spoken = [at(prices[key], told) for key in ("output_image_mtok", "output_audio_mtok", "output_video_mtok") if prices.get(key) is not None]
    if prices.get("output_image_mtok") is not None or (spoken and "output_text" not in found):
        found["output_text"] = max(spoken[0], found.get("output_text", spoken[0]))
    return {bucket: f"{amount.normalize():f}" for bucket, amount in found.items()}


def document(model, since: date | None) -> dict[str, object] | None:
    """The model's price from that day on; None where it is not billed by tokens or calls."""
    contexts = {next(iter(each.when.values())): each.when for each in model.price_variants or []}
    plain = prices_of(model, since)
    billed = {key for key, value in plain.items() if value is not None}
    if not rates(plain, 0) and billed - {"requests_kcount"}:
        return None
    versions = {name: prices_of(model, since, when) for name, when in contexts.items()}
    versions = {name: prices for name, prices in versions.items() if rates(prices, 0) != rates(plain, 0) or thresholds(prices) != thresholds(plain)}

    def step(told: int) -> dict[str, object]:
        variants = {name: rates(prices, told) for name, prices in sorted(versions.items())}
        return {"rates": rates(plain, told), **({"variants": variants} if variants else {})}

    steps = sorted({start for prices in (plain, *versions.values()) for start in thresholds(prices)})
    tiers = [{"above": start, **step(start + 1)} for start in steps]
    calls = {"per_call": f"{plain['requests_kcount'] / 1000:f}"} if plain.get("requests_kcount") is not None else {}
    return {**({"from": since.isoformat()} if since else {}), **step(0), **({"tiers": tiers} if tiers else {}), **calls}


def thresholds(prices: dict[str, object]) -> set[int]:
    keys = [key for keys in BUCKETS.values() for key in keys]
    return {tier.start for key in keys if hasattr(prices.get(key), "tiers") for tier in prices[key].tiers}


def provider_document(provider) -> dict[str, object]:
    by_model: dict[str, list[str]] = {}
    for name, model in named_models(provider).items():
        by_model.setdefault(model.id, []).append(name)
    priced, left_out = [], []
    for model in provider.models:
        found = by_model.get(model.id)
        timeline = [document(model, since) for since in moments(model)]
        if not found:
            continue
        if None in timeline:
            left_out.append({"models": sorted(found), "billed_by": sorted(key for key, value in prices_of(model, None).items() if value is not None)})
            continue
        before: dict[str, object] = {}
        for each in timeline:
            figures = {key: value for key, value in each.items() if key != "from"}
            if figures != before:
                priced.append({"models": sorted(found), **each})
            before = figures
    return {"prices": priced, "left_out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the price book of the gateway from the installed genai-prices.")
    parser.add_argument("--date", type=date.fromisoformat, default=datetime.now(UTC).date(), help="The day that the figures are of. Default: today.")
    parser.add_argument("--output", type=Path, default=TARGET)
    given = parser.parse_args()
    licence = next(file for file in metadata.files("genai-prices") or () if file.name.upper().startswith("LICENSE"))
    head = {
        "source": "genai-prices",
        "version": metadata.version("genai-prices"),
        "date": given.date.isoformat(),
        "unit": "USD per million tokens; per_call: USD per call",
        "licence": licence.read_text().strip(),
    }
    books = {PROVIDERS[provider.id]: provider_document(provider) for provider in providers if provider.id in PROVIDERS}
    given.output.write_text(written(head, books))


def written(head: dict[str, str], books: dict[str, dict[str, list]]) -> str:
    """One line for each price, so that the next version's difference can be read."""
    lines = ["{", *(f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()), '  "providers": {']
    for number, (name, book) in enumerate(sorted(books.items()), 1):
        parts = [f'      "{part}": [\n' + ",\n".join("        " + json.dumps(each) for each in book[part]) + "\n      ]" for part in ("prices", "left_out")]
        lines.append(f'    "{name}": {{\n' + ",\n".join(parts) + "\n    }" + ("," if number < len(books) else ""))
    return "\n".join([*lines, "  }", "}", ""])


if __name__ == "__main__":
    main()
