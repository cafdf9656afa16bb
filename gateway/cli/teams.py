"""`gateway team`."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import Parsed
from gateway.operations import teams
from gateway.operations.teams import markup_ppm, percent
from gateway.store.accounts import Team

MARKUP = Parsed("markup", markup_ppm)


@click.group()
def team() -> None:
    """Teams: users who share budgets and a markup."""


@team.command("create")
@click.argument("name")
@click.option("--markup", type=MARKUP, default=0, metavar="PERCENT", help="What its users pay above the cost, such as 15 or -10. Default: 0.")
@json_option
def create_team(name: str, markup: int, as_json: bool) -> None:
    """Create a team."""
    with opened() as here:
        created = teams.create_team(here.database, name, now_ms(), markup_ppm=markup)
    emit(as_json, _document(created), lambda: [f"team {name} created; next: gateway user create USER --team {name}"])


@team.command("list")
@json_option
def list_teams(as_json: bool) -> None:
    """List the teams with their users."""
    with opened() as here:
        found = teams.list_teams(here.database)
    rows = [(item.team.name, f"{percent(item.team.markup_ppm)} %", ", ".join(item.users), moment(item.team.created_at)) for item in found]
    documents = [{**_document(item.team), "users": list(item.users)} for item in found]
    empty = ["No teams yet. Create one: gateway team create NAME"]
    emit(as_json, documents, lambda: table(("NAME", "MARKUP", "USERS", "CREATED"), rows, right=("MARKUP",)) if rows else empty)


@team.command("set")
@click.argument("name")
@click.option("--markup", type=MARKUP, required=True, metavar="PERCENT", help="What its users pay above the cost, from -100 to 1000.")
@json_option
def set_team(name: str, markup: int, as_json: bool) -> None:
    """Change a team's markup, for calls that begin from now on."""
    with opened() as here:
        changed = teams.set_team_markup(here.database, name, markup)
    emit(as_json, _document(changed), lambda: [f"team {name}: {percent(changed.markup_ppm)} % above the cost"])


def _document(item: Team) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "markup_ppm": item.markup_ppm, "created_at": item.created_at}
