from __future__ import annotations

import dataclasses
import json

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.operations import catalog, chatgpt_to_api, credentials, import_formats, imports
from gateway.operations.chatgpt_to_api import NAME, POOL
from gateway.operations.token_files import TOKENS
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.pools import Credential, extras_place
from tests.unit.operations.test_import_formats import jwt
from tests.unit.operations.times import AT


def members(database: Database) -> list[Credential]:
    return [item for item in database.read(pools.list_credentials) if item.pool_name == POOL]


def test_nothing_is_made_where_nothing_is_given(database: Database, secrets: Secrets, settings: Settings) -> None:
    assert chatgpt_to_api.take_over(settings, database, secrets, AT) == ()
    assert (database.read(pools.list_pools), catalog.list_deployments(database)) == ([], [])
    assert not (settings.data_dir / ".chatgpt-to-api.seen").exists()


def test_deployment_follows_the_settings(database: Database, secrets: Secrets, settings: Settings) -> None:
    given = dataclasses.replace(settings, access_tokens=Secret(jwt(1)), history=False, http_proxy=Secret("http://u:canary@p:1"))
    chatgpt_to_api.take_over(given, database, secrets, AT)
    (placed,) = catalog.list_deployments(database)
    assert (placed.deployment.name, placed.model, placed.pool, placed.deployment.proxy) == (NAME, NAME, POOL, "http://u@p:1")
    assert placed.deployment.base_url == "https://chat.openai.com/backend-api"
    assert placed.deployment.options == {"conversation_path": "/conversation", "history": False}
    chatgpt_to_api.take_over(dataclasses.replace(given, conversation_url="http://h:1/x/talk", history=True, http_proxy=None), database, secrets, AT)
    (placed,) = catalog.list_deployments(database)
    assert (placed.deployment.base_url, placed.deployment.proxy) == ("http://h:1/x", None)
    assert placed.deployment.options == {"conversation_path": "/talk", "history": True}


def test_proxy_of_the_environment_that_cannot_be_used_is_no_obstacle(database: Database, secrets: Secrets, settings: Settings) -> None:
    given = dataclasses.replace(settings, access_tokens=Secret(jwt(1)), http_proxy=Secret("https://canary:1"))
    assert chatgpt_to_api.usable_proxy(given) is None
    chatgpt_to_api.take_over(given, database, secrets, AT)
    assert catalog.list_deployments(database)[0].deployment.proxy is None


def test_numbers_are_no_puid(database: Database, secrets: Secrets, settings: Settings) -> None:
    chatgpt_to_api.take_over(dataclasses.replace(settings, access_tokens=Secret(jwt(1)), puid=Secret("1000")), database, secrets, AT)
    assert members(database)[0].extras is None


def test_expired_tokens_are_told(database: Database, secrets: Secrets, settings: Settings) -> None:
    given = dataclasses.replace(settings, access_tokens=Secret(f"{jwt(1)},{jwt(2, exp=1_700_000_000)}"))
    notes = chatgpt_to_api.take_over(given, database, secrets, AT)
    assert notes == ("ACCESS_TOKENS: 1 new tokens in the pool access-tokens", "ACCESS_TOKENS, entry 2 is not taken: it expired on 2023-11-14")


def test_written_mirror_is_not_taken_over_again(database: Database, secrets: Secrets, settings: Settings) -> None:
    chatgpt_to_api.replace_tokens(database, secrets, settings, ["not-a-jwt"], AT)
    assert json.loads((settings.data_dir / TOKENS).read_text()) == [{"token": "not-a-jwt", "puid": ""}]
    assert chatgpt_to_api.take_over(settings, database, secrets, AT) == ()


def test_mirror_that_cannot_be_written_leaves_the_pool_right(database: Database, secrets: Secrets, settings: Settings) -> None:
    (settings.data_dir / TOKENS).mkdir()
    chatgpt_to_api.replace_tokens(database, secrets, settings, [jwt(1)], AT)
    assert len(members(database)) == 1


def test_pool_is_mirrored_once_what_was_put_into_the_file_is_taken_over(database: Database, secrets: Secrets, settings: Settings) -> None:
    chatgpt_to_api.replace_tokens(database, secrets, settings, [{"token": jwt(1), "puid": "first"}, jwt(2)], AT)
    credentials.delete_credential(database, members(database)[1].label)
    assert chatgpt_to_api.mirror_pool(database, secrets, settings, AT)
    assert json.loads((settings.data_dir / TOKENS).read_text()) == [{"token": jwt(1), "puid": "first"}]
    (settings.data_dir / TOKENS).write_text(json.dumps([jwt(3)]))
    assert chatgpt_to_api.mirror_pool(database, secrets, settings, AT)
    assert [each["token"] for each in json.loads((settings.data_dir / TOKENS).read_text())] == [jwt(1), jwt(3)]


@pytest.mark.parametrize("raw", [b"[half", b'["no-jwt"]', b"\xff"])
def test_file_that_cannot_be_taken_over_is_not_written_over(database: Database, secrets: Secrets, settings: Settings, raw: bytes) -> None:
    credentials.create_credential(database, secrets, "a", Secret(jwt(1)), AT, credentials.CredentialWishes(pool=POOL))
    (settings.data_dir / TOKENS).write_bytes(raw)
    assert not chatgpt_to_api.mirror_pool(database, secrets, settings, AT)
    assert (settings.data_dir / TOKENS).read_bytes() == raw


def test_address_without_its_password_is_told(database: Database, secrets: Secrets, settings: Settings) -> None:
    told = "OPENAI_EMAIL and OPENAI_PASSWORD: one of them alone signs nobody in"
    assert chatgpt_to_api.take_over(dataclasses.replace(settings, openai_email=Secret("a@b.c")), database, secrets, AT) == (told,)
    assert chatgpt_to_api.take_over(dataclasses.replace(settings, openai_email=Secret("a@b.c"), openai_password=Secret("x")), database, secrets, AT) == ()


def test_password_counts_until_the_setting_changes(database: Database, secrets: Secrets, settings: Settings) -> None:
    given = dataclasses.replace(settings, admin_password=Secret("first"))
    assert chatgpt_to_api.is_admin(database, secrets, given, "first")
    for password in ("second", "third"):
        chatgpt_to_api.set_password(database, secrets, given, Secret(password), AT)
    assert [chatgpt_to_api.is_admin(database, secrets, given, shown) for shown in ("first", "second", "third", "")] == [False, False, True, False]
    other = dataclasses.replace(settings, admin_password=Secret("fourth"))
    assert [chatgpt_to_api.is_admin(database, secrets, other, shown) for shown in ("third", "fourth")] == [False, True]


def test_nobody_is_admin_without_a_password(database: Database, secrets: Secrets, settings: Settings) -> None:
    assert not chatgpt_to_api.is_admin(database, secrets, settings, "")


def test_official_key_that_was_given_later_counts(database: Database, secrets: Secrets, settings: Settings) -> None:
    assert chatgpt_to_api.official_key(database, secrets, settings) is None
    chatgpt_to_api.set_official_key(database, secrets, Secret("sk-later"), AT)
    found = chatgpt_to_api.official_key(database, secrets, dataclasses.replace(settings, official_api_key=Secret("sk-set")))
    assert found is not None
    assert found.reveal() == "sk-later"


def test_replaced_pool_leaves_other_pools_and_what_deployments_name(database: Database, secrets: Secrets) -> None:
    imports.import_credentials(database, secrets, import_formats.of_json(["sk-a", "sk-b"]), imports.Import(pool="p"), AT)
    credentials.create_credential(database, secrets, "other", Secret("sk-c"), AT)
    catalog.create_deployment(database, "d", "m", "openai", AT, catalog.Wishes(credential="p-1"))
    left = imports.replace_pool(database, secrets, import_formats.of_json(["sk-b", "sk-c", "sk-c"]), "p", AT)
    assert [item.label for item in left] == ["p-1", "p-2", "p-3"]
    assert len(database.read(pools.list_credentials)) == 4


def test_pool_is_not_replaced_by_what_is_wrong(database: Database, secrets: Secrets, settings: Settings) -> None:
    chatgpt_to_api.replace_tokens(database, secrets, settings, [jwt(1)], AT)
    for document in ([], ["two words"], [jwt(2), {"token": ""}]):
        with pytest.raises(BadRequest):
            chatgpt_to_api.replace_tokens(database, secrets, settings, document, AT)
    assert [item.hint for item in members(database)] == [jwt(1)[-4:]]


def test_neither_a_new_cookie_nor_the_same_tokens_again_cost_a_refresh_token(database: Database, secrets: Secrets, settings: Settings) -> None:
    chatgpt_to_api.replace_tokens(database, secrets, settings, [{"token": jwt(1), "puid": "first"}], AT)
    (label,) = [item.label for item in members(database)]
    credentials.set_extra(database, secrets.vault, label, "refresh_token", Secret("refresh-me"))

    def extras() -> object:
        (item,) = members(database)
        assert item.extras is not None
        return json.loads(secrets.vault.open(item.extras, extras_place(item.id)))

    chatgpt_to_api.set_puid(database, secrets, Secret("second"))
    assert extras() == {"puid": "second", "refresh_token": "refresh-me"}
    chatgpt_to_api.replace_tokens(database, secrets, settings, [{"token": jwt(1), "puid": "third"}], AT)
    assert extras() == {"puid": "third", "refresh_token": "refresh-me"}
    chatgpt_to_api.replace_tokens(database, secrets, settings, [jwt(1)], AT)
    assert extras() == {"refresh_token": "refresh-me"}
