"""The `gateway` command: parses, calls gateway.operations, prints. One module for each family of commands; `edge` turns errors into exit codes."""

from __future__ import annotations

import logging

import click

from gateway import __version__
from gateway.cli import (
    accounts,
    agents,
    alerts,
    batches,
    budgets,
    catalog,
    codes,
    conditions,
    credentials,
    imports,
    ledger,
    limits,
    pools,
    prices,
    reconcile,
    reports,
    server,
    teams,
)
from gateway.cli.edge import EXIT_CODES, Commands


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """One server in front of every way to reach a chat model, with a ledger that can be audited.

    `gateway serve` starts it. Settings are read from the environment, .env.local and .env. A change made here reaches a running server within a second.
    """
    logging.getLogger("gateway").addHandler(logging.NullHandler())  # what matters is printed; the log is the server's


for command in (
    server.serve,
    server.migrate,
    server.doctor,
    teams.team,
    accounts.user,
    accounts.key,
    catalog.model,
    catalog.deployment,
    credentials.credential,
    pools.pool,
    agents.agent,
    prices.price,
    budgets.budget,
    budgets.credit,
    limits.limit,
    codes.code,
    ledger.ledger,
    reconcile.reconcile,
    alerts.alert,
    reports.report,
    reports.route,
    server.plugins,
):
    main.add_command(command)
for command in (batches.create_batch, batches.report_batch):
    accounts.key.add_command(command)
credentials.credential.add_command(imports.import_credentials)
for command in conditions.COMMANDS:
    credentials.credential.add_command(command)
