from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.errors import PluginError
from gateway.operations import keys, server, users
from gateway.operations.catalog import delete_deployment, list_deployments, list_models
from gateway.operations.credentials import create_credential
from gateway.operations.doctor import Verdict, examine
from gateway.operations.prices import list_prices
from gateway.operations.server import NotReady, Prepared
from gateway.secrets import SecretsError
from gateway.settings import Settings
from gateway.store.database import CannotOpen, Database
from tests.unit.operations.times import AT


@pytest.fixture
def fresh(settings: Settings) -> Iterator[Database]:
    """A database that is not there yet."""
    database = Database(settings.database)
    database.bind()
    yield database
    database.close()


def prepared(settings: Settings, database: Database) -> Prepared:
    return server.prepare(settings, database, AT)


def test_a_new_installation_gets_directories_schema_secrets_and_echo(settings: Settings, fresh: Database) -> None:
    made = prepared(settings, fresh)
    assert made.applied[0] == "0001_initial"
    assert made.seeded
    assert {path.name for path in made.secrets.created} == {"master.key", "pepper.key"}
    assert [(placed.deployment.name, placed.model, placed.deployment.backend) for placed in list_deployments(fresh)] == [("echo", "echo", "echo")]
    assert [(price.model, price.valid_from, set(price.rates.values())) for price in list_prices(fresh)] == [("echo", 0, {0})]


def test_directories_are_for_their_owner_only(settings: Settings, fresh: Database) -> None:
    prepared(settings, fresh)
    for path in (settings.data_dir, settings.secrets_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_preparing_again_changes_nothing_and_brings_nothing_back(settings: Settings, fresh: Database) -> None:
    prepared(settings, fresh)
    delete_deployment(fresh, "echo")
    again = prepared(settings, fresh)
    assert (again.applied, again.secrets.created, again.seeded) == ((), (), False)
    assert list_deployments(fresh) == []


def test_a_lost_pepper_is_not_replaced_while_keys_depend_on_it(settings: Settings, fresh: Database) -> None:
    server.first_key(fresh, prepared(settings, fresh).secrets.hasher, AT)
    pepper = settings.secrets_path / "pepper.key"
    pepper.unlink()
    with pytest.raises(SecretsError, match=r"pepper\.key is missing, and the database holds API keys"):
        prepared(settings, fresh)
    assert not pepper.exists()


def test_another_pepper_is_recognised_while_keys_depend_on_the_first(settings: Settings, fresh: Database) -> None:
    hasher = prepared(settings, fresh).secrets.hasher
    server.first_key(fresh, hasher, AT)
    (settings.secrets_path / "pepper.key").unlink()
    other = dataclasses.replace(settings, pepper=Secret("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="))
    with pytest.raises(SecretsError, match="not the one"):
        prepared(other, fresh)
    findings = list(examine(other, lambda _: fresh, AT))
    assert [finding.text for finding in findings if finding.verdict is Verdict.PROBLEM and "pepper" in finding.text]


def test_a_lost_master_key_is_not_replaced_while_credentials_depend_on_it(settings: Settings, fresh: Database) -> None:
    create_credential(fresh, prepared(settings, fresh).secrets, "main", Secret("sk-secret"), AT)
    master = settings.secrets_path / "master.key"
    master.unlink()
    with pytest.raises(SecretsError, match=r"master\.key is missing, and the database holds credentials"):
        prepared(settings, fresh)
    assert not master.exists()


def test_lost_secrets_on_which_nothing_depends_are_made_again(settings: Settings, fresh: Database) -> None:
    prepared(settings, fresh)
    (settings.secrets_path / "master.key").unlink()
    assert [path.name for path in prepared(settings, fresh).secrets.created] == ["master.key"]


def test_a_data_directory_that_cannot_be_made_is_one_clear_line(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = dataclasses.replace(settings, data_dir=tmp_path / "file" / "data")
    database = Database(f"sqlite://{tmp_path}/elsewhere.db")
    with pytest.raises(NotReady, match="set GATEWAY_DATA_DIR"):
        prepared(blocked, database)
    database.close()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere, so root's tests step down for a moment."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_data_directory_that_cannot_be_written_is_one_clear_line(settings: Settings, fresh: Database) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        data = Path(place, "data")
        data.mkdir()
        data.chmod(0o555)
        with as_nobody(), pytest.raises(NotReady, match="cannot be written; set GATEWAY_DATA_DIR"):
            prepared(dataclasses.replace(settings, data_dir=data), fresh)


def test_a_database_that_cannot_be_opened_is_said_to_be(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken.db").mkdir()
    database = Database(f"sqlite://{tmp_path}/broken.db")
    with pytest.raises(CannotOpen, match=r"broken\.db"):
        prepared(settings, database)
    database.close()


def test_the_first_key_is_made_once(settings: Settings, fresh: Database) -> None:
    hasher = prepared(settings, fresh).secrets.hasher
    first = server.first_key(fresh, hasher, AT)
    assert first is not None
    assert (first.key.user_name, first.key.label) == ("admin", "first")
    assert server.first_key(fresh, hasher, AT) is None
    assert len(keys.list_keys(fresh)) == 1


def test_where_there_are_users_there_is_no_first_key(settings: Settings, fresh: Database) -> None:
    hasher = prepared(settings, fresh).secrets.hasher
    users.create_user(fresh, "ann", AT)
    assert server.first_key(fresh, hasher, AT) is None
    assert server.example_user(fresh) == "ann"


def test_users_of_an_older_program_do_not_take_the_place_of_the_first(settings: Settings, fresh: Database) -> None:
    old = settings.data_dir / "Data" / "auth.db"
    old.parent.mkdir(parents=True)
    with closing(sqlite3.connect(old)) as made:
        made.executescript("CREATE TABLE tokens (user_id TEXT PRIMARY KEY, token TEXT UNIQUE); INSERT INTO tokens VALUES ('ann', 'token-of-ann')")
    found = prepared(settings, fresh)
    assert found.notes == ("Data/auth.db: 1 users let in with the tokens that they have",)
    assert server.first_key(fresh, found.secrets.hasher, AT) is not None
    assert server.example_user(fresh) == server.FIRST_USER
    assert prepared(settings, fresh).notes == ()


def test_the_printed_example_asks_a_model_that_exists(settings: Settings, fresh: Database) -> None:
    prepared(settings, fresh)
    assert server.example_model(fresh) == "echo"
    assert [served.model.name for served in list_models(fresh)] == ["echo"]


def test_a_port_in_use_is_said_to_be_with_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NotReady, match=f"^port {port} on 127.0.0.1 is in use; set GATEWAY_PORT$"):
            server.check_address("127.0.0.1", port)
    server.check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "fe80::1%nowhere", "a..b"])
def test_an_address_of_another_host_is_refused(host: str) -> None:
    with pytest.raises(NotReady, match="GATEWAY_HOST"):
        server.check_address(host, 18_080)


def test_an_unknown_policy_is_found_before_the_workers_start(settings: Settings) -> None:
    server.check_policy(settings)
    with pytest.raises(PluginError, match="wieghted"):
        server.check_policy(dataclasses.replace(settings, policy="wieghted"))


def test_the_server_command_runs_the_shipped_configuration() -> None:
    command = server.server_command()
    assert command[:4] == [sys.executable, "-m", "gunicorn", "-c"]
    assert Path(command[4]).name == "gunicorn.conf.py"


def test_a_stranger_among_the_working_directory_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wsgi.py").write_text("app = None")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotReady, match="start in another directory"):
        server.server_command()
