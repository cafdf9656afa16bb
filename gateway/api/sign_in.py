"""The routes that sign in: a user name and a password for what the upstream's sign-in service gives. Neither is kept anywhere."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, Response, request

from gateway.api.caller import Asked, as_it_came, in_words, parsed_object, received_json
from gateway.api.shapes import lowered
from gateway.api.web import Web, policy
from gateway.backend import Secret
from gateway.core.caller import CallersUpstream
from gateway.errors import UpstreamRefused

NOT_LOGIN = "Failed to parse user login info."


def add_logins(blueprint: Blueprint, web: Web, upstream: CallersUpstream, *rules: str, second: bool = False) -> None:
    """Routes below the blueprint's prefix, to which credentials are posted. `second`: told as the last version of the program does."""
    for rule in rules:
        view = policy("guest")(partial(_login, web, upstream, second))
        blueprint.add_url_rule(rule, rule.strip("/").replace("/", "_").replace("-", "_"), view, methods=["POST"], provide_automatic_options=False)


def _login(web: Web, upstream: CallersUpstream, second: bool) -> Response:
    received = received_json(request.environ, web.callers.settings, NOT_LOGIN)
    asked = Asked(upstream, "chatgpt_web", request.path, "POST", "/login", received.body, document=received.document)
    return web.ask(asked, _lowered if second else as_it_came, Secret(""))


def _lowered(error: UpstreamRefused) -> tuple[bytes, str]:
    return in_words(lowered(str(parsed_object(error.body).get("errorMessage", ""))))(error)
