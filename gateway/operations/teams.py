"""Teams: users who share budgets, and what they pay above the cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.errors import BadRequest, NotFound
from gateway.operations.names import check_name
from gateway.store import accounts
from gateway.store.accounts import Team
from gateway.store.database import Conflict, Database

PPM_DIGITS = 4
"""A percent is 10,000 millionths: a markup has at most 4 decimal places."""
LOWEST, HIGHEST = -100, 1000
_PERCENT = re.compile(r"([+-]?)(\d{1,6})(?:\.(\d+))?%?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListedTeam:
    """A team and the names of its users."""

    team: Team
    users: tuple[str, ...]


def markup_ppm(percent: str) -> int:
    """ "12.5" (per cent above the cost) is 125_000 millionths; "-10" is a discount. Raises BadRequest outside -100 to 1000."""
    match = _PERCENT.match(percent)
    if match is None:
        raise BadRequest(f"{percent!r} is not a markup: write per cent such as 15, 2.5 or -10")
    fraction = (match[3] or "").rstrip("0")
    if len(fraction) > PPM_DIGITS:
        raise BadRequest(f"{percent} is too fine: a markup has at most {PPM_DIGITS} decimal places")
    ppm = int(match[2] + fraction.ljust(PPM_DIGITS, "0")) * (-1 if match[1] == "-" else 1)
    if not LOWEST * 10**PPM_DIGITS <= ppm <= HIGHEST * 10**PPM_DIGITS:
        raise BadRequest(f"{percent} is no markup: it must be from {LOWEST} (free) to {HIGHEST} per cent")
    return ppm


def percent(ppm: int) -> str:
    """The inverse of `markup_ppm`, without superfluous zeros."""
    whole, fraction = divmod(abs(ppm), 10**PPM_DIGITS)
    return f"{'-' if ppm < 0 else ''}{whole}.{fraction:0{PPM_DIGITS}}".rstrip("0").rstrip(".")


def create_team(database: Database, name: str, at: int, *, markup_ppm: int = 0) -> Team:
    """Raises BadRequest for a name that cannot be one, Conflict for one that is taken."""
    check_name("team", name)

    def create() -> Team:
        if accounts.find_team(name) is not None:
            raise Conflict(f"there is a team {name} already")
        return accounts.create_team(name, at, markup_ppm)

    return database.write(create)


def list_teams(database: Database) -> list[ListedTeam]:
    teams, users = database.read(lambda: (accounts.list_teams(), accounts.list_users()))
    return [ListedTeam(team, tuple(user.name for user in users if user.team_id == team.id)) for team in teams]


def set_team_markup(database: Database, name: str, markup_ppm: int) -> Team:
    """For calls that begin from now on; what was booked stays. Raises NotFound."""
    return database.write(lambda: accounts.set_team_markup(required_team(name).id, markup_ppm))


def required_team(name: str) -> Team:
    """For use inside a database work. Raises NotFound."""
    team = accounts.find_team(name)
    if team is None:
        raise NotFound(f"there is no team {name!r}; `gateway team list` shows them")
    return team
