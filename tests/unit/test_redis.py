"""The way to Redis: what an operator is told who has not all that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.errors import SettingsError
from gateway.redis import connect

ROOT = Path(__file__).parents[2]


def test_without_its_package_one_line_says_how_to_get_it() -> None:
    """In a process of its own, which cannot find the package."""
    script = """
import sys
sys.modules["redis"] = None
from gateway.errors import SettingsError
try:
    import gateway.bus.redis
except SettingsError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert run.stdout == "REDIS_URL is set, but the package for it is missing: pip install 'chat-gateway[redis]'\n", run.stderr


@pytest.mark.parametrize(
    "url", ["redis://:hunter22@host:port/0", "rediss://u:hunter22@host/0?socket_timeout=soon", "http://u:hunter22@host", "redis://h/0?x=1"]
)
def test_a_url_that_cannot_be_read_is_one_line_that_does_not_show_it(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        connect(Secret(url)).ping()
    assert str(raised.value).startswith("REDIS_URL cannot be read: ")
    assert "\n" not in str(raised.value)
    assert "hunter22" not in str(raised.value)


def test_a_url_of_every_kind_is_taken_and_nothing_is_asked_yet() -> None:
    for url in ("redis://h:1/2", "rediss://u:p@h:1/2", "unix:///tmp/redis.sock?db=1"):
        connect(Secret(url)).close()
