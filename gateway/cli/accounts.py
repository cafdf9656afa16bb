"""`gateway user` and `gateway key`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, remark, table
from gateway.cli.values import DURATION, NAMES, Parsed, parse_expiry
from gateway.core.identity import SCOPES
from gateway.operations import batches, keys, users
from gateway.operations.keys import MintedKey, key_state
from gateway.store.accounts import ApiKey, KeyFields, User

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


def restrictions(*, lifts: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that restrict a key: the command is given `fields`, those that were typed. `lifts`: '' takes a restriction away.

    Elsewhere it is refused: an unset variable in a script must not make a key for everything.
    """
    options = (
        ("--models", "models", "a,b*", "Models it may use, by name or glob", "all"),
        ("--deny", "denied_models", "a,b*", "Those of them that it may not use", "none"),
        ("--scopes", "scopes", ",".join(SCOPES), "What it may be used for", "everything"),
        ("--from", "networks", "10.0.0.0/8,...", "Networks it may be used from", "anywhere"),
    )

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def taking(**given: Any) -> None:
            fields = {name: given.pop(name) for _, name, *_ in options}
            for flag, name, *_ in options:
                if fields[name] == () and not lifts:
                    raise click.UsageError(f"{flag} names nothing; leave it out where it is not to restrict the key")
            command(fields={name: value for name, value in fields.items() if value is not None}, **given)

        taken: Callable[..., None] = taking
        for flag, name, metavar, text, none in reversed(options):
            without = f"; '' for {none}." if lifts else f". Default: {none}."
            taken = click.option(flag, name, type=NAMES, metavar=metavar, help=text + without)(taken)
        return taken

    return decorated


@key.command("create")
@click.option("--user", "user_name", required=True, metavar="NAME", help="Whose key it is.")
@click.option("--label", default="", help="What it is for, such as laptop.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When it ends. A date ends as the day begins, UTC. Default: never.")
@restrictions()
@json_option
def create_key(user_name: str, label: str, expires: int | None, fields: KeyFields, as_json: bool) -> None:
    """Create a key. Its secret is shown once, now."""
    with opened() as here:
        minted = keys.create_key(here.database, here.secrets().hasher, user_name, now_ms(), label=label, expires_at=expires, **fields)
    emit(as_json, _minted_document(minted), lambda: _minted_lines(minted))


@key.command("set")
@click.argument("reference", metavar="KEY")
@restrictions(lifts=True)
@json_option
def set_key(reference: str, fields: KeyFields, as_json: bool) -> None:
    """Change what a key may be used for, and from where. What is not named stays."""
    if not fields:
        raise click.UsageError("name what to change: --models, --deny, --scopes or --from")
    with opened() as here:
        changed = keys.set_key(here.database, reference, now_ms(), **fields)
        replaced = [item for item in keys.list_keys(here.database) if item.successor_id == changed.id and key_state(item, now_ms()) == "active"]
    for item in replaced:
        remark(f"key {item.id}, which it replaced, works until {moment(item.expires_at)} with the restrictions that it had")
    emit(as_json, key_document(changed, now_ms()), lambda: [f"key {changed.id} ({shown(changed)}) of {changed.user_name} is {permitted(changed)} now"])


@key.command("list")
@click.option("--user", "user_name", metavar="NAME", help="Only this user's.")
@click.option("--batch", metavar="NAME", help="Only those of `gateway key bulk` under this name.")
@json_option
def list_keys(user_name: str | None, batch: str | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    at = now_ms()
    with opened() as here:
        found = keys.list_keys(here.database, user_name, batch)
    rows = [(item.id, item.user_name, item.label, shown(item), *_restrictions(item), moment(item.expires_at, "never"), _state(item, at)) for item in found]
    empty = ["No keys yet. Create one: gateway key create --user NAME --label LABEL" if user_name is None and batch is None else "No such keys."]
    headings = ("ID", "USER", "LABEL", "KEY", "MODELS", "SCOPES", "FROM", "EXPIRES", "STATE")
    emit(as_json, [key_document(item, at) for item in found], lambda: table(headings, rows) if rows else empty)


@key.command("rotate")
@click.argument("reference", metavar="KEY")
@click.option("--overlap", type=DURATION, default=OVERLAP_MS, metavar="24h", help="How long the old key still works. Default: 24h.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When the new key ends. Default: when the old one would have.")
@json_option
def rotate_key(reference: str, overlap: int, expires: int | None, as_json: bool) -> None:
    """Make a new key with the same user, label and restrictions; the old one ends after the overlap."""
    with opened() as here:
        rotated = keys.rotate_key(here.database, here.secrets().hasher, reference, now_ms(), overlap_ms=overlap, expires_at=expires)
    old = f"The old key, {rotated.old.id}, works until {moment(rotated.old.expires_at)}."
    document = {**_minted_document(rotated.new), "replaces": key_document(rotated.old, now_ms())}
    emit(as_json, document, lambda: [*_minted_lines(rotated.new), old])


@key.command("revoke")
@click.argument("reference", metavar="[KEY]", required=False)
@click.option("--batch", metavar="NAME", help="All keys of this batch.")
@json_option
def revoke_key(reference: str | None, batch: str | None, as_json: bool) -> None:
    """Refuse a key, or those of a batch, from now on, for good."""
    if (reference is None) == (batch is None):
        raise click.UsageError("name a key, or a --batch")
    if batch is not None:
        with opened() as here:
            count = batches.revoke_batch(here.database, batch, now_ms())
        emit(as_json, {"batch": batch, "revoked": count}, lambda: [f"{count} keys of batch {batch} revoked"])
        return
    with opened() as here:
        revoked = keys.revoke_key(here.database, reference or "", now_ms())
    line = f"key {revoked.id} ({shown(revoked)}) of {revoked.user_name} revoked"
    emit(as_json, key_document(revoked, now_ms()), lambda: [line])


def shown(item: ApiKey) -> str:
    """Enough of a key to recognise it by."""
    return f"{item.prefix}…{item.suffix}"


def _restrictions(item: ApiKey) -> tuple[str, str, str]:
    """Which models, for what, from where."""
    models = ",".join(item.models) or "all"
    models += f" but {','.join(item.denied_models)}" if item.denied_models else ""
    return models, ",".join(item.scopes or ()) or "all", ",".join(item.networks) or "anywhere"


def permitted(item: ApiKey) -> str:
    """What a key is for, in words."""
    models, scopes, networks = _restrictions(item)
    of_models = f"for {models}" if item.models or item.denied_models else "for every model"
    for_what = f", restricted to {scopes}" if item.scopes is not None else ""
    return of_models + for_what + (f", from {networks} only" if item.networks else "")


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
        "denied_models": list(item.denied_models),
        "scopes": None if item.scopes is None else list(item.scopes),
        "networks": list(item.networks),
        "batch": item.batch,
        "family": item.family,
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
    return [
        f"Key {item.id} of {item.user_name}, {permitted(item)}, expires {moment(item.expires_at, 'never')}. It is shown only this once:",
        "",
        f"    {minted.secret.reveal()}",
        "",
    ]
