"""What operators and their machines ask: is it alive, is it ready, how does it fare, what does it serve."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, jsonify

from gateway.api.openapi import document
from gateway.api.web import policy
from gateway.core.gateway import Gateway
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.store.database import Database, SchemaMismatch


def blueprint(gateway: Gateway, database: Database, metrics: Metrics) -> Blueprint:
    """The routes outside every API family."""
    system = Blueprint("system", __name__)

    @system.get("/", provide_automatic_options=False)
    @policy("open")
    def root() -> Response:
        return Response("The gateway is ready; /openapi.json lists what is served.\n", content_type="text/plain; charset=utf-8")

    @system.get("/healthz", provide_automatic_options=False)
    @policy("open")
    def healthz() -> Response:
        return jsonify({"status": "alive"})

    @system.get("/readyz", provide_automatic_options=False)
    @policy("open")
    def readyz() -> tuple[Response, int]:
        checks = _checks(gateway, database)
        ready = all(value == "ok" for value in checks.values())
        return jsonify({"status": "ready" if ready else "not ready", "generation": gateway.catalog.generation, "checks": checks}), 200 if ready else 503

    @system.get("/metrics", provide_automatic_options=False)
    @policy("metrics")
    def metrics_text() -> Response:
        return Response(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @system.get("/openapi.json", provide_automatic_options=False)
    @policy("open")
    def openapi() -> Response:
        return jsonify(document(current_app.url_map, current_app.view_functions))

    return system


def _checks(gateway: Gateway, database: Database) -> dict[str, str]:
    """Never asks an upstream: an outage elsewhere must not take this worker out of the load balancer."""
    checks = {"catalog": "ok" if gateway.catalog.generation >= 0 else "not loaded", "draining": "yes" if gateway.admission.draining else "ok"}
    checks["ledger"] = "ok" if not gateway.ledger.stuck else "cannot be written"
    try:
        pending = database.pending()
        checks |= {"database": "ok", "migrations": "ok" if not pending else f"{len(pending)} pending: run `gateway migrate`"}
    except GatewayError as error:
        checks |= {"database": str(error)}
    except SchemaMismatch as error:
        checks |= {"database": "ok", "migrations": str(error)}
    return checks
