"""`gateway agent`: the tokens that let agents in, who is connected, and the reference agent itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from gateway.cli.accounts import EXPIRY
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, remark, table
from gateway.operations import agents
from gateway.operations.agents import AGENTS, POOL, Enrolled, ListedAgent, ListedEnrolment
from gateway.operations.server import NotReady, reachable_host
from gateway.presence import Presence
from gateway.settings import Settings
from gateway.state.agents import Holder
from gateway.state.agents_sqlite import SqliteAgents
from gateway.store.agents import Enrolment

REFERENCE = "agents.openai_agent"
"""A program of its own, which knows nothing of the gateway but its protocol; named by a string, as backends are."""
CONCURRENCY = 4


@click.group(invoke_without_command=True, no_args_is_help=True)
@click.option("--connect", metavar="URL", help="Be an agent: connect to the gateway at wss://HOST or ws://HOST:PORT.")
@click.option("--token", envvar="GATEWAY_AGENT_TOKEN", metavar="TOKEN", help="Of `gateway agent enrol`; better in GATEWAY_AGENT_TOKEN, where nobody sees it.")
@click.option("--upstream", metavar="URL", help="The OpenAI-compatible server that answers, with its /v1.")
@click.option("--upstream-key", envvar="GATEWAY_AGENT_UPSTREAM_KEY", default="", metavar="KEY", help="Its API key, better in GATEWAY_AGENT_UPSTREAM_KEY.")
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Serve this one; may be repeated. Default: all that the server lists.")
@click.option("--concurrency", type=click.IntRange(1, 1024), default=CONCURRENCY, help=f"Requests at once. Default: {CONCURRENCY}.")
@click.option("--name", default="", metavar="NAME", help="Of this agent, where several use one token.")
@click.pass_context
def agent(context: click.Context, /, connect: str | None, token: str | None, upstream: str | None, **more: Any) -> None:
    """Agents: model servers and browsers that connect in. With --connect, be one.

    \b
    gateway agent enrol laptop --model llama3.1
    GATEWAY_AGENT_TOKEN=... gateway agent --connect wss://gateway.example --upstream http://127.0.0.1:11434/v1
    """
    if context.invoked_subcommand is not None:
        if connect is not None:
            raise click.UsageError("--connect stands alone: no command follows it")
        return
    if not connect or not token or not upstream:
        raise click.UsageError("an agent needs --connect, --upstream and a token in GATEWAY_AGENT_TOKEN or --token")
    options = {name: value for name, value in more.items() if value or name != "name"}
    try:
        status = _reference()(connect, token, upstream, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    context.exit(status)


def _reference() -> Callable[..., int]:
    """`run(connect, token, upstream, *, models, concurrency, upstream_key, name)`, which returns the exit status; ValueError for what is no URL or token."""
    try:
        run: Callable[..., int] = importlib.import_module(REFERENCE).run
    except ImportError as error:
        raise NotReady("the reference agent was not installed with the gateway: install it again, or run it from the source tree") from error
    return run


@agent.command("enrol")
@click.argument("name")
@click.option("--model", "models", multiple=True, required=True, metavar="MODEL", help="What its agents may serve, by name or glob; may be repeated.")
@click.option("--pool", default=POOL, metavar="POOL", help=f"Where they stand; created where it does not exist. Default: {POOL}.")
@click.option("--expires", type=EXPIRY, metavar="30d|2026-12-31", help="When the token ends. Default: never.")
@click.option("--max-agents", type=click.IntRange(1, AGENTS), metavar="N", help="How many agents may use it, each under a name of its own. Default: 1000.")
@json_option
def enrol_agent(name: str, models: tuple[str, ...], pool: str, expires: int | None, max_agents: int | None, as_json: bool) -> None:
    """Make a token that lets agents in. It is shown once, now. A model named exactly is served as soon as an agent connects that has it."""
    with opened() as here:
        hasher = here.secrets().hasher
        made = agents.enrol(here.database, hasher, name, models, now_ms(), pool=pool, expires_at=expires, max_agents=max_agents)
        place = _place(here.settings)
    for note in made.notes:
        remark(note)
    head = f"agents of {name} may serve {', '.join(made.enrolment.models)}, in the pool {pool}; good until {moment(expires, 'revoked')}."
    emit(as_json, _minted(made), lambda: [head, *_shown_once(made, place)])


@agent.command("list")
@json_option
def list_agents(as_json: bool) -> None:
    """List the tokens, the agents that came in with each, and who is connected."""
    at = now_ms()
    with opened() as here:
        found = agents.list_agents(here.database, connections(here.settings))
    emit(as_json, document(found, at), lambda: lines(found, at))


@agent.command("revoke")
@click.argument("name")
@json_option
def revoke_agent(name: str, as_json: bool) -> None:
    """Cut off all agents of a token, and let none in with it. `api-server`: those without a token."""
    at = now_ms()
    with opened() as here:
        revoked = agents.revoke(here.database, name, at)
    emit(as_json, _enrolment(revoked, at), lambda: [f"{name} revoked: its agents are cut off within a second; `gateway agent delete {name}` forgets them"])


@agent.command("rotate")
@click.argument("name")
@json_option
def rotate_agent(name: str, as_json: bool) -> None:
    """Make another token for the same agents. It is shown once, now; the one before lets nobody in any more."""
    with opened() as here:
        made = agents.rotate(here.database, here.secrets().hasher, name, now_ms())
        place = _place(here.settings)
    emit(as_json, _minted(made), lambda: [f"another token for the agents of {name}; the one before is of no use.", *_shown_once(made, place)])


@agent.command("delete")
@click.argument("name")
@json_option
def delete_agent(name: str, as_json: bool) -> None:
    """Delete a token, its agents, and what only they served. `api-server`: agents without a token may come in anew."""
    with opened() as here:
        gone = agents.delete(here.database, name)
    emit(as_json, {"name": name, "agents": len(gone.agents), "deleted": True}, lambda: [f"{name} deleted, with {len(gone.agents)} agents"])


def connections(settings: Settings) -> Mapping[str, Holder] | None:
    """Who is connected, by credentials' places; None where nobody can tell: another host's workers may know."""
    presence = Presence(settings.run_path, settings.data_dir.resolve())
    if settings.redis_url is not None:
        from gateway.state.agents_redis import RedisAgents  # an optional dependency: only who has several hosts needs it

        shared = RedisAgents(settings.redis_url, "", presence.alive, presence.local)
        try:
            return dict(shared.current())
        finally:
            shared.close()
    directory = SqliteAgents(settings.run_path, presence.alive)
    if not directory.exists:
        return None
    try:
        return {place: holder for place, holder in directory.current().items() if presence.alive(holder.owner)}
    finally:
        directory.close()


def lines(found: Sequence[ListedEnrolment], at: int) -> list[str]:
    if not found:
        return ["No agents yet. Let some in: gateway agent enrol NAME --model 'llama*'"]
    headings = ("NAME", "TOKEN", "MODELS", "POOL", "AGENTS", "EXPIRES", "STATE")
    tokens = table(headings, [_token_row(item, at) for item in found], right=("AGENTS",))
    rows = [_agent_row(each, item.enrolment) for item in found for each in item.agents]
    if not rows:
        return [*tokens, "", "No agent came in yet."]
    return [*tokens, "", *table(("AGENT", "OF", "NAME", "MODELS", "CONNECTED", "RTT", "PROTOCOL", "SOFTWARE"), rows, right=("RTT",))]


def _token_row(item: ListedEnrolment, at: int) -> tuple[object, ...]:
    one = item.enrolment
    connected = sum(_is_connected(each) for each in item.agents)
    return one.name, _hint(one), ", ".join(one.models), one.pool_name, f"{connected}/{len(item.agents)}", moment(one.expires_at, "never"), one.state(at)


def _agent_row(item: ListedAgent, enrolment: Enrolment) -> tuple[object, ...]:
    said, holder = item.agent.announced, item.holder
    rtt = "" if holder is None or holder.rtt_ms is None else f"{holder.rtt_ms:.0f} ms"
    return item.credential.label, enrolment.name, said.name, ", ".join(said.models), _connected(item), rtt, f"v{said.protocol}", said.software


def _connected(item: ListedAgent) -> str:
    holder = item.holder
    if holder is None or holder.gone_at is not None:
        return f"no, seen {moment(item.agent.seen_at)}"
    return f"since {moment(int(holder.since * 1000))}" + (", leaving" if holder.draining else "")


def _is_connected(item: ListedAgent) -> bool:
    return item.holder is not None and item.holder.gone_at is None


def _hint(item: Enrolment) -> str:
    return f"{item.prefix}…{item.suffix}" if item.prefix else "none"


def document(found: Iterable[ListedEnrolment], at: int) -> list[dict[str, Any]]:
    return [{**_enrolment(item.enrolment, at), "agents": [_agent(each) for each in item.agents]} for item in found]


def _enrolment(item: Enrolment, at: int) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.name,
        "prefix": item.prefix,
        "suffix": item.suffix,
        "models": list(item.models),
        "pool": item.pool_name,
        "max_agents": item.max_agents,
        "created_at": item.created_at,
        "expires_at": item.expires_at,
        "revoked_at": item.revoked_at,
        "state": item.state(at),
    }


def _agent(item: ListedAgent) -> dict[str, Any]:
    said, holder = item.agent.announced, item.holder
    return {
        "label": item.credential.label,
        "name": said.name,
        "models": list(said.models),
        "protocol": said.protocol,
        "software": said.software,
        "concurrency": said.concurrency,
        "pool": item.credential.pool_name,
        "seen_at": item.agent.seen_at,
        "connected_since": int(holder.since * 1000) if holder is not None and holder.gone_at is None else None,
        "draining": holder is not None and holder.draining,
        "rtt_ms": None if holder is None else holder.rtt_ms,
        "worker": holder.owner if holder is not None and holder.gone_at is None else None,
    }


def _minted(made: Enrolled) -> dict[str, Any]:
    return {**_enrolment(made.enrolment, made.enrolment.created_at), "token": made.token.reveal(), "notes": list(made.notes)}


def _shown_once(made: Enrolled, place: str) -> list[str]:
    token = made.token.reveal()
    use = f"GATEWAY_AGENT_TOKEN={token} gateway agent --connect {place} --upstream http://127.0.0.1:11434/v1"
    return ["The token, shown only this once:", "", f"    {token}", "", "A model server joins with it from wherever it is:", "", f"    {use}", ""]


def _place(settings: Settings) -> str:
    host = reachable_host(settings.host)
    return f"ws://[{host}]:{settings.port}" if ":" in host else f"ws://{host}:{settings.port}"
