"""Keys, hashes and sealed secrets, and the files that hold the keys to them."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.secrets import BASE62, KeyHasher, Secrets, SecretsError, Vault, key_prefix, key_suffix, load_secrets, looks_like_key, mint_key

PLACE = "credential:7:sealed"


def test_a_minted_key_has_the_form_and_names_its_kind() -> None:
    key = mint_key("admin")
    assert key.startswith("gw_admin_")
    assert len(key) == len("gw_admin_") + 38
    assert looks_like_key(key)
    assert (key_prefix(key), key_suffix(key)) == (key[: key.rindex("_") + 5], key[-4:])


def test_keys_differ_and_use_every_character_evenly() -> None:
    keys = [mint_key() for _ in range(2_000)]
    assert len(set(keys)) == 2_000
    counts = Counter(itertools.chain.from_iterable(key[8:-6] for key in keys))
    assert set(counts) == set(BASE62)
    assert max(counts.values()) < 1.4 * min(counts.values())  # 1,032 of each are expected; modulo bias would double some


def test_one_wrong_character_is_recognised() -> None:
    key = mint_key()
    for position, character in itertools.product(range(8, len(key)), "aZ0"):
        typo = key[:position] + character + key[position + 1 :]
        assert looks_like_key(typo) == (typo == key)


@pytest.mark.parametrize("text", ["", "gw_user_", "sk-abc", "gw__" + "0" * 38, "gw_user_" + "é" * 38, "Bearer gw_user_" + "0" * 38])
def test_other_texts_are_no_keys(text: str) -> None:
    assert not looks_like_key(text)
    assert not looks_like_key(mint_key() + "\n")


@pytest.mark.parametrize("kind", ["", "User", "a_b", "ü", "a\n"])
def test_a_kind_is_lower_case_letters(kind: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        mint_key(kind)


def test_a_hash_depends_on_the_key_and_the_pepper() -> None:
    hasher = KeyHasher(b"a" * 32)
    assert hasher.hash("k") == hasher.hash("k")
    assert len({hasher.hash("k"), hasher.hash("l"), KeyHasher(b"b" * 32).hash("k")}) == 3
    assert len(hasher.hash("any \ud800 text")) == 64


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_opens_at_its_place(secret: str) -> None:
    vault = Vault({1: b"k" * 32}, 1)
    assert vault.open(vault.seal(secret, PLACE), PLACE) == secret


def test_bytes_that_are_no_text_open_as_bytes_only() -> None:
    vault = Vault({1: b"k" * 32}, 1)
    sealed = vault.seal_bytes(b"\0\xff", PLACE)
    assert vault.open_bytes(sealed, PLACE) == b"\0\xff"
    with pytest.raises(SecretsError, match="not text"):
        vault.open(sealed, PLACE)


def test_a_sealed_secret_opens_nowhere_else_and_not_once_it_was_changed() -> None:
    vault = Vault({1: b"k" * 32}, 1)
    sealed = vault.seal("the secret", PLACE)
    assert b"the secret" not in sealed
    assert sealed != vault.seal("the secret", PLACE)

    damaged = [sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :] for position in range(len(sealed))]
    wrong = [(vault, sealed, "credential:8:sealed"), (Vault({1: b"l" * 32}, 1), sealed, PLACE), *((vault, other, PLACE) for other in damaged)]
    wrong += [(vault, sealed[:length], PLACE) for length in range(len(sealed))]
    for other_vault, other, place in wrong:
        with pytest.raises(SecretsError) as caught:
            other_vault.open(other, place)
        assert "the secret" not in str(caught.value).replace(f"the secret of {place}", "")
        assert "\n" not in str(caught.value)


def test_older_master_keys_open_and_the_current_one_seals() -> None:
    old = Vault({1: b"k" * 32}, 1)
    new = Vault({1: b"k" * 32, 2: b"l" * 32}, 2)
    assert new.open(old.seal("x", PLACE), PLACE) == "x"
    with pytest.raises(SecretsError, match="master key 2"):
        old.open(new.seal("x", PLACE), PLACE)
    with pytest.raises(SecretsError):
        Vault({1: b"k" * 32}, 3)


def opens(first: Secrets, second: Secrets) -> bool:
    return second.vault.open(first.vault.seal("x", PLACE), PLACE) == "x" and first.hasher.hash("k") == second.hasher.hash("k")


def test_the_key_files_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "secrets"
    made = load_secrets(directory, None, None, create=True)

    assert made.created == (directory / "master.key", directory / "pepper.key")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {"master.key": 0o600, "pepper.key": 0o600}
    for create in (True, False):
        again = load_secrets(directory, None, None, create=create)
        assert again.created == ()
        assert opens(made, again)


def test_processes_that_start_together_agree_on_the_keys(tmp_path: Path) -> None:
    code = "import sys, pathlib; from gateway.secrets import load_secrets; print(load_secrets(pathlib.Path(sys.argv[1]), None, None, True).hasher.hash('k'))"
    command = [sys.executable, "-c", code, str(tmp_path / "secrets")]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({start.communicate(timeout=30)[0] for start in starts}) == 1
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == {"master.key", "pepper.key"}


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match=r"master\.key is missing.*backup.*gateway migrate"):
        load_secrets(tmp_path / "secrets", None, None, create=False)
    assert not (tmp_path / "secrets").exists()


@pytest.mark.parametrize("name", ["master.key", "pepper.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    load_secrets(tmp_path, None, None, create=True)
    (tmp_path / name).chmod(mode)
    with pytest.raises(SecretsError, match=f"{name}.*chmod 600"):
        load_secrets(tmp_path, None, None, create=False)


@pytest.mark.parametrize("text", ["", "1:short", "x:" + base64.b64encode(b"k" * 32).decode(), "1:" + "!" * 44, "\xff"])
def test_a_malformed_file_is_named_without_its_content(tmp_path: Path, text: str) -> None:
    load_secrets(tmp_path, None, None, create=True)
    (tmp_path / "master.key").write_text(text, "latin-1")
    with pytest.raises(SecretsError, match=r"master\.key") as caught:
        load_secrets(tmp_path, None, None, create=False)
    assert "\n" not in str(caught.value)
    assert not text or text not in str(caught.value)


def test_the_environment_s_keys_need_no_file(tmp_path: Path) -> None:
    key, other = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    bare = load_secrets(tmp_path / "none", key, other, create=False)
    assert bare.created == ()
    assert not (tmp_path / "none").exists()
    assert opens(bare, load_secrets(tmp_path / "none", f"1:{key}", other, create=True))

    rotated = load_secrets(tmp_path / "none", f"1:{key},2:{other}", other, create=False)
    assert rotated.vault.open(bare.vault.seal("x", PLACE), PLACE) == "x"
    assert rotated.vault.seal("x", PLACE)[:4] == (2).to_bytes(4, "big")


def test_a_malformed_variable_is_named_without_its_value(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match="GATEWAY_MASTER_KEY") as caught:
        load_secrets(tmp_path, "hidden", None, create=True)
    assert "hidden" not in str(caught.value)


def test_nothing_shows_a_key(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path, None, None, create=True)
    shown = repr(secrets) + repr(secrets.vault) + repr(secrets.hasher)
    for name in ("master.key", "pepper.key"):
        assert (tmp_path / name).read_text().strip().removeprefix("1:") not in shown
