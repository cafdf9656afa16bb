"""The composition root: `create_app(settings)` builds every part and hands each its collaborators. Starts no thread, opens no connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

from gateway import logs, plugins
from gateway.api import openai, system
from gateway.api.web import Web
from gateway.backend import Services
from gateway.core.admission import Admission
from gateway.core.catalog import Backends, Catalog, EnvironmentDeployment
from gateway.core.dispatch import Dispatcher
from gateway.core.exchange import OpenExchanges
from gateway.core.gateway import Gateway
from gateway.core.identity import Identity
from gateway.core.ledger import Ledger
from gateway.core.listing import Listing
from gateway.core.pool import MemoryCooldowns, Pool
from gateway.core.receipts import Receipts
from gateway.core.routing import Router
from gateway.metrics import Metrics
from gateway.presence import Presence
from gateway.secrets import load_secrets
from gateway.settings import Settings
from gateway.store.database import Database

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def create_app(settings: Settings) -> Flask:
    """The WSGI application. `app.extensions["gateway"]` is its Gateway, which gunicorn.conf.py starts in each worker.

    Raises SecretsError where the secrets' files are missing: `gateway migrate` makes them.
    """
    redactor = logs.Redactor()
    redactor.learn(*_known_secrets(settings))
    logs.set_up(settings.log_level, redactor)
    secrets = load_secrets(settings.secrets_path, _revealed(settings.master_key), _revealed(settings.pepper), create=False)
    database = Database(settings.database)
    database.bind()
    metrics, presence = Metrics(), Presence(settings.run_path)
    backends = Backends(Services())
    catalog = Catalog(database, secrets.vault, backends, settings.deadlines, _environment(settings), redactor.learn)
    policy = plugins.resolve(plugins.POLICIES, settings.policy)()
    gateway = Gateway(
        exchanges=OpenExchanges(presence.owner),
        router=Router(catalog, settings.unpriced),
        admission=Admission(),
        dispatcher=Dispatcher(Pool(MemoryCooldowns()), policy, metrics),
        ledger=Ledger(database, metrics),
        catalog=catalog,
        presence=presence,
        metrics=metrics,
    )
    web = Web(gateway, Identity(database, secrets.hasher, lambda: catalog.generation), settings)
    app = Flask("gateway", static_folder=None)
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.register_blueprint(openai.blueprint(web, Listing(catalog, settings.unpriced), Receipts(database)))
    app.register_blueprint(system.blueprint(gateway, database, metrics))
    web.install(app)
    app.wsgi_app = _at_the_server(app.wsgi_app)  # type: ignore[method-assign]
    app.extensions |= {"gateway": gateway, "database": database, "backends": backends}
    return app


def _environment(settings: Settings) -> EnvironmentDeployment | None:
    key = settings.openai_api_key
    return EnvironmentDeployment(key, settings.openai_base_url) if key is not None else None


def _known_secrets(settings: Settings) -> list[str]:
    known = (settings.openai_api_key, settings.master_key, settings.pepper, settings.metrics_token)
    return [secret.reveal() for secret in known if secret is not None]


def _revealed(secret: Any) -> str | None:
    return None if secret is None else secret.reveal()


def _at_the_server(wsgi_app: Callable[..., Any]) -> Callable[..., Iterable[bytes]]:
    """What only the outermost WSGI layer can do. Views may close the client's connection after the answer: gunicorn drops an
    application's `Connection` header, but the object behind its start_response has a method for it. And a Relay whose headers
    the server refused is closed here: nobody else would."""

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["gateway.force_close"] = getattr(getattr(start_response, "__self__", None), "force_close", None)
        try:
            answer: Iterable[bytes] = wsgi_app(environ, start_response)
        except BaseException:
            if (relay := environ.get("gateway.relay")) is not None:
                relay.close()
            raise
        return answer

    return wrapped
