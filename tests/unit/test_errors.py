"""The error tree: statuses, codes, and who is blamed for an upstream's answer."""

from __future__ import annotations

import re
from typing import TypeVar

import pytest

from gateway import errors
from gateway.errors import Blame, GatewayError, SettingsError, UpstreamError, UpstreamRefused, UpstreamTimeout, blame_for_status

Root = TypeVar("Root", bound=GatewayError)


def tree(root: type[Root]) -> list[type[Root]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


OURS = [cls for cls in tree(GatewayError) if cls.__module__ == "gateway.errors"]


def test_tree_is_the_one_that_is_drawn_in_the_module() -> None:
    drawn = dict(re.findall(r"\+-- (\w+)(?: (\d{3}))?", errors.__doc__ or ""))
    assert set(drawn) == {cls.__name__ for cls in OURS} - {"GatewayError"}
    for cls in OURS:
        if drawn.get(cls.__name__):
            assert cls.status == int(drawn[cls.__name__])


def test_drawn_parents_are_the_parents() -> None:
    parents = [GatewayError]
    for indent, name in re.findall(r"^    ((?:    |\|   )*)\+-- (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4 + 1
        cls = getattr(errors, name)
        assert cls.__base__ is parents[depth - 1], name
        parents[depth:] = [cls]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_has_a_status_and_a_code_of_its_own(cls: type[GatewayError]) -> None:
    assert 400 <= cls.status <= 599
    assert re.fullmatch(r"[a-z_]+", cls.code)
    assert [other for other in OURS if other.code == cls.code] == [cls]


def test_error_carries_what_the_client_may_see() -> None:
    error = errors.RateLimited("Slow down.", code="custom", param="model", retry_after_s=1.5)
    assert (str(error), error.message, error.status, error.code, error.param, error.retry_after_s) == ("Slow down.", "Slow down.", 429, "custom", "model", 1.5)
    assert errors.RateLimited("Slow down.").code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("status", "code", "blame"),
    [
        (401, "invalid_api_key", Blame.CREDENTIAL_INVALID),
        (401, "account_deactivated", Blame.CREDENTIAL_INVALID),
        (401, "no_such_organization", Blame.NOBODY),
        (401, None, Blame.NOBODY),
        (402, None, Blame.CREDENTIAL_SPENT),
        (429, "insufficient_quota", Blame.CREDENTIAL_SPENT),
        (403, "billing_not_active", Blame.CREDENTIAL_SPENT),
        (403, None, Blame.CREDENTIAL_MODEL),
        (429, None, Blame.CREDENTIAL_MODEL),
        (429, "rate_limit_exceeded", Blame.CREDENTIAL_MODEL),
        *((status, None, Blame.CLIENT) for status in (400, 404, 405, 408, 409, 413, 415, 422, 451, 499)),
        *((status, None, Blame.DEPLOYMENT) for status in (500, 502, 503, 504, 529, 599)),
    ],
)
def test_blame_follows_the_table(status: int, code: str | None, blame: Blame) -> None:
    assert blame_for_status(status, code) is blame
    refused = UpstreamRefused(status, [("x-a", "b")], b"{}", upstream_code=code, reset_s=3.0)
    assert refused.blame is blame
    assert refused.retryable is (blame is not Blame.CLIENT)
    assert (refused.upstream_status, refused.headers, refused.body, refused.upstream_code, refused.reset_s) == (status, (("x-a", "b"),), b"{}", code, 3.0)


def test_refusal_does_not_show_what_the_upstream_said() -> None:
    refused = UpstreamRefused(401, [("www-authenticate", "sk-secret")], b"Incorrect key sk-secret", upstream_code="sk-secret")
    assert "secret" not in str(refused) + repr(refused)
    assert refused.status == 502


def test_unreachable_upstream_is_blamed_at_once_and_others_may_be_tried() -> None:
    assert errors.UpstreamUnreachable("x").blame is Blame.DEPLOYMENT_AT_ONCE
    assert all(cls.retryable for cls in tree(UpstreamError))


def test_timeout_names_its_phase() -> None:
    error = UpstreamTimeout("late", phase="idle")
    assert (error.phase, error.status, error.blame) == ("idle", 504, Blame.DEPLOYMENT)


def test_settings_error_has_one_line_for_each_problem() -> None:
    error = SettingsError(["a is wrong", "b is unknown"])
    assert str(error) == "a is wrong\nb is unknown"
    assert error.problems == ("a is wrong", "b is unknown")
