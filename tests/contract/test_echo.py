"""Echo keeps the contract."""

from __future__ import annotations

from backends.echo import Echo
from gateway.testing import BackendContract


class TestEcho(BackendContract):
    backend_class = Echo


class TestEchoThatPauses(BackendContract):
    backend_class = Echo
    options = {"pause_s": 0.001}
