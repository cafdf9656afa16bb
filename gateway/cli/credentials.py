"""`gateway credential`. A secret comes from a prompt, a variable or standard input: arguments are for everybody to see in the list of processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gateway.backend import Secret
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, table
from gateway.operations import credentials
from gateway.operations.credentials import UsedCredential
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


@credential.command("create")
@click.argument("label")
@_secret_source
@json_option
def create_credential(label: str, source: str | None, from_env: str | None, as_json: bool) -> None:
    """Create a credential. Its secret is asked for; or read from standard input with -, or from a variable."""
    secret = read_secret(source, from_env)
    with opened() as here:
        created = credentials.create_credential(here.database, here.secrets().vault, label, secret, now_ms())
    line = f"credential {label} created ({shown(created)}); next: gateway deployment create NAME --model MODEL --backend BACKEND --credential {label}"
    emit(as_json, _document(created), lambda: [line])


@credential.command("replace")
@click.argument("label")
@_secret_source
@json_option
def replace_secret(label: str, source: str | None, from_env: str | None, as_json: bool) -> None:
    """Give a credential another secret; the deployments that use it follow within a second."""
    secret = read_secret(source, from_env)
    with opened() as here:
        changed = credentials.replace_secret(here.database, here.secrets().vault, label, secret)
    emit(as_json, _document(changed), lambda: [f"credential {label} has a new secret ({shown(changed)}), version {changed.version}"])


@credential.command("list")
@json_option
def list_credentials(as_json: bool) -> None:
    """List the credentials; of a secret only the last characters are shown."""
    with opened() as here:
        found = credentials.list_credentials(here.database)
    empty = ["No credentials yet. Create one: gateway credential create LABEL"]
    rows = [_row(item) for item in found]
    document = [{**_document(item.credential), "deployments": list(item.deployments)} for item in found]
    emit(as_json, document, lambda: table(("LABEL", "SECRET", "VERSION", "DEPLOYMENTS", "STATE"), rows, right=("VERSION",)) if rows else empty)


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


def _row(item: UsedCredential) -> tuple[object, ...]:
    row = item.credential
    return row.label, shown(row), row.version, ", ".join(item.deployments) or "none", "disabled" if row.disabled_at else "active"


def _document(item: Credential) -> dict[str, Any]:
    return {
        "id": item.id,
        "label": item.label,
        "hint": item.hint,
        "version": item.version,
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
