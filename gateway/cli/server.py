"""`gateway serve`, `migrate`, `doctor` and `plugins`."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from gateway import __version__
from gateway import plugins as known_plugins
from gateway.backend import Secret
from gateway.cli.edge import FAILED
from gateway.cli.opened import bound_database, now_ms
from gateway.cli.printing import complain, emit, json_option, table
from gateway.cli.values import Parsed
from gateway.operations import doctor as doctors
from gateway.operations import server
from gateway.operations.doctor_url import Site, look_at_url
from gateway.operations.findings import Verdict
from gateway.operations.keys import MintedKey
from gateway.operations.server import Prepared
from gateway.settings import Settings, is_loopback

_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*)(?::[0-9]*)?")
USAGE = "Usage: gateway serve [PORT ADMIN_KEY] [-listen ADDRESS]"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[PORT ADMIN_KEY] [-listen ADDRESS]")
def serve(words: tuple[str, ...]) -> None:
    """Start the server. Prepares what is missing: database, secrets, at the first start a user and a key.

    PORT and ADMIN_KEY are ChatGPT-API-server's: for this run, in the place of GATEWAY_PORT and GATEWAY_ADMIN_KEY. ADDRESS: of GATEWAY_HOST.
    """
    given = of_old_words(words)
    if given is None:
        click.echo(USAGE)
        return
    environment = Settings.environment(**given)
    settings = Settings.load(environment)
    for text in settings.warnings:
        complain(f"warning: {text}")
    command = server.server_command()
    server.check_policy(settings)
    server.check_address(settings.host, settings.port)
    database = bound_database(settings)
    # Ctrl-C must not come between the making of the first key and its only showing; nor while Python starts anew, which would
    # answer it with a traceback: gunicorn.conf.py hears it again when the server is ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        prepared = server.prepare(settings, database, now_ms())
        first = server.first_key(database, prepared.secrets.hasher, now_ms())
        user, model = server.example_user(database), server.example_model(database)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        raise
    finally:
        database.close()
    for line in (*_prepared_lines(prepared), *_welcome(settings, first, user, model)):
        click.echo(line)
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # noqa: S606  no shell is wanted: the server takes this process's place


def of_old_words(words: Sequence[str]) -> dict[str, str] | None:
    """The settings that ChatGPT-API-server's arguments stand for; None for a port without an admin key. What comes after them is ignored, as it was.

    Raises click.UsageError, which repeats no word: the key may stand in any place.
    """
    leading = len(list(itertools.takewhile(lambda word: not word.startswith("-"), words)))
    given = dict(zip(("GATEWAY_PORT", "GATEWAY_ADMIN_KEY"), words[:leading], strict=False))
    if leading == 1:
        return None
    if words and not leading and not words[0].lstrip("-").startswith("listen"):
        raise click.UsageError("there is no such option")
    host = _listen(words[leading:])
    if given and not (words[0].isascii() and words[0].isdigit()):
        raise click.UsageError("the port must be a whole number from 1 to 65535")
    return given | ({"GATEWAY_HOST": host} if host else {})


def _listen(words: Sequence[str]) -> str:
    """The host that follows -listen, with one hyphen or two, after a space or an equals sign; empty where none does."""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, sign, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "listen":
            found = _HOST.fullmatch(value if sign else following)
            return found[1] if found else ""
    return ""


def _welcome(settings: Settings, first: MintedKey | None, user: str, model: str) -> list[str]:
    host = server.reachable_host(settings.host)
    base = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    lines = ["", f"Chat Gateway {__version__} on {base}{_reach(settings.host)}", ""]
    if first is not None:
        lines += [f"Your first API key, of the user {user}. It is shown only this once:", "", f"    {first.secret.reveal()}", ""]
    lines += ["Ask it something, in another terminal:", "", f"    {_request(base, model, first.secret if first else None)}", ""]
    if settings.openai_api_key is not None:
        lines += [f"With OPENAI_API_KEY, every model of {settings.openai_base_url} is served as well.", ""]
    if first is None:
        lines += [f"There $GATEWAY_KEY is one of your API keys. For another: {program()} key create --user {user}"]
    lines += [f"For an OpenAI SDK: base_url {base}/v1. Check this installation: {program()} doctor. To stop: Ctrl-C", ""]
    return lines


def _reach(host: str) -> str:
    """Who reaches the server beside this host."""
    if is_loopback(host):
        return ", for this host only (GATEWAY_HOST)"
    return f", listening on every address ({host})" if host in ("0.0.0.0", "::") else ""  # noqa: S104  nothing is bound here


def _request(base: str, model: str, secret: Secret | None) -> str:
    """A line for a POSIX shell. A key that we do not know comes from $GATEWAY_KEY, so that header stands in double quotes."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello from the gateway"}]}, separators=(",", ":"))
    key = "$GATEWAY_KEY" if secret is None else secret.reveal()
    return f'curl -sSN {shlex.quote(base + "/v1/chat/completions")} -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d {shlex.quote(body)}'


def program() -> str:
    """This command as it can be typed here: by its name if it is on the path, else as it was called."""
    if shutil.which("gateway"):
        return "gateway"
    return f"{sys.executable} -m gateway.cli" if sys.argv[0].endswith("__main__.py") else sys.argv[0]


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Prepare or update the data directory, the secrets and the database. `serve` does this too."""
    settings = Settings.load()
    database = bound_database(settings)
    try:
        prepared = server.prepare(settings, database, now_ms())
    finally:
        database.close()
    document = {
        "database": str(database),
        "applied": list(prepared.applied),
        "secrets_created": [str(path) for path in prepared.secrets.created],
        "seeded": prepared.seeded,
        "notes": list(prepared.notes),
    }
    emit(as_json, document, lambda: _prepared_lines(prepared) or [f"{database} is up to date"])


def _prepared_lines(prepared: Prepared) -> list[str]:
    lines = [f"applied {name}" for name in prepared.applied]
    created = prepared.secrets.created
    if created:
        names = " and ".join(path.name for path in created)
        lines.append(f"made {names} in {created[0].parent}: back them up, apart from the data; without them no key and no credential can be read")
    lines += ["made the model echo, which repeats what it is told"] if prepared.seeded else []
    return [*lines, *prepared.notes]


@click.command()
@click.option("--url", "site", type=Parsed("URL", Site), help="The public address: looked at as a client has it, through whatever stands in front.")
@click.option("--key", envvar="GATEWAY_KEY", metavar="KEY", help="An API key, better given in the environment as GATEWAY_KEY, where nobody sees it.")
@click.option("--model", metavar="MODEL", help="With --url and a key: stream two short calls of it, to see whether they arrive piece by piece.")
@json_option
def doctor(site: Site | None, key: str | None, model: str | None, as_json: bool) -> None:
    """Look at everything that a working gateway needs; exit 1 if something is wrong. Changes nothing; calls an upstream for --model only."""
    if model is not None and (site is None or key is None):
        raise click.UsageError("--model needs --url, and a key in GATEWAY_KEY or --key")
    key = key.strip() if key else None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise click.UsageError("the key must be printable ASCII")
    settings = Settings.load()
    findings = list(doctors.examine(settings, bound_database, now_ms()))
    if site is not None:
        findings += look_at_url(site, Secret(key) if key else None, model, doctors.local_site(settings))
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    warnings = sum(finding.verdict is Verdict.WARNING for finding in findings)
    document = {
        "problems": problems,
        "warnings": warnings,
        "findings": [{"verdict": str(finding.verdict), "subject": finding.subject, "text": finding.text} for finding in findings],
    }
    rows = [("ok" if finding.verdict is Verdict.OK else finding.verdict.upper(), finding.subject, finding.text) for finding in findings]
    emit(as_json, document, lambda: [*table(("", "WHAT", "FOUND"), rows), "", f"{problems} problems, {warnings} warnings"])
    if problems:
        click.get_current_context().exit(FAILED)


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List the backends and selection policies that can be named, broken ones with the reason."""
    found = [(group.removeprefix("gateway."), plugin) for group in (known_plugins.BACKENDS, known_plugins.POLICIES) for plugin in known_plugins.listing(group)]
    document: list[dict[str, Any]] = [
        {"kind": kind, "name": plugin.name, "target": plugin.target, "distribution": plugin.distribution or None, "problem": plugin.problem or None}
        for kind, plugin in found
    ]
    rows = [(kind, plugin.name, plugin.target, plugin.distribution or "built in", plugin.problem or "ok") for kind, plugin in found]
    emit(as_json, document, lambda: table(("KIND", "NAME", "CLASS", "FROM", "STATE"), rows))
