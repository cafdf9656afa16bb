"""The extension's scripts in node, with a browser's parts faked: webextension.test.mjs says what is right. tests/browser/ has a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXTENSION = Path(__file__).parents[3] / "agents" / "webextension"
SMALL_LINES = 250


@pytest.mark.skipif(shutil.which("node") is None, reason="node is missing: apt-get install nodejs npm")
def test_scripts_do_what_they_should() -> None:
    done = subprocess.run(["node", "--test", "--test-reporter=tap", "webextension.test.mjs"], cwd=HERE, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout
    counted = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) >= 50


def test_permissions_are_the_least() -> None:
    manifest = json.loads((EXTENSION / "manifest.json").read_text())
    assert manifest["manifest_version"] == 3
    assert manifest["permissions"] == ["storage", "alarms", "scripting"]
    assert "host_permissions" not in manifest
    assert "content_scripts" not in manifest
    assert "'unsafe" not in manifest["content_security_policy"]["extension_pages"]


def test_scripts_load_nothing_and_evaluate_nothing() -> None:
    for file in EXTENSION.glob("*.js"):
        text = file.read_text()
        assert not re.search(r"\beval\b|\bimport\b|importScripts|new Function|innerHTML|document\.write|https?://", text.replace("https:// or http://", "")), (
            file.name
        )


def test_every_file_can_be_read_at_once() -> None:
    files = [file for file in EXTENSION.iterdir() if file.suffix in (".js", ".html", ".css", ".json")]
    assert len(files) >= 5
    assert [file.name for file in files if len(file.read_text().splitlines()) > SMALL_LINES] == []
