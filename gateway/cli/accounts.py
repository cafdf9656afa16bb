"""`gateway user` and `gateway key`."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import DURATION, NAMES, Parsed, parse_expiry
from gateway.operations import keys, users
from gateway.operations.keys import MintedKey, key_state
from gateway.store.accounts import ApiKey, User

EXPIRY = Parsed("expiry", lambda text: parse_expiry(text, now_ms()))
OVERLAP_MS = 24 * 3_600_000


@click.group()
def user() -> None:
    """Users: who holds keys, and to whom usage is booked."""


@user.command("create")
@click.argument("name")
@click.option("--team", default="", metavar="NAME", help="The team that the user belongs to. Default: none.")
@json_option
def create_user(name: str, team: str, as_json: bool) -> None:
    """Create a user."""
    with opened() as here:
        created = users.create_user(here.database, name, now_ms(), team=team)
    emit(as_json, _user_document(created), lambda: [f"user {name} created; next: gateway key create --user {name}"])


@user.command("list")
@json_option
def list_users(as_json: bool) -> None:
    """List the users."""
    with opened() as here:
        found = users.list_users(here.database)
    rows = [
        (item.name, item.team_name or "", moment(item.created_at), f"disabled {moment(item.disabled_at)}" if item.disabled_at else "active") for item in found
    ]
    empty = ["No users yet. Create one: gateway user create NAME"]
    emit(as_json, [_user_document(item) for item in found], lambda: table(("NAME", "TEAM", "CREATED", "STATE"), rows) if rows else empty)


@user.command("set")
@click.argument("name")
@click.option("--team", required=True, metavar="NAME", help="The team that the user belongs to from now on; '' for none.")
@json_option
def set_user(name: str, team: str, as_json: bool) -> None:
    """Put a user into a team, or out of every team. What was booked stays booked as it was."""
    with opened() as here:
        changed = users.set_user_team(here.database, name, team)
    emit(as_json, _user_document(changed), lambda: [f"user {name} belongs to team {team} now" if team else f"user {name} belongs to no team now"])


@user.command("disable")
@click.argument("name")
@json_option
def disable_user(name: str, as_json: bool) -> None:
    """Refuse every key of a user."""
    with opened() as here:
        changed = users.disable_user(here.database, name, now_ms())
    emit(as_json, _user_document(changed), lambda: [f"user {name} disabled: every key of theirs is refused; undo: gateway user enable {name}"])


@user.command("enable")
@click.argument("name")
@json_option
def enable_user(name: str, as_json: bool) -> None:
    """Let a disabled user's keys work again."""
    with opened() as here:
        changed = users.enable_user(here.database, name)
    emit(as_json, _user_document(changed), lambda: [f"user {name} enabled"])


def _user_document(item: User) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "team": item.team_name, "created_at": item.created_at, "disabled_at": item.disabled_at}


@click.group()
def key() -> None:
    """API keys: what clients present.

    KEY is a key's id, its label, or the last characters that the list shows.
    """


@key.command("create")
@click.option("--user", "user_name", required=True, metavar="NAME", help="Whose key it is.")
@click.option("--label", default="", help="What it is for, such as laptop.")
@click.option("--models", type=NAMES, default="", metavar="a,b*", help="Models it may use, by name or glob. Default: all.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When it ends. A date ends as the day begins, UTC. Default: never.")
@json_option
def create_key(user_name: str, label: str, models: tuple[str, ...], expires: int | None, as_json: bool) -> None:
    """Create a key. Its secret is shown once, now."""
    with opened() as here:
        minted = keys.create_key(here.database, here.secrets().hasher, user_name, now_ms(), label=label, models=models, expires_at=expires)
    emit(as_json, _minted_document(minted), lambda: _minted_lines(minted))


@key.command("list")
@click.option("--user", "user_name", metavar="NAME", help="Only this user's.")
@json_option
def list_keys(user_name: str | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    at = now_ms()
    with opened() as here:
        found = keys.list_keys(here.database, user_name)
    rows = [
        (item.id, item.user_name, item.label, shown(item), ",".join(item.models) or "all", moment(item.expires_at, "never"), _state(item, at)) for item in found
    ]
    empty = ["No keys yet. Create one: gateway key create --user NAME --label LABEL"]
    headings = ("ID", "USER", "LABEL", "KEY", "MODELS", "EXPIRES", "STATE")
    emit(as_json, [key_document(item, at) for item in found], lambda: table(headings, rows) if rows else empty)


@key.command("rotate")
@click.argument("reference", metavar="KEY")
@click.option("--overlap", type=DURATION, default=OVERLAP_MS, metavar="24h", help="How long the old key still works. Default: 24h.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When the new key ends. Default: when the old one would have.")
@json_option
def rotate_key(reference: str, overlap: int, expires: int | None, as_json: bool) -> None:
    """Make a new key with the same user, label and models; the old one ends after the overlap."""
    with opened() as here:
        rotated = keys.rotate_key(here.database, here.secrets().hasher, reference, now_ms(), overlap_ms=overlap, expires_at=expires)
    old = f"The old key, {rotated.old.id}, works until {moment(rotated.old.expires_at)}."
    document = {**_minted_document(rotated.new), "replaces": key_document(rotated.old, now_ms())}
    emit(as_json, document, lambda: [*_minted_lines(rotated.new), old])


@key.command("revoke")
@click.argument("reference", metavar="KEY")
@json_option
def revoke_key(reference: str, as_json: bool) -> None:
    """Refuse a key from now on, for good."""
    with opened() as here:
        revoked = keys.revoke_key(here.database, reference, now_ms())
    line = f"key {revoked.id} ({shown(revoked)}) of {revoked.user_name} revoked"
    emit(as_json, key_document(revoked, now_ms()), lambda: [line])


def shown(item: ApiKey) -> str:
    """Enough of a key to recognise it by."""
    return f"{item.prefix}…{item.suffix}"


def _state(item: ApiKey, at: int) -> str:
    state = key_state(item, at)
    return f"{state}, replaced by {item.successor_id}" if item.successor_id is not None and state != "revoked" else state


def key_document(item: ApiKey, at: int) -> dict[str, Any]:
    return {
        "id": item.id,
        "user": item.user_name,
        "label": item.label,
        "prefix": item.prefix,
        "suffix": item.suffix,
        "models": list(item.models),
        "created_at": item.created_at,
        "expires_at": item.expires_at,
        "revoked_at": item.revoked_at,
        "successor_id": item.successor_id,
        "state": key_state(item, at),
    }


def _minted_document(minted: MintedKey) -> dict[str, Any]:
    return {**key_document(minted.key, minted.key.created_at), "key": minted.secret.reveal()}


def _minted_lines(minted: MintedKey) -> list[str]:
    item = minted.key
    models = ", ".join(item.models) or "every model"
    return [
        f"Key {item.id} of {item.user_name}, for {models}, expires {moment(item.expires_at, 'never')}. It is shown only this once:",
        "",
        f"    {minted.secret.reveal()}",
        "",
    ]
