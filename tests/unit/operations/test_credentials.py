from __future__ import annotations

import json

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations import credentials
from gateway.operations.catalog import Wishes, create_deployment
from gateway.secrets import Secrets
from gateway.store.database import Conflict, Database
from gateway.store.pools import credential_place, extras_place
from tests.unit.operations.times import AT

KEY = "sk-0123456789abcdef"


def test_a_secret_is_sealed_at_its_own_place_and_hinted_at(database: Database, secrets: Secrets) -> None:
    created = credentials.create_credential(database, secrets, "main", Secret(KEY + "\n"), AT)
    assert secrets.vault.open(created.sealed, credential_place(created.id)) == KEY
    assert (created.hint, created.version) == ("cdef", 1)


def test_a_short_secret_is_not_hinted_at(database: Database, secrets: Secrets) -> None:
    assert credentials.create_credential(database, secrets, "main", Secret("abc123"), AT).hint == ""


@pytest.mark.parametrize("secret", ["", "  \n", "two words", "line\nbreak: x", "ключ", "a\x00b"])
def test_what_cannot_stand_in_a_header_is_refused_and_not_repeated(database: Database, secrets: Secrets, secret: str) -> None:
    with pytest.raises(BadRequest) as refused:
        credentials.create_credential(database, secrets, "main", Secret(secret), AT)
    assert not secret.strip() or secret.strip() not in str(refused.value)


def test_a_replaced_secret_is_the_next_version(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "main", Secret(KEY), AT)
    changed = credentials.replace_secret(database, secrets, "main", Secret("sk-another-secret-9999"))
    assert secrets.vault.open(changed.sealed, credential_place(changed.id)) == "sk-another-secret-9999"
    assert (changed.hint, changed.version) == ("9999", 2)


def test_a_label_is_given_once(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "main", Secret(KEY), AT)
    with pytest.raises(Conflict, match="replace"):
        credentials.create_credential(database, secrets, "main", Secret(KEY), AT)


def test_a_credential_in_use_is_kept(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "main", Secret(KEY), AT)
    create_deployment(database, "fast", "m", "openai", AT, Wishes(credential="main"))
    assert [used.deployments for used in credentials.list_credentials(database)] == [("fast",)]
    with pytest.raises(Conflict, match="used by fast"):
        credentials.delete_credential(database, "main")


def test_a_credential_is_disabled_enabled_and_deleted(database: Database, secrets: Secrets) -> None:
    created = credentials.create_credential(database, secrets, "main", Secret(KEY), AT)
    assert credentials.disable_credential(database, "main", AT).disabled_at == AT
    assert credentials.enable_credential(database, "main") == created
    credentials.delete_credential(database, "main")
    assert credentials.list_credentials(database) == []
    with pytest.raises(NotFound, match="'main'"):
        credentials.disable_credential(database, "main", AT)


def test_extras_are_kept_sealed_one_by_one_and_taken_away(database: Database, secrets: Secrets) -> None:
    credentials.create_credential(database, secrets, "main", Secret(KEY), AT)
    credentials.set_extra(database, secrets.vault, "main", "puid", Secret("user-cookie"))
    changed = credentials.set_extra(database, secrets.vault, "main", "refresh_token", Secret("refresh-me"))
    assert changed.extras is not None
    assert b"refresh-me" not in changed.extras
    assert json.loads(secrets.vault.open(changed.extras, extras_place(changed.id))) == {"puid": "user-cookie", "refresh_token": "refresh-me"}
    credentials.set_extra(database, secrets.vault, "main", "puid", None)
    assert credentials.set_extra(database, secrets.vault, "main", "refresh_token", None).extras is None
    with pytest.raises(BadRequest, match="without spaces"):
        credentials.set_extra(database, secrets.vault, "main", "puid", Secret("two words"))
