"""The whole of the price book on the command line: its import, and the re-rating of what was booked."""

from __future__ import annotations

from gateway.dialects.events import BUCKETS, Usage
from gateway.settings import Settings
from gateway.store import catalog
from gateway.store.database import Database
from gateway.store.ledger import Entry
from tests.unit.cli.conftest import Typed
from tests.unit.operations.booked import book

AT = 1_780_000_000_000
"""In May 2026."""


def booked() -> None:
    """A call at a price of a pico-dollar a token, which is then found to be two."""
    database = Database(Settings.load().database)
    database.bind()
    words = {"ending": "complete", "usage_source": "provider", "model_asked": "m", "model_served": "m", "deployment": "d"}
    entry = Entry("x", "usage", 1, api_key=1, user=1, amount=1, cost=1, usage=Usage(output_text=1000), total_ms=1, at=AT, **words)  # type: ignore[arg-type]
    book(database, entry)
    database.write(lambda: catalog.add_price("m", 0, dict.fromkeys(BUCKETS, 2_000_000), AT))
    database.close()


def test_the_import_shows_what_it_writes_and_a_second_one_that_all_is_kept(installed: Typed) -> None:
    dry = installed("price", "import", "--models", "gpt-4o", "--dry-run")
    assert "nothing is written" in dry.out
    assert [item["model"] for item in installed("price", "list", "--json").json()] == ["echo"]
    first = installed("price", "import", "--models", "gpt-4o")
    assert "gpt-4o  always                 2.50   10.00  new" in first.out
    assert first.out.splitlines()[-1].endswith("3 new. Written.")
    assert installed("price", "import", "--models", "gpt-4o").out.endswith("3 kept. Nothing was to be written.\n")
    assert "genai-prices" in installed("price", "list").out


def test_the_import_as_json_has_every_price_and_its_state(installed: Typed) -> None:
    made = installed("price", "import", "--provider", "openai,groq", "--models", "gpt-oss-*b", "--json").json()
    assert made["counts"] | {"kept": 0} == made["counts"]
    assert {"model", "valid_from", "usd_per_million_tokens", "state", "note"} == set(made["prices"][0])


def test_a_provider_or_a_model_that_the_book_does_not_have_is_one_clear_line(installed: Typed) -> None:
    unknown = installed("price", "import", "--provider", "nobody")
    assert (unknown.code, "has no provider 'nobody'; it has anthropic" in unknown.err) == (2, True)
    hours = installed("price", "import", "--models", "whisper-1")
    assert (hours.code, "whisper-1 is billed by audio hours" in hours.err, "--per-call" in hours.err) == (2, True, True)


def test_a_rerating_is_shown_and_booked_only_where_it_is_asked_for(installed: Typed) -> None:
    booked()
    shown = installed("price", "rerate", "--since", "2026-05-01")
    assert "1 entries differ; nothing is booked yet: add --apply" in shown.out
    assert "m          1        1  0.000000001  0.002  0.001999999  0.000000001     0.002" in shown.out
    total = installed("price", "rerate", "--since", "2026-05-01", "--apply", "--json").json()["total"]
    assert (total["calls"], total["changed"], total["amount_difference"]) == (1, 1, 1_999_999)
    assert installed("price", "rerate", "--since", "2026-05-01", "--apply").out.endswith("Nothing differs.\n")


def test_a_rerating_of_nothing_says_so(installed: Typed) -> None:
    assert "Nothing was charged from 2026-05-01" in installed("price", "rerate", "--since", "2026-05-01").out
    assert installed("price", "rerate").code == 2
    assert installed("price", "rerate", "--since", "2026-05-02", "--until", "2026-05-01").code == 2
