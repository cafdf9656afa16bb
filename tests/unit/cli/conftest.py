"""The command as it is typed, in an empty directory of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.factories import put_database
from tests.fakes.gateway import free_port


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Typed = Callable[..., Result]


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`gateway("user", "list")` runs the command; `stdin` is what it reads."""
    for name in list(os.environ):
        if name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_URL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)

    def typed(*words: str, stdin: str = "") -> Result:
        result = CliRunner().invoke(main, list(words), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return typed


@pytest.fixture
def installed(gateway: Typed, tmp_path: Path) -> Typed:
    """The same after `gateway migrate`."""
    put_database(tmp_path / "data" / "gateway.db")
    assert gateway("migrate").code == 0
    return gateway
