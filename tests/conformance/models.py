"""Models for SDKs to ask for, each named after what the fake provider does: a script in another process has no other way to say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.answers import Action, Answer, CloseAt, Default, ErrorEvent, RateLimited, ShortContentLength, Silent, StallAt, Status, Step, WithoutDone
from tests.fakes.gateway import RunningGateway, free_port
from tests.fakes.provider import Provider
from tests.fakes.received import Received

PRICE_PICO_USD = 2500
"""Per token, whatever the bucket: the 21 tokens of the provider's chat answers cost 52.5 nano-dollars, which is booked as 53."""

MID_STREAM = 1400
"""Bytes into an answer: past the head and some events of a stream, short of its end."""

REFUSAL = b'{ "error": {"message": "No such tool: \\u00e4","type":"invalid_request_error","param":"tools","code":"unknown_tool","hint":[1.50]} }'

SERVED = ("gpt-4o", "gpt-3.5-turbo-instruct", "text-embedding-3-small", "omni-moderation-latest", "gpt-image-1", "tts-1", "whisper-1")
"""Well-behaved models that are known by the same name upstream."""

ALIASES = {"house-chat": "gpt-4o", "house-ears": "whisper-1"}

MISBEHAVIOURS: dict[str, Step] = {
    "refuses-400": Status(400, REFUSAL, (("content-type", "application/json"),)),
    "refuses-404": Status(404),
    "refuses-409": Status(409),
    "refuses-422": Status(422),
    "forbids": Status(403),
    "fails": Status(500),
    "fails-in-its-first-event": ErrorEvent(),
    "knows-no-key": Status(401, {"error": {"message": "Incorrect API key provided: sk-up***", "code": "invalid_api_key"}}),
    "is-limited": RateLimited(7),
    "is-silent": Silent(),
    "is-silent-too-long": Silent(),
    "breaks": CloseAt(MID_STREAM),
    "is-cut-short": ShortContentLength(),
    "stops-talking": WithoutDone(drop=3),
    "stalls": StallAt(MID_STREAM),
    "stalls-too": StallAt(MID_STREAM),
}
UNREACHABLE = "is-unreachable"


@dataclass(frozen=True)
class ByModel:
    """Answers as the model in the body says."""

    steps: dict[str, Step] = field(default_factory=lambda: MISBEHAVIOURS)

    def __call__(self, received: Received) -> Answer | Iterable[Action]:
        step = self.steps.get(received.json()["model"], Default())
        return step(received)


def deploy_all(gateway: RunningGateway, provider: Provider) -> None:
    """Every model above, each with a deployment and a credential of its own."""
    for name in (*SERVED, *ALIASES, *MISBEHAVIOURS):
        limits: Any = {"first_byte_s": 0.3} if name == "is-silent-too-long" else {}
        gateway.deploy(name, provider.url, price=PRICE_PICO_USD, upstream_model=ALIASES.get(name), **limits)
    gateway.deploy(UNREACHABLE, f"http://127.0.0.1:{free_port()}/v1", price=PRICE_PICO_USD)
    for path in ("/v1/chat/completions", "/v1/responses"):
        provider.always(path, ByModel())
