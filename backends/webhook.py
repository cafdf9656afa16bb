"""Sends one message to an address of the operator's, over our own transport: the same rules for private addresses, no redirects."""

from __future__ import annotations

from backends.http import Transport
from gateway.backend import Body, Cancellation, Deadlines, Headers, Services

DEADLINES = Deadlines(connect_s=5.0, first_byte_s=10.0, idle_s=5.0)
TOTAL_S = 15.0


class Webhook:
    """One per process; safe for threads and greenlets."""

    def __init__(self, services: Services) -> None:
        self._clock = services.clock
        self._transport = Transport(clock=services.clock, allow_networks=services.allow_networks)

    def post(self, url: str, headers: Headers, body: bytes) -> int:
        """The answer's status, within TOTAL_S; its body is not read. Raises UpstreamError, and BadRequest for what cannot be sent."""
        response = self._transport.send("POST", url, headers, Body.of(body), deadlines=DEADLINES, deadline=self._clock() + TOTAL_S, cancel=Cancellation())
        response.close()
        return response.status

    def close(self) -> None:
        self._transport.close()
