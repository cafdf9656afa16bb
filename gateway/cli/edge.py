"""The outermost edge of the command: every known error becomes one line on standard error and an exit code."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from gateway.cli.printing import complain
from gateway.errors import BadRequest, GatewayError, NotFound, PluginError, SettingsError, StoreUnavailable, UpstreamError
from gateway.operations.server import NotReady
from gateway.secrets import SecretsError
from gateway.store.database import CannotOpen, Conflict, SchemaMismatch

FAILED, USAGE, NOT_FOUND, CONFLICT, UNAVAILABLE = 1, 2, 3, 4, 5
EXIT_CODES = """\b
Exit codes:
  0  done
  1  failed
  2  wrong usage, a malformed value or setting
  3  not found
  4  conflict: it exists already, or is still in use
  5  the database or an upstream is unavailable
"""
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, NOT_FOUND),
    (BadRequest, USAGE),
    (SettingsError, USAGE),
    (Conflict, CONFLICT),
    (StoreUnavailable, UNAVAILABLE),
    (UpstreamError, UNAVAILABLE),
    (CannotOpen, UNAVAILABLE),
    (GatewayError, FAILED),
    (PluginError, FAILED),
    (SecretsError, FAILED),
    (SchemaMismatch, FAILED),
    (NotReady, FAILED),
)
"""In order: the first that fits."""


class Commands(click.Group):
    """The root of all commands, listed in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Never returns: the process ends with an exit code of EXIT_CODES."""
        try:
            code = super().main(*args, **{**options, "prog_name": "gateway", "standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            code = USAGE
        except click.ClickException as error:
            complain(_in_one_line(error))
            code = error.exit_code
        except click.Abort:
            complain("given up")
            code = FAILED
        except tuple(kind for kind, _ in _CODES) as error:
            for line in _lines(error):
                complain(line)
            code = next(code for kind, code in _CODES if isinstance(error, kind))
        sys.exit(code if isinstance(code, int) else 0)


def _in_one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message}{'' if message.endswith(('.', '?', '!')) else '.'} See `{context.command_path} --help`."


def _lines(error: Exception) -> tuple[str, ...]:
    """The settings' problems are one line each; a database that cannot be opened tells more than one that does not answer."""
    if isinstance(error, SettingsError):
        return error.problems
    cause = error.__cause__
    return (str(cause if isinstance(error, StoreUnavailable) and isinstance(cause, CannotOpen | SchemaMismatch) else error),)
