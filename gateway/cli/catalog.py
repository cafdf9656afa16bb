"""`gateway model` and `gateway deployment`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from gateway.cli.credentials import read_proxy
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, remark, table
from gateway.cli.values import ASSIGNMENT, DURATION, NUMBER
from gateway.operations import catalog
from gateway.operations.catalog import PlacedDeployment, Wishes
from gateway.store.catalog import Model

Command = TypeVar("Command", bound=Callable[..., Any])
SECONDS = click.FloatRange(min=0)


@click.group()
def model() -> None:
    """Models: the names that clients ask for."""


@model.command("create")
@click.argument("name")
@json_option
def create_model(name: str, as_json: bool) -> None:
    """Create a model. NAME may be a glob such as 'gpt-*', which passes the asked name on."""
    with opened() as here:
        created = catalog.create_model(here.database, name, now_ms())
    emit(
        as_json,
        {**_model_document(created), "deployments": []},
        lambda: [f"model {name} created; next: gateway deployment create NAME --model '{name}' --backend BACKEND"],
    )


@model.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models."""
    with opened() as here:
        found = catalog.list_models(here.database)
    rows = [(item.model.name, ", ".join(item.deployments) or "none", moment(item.model.created_at)) for item in found]
    document = [{**_model_document(item.model), "deployments": list(item.deployments)} for item in found]
    empty = ["No models yet. Create one: gateway model create NAME"]
    emit(as_json, document, lambda: table(("NAME", "DEPLOYMENTS", "CREATED"), rows) if rows else empty)


@model.command("set")
@click.argument("name")
@click.option("--max-output", type=NUMBER, metavar="N", help="Tokens that are held for a call that names no limit. 0: the setting's default.")
@click.option("--rpm", type=NUMBER, metavar="N", help="Requests a minute, of everybody together. 0: unlimited.")
@click.option("--tpm", type=NUMBER, metavar="N", help="Tokens a minute. 0: unlimited.")
@click.option("--concurrency", type=NUMBER, metavar="N", help="Calls at once. 0: unlimited.")
@click.option("--queue", "queue_size", type=NUMBER, metavar="N", help="Calls that may wait for these limits, keys taking turns. 0: none.")
@click.option("--queue-for", "queue_s", type=DURATION, metavar="30s", help="How long they may wait. Default: 30s.")
@click.option("--on-client-gone", type=click.Choice(catalog.ENDINGS_OF_THE_GONE), help="Stop the upstream (the default), or read on to its usage.")
@json_option
def set_model(name: str, as_json: bool, queue_s: int | None, on_client_gone: str | None, **numbers: int | None) -> None:
    """Change what is named of a model, and nothing else."""
    wishes: dict[str, Any] = {field: number or None for field, number in numbers.items() if number is not None}
    wishes |= {} if queue_s is None else {"queue_s": queue_s / 1000 or None}
    wishes |= {} if on_client_gone is None else {"on_client_gone": on_client_gone}
    if not wishes:
        raise click.UsageError("name what is to change")
    with opened() as here:
        changed = catalog.set_model(here.database, name, **wishes)
    emit(as_json, _model_document(changed), lambda: [f"model {name}: {_model_words(changed)}"])


def _model_words(item: Model) -> str:
    numbers = ((item.max_output, "tokens of output"), (item.rpm, "requests a minute"), (item.tpm, "tokens a minute"), (item.concurrency, "calls at once"))
    words = [f"at most {number} {what}" for number, what in numbers if number is not None]
    if item.queue_size is not None:
        limited = (item.rpm, item.tpm, item.concurrency) != (None, None, None)
        words.append(f"a queue of {item.queue_size}" + ("" if limited else ", which nothing fills: the model has no limit"))
    return ", ".join([*words, f"{item.on_client_gone} when the client is gone"])


def _model_document(item: Model) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.name,
        "created_at": item.created_at,
        "max_output": item.max_output,
        "rpm": item.rpm,
        "tpm": item.tpm,
        "concurrency": item.concurrency,
        "queue": item.queue_size,
        "queue_s": item.queue_s,
        "on_client_gone": item.on_client_gone,
    }


@model.command("delete")
@click.argument("name")
@json_option
def delete_model(name: str, as_json: bool) -> None:
    """Delete a model without deployments."""
    with opened() as here:
        deleted = catalog.delete_model(here.database, name)
    emit(as_json, {"id": deleted.id, "name": deleted.name, "deleted": True}, lambda: [f"model {name} deleted"])


@click.group()
def deployment() -> None:
    """Deployments: where a model is served, and in which order they are tried."""


_WISHES = (
    click.option("--base-url", metavar="URL", help="Where the upstream is. '': the backend's own default."),
    click.option("--upstream-model", metavar="NAME", help="What the upstream calls the model. '': the name that is asked for."),
    click.option("--credential", metavar="LABEL", help="What is presented upstream. '': none."),
    click.option("--pool", metavar="POOL", help="In its place: any credential of this pool. '': none."),
    click.option("--proxy", metavar="URL", help="On the way: http://, socks5:// or socks5h://. -: asked for, or read from standard input. '': none."),
    click.option("--priority", type=int, metavar="N", help="The lower is tried first. Default: 0."),
    click.option("--weight", type=int, metavar="N", help="The share among deployments of one priority. Default: 1."),
    click.option("--connect-s", type=SECONDS, metavar="S", help="Seconds until connected. 0: the setting's default."),
    click.option("--first-byte-s", type=SECONDS, metavar="S", help="Seconds from then to the first byte. 0: the default."),
    click.option("--idle-s", type=SECONDS, metavar="S", help="Seconds between two blocks. 0: the default."),
    click.option("--total-s", type=SECONDS, metavar="S", help="Seconds for the whole call. 0: the default."),
    click.option("--include-usage/--no-include-usage", default=None, help="Ask streams for their usage. Default: yes."),
    click.option("--option", "options", type=ASSIGNMENT, multiple=True, metavar="k=v", help="An option of the backend; 'k=' takes it away."),
    click.option("--enable/--disable", "enabled", default=None, help="Whether calls go there. Default: yes."),
)


def _wishes_options(command: Command) -> Command:
    """The options that `create` and `set` share."""
    for option in reversed(_WISHES):
        command = option(command)
    return command


def _wishes(options: Sequence[tuple[str, str]], proxy: str | None, named: dict[str, Any]) -> Wishes:
    return Wishes(options=dict(options), proxy=None if proxy is None else read_proxy(proxy), **named)


@deployment.command("create")
@click.argument("name")
@click.option("--model", "model_name", required=True, metavar="MODEL", help="The model it serves; created where it does not exist.")
@click.option("--backend", required=True, help="How the upstream is reached: `gateway plugins` lists them.")
@_wishes_options
@json_option
def create_deployment(name: str, model_name: str, backend: str, options: Sequence[tuple[str, str]], proxy: str | None, as_json: bool, **named: Any) -> None:
    """Create a deployment of a model."""
    wishes = _wishes(options, proxy, named)
    with opened() as here:
        vault = here.secrets().vault if wishes.proxy else None
        placed = catalog.create_deployment(here.database, name, model_name, backend, now_ms(), wishes, vault)
    for note in placed.notes:
        remark(note)
    emit(as_json, _document(placed), lambda: [f"deployment {name} of the model {model_name} created"])


@deployment.command("list")
@json_option
def list_deployments(as_json: bool) -> None:
    """List the deployments, by model and in the order in which they are tried."""
    with opened() as here:
        found = catalog.list_deployments(here.database)
    headings = ("NAME", "MODEL", "BACKEND", "BASE URL", "UPSTREAM MODEL", "CREDENTIAL", "PROXY", "PRIORITY", "WEIGHT", "STATE")
    empty = ["No deployments yet. Create one: gateway deployment create NAME --model MODEL --backend BACKEND"]
    rows = [_row(placed) for placed in found]
    emit(as_json, [_document(placed) for placed in found], lambda: table(headings, rows, right=("PRIORITY", "WEIGHT")) if rows else empty)


@deployment.command("set")
@click.argument("name")
@_wishes_options
@json_option
def set_deployment(name: str, options: Sequence[tuple[str, str]], proxy: str | None, as_json: bool, **named: Any) -> None:
    """Change what is named of a deployment, and nothing else."""
    wishes = _wishes(options, proxy, named)
    with opened() as here:
        placed = catalog.set_deployment(here.database, name, wishes, here.secrets().vault if wishes.proxy else None)
    emit(as_json, _document(placed), lambda: [f"deployment {name} changed"])


@deployment.command("delete")
@click.argument("name")
@json_option
def delete_deployment(name: str, as_json: bool) -> None:
    """Delete a deployment. Calls under way finish."""
    with opened() as here:
        placed = catalog.delete_deployment(here.database, name)
    emit(as_json, {**_document(placed), "deleted": True}, lambda: [f"deployment {name} deleted; its model {placed.model} stays"])


def _row(placed: PlacedDeployment) -> tuple[object, ...]:
    row = placed.deployment
    state = "enabled" if row.enabled else "disabled"
    return (
        row.name,
        placed.model,
        row.backend,
        row.base_url or "default",
        row.upstream_model or "as asked",
        f"pool {placed.pool}" if placed.pool else placed.credential or "none",
        row.proxy or "none",
        row.priority,
        row.weight,
        state,
    )


def _document(placed: PlacedDeployment) -> dict[str, Any]:
    row = placed.deployment
    return {
        "id": row.id,
        "name": row.name,
        "model": placed.model,
        "backend": row.backend,
        "base_url": row.base_url,
        "upstream_model": row.upstream_model,
        "credential": placed.credential,
        "pool": placed.pool,
        "proxy": row.proxy,
        "priority": row.priority,
        "weight": row.weight,
        "connect_s": row.connect_s,
        "first_byte_s": row.first_byte_s,
        "idle_s": row.idle_s,
        "total_s": row.total_s,
        "include_usage": row.include_usage,
        "options": dict(row.options),
        "enabled": row.enabled,
        "created_at": row.created_at,
    }
