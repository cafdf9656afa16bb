"""The documentation's code runs, its commands exist, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
BACKEND_PAGE = (ROOT / "docs" / "backend.md").read_text()


def files(page: str) -> dict[str, str]:
    """The code blocks that have a title, which is their file's name."""
    found = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert found
    return found


def commands(page: str) -> list[list[str]]:
    """The command lines of the console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [shlex.split(line.removeprefix("$ ")) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(arguments: list[str], directory: Path, **environment: str) -> str:
    """A command's output, both streams. Raises AssertionError with it where the command fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "PYTEST_", "OPENAI_", "DATABASE_"))}
    done = subprocess.run(arguments, cwd=directory, env=clean | environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the files of the backend author's page."""
    folder = tmp_path / "shout"
    folder.mkdir()
    for name, text in files(BACKEND_PAGE).items():
        (folder / name).write_text(text)
    return folder


def test_backend_is_as_short_as_the_page_says() -> None:
    code = files(BACKEND_PAGE)["shout.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_backends_of_the_page_keep_the_contract(written: Path) -> None:
    (written / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], written, PYTHONPATH=str(ROOT))
    counted = re.search(r"(\d+) passed", output)
    assert counted is not None
    assert int(counted[1]) >= 22


def test_backends_of_the_page_answer(written: Path) -> None:
    script = """
import dataclasses, json
from shout import Shout
from speaker import Speaker
from gateway.backend import Services
from gateway.testing import BackendContract, drain

def answer(cls, options, dialect, path, members):
    contract = type("Contract", (BackendContract,), {"backend_class": cls, "options": options, "request": lambda self, dialect: (path, members)})()
    target = contract.target()
    return drain(contract.backend(), contract.call(dialect, False, target), target)

chat = {"messages": [{"role": "user", "content": "hello there"}]}
print(json.loads(answer(Shout, {"ending": "?!"}, "openai_chat", "/chat/completions", chat))["choices"][0]["message"]["content"])
print(answer(Speaker, {"command": "tr a-z A-Z"}, "openai_rest", "/audio/speech", {"input": "x" * 3 + "y" * 200_000})[:4])
"""
    assert run([sys.executable, "-c", script], written, PYTHONPATH=str(ROOT)).splitlines() == ["HELLO THERE ?!", "b'XXXY'"]


def test_local_program_of_the_page_ends_with_its_call(written: Path) -> None:
    script = """
import threading, time
from speaker import Speaker
from gateway.backend import Cancellation
from gateway.errors import Cancelled, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from gateway.testing import BackendContract, drain

def ends(command, error, **options):
    contract = type("Contract", (BackendContract,), {"backend_class": Speaker, "options": {"command": command}})()
    contract.request = lambda dialect: ("/audio/speech", {"input": "x"})
    target, begun = contract.target(), time.monotonic()
    try:
        drain(contract.backend(), contract.call("openai_rest", False, target, **options), target)
    except error:
        assert time.monotonic() - begun < 20
        return
    raise SystemExit(f"no {error.__name__}")

cancel = Cancellation()
threading.Timer(0.2, cancel.fire, ("client_gone",)).start()
ends("sleep 30", Cancelled, cancel=cancel)
ends("sleep 30", UpstreamTimeout, total_s=0.2)
ends("false", UpstreamInterrupted)
ends("no-such-program-here", UpstreamUnreachable)
"""
    run([sys.executable, "-W", "error", "-c", script], written, PYTHONPATH=str(ROOT))


def test_page_can_be_followed_to_a_deployment(written: Path, tmp_path: Path) -> None:
    """Its commands, in its order; `.venv/bin` is where the packages of this test go."""
    site = tmp_path / "site"
    path = os.pathsep.join([str(ROOT), str(site)])
    outputs = []
    run([sys.executable, "-m", "gateway.cli", "migrate"], tmp_path, PYTHONPATH=path)
    for program, *arguments in commands(BACKEND_PAGE):
        if program.endswith("/pip"):
            outputs.append(run([sys.executable, "-m", "pip", *arguments, "--no-deps", "--disable-pip-version-check", "--target", str(site)], tmp_path))
        else:
            assert program == ".venv/bin/gateway"
            outputs.append(run([sys.executable, "-m", "gateway.cli", *arguments], tmp_path, PYTHONPATH=path))
    plugins = outputs[1]
    assert re.search(r"shout\b.*gateway-shout", plugins), plugins
    listed = run([sys.executable, "-m", "gateway.cli", "deployment", "list"], tmp_path, PYTHONPATH=path)
    assert "loud" in listed


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_paths_that_the_pages_name_exist(page: Path) -> None:
    for path in re.findall(r"`((?:gateway|backends|tests|docs|migrations)/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path
