from __future__ import annotations

import pytest

from gateway.errors import BadRequest
from gateway.operations.names import check_label, check_model_name, check_name


@pytest.mark.parametrize("name", ["a", "main.key_2-x", "A" * 64])
def test_names_of_letters_digits_and_a_few_signs_pass(name: str) -> None:
    check_name("user", name)


def test_name_of_the_environments_deployment_is_reserved() -> None:
    check_name("user", "environment")
    with pytest.raises(BadRequest):
        check_name("deployment", "environment")


@pytest.mark.parametrize("name", ["", "A" * 65, "a b", "a\n", "é", "a/b", "a\x1b[2J"])
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_name("user", name)
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-*", "*", "meta-llama/Llama-3:8b", "x" * 256])
def test_models_may_have_slashes_colons_and_be_globs(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize("name", ["", "a,b", "a b", "x" * 257, "a\n", "ü"])
def test_what_could_not_stand_in_a_list_of_models_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_model_name(name)


def test_a_label_is_free_text_on_one_line() -> None:
    check_label("Ann's laptop, 2nd floor")
    for label in ("a\nb", "x" * 65):
        with pytest.raises(BadRequest):
            check_label(label)
