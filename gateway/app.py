"""The composition root: `create_app(settings)` builds every part and hands each its collaborators. Starts no thread, opens no connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from flask import Blueprint, Flask

from gateway import logs, plugins
from gateway.api import PREFIXES, agent, chatgpt, chatgpt_to_api, imitate, me, openai, platform, system
from gateway.api.agent_asks import Asks
from gateway.api.caller import Callers
from gateway.api.chatgpt_to_api import Family
from gateway.api.endpoint import Endpoint, Endpoints
from gateway.api.file_keys import FileKeys
from gateway.api.web import Web
from gateway.backend import Services
from gateway.bus.base import Bus
from gateway.bus.unix import UnixBus
from gateway.core.admission import Admission
from gateway.core.affinity import Affinity
from gateway.core.agent_queue import AgentQueue
from gateway.core.agents import Agents
from gateway.core.alerts import SENDER, Alerts
from gateway.core.caller import CallersUpstream
from gateway.core.catalog import Backends, Catalog, EnvironmentDeployment, Snapshot
from gateway.core.dispatch import Dispatcher
from gateway.core.enrolments import Enrolments
from gateway.core.exchange import OpenExchanges
from gateway.core.gateway import Gateway
from gateway.core.holds import Holds
from gateway.core.housekeeping import Housekeeping
from gateway.core.idempotency import Idempotency
from gateway.core.identity import Identity
from gateway.core.ledger import Ledger
from gateway.core.limits import CallLimits
from gateway.core.listing import Listing
from gateway.core.overview import Overviews
from gateway.core.policies import Policies
from gateway.core.pool import Pool
from gateway.core.receipts import Receipts
from gateway.core.refreshing import Refresher
from gateway.core.routing import Router
from gateway.core.transitions import Transitions
from gateway.core.waiting import WaitingRoom
from gateway.metrics import Metrics
from gateway.operations.agents import ensure_deployments, ensure_open_enrolment
from gateway.operations.chatgpt_to_api import NAME, usable_proxy, web_place
from gateway.operations.signing_in import SigningIn
from gateway.presence import Presence
from gateway.secrets import Secrets, load_secrets
from gateway.settings import Settings
from gateway.state.agents import AgentDirectory
from gateway.state.agents_sqlite import SqliteAgents
from gateway.state.conditions import Conditions
from gateway.state.sqlite import DAY_MS, SqliteLimits
from gateway.store.agents import Enrolment
from gateway.store.database import Database
from gateway.store.journal import Journal
from gateway.store.ledger import calls_with

SIGN_IN = "backends.sign_in:SignIn"

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the web layer stands on."""

    gateway: Gateway
    database: Database
    secrets: Secrets
    metrics: Metrics
    presence: Presence
    journal: Journal
    backends: Backends
    limits: CallLimits
    affinity: Affinity
    signing_in: SigningIn
    redactor: logs.Redactor


def create_app(settings: Settings) -> Flask:
    """The WSGI application. `app.extensions["gateway"]` is its Gateway, which gunicorn.conf.py starts in each worker.

    Raises SecretsError where the secrets' files are missing: `gateway migrate` makes them.
    """
    parts = _parts(settings)
    gateway, database, catalog = parts.gateway, parts.database, parts.gateway.catalog
    identity = Identity(database, parts.secrets.hasher, lambda: catalog.generation, outlasts_database=settings.without_database == "serve")
    endpoints = Endpoints(gateway, identity, settings, Idempotency(database, parts.journal, parts.presence, parts.secrets.vault, parts.metrics))
    web = Web(endpoints, Callers(gateway, identity, settings), identity, settings)
    app = Flask("gateway", static_folder=None)
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    listing, file_keys = Listing(catalog, settings.unpriced), FileKeys(settings)
    asks = Asks(gateway, identity, parts.affinity, settings)
    to_api = Family(web, gateway, database, parts.secrets, settings, parts.redactor, parts.signing_in, *_of_old_tokens(settings, parts.backends))
    for blueprint in (
        openai.blueprint(web, listing, Receipts(database)),
        me.blueprint(database, parts.secrets.hasher, settings, Overviews(database, catalog, parts.limits), listing),
        system.blueprint(gateway, database, parts.metrics),
        *_of_callers(web, settings, parts.backends),
        chatgpt_to_api.blueprint(to_api, file_keys),
        agent.blueprint(agent.Family(web, gateway.agents, asks, database, parts.secrets, settings)),
    ):
        app.register_blueprint(blueprint)
    web.install(app)
    app.wsgi_app = _in_front(app.wsgi_app, endpoints, _relayed(), (file_keys.place, agent.place))  # type: ignore[method-assign]
    app.extensions |= {"gateway": gateway, "database": database, "backends": parts.backends}
    return app


def _parts(settings: Settings) -> _Parts:
    redactor = logs.Redactor()
    redactor.learn(*_known_secrets(settings))
    logs.set_up(settings.log_level, redactor)
    secrets = load_secrets(settings.secrets_path, _revealed(settings.master_key), _revealed(settings.pepper), create=False)
    metrics, presence = Metrics(), Presence(settings.run_path, settings.data_dir.resolve())
    database = Database(settings.database, committed=metrics.committed)
    database.bind()
    metrics.sample(lambda: metrics.commits_waiting.set(database.waiting))
    services = Services(heartbeat_s=settings.heartbeat_s, allow_networks=settings.allow_networks or ())
    agents = _agents(settings, database, secrets, presence, lambda: catalog.snapshot)
    backends = Backends(services, agents)
    catalog = Catalog(database, secrets.vault, backends, settings.deadlines, _environment(settings), redactor.learn)
    policies = Policies(plugins.resolve(plugins.POLICIES, settings.policy)(), lambda name: plugins.resolve(plugins.POLICIES, name)())
    holds, affinity = Holds(database, presence.owner, settings.hold_output), Affinity(database)
    state = SqliteLimits(settings.run_path, presence.owner, presence.alive)
    room = WaitingRoom(state)
    metrics.sample(lambda: metrics.waiting.set(room.count))
    limits = CallLimits(state, catalog, room, settings.hold_output, partial(_calls_today, database))
    conditions = Conditions(settings.run_path)
    transitions = Transitions(database, conditions, presence)
    pool = Pool(conditions, transitions.tell, limits.lease, presence.owner, presence.alive, hosts=agents, crowded=limits.crowded)
    journal = Journal(settings.journal_path, presence.owner)
    ledger = Ledger(database, journal, secrets.hasher.hash, holds, metrics)
    alerts = Alerts(database, secrets.vault, plugins.resolve(plugins.BACKENDS, SENDER)(services).post, redactor.learn)
    refresher = Refresher(database, catalog, secrets, presence, pool.quarantine, redactor.learn)
    signing_in = SigningIn(settings, database, secrets, _sign_in(settings, backends), redactor.learn)
    tasks = (alerts.tick, transitions.follow, refresher.tick, signing_in.tick, lambda: pool.sweep(catalog.snapshot.everyone()))
    gateway = Gateway(
        exchanges=OpenExchanges(presence.owner),
        router=Router(catalog, settings.unpriced),
        admission=Admission(limits, holds, catalog, settings.without_database == "serve", lambda: ledger.stuck),
        dispatcher=Dispatcher(pool, policies, affinity, metrics, queue=AgentQueue(room, state, catalog)),
        ledger=ledger,
        housekeeping=Housekeeping(database, journal, ledger, holds, presence, settings.run_path / "housekeeping.lock", tasks),
        catalog=catalog,
        presence=presence,
        metrics=metrics,
        transitions=transitions,
        agents=agents,
    )
    return _Parts(gateway, database, secrets, metrics, presence, journal, backends, limits, affinity, signing_in, redactor)


def _agents(settings: Settings, database: Database, secrets: Secrets, presence: Presence, snapshot: Callable[[], Snapshot]) -> Agents:
    passed = ("*",) if settings.openai_api_key is not None else ()

    def deploy(enrolment: Enrolment, models: Sequence[str]) -> Sequence[str]:
        """Agents that come back by the hundred find their models served, and ask the database for nothing."""
        if all(snapshot().serves(model, enrolment.pool_id) for model in models):
            return models
        return ensure_deployments(database, enrolment, models, time.time_ns() // 1_000_000, passed)

    enrolments = Enrolments(database, secrets, deploy, lambda: ensure_open_enrolment(database, time.time_ns() // 1_000_000))
    bus, directory = _between_workers(settings, presence)
    return Agents(bus, directory, enrolments, presence.owner, lambda: snapshot().generation)


def _between_workers(settings: Settings, presence: Presence) -> tuple[Bus, AgentDirectory]:
    """How the workers of this host, or of several, reach each other's agents, and know of them."""
    local = UnixBus(settings.run_path, presence.owner)
    if settings.redis_url is None:
        return local, SqliteAgents(settings.run_path, presence.alive)
    from gateway.bus.redis import RedisBus  # an optional dependency: only who has several hosts needs it
    from gateway.state.agents_redis import RedisAgents  # the same

    directory = RedisAgents(settings.redis_url, presence.owner, presence.alive, presence.local)
    return RedisBus(settings.redis_url, presence.owner, local, presence.local), directory


def _calls_today(database: Database, credential: str) -> int:
    """Since midnight UTC."""
    since = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    return database.read(lambda: calls_with(credential, since))


def _environment(settings: Settings) -> EnvironmentDeployment | None:
    key = settings.openai_api_key
    return EnvironmentDeployment(key, settings.openai_base_url) if key is not None else None


def _of_callers(web: Web, settings: Settings, backends: Backends) -> Iterator[Blueprint]:
    """The families whose callers bring an upstream token of their own."""

    def upstream(name: str, backend: str, base_url: str, **options: Any) -> CallersUpstream:
        return CallersUpstream(name, backend, backends.get(backend, options), base_url, settings.deadlines, settings.callers_proxy)

    web_root, auth0 = settings.chatgpt_base_url, settings.auth0_base_url
    place = web_place(settings)
    base, path = place.base_url, place.options["conversation_path"]
    limit = {} if settings.continue_signal is not None else {"continue_limit": 0}
    interface = chatgpt.WebInterface(
        web,
        chatgpt.WebUpstreams(
            root=upstream("chatgpt", "access_token", web_root + "/backend-api"),
            public=upstream("chatgpt", "access_token", web_root + "/public-api"),
            conversation=upstream("chatgpt", "access_token", base, conversation_path=path, messages_only=True),
            continued=upstream("chatgpt", "access_token", base, conversation_path=path, auto_continue=True),
        ),
    )
    web_sign_in = upstream("sign-in", SIGN_IN, web_root, auth0_url=auth0)
    yield chatgpt.chatgpt(web, interface, web_sign_in)
    yield chatgpt.backend_api(web, interface, web_sign_in)
    yield imitate.blueprint(web, interface, upstream("imitate", "access_token", base, conversation_path=path, history=settings.history, **limit), web_sign_in)
    platform_sign_in = upstream("sign-in", SIGN_IN, settings.platform_base_url, auth0_url=auth0, platform=True)
    yield platform.blueprint(web, upstream("platform", "openai", settings.platform_base_url), platform_sign_in)


def _sign_in(settings: Settings, backends: Backends) -> CallersUpstream:
    """Where the accounts of chatgpt-to-api sign in."""
    backend = backends.get(SIGN_IN, {"auth0_url": settings.auth0_base_url, "puid": True})
    return CallersUpstream("sign-in", SIGN_IN, backend, settings.chatgpt_base_url, settings.deadlines, usable_proxy(settings))


def _of_old_tokens(settings: Settings, backends: Backends) -> tuple[CallersUpstream, CallersUpstream]:
    """Where chatgpt-to-api leads callers with a token of their own, and whom it asks for models."""
    place = web_place(settings)
    proxy, deadlines = usable_proxy(settings), settings.deadlines
    own = CallersUpstream(NAME, "access_token", backends.get("access_token", place.options), place.base_url, deadlines, proxy)
    return own, CallersUpstream("official-api", "openai", backends.get("openai", {}), f"{settings.platform_base_url}/v1", deadlines, proxy)


def _known_secrets(settings: Settings) -> list[str]:
    known = [settings.openai_api_key, settings.master_key, settings.pepper, settings.metrics_token, settings.imitate_access_token]
    known += [settings.admin_password, settings.puid, settings.official_api_key, settings.openai_password, settings.admin_key, settings.redis_url]
    proxies = (settings.callers_proxy, usable_proxy(settings))
    passwords = [proxy.password for proxy in proxies if proxy is not None]
    if settings.redis_url is not None:
        passwords.append(unquote(urlsplit(settings.redis_url.reveal()).password or ""))
    return [secret.reveal() for secret in known if secret is not None] + [password for password in passwords if password]


def _revealed(secret: Any) -> str | None:
    return None if secret is None else secret.reveal()


def _relayed() -> Mapping[str, Endpoint]:
    """Every relayed endpoint by its whole path; all take POST."""
    return {PREFIXES["openai"] + endpoint.path: endpoint for endpoint in openai.ENDPOINTS}


def _in_front(
    flask: Callable[..., Any], endpoints: Endpoints, relayed: Mapping[str, Endpoint], places: Sequence[Callable[[dict[str, Any]], None]]
) -> Callable[..., Iterable[bytes]]:
    """What stands before Flask. The relayed endpoints are answered here: their views in the blueprints do the same by the same
    function, but Flask's way there costs more than the call itself. And what only the outermost layer can do: views may close the
    client's connection after the answer (gunicorn drops an application's `Connection` header, but the object behind its
    start_response has a method for it), and a Relay whose headers the server refused is closed, as nobody else would."""

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["gateway.force_close"] = getattr(getattr(start_response, "__self__", None), "force_close", None)
        try:
            for place in places:
                place(environ)
            endpoint = relayed.get(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" else None
            if endpoint is None:
                answer: Iterable[bytes] = flask(environ, start_response)
                return answer
            answered = endpoints.answer(environ, endpoint)
            start_response(answered.line, answered.headers)
        except BaseException:
            if (relay := environ.get("gateway.relay")) is not None:
                relay.close()
            raise
        return answered.blocks

    return wrapped
