"""`gateway credential`. A secret comes from a prompt, a variable or standard input: arguments are for everybody to see in the list of processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from gateway.backend import Secret
from gateway.cli.condition_words import condition_document, state_words
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import MOMENT, NUMBER
from gateway.operations import credentials
from gateway.operations.conditions import conditions_in_force, of_credential
from gateway.operations.credentials import CredentialWishes, UsedCredential
from gateway.store.conditions import StoredCondition
from gateway.store.pools import Credential

SECRET_BYTES = 65_536
Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def credential() -> None:
    """Credentials: what the gateway presents upstream. Sealed in the database, and never shown again."""


def _secret_source(command: Command) -> Command:
    """How a secret is given: nothing (a prompt), --from-env NAME, or - (standard input)."""
    command = click.option("--from-env", metavar="NAME", help="Take the secret from this environment variable.")(command)
    return click.argument("source", metavar="[-]", required=False)(command)


_WISHES = (
    click.option("--pool", metavar="POOL", help="Where it stands; created where it does not exist. Default: a pool of its own name."),
    click.option("--weight", type=NUMBER, metavar="N", help="Its share of its pool's calls. Default: 1."),
    click.option("--rpm", type=NUMBER, metavar="N", help="Requests a minute. 0: unlimited."),
    click.option("--tpm", type=NUMBER, metavar="N", help="Tokens a minute. 0: unlimited."),
    click.option("--concurrency", type=NUMBER, metavar="N", help="Calls at once. 0: unlimited."),
    click.option("--per-day", type=NUMBER, metavar="N", help="Calls of a day, from midnight UTC. 0: unlimited."),
    click.option("--proxy", metavar="URL", help="On the way, in place of the deployment's. -: asked for, or read from standard input. '': none."),
    click.option("--expires", "expires_at", type=MOMENT, metavar="DATE", help="When the secret stops working. Default: what a JWT says of itself."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="A word to find it by; may be repeated. '': none."),
    click.option("--notes", metavar="TEXT", help="Whatever the operator wants to remember."),
)


def _wishes_options(command: Command) -> Command:
    """The options that `create` and `set` share."""
    for option in reversed(_WISHES):
        command = option(command)
    return command


def _wishes(proxy: str | None, tags: tuple[str, ...], named: dict[str, Any]) -> CredentialWishes:
    return CredentialWishes(proxy=None if proxy is None else read_proxy(proxy), tags=tuple(tag for tag in tags if tag) if tags else None, **named)


@credential.command("create")
@click.argument("label")
@_secret_source
@_wishes_options
@json_option
def create_credential(label: str, source: str | None, from_env: str | None, proxy: str | None, tags: tuple[str, ...], as_json: bool, **named: Any) -> None:
    """Create a credential. Its secret is asked for; or read from standard input with -, or from a variable."""
    if source and proxy == "-":
        raise click.UsageError("standard input gives one secret: set the proxy afterwards, with `gateway credential set`")
    secret, wishes = read_secret(source, from_env), _wishes(proxy, tags, named)
    with opened() as here:
        created = credentials.create_credential(here.database, here.secrets(), label, secret, now_ms(), wishes)
    uses = f"--credential {label}" if created.pool_name == label else f"--pool {created.pool_name}"
    line = f"credential {label} created ({shown(created)}); next: gateway deployment create NAME --model MODEL --backend BACKEND {uses}"
    emit(as_json, _document(created), lambda: [line])


@credential.command("set")
@click.argument("label")
@_wishes_options
@json_option
def set_credential(label: str, proxy: str | None, tags: tuple[str, ...], as_json: bool, **named: Any) -> None:
    """Change what is named of a credential, and nothing else."""
    wishes = _wishes(proxy, tags, named)
    with opened() as here:
        changed = credentials.set_credential(here.database, here.secrets().vault, label, wishes)
    emit(as_json, _document(changed), lambda: [f"credential {label} changed: pool {changed.pool_name}, {limits_of(changed)}"])


@credential.command("extra")
@click.argument("label")
@click.argument("name")
@_secret_source
@click.option("--remove", is_flag=True, help="Take it away.")
@json_option
def set_extra(label: str, name: str, source: str | None, from_env: str | None, remove: bool, as_json: bool) -> None:
    """Give a credential something that is presented beside its secret: a refresh_token, or a puid."""
    value = None if remove else read_secret(source, from_env, prompt=name)
    with opened() as here:
        changed = credentials.set_extra(here.database, here.secrets().vault, label, name, value)
    emit(as_json, _document(changed), lambda: [f"credential {label}: {name} {'taken away' if remove else 'is kept, sealed'}"])


@credential.command("drain")
@click.argument("label")
@click.option("--end", is_flag=True, help="Let it take calls again.")
@json_option
def drain_credential(label: str, end: bool, as_json: bool) -> None:
    """Give a credential no new calls; conversations that are bound to it go on, and calls under way finish."""
    with opened() as here:
        changed = credentials.drain_credential(here.database, label, None if end else now_ms())
    line = f"credential {label} takes calls again" if end else f"credential {label} takes no new calls; undo: gateway credential drain {label} --end"
    emit(as_json, _document(changed), lambda: [line])


@credential.command("replace")
@click.argument("label")
@_secret_source
@json_option
def replace_secret(label: str, source: str | None, from_env: str | None, as_json: bool) -> None:
    """Give a credential another secret; the deployments that use it follow within a second."""
    secret = read_secret(source, from_env)
    with opened() as here:
        changed = credentials.replace_secret(here.database, here.secrets(), label, secret)
    emit(as_json, _document(changed), lambda: [f"credential {label} has a new secret ({shown(changed)}), version {changed.version}"])


@credential.command("list")
@json_option
def list_credentials(as_json: bool) -> None:
    """List the credentials; of a secret only the last characters are shown."""
    with opened() as here:
        found = credentials.list_credentials(here.database)
        in_force = conditions_in_force(here.database, now_ms())
    resting = [of_credential(in_force, item.credential) for item in found]
    empty = ["No credentials yet. Create one: gateway credential create LABEL"]
    rows = [_row(item, conditions) for item, conditions in zip(found, resting, strict=True)]
    document = [
        {**_document(item.credential), "deployments": list(item.deployments), "conditions": [condition_document(each) for each in conditions]}
        for item, conditions in zip(found, resting, strict=True)
    ]
    headings = ("LABEL", "POOL", "SECRET", "VERSION", "WEIGHT", "LIMITS", "EXPIRES", "DEPLOYMENTS", "STATE")
    emit(as_json, document, lambda: table(headings, rows, right=("VERSION", "WEIGHT")) if rows else empty)


@credential.command("disable")
@click.argument("label")
@json_option
def disable_credential(label: str, as_json: bool) -> None:
    """Stop using a credential; its deployments are out of use with it."""
    with opened() as here:
        changed = credentials.disable_credential(here.database, label, now_ms())
    emit(as_json, _document(changed), lambda: [f"credential {label} disabled; undo: gateway credential enable {label}"])


@credential.command("enable")
@click.argument("label")
@json_option
def enable_credential(label: str, as_json: bool) -> None:
    """Use a disabled credential again."""
    with opened() as here:
        changed = credentials.enable_credential(here.database, label)
    emit(as_json, _document(changed), lambda: [f"credential {label} enabled"])


@credential.command("delete")
@click.argument("label")
@json_option
def delete_credential(label: str, as_json: bool) -> None:
    """Delete a credential that no deployment uses, and its secret."""
    with opened() as here:
        deleted = credentials.delete_credential(here.database, label)
    emit(as_json, {**_document(deleted), "deleted": True}, lambda: [f"credential {label} deleted"])


def shown(item: Credential) -> str:
    """The last characters of a secret that is long enough to be recognised by them."""
    return f"…{item.hint}" if item.hint else "hidden"


def limits_of(item: Credential) -> str:
    """Its limits in few words."""
    numbers = ((item.rpm, "requests/min"), (item.tpm, "tokens/min"), (item.concurrency, "at once"), (item.per_day, "a day"))
    return ", ".join(f"{number} {what}" for number, what in numbers if number is not None) or "unlimited"


def state_of(item: Credential, now: int) -> str:
    """What the operator made of it; its conditions are another matter."""
    if item.disabled_at is not None:
        return "disabled"
    if item.expires_at is not None and item.expires_at <= now:
        return "expired"
    return "draining" if item.draining_at is not None else "active"


def _row(item: UsedCredential, conditions: Sequence[StoredCondition]) -> tuple[object, ...]:
    row, now = item.credential, now_ms()
    expires = "never" if row.expires_at is None else moment(row.expires_at)
    uses = ", ".join(item.deployments) or "none"
    return row.label, row.pool_name, shown(row), row.version, row.weight, limits_of(row), expires, uses, state_words(conditions, state_of(row, now))


def _document(item: Credential) -> dict[str, Any]:
    return {
        "id": item.id,
        "label": item.label,
        "pool": item.pool_name,
        "hint": item.hint,
        "version": item.version,
        "weight": item.weight,
        "rpm": item.rpm,
        "tpm": item.tpm,
        "concurrency": item.concurrency,
        "per_day": item.per_day,
        "proxy": item.proxy,
        "expires_at": item.expires_at,
        "draining_at": item.draining_at,
        "tags": list(item.tags),
        "notes": item.notes,
        "created_at": item.created_at,
        "disabled_at": item.disabled_at,
    }


def read_secret(source: str | None, from_env: str | None = None, prompt: str = "Secret") -> Secret:
    """Raises UsageError; what was given in the wrong place is not repeated."""
    if source not in (None, "-"):
        raise click.UsageError("a secret is never an argument, where others can see it: leave it out to be asked, use --from-env NAME, or - for standard input")
    if source and from_env:
        raise click.UsageError("give the secret one way only: --from-env NAME or -")
    if from_env:
        value = os.environ.get(from_env, "")  # the operator's own variable, not a setting
        if not value:
            raise click.UsageError(f"the environment variable {from_env} is not set, or empty")
        return Secret(value)
    if source:
        return Secret(sys.stdin.read(SECRET_BYTES))
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the secret: use --from-env NAME, or - for standard input")
    return Secret(click.prompt(prompt, hide_input=True, err=True))


def read_proxy(given: str) -> Secret:
    """Raises UsageError for a password in the argument, and does not repeat it."""
    if given == "-":
        return read_secret(None if sys.stdin.isatty() else "-", prompt="The proxy's URL")
    if ":" in (given.partition("://")[2] or given).rpartition("@")[0]:
        raise click.UsageError("a password is never an argument, where others can see it: give --proxy - and the URL on standard input")
    return Secret(given)
