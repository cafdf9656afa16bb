"""`gateway serve` as a newcomer meets it: from the source tree and from an installed wheel, in an empty directory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.operations.keys import create_key
from gateway.secrets import load_secrets
from gateway.settings import Settings
from gateway.store.database import Database
from tests.fakes.gateway import ROOT, free_port, now

KEY = re.compile(r"gw_user_\w{38}")
READY_S = 20.0


def environment(port: int, **settings: str) -> dict[str, str]:
    """This process's without settings of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_URL", "PYTHON"))}
    return inherited | {"GATEWAY_PORT": str(port), "GATEWAY_DRAIN_S": "3"} | settings


class Serving:
    """`gateway serve` in a process of its own; `output` is what it has printed so far."""

    def __init__(self, directory: Path, command: list[str], settings: Mapping[str, str], words: tuple[str, ...]) -> None:
        self._log = directory / "serve.log"
        self._port = int(words[0] if words else settings["GATEWAY_PORT"])
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*command, "serve", *words], cwd=directory, env=settings, stdout=log, stderr=log)

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def curl(self) -> str:
        """The line to paste."""
        (line,) = [line.strip() for line in self.output.splitlines() if line.strip().startswith("curl ")]
        return line

    def wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.05)
        raise AssertionError(self.output)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise


SOURCE = [sys.executable, "-m", "gateway.cli"]


@contextlib.contextmanager
def serving(directory: Path, command: list[str] | None = None, port: int | None = None, words: tuple[str, ...] = (), **settings: str) -> Iterator[Serving]:
    """A server that is ready; from the source tree unless `command` says otherwise. `words`: what follows `serve`, a port first."""
    source = {} if command else {"PYTHONPATH": str(ROOT)}
    running = Serving(directory, command or SOURCE, environment(port or free_port(), **source, **settings), words)
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def pasted(line: str, **variables: str) -> str:
    """What the shell answers."""
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, env=environment(1) | variables)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_first_start_prints_a_key_once_and_a_curl_line_that_streams_as_pasted(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (key,) = set(KEY.findall(server.output))
        answer = pasted(server.curl)
        assert answer.count("data: ") > 4
        assert '"content":"Hello "' in answer
        assert answer.endswith("data: [DONE]\n\n")
        assert server.stop() == 0
    with serving(tmp_path) as server:
        assert not KEY.search(server.output)
        assert "$GATEWAY_KEY" in server.curl
        after = server.output.split(server.curl)[1].split("\n", 1)[1].strip()
        assert "key create --user admin" in after.splitlines()[0]
        assert pasted(server.curl, GATEWAY_KEY=key).endswith("data: [DONE]\n\n")


def test_every_address_is_shown_as_one_that_can_be_asked(tmp_path: Path) -> None:
    with serving(tmp_path, GATEWAY_HOST="0.0.0.0") as server:
        assert "http://127.0.0.1:" in server.curl
        assert "[DONE]" in pasted(server.curl)


def test_an_old_program_s_command_line_starts_it_and_its_key_is_told_nowhere(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_ADMIN_KEY=another\n")
    words = (str(free_port()), "canary-of-the-admin", "-listen", "0.0.0.0", "and", "-more")
    with serving(tmp_path, port=1, words=words, GATEWAY_LOG_LEVEL="debug") as server:
        assert f"on http://127.0.0.1:{words[0]}, listening on every address (0.0.0.0)" in server.output
        assert "[DONE]" in pasted(server.curl)
        seen = Path(f"/proc/{server.process.pid}/environ").read_text().split("\0")
        assert {"GATEWAY_ADMIN_KEY=canary-of-the-admin", f"GATEWAY_PORT={words[0]}", "GATEWAY_HOST=0.0.0.0"} <= set(seen)
        assert "canary" not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert server.stop() == 0
        assert "canary" not in server.output


def test_without_an_address_it_listens_where_it_is_set_to_and_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, words=(str(free_port()), "key")) as server:
        assert ", for this host only (GATEWAY_HOST)" in server.output


def test_starting_does_not_wait_for_an_upstream(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with serving(tmp_path, OPENAI_API_KEY="sk-canary-0123456789", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1") as server:
            assert "[DONE]" in pasted(server.curl)
            silent.settimeout(0.2)
            with pytest.raises(TimeoutError):
                silent.accept()
            assert "canary" not in server.output


def test_a_key_made_beside_the_running_server_works(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        settings = Settings.load({}, tmp_path)
        database = Database(f"sqlite://{tmp_path}/data/gateway.db")
        database.bind()
        secrets = load_secrets(tmp_path / settings.secrets_path.name, None, None, create=False)
        key = create_key(database, secrets.hasher, "admin", now()).secret.reveal()
        database.close()
        assert "[DONE]" in pasted(KEY.sub(key, server.curl))


def refused(directory: Path, **settings: str) -> tuple[int, list[str]]:
    """The exit code and the lines of a start that comes to nothing."""
    port = settings.pop("GATEWAY_PORT", str(free_port()))
    source = environment(1, PYTHONPATH=str(ROOT), **settings) | {"GATEWAY_PORT": port}
    ran = subprocess.run([*SOURCE, "serve"], cwd=directory, env=source, capture_output=True, text=True, timeout=20)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr.splitlines()


def test_every_malformed_setting_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_HOTS=1\n")
    code, lines = refused(tmp_path, GATEWAY_PORT="http", GATEWAY_IDLE_S="soon")
    assert code == 2
    assert lines[0] == "gateway: .env: unknown setting GATEWAY_HOTS; did you mean GATEWAY_HOST?"
    assert [line.split()[1] for line in lines[1:]] == ["GATEWAY_PORT", "GATEWAY_IDLE_S"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env"]


def test_an_unknown_setting_of_the_environment_is_a_warning_and_the_server_starts(tmp_path: Path) -> None:
    with serving(tmp_path, GATEWAY_HOTS="1") as server:
        assert server.output.startswith("gateway: warning: unknown setting GATEWAY_HOTS; did you mean GATEWAY_HOST?\n")


def test_a_port_in_use_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused(tmp_path, GATEWAY_PORT=str(port)) == (1, [f"gateway: port {port} on 127.0.0.1 is in use; set GATEWAY_PORT"])
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, (line,) = refused(tmp_path, GATEWAY_DATA_DIR="file/data")
    assert code == 1
    assert line.startswith(f"gateway: cannot make the directory {tmp_path}/file/data: ")


@pytest.mark.parametrize("url", ["sqlite:///proc/nowhere/gateway.db", "postgresql://u:canary-password@127.0.0.1:1/gateway"])
def test_a_database_that_cannot_be_opened_is_one_line_without_the_password(tmp_path: Path, url: str) -> None:
    code, (line,) = refused(tmp_path, DATABASE_URL=url)
    assert code == 5
    assert "cannot open the database" in line
    assert "canary" not in line


def test_lost_secrets_are_one_line_and_not_made_anew(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    shutil.rmtree(tmp_path / "data-secrets")
    code, (line,) = refused(tmp_path)
    assert code == 1
    assert "pepper.key is missing, and the database holds API keys" in line
    assert not (tmp_path / "data-secrets").exists()


@pytest.fixture
def wheel_command(tmp_path: Path) -> list[str]:
    """`gateway` of a wheel in an environment that lends its libraries from this one, but not the source tree."""
    source, wheels, environment_path = tmp_path / "source", tmp_path / "wheels", tmp_path / "venv"
    source.mkdir()
    for name in ("gateway", "backends", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "wsgi.py", "gunicorn.conf.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    subprocess.run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=True, timeout=50)
    venv.create(environment_path, with_pip=False)
    python = environment_path / "bin" / "python"
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)], check=True, timeout=50)
    (own,) = environment_path.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return [str(environment_path / "bin" / "gateway")]


def test_an_installed_wheel_serves_from_an_empty_directory(tmp_path: Path, wheel_command: list[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    python = Path(wheel_command[0]).with_name("python")
    where = subprocess.run([python, "-c", "import gateway; print(gateway.__file__)"], cwd=empty, capture_output=True, text=True, timeout=20, env=environment(1))
    assert where.stdout.startswith(str(tmp_path)), "the wheel's own code runs, not the source tree's"
    with serving(empty, wheel_command) as server:
        assert "[DONE]" in pasted(server.curl)
        listed = subprocess.run([*wheel_command, "key", "list"], cwd=empty, env=environment(free_port()), capture_output=True, text=True, timeout=20)
        assert "first" in listed.stdout, listed.stderr
        assert f"{wheel_command[0]} doctor" in server.output
