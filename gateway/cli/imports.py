"""`gateway credential import`: a file of credentials, all of it or nothing."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway.cli.edge import FAILED
from gateway.cli.opened import Opened, now_ms, opened
from gateway.cli.printing import emit, json_option, remark, table
from gateway.errors import BadRequest
from gateway.operations import import_formats, imports
from gateway.operations.import_formats import ACCESS_TOKENS, FORMATS, MAX_BYTES
from gateway.operations.imports import Import, Imported, Outcome, Probed

PATIENCE_S = 60.0
PROGRESS_S = 2.0
"""How often somebody who waits is told how far it is."""


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--pool", metavar="POOL", help=f"Where those stand that name no pool; created where it does not exist. Default: {imports.POOL}.")
@click.option("--prefix", metavar="NAME", default="", help="Labels are NAME-1, NAME-2 ... where the file and the token give none. Default: the pool's name.")
@click.option("--format", "form", type=click.Choice(FORMATS), default=import_formats.AUTO, help="Default: told from the content.")
@click.option("--jwt", is_flag=True, help="Take access tokens (JWTs) only, and nothing of a file in which anything else stands.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--test", "tests", is_flag=True, help="Show each new one to its upstream, which is asked for its list of models: that is never billed.")
@json_option
def import_credentials(file: str, pool: str | None, prefix: str, form: str, jwt: bool, dry_run: bool, tests: bool, as_json: bool) -> None:
    """Import credentials from FILE, or from standard input with -. A file that is wrong anywhere imports nothing.

    Taken are lines with one secret each, CSV with a heading (secret, label, pool, weight, rpm, tpm, concurrency, per_day, proxy, expires, tags,
    notes), JSON (a list of secrets or of such objects, or {"tokens": [...]}), and access_tokens.json of the older projects.
    """
    given = import_formats.read(_read(file), form)
    for text in given.remarks:
        remark(text)
    how = Import(pool=pool or imports.POOL, prefix=prefix, jwt=jwt or form == ACCESS_TOKENS)
    verb = imports.plan_import if dry_run else imports.import_credentials
    with opened(PATIENCE_S) as here:
        results = verb(here.database, here.secrets(), given.found, how, now_ms(), _progress("checked", len(given.found)))
        created = [result.label for result in results if result.outcome is Outcome.CREATED]
        probed = _probe(here, created) if tests and not dry_run else []
    emit(as_json, _document(results, probed, dry_run), lambda: _lines(results, probed, dry_run))
    if any(result.outcome is Outcome.REFUSED for result in results) or any(each.problem for each in probed):
        click.get_current_context().exit(FAILED)


def _read(file: str) -> bytes:
    """At most what may be imported, and a byte more. Raises BadRequest."""
    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with Path(file).open("rb") as opened_file:
            return opened_file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error


def _progress(what: str, total: int) -> Callable[[int], None]:
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            remark(f"{what} {done} of {total}")

    return tell


def _probe(here: Opened, labels: list[str]) -> list[Probed]:
    tell, found = _progress("tested", len(labels)), []
    for each in imports.probe_credentials(here.database, here.secrets().vault, here.settings, labels):
        found.append(each)
        tell(len(found))
    return found


def _lines(results: list[Imported], probed: list[Probed], dry_run: bool) -> list[str]:
    count = Counter(result.outcome for result in results)
    would = "would be " if dry_run else ""
    lines = table(("", "OUTCOME", "LABEL", "WHY"), [(each.where, each.outcome, each.label, each.detail) for each in results])
    if probed:
        lines += ["", *table(("LABEL", "ASKED", "TEST"), [(each.label, each.deployment, each.problem or "ok") for each in probed])]
    told = f"{count[Outcome.CREATED]} {would}created, {count[Outcome.KNOWN]} already there, {count[Outcome.REFUSED]} refused"
    return [*lines, "", told + (f"; {sum(not each.problem for each in probed)} of {len(probed)} tested well" if probed else "")]


def _document(results: list[Imported], probed: list[Probed], dry_run: bool) -> dict[str, Any]:
    count = Counter(result.outcome for result in results)
    return {
        "dry_run": dry_run,
        **{str(outcome): count[outcome] for outcome in Outcome},
        "entries": [
            {"where": each.where, "outcome": str(each.outcome), "label": each.label or None, "pool": each.pool or None, "detail": each.detail or None}
            for each in results
        ],
        "tests": [{"label": each.label, "deployment": each.deployment or None, "problem": each.problem or None} for each in probed],
    }
