"""`gateway credential test|probe|clear|quarantine|events`: what keeps a credential from being called, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from gateway.cli.edge import FAILED
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.operations import conditions
from gateway.operations.conditions import Tested
from gateway.operations.imports import Probed
from gateway.store.conditions import Transition

MOST_EVENTS = 10_000


@click.command("test")
@click.argument("label")
@json_option
def test_credential(label: str, as_json: bool) -> None:
    """Show a credential to its upstream, which is asked for its list of models: that is never billed. Changes nothing."""
    with opened() as here:
        probed = conditions.test(here.database, here.secrets().vault, here.settings, label)
    emit(as_json, _probed(probed, ""), lambda: [_words(Tested(probed))])
    _exit(probed)


@click.command("probe")
@click.argument("label")
@json_option
def probe_credential(label: str, as_json: bool) -> None:
    """Test a credential, and act on it: one that is taken is cleared, one that is called invalid is quarantined."""
    with opened() as here:
        tested = conditions.probe(here.database, here.secrets().vault, here.settings, label, now_ms())
    emit(as_json, _probed(tested.probed, tested.outcome), lambda: [_words(tested)])
    _exit(tested.probed)


@click.command("clear")
@click.argument("label")
@json_option
def clear_credential(label: str, as_json: bool) -> None:
    """End whatever keeps a credential from being called: a rest, or a quarantine."""
    with opened() as here:
        count = conditions.clear(here.database, label, now_ms())
    line = f"credential {label}: {count} condition{'' if count == 1 else 's'} cleared; running workers follow within two seconds"
    emit(as_json, {"label": label, "cleared": count}, lambda: [line])


@click.command("quarantine")
@click.argument("label")
@click.option("--reason", default="", metavar="TEXT", help="For whoever reads the events.")
@json_option
def quarantine_credential(label: str, reason: str, as_json: bool) -> None:
    """Take a credential out of use until it is cleared, or gets another secret. Calls under way finish."""
    with opened() as here:
        conditions.quarantine(here.database, label, reason, now_ms())
    emit(as_json, {"label": label, "state": "quarantined"}, lambda: [f"credential {label} quarantined; undo: gateway credential clear {label}"])


@click.command("events")
@click.argument("label")
@click.option("--last", "limit", type=click.IntRange(1, MOST_EVENTS), default=50, metavar="N", help="How many. Default: 50.")
@json_option
def list_events(label: str, limit: int, as_json: bool) -> None:
    """What happened to a credential, the newest first, and the evidence for it. docs/pools.md says what each means."""
    with opened() as here:
        found = conditions.events(here.database, label, limit)
    rows = [
        (moment(each.at), each.model or "every model", f"{each.before} -> {each.after}", _until(each.after, each.until_at), each.reason, _evidence(each))
        for each in found
    ]
    empty = [f"Nothing has happened to {label} yet: no upstream refused it, and no operator touched it."]
    emit(as_json, [_event(each) for each in found], lambda: table(("AT", "MODEL", "STATE", "UNTIL", "REASON", "EVIDENCE"), rows) if rows else empty)


COMMANDS = (test_credential, probe_credential, clear_credential, quarantine_credential, list_events)


def _until(state: str, until_at: int | None) -> str:
    return "" if state == "active" else moment(until_at, "no end")


def _evidence(each: Transition) -> str:
    evidence: Mapping[str, Any] = each.evidence
    words = [str(evidence[name]) for name in ("status", "error", "note", "message") if evidence.get(name)]
    words += [f"{name}: {value}" for name, value in evidence.get("headers", {}).items()]
    words += [json.dumps(evidence["excerpt"], ensure_ascii=False)[:100]] if evidence.get("excerpt") else []
    words += [f"call {each.exchange}"] if each.exchange else []
    return ", ".join(words)


def _event(each: Transition) -> dict[str, Any]:
    names = ("id", "at", "credential", "model", "before", "after", "until_at", "reason", "exchange", "host")
    return {name: getattr(each, name) for name in names} | {"evidence": dict(each.evidence)}


def _probed(probed: Probed, outcome: str) -> dict[str, Any]:
    return {
        "label": probed.label,
        "deployment": probed.deployment or None,
        "works": not probed.problem,
        "problem": probed.problem or None,
        "outcome": outcome or None,
    }


def _words(tested: Tested) -> str:
    probed = tested.probed
    said = (
        f"credential {probed.label} works: the upstream of {probed.deployment} took it"
        if not probed.problem
        else f"credential {probed.label}: {probed.problem}"
    )
    return said + (f"; {tested.outcome}" if tested.outcome else "")


def _exit(probed: Probed) -> None:
    if probed.problem:
        click.get_current_context().exit(FAILED)
