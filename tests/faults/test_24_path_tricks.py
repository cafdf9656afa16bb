"""Row 24: tricks in paths. Figure: no unlisted path reaches the upstream, directly or through nginx."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api import PREFIXES
from gateway.api.openai import ENDPOINTS
from tests.fakes.gateway import Answer
from tests.faults.conftest import Measured
from tests.faults.front import CHAT, MODEL, ROADS, Front

LISTED = frozenset(PREFIXES["openai"] + endpoint.path for endpoint in ENDPOINTS)
TRICKS = (
    *("/v1/..%2f..%2fadmin", "/v1/%2e%2e/admin", "/v1/../admin", "/../admin", "/..", "/.", "/v1/..", "/v1/./chat/completions", "/v1/chat/../chat/completions"),
    *("//v1/chat/completions", "/v1//chat/completions", "/v1/chat//completions", "/v1/chat/completions/", "/v1/chat/completions//", "///"),
    *("/v1/chat/completions%00", "/v1/chat/completions%00.json", "/%00", "/v1/chat%00/completions", "/v1/chat/completions%0d%0aX-Y:%20z", "/v1/%0a"),
    *("/v1\\chat\\completions", "/v1/chat/..\\..\\admin", "/v1/chat%5ccompletions", "/v1/chat/completions;a=b", "/v1;/chat/completions", "/v1/..;/admin"),
    *("/v1/chat/completions%20", "/v1/chat/completions.", "/v1/chat/completions%2f", "/V1/chat/completions", "/v1/Chat/Completions", "/v1/chat/completion"),
    *("/v1/chat%252fcompletions", "/v1/%252e%252e/admin", "/v1/chat%25252fcompletions", "/v1/chat%c0%afcompletions", "/v1/%c0%ae%c0%ae/admin", "/%e0%80%af"),
    *("/v1/%uff0e%uff0e/admin", "/v1/%", "/v1/%2", "/v1/%zz", "/v1/chat/completions%3f", "/v1/chat/completions%23", "/v1/chat/completions:443", "/@other/v1"),
    *("/v1/files/..%2f..%2fchat/completions", "/v1/files/../chat/completions", "/v1/models/..%2f..%2fadmin", "/v1/requests/..%2f..%2fmetrics"),
    *("/v1/chat/completions/../../../../etc/passwd", "/v1/audio/../../admin", "/v1/images/%2e%2e%2f%2e%2e%2fadmin", "/v1/engines/m/chat/completions"),
    *(
        "http://gateway.example.org/v1/../admin",
        "http://gateway.example.org//v1/chat/completions",
        "http://gateway.example.org",
        "HTTP://gateway.example.org/v1/",
    ),
)
PIECES = ("/", "//", "..", ".", "%2f", "%2F", "%2e", "%00", "%5c", "\\", ";", "?", "%3f", "%252f", "%c0%af", "%", "~", "a", "@", ":")
WORDS = ("v1", "chat", "completions", "audio", "speech", "files", "models", "admin", "metrics", "%63hat")


def ask(front: Front, road: str, path: str) -> Answer:
    with front.client(road) as client:
        client.ask(path, {"model": MODEL, "user": path})
        return client.answer()


@pytest.mark.parametrize("road", ROADS)
def test_24_no_trick_reaches_the_upstream(front: Front, road: str, measured: Measured) -> None:
    front.provider.requests.clear()
    statuses = {path: ask(front, road, path).status for path in TRICKS}
    arrived = [request.path for request in front.provider.requests]
    measured(24, f"{road}: {len(arrived)} of {len(TRICKS)} tricks reached the upstream (0)")
    assert arrived == []
    assert {path: status for path, status in statuses.items() if status not in (400, 404, 405, 501)} == {}


@pytest.mark.parametrize("road", ROADS)
def test_24_only_the_path_that_was_asked_reaches_the_upstream(front: Front, road: str, measured: Measured) -> None:
    """What is made of pieces at random; of what percent-encoding alone tells apart, the encoded form may be served as the plain one."""
    front.provider.requests.clear()
    asked: list[str] = []
    made = st.lists(st.sampled_from(PIECES + WORDS), max_size=8).map("".join)
    known = st.tuples(st.sampled_from(("/v1/chat/completions", "/v1", "/v1/chat", "")), made).map("".join)

    @settings(max_examples=150, deadline=None, database=None)
    @given(known)
    def check(path: str) -> None:
        path = path if path.startswith("/") else "/" + path
        asked.append(path)
        before = len(front.provider.requests)
        status = ask(front, road, path).status
        arrived = front.provider.requests[before:]
        assert [(request.path, request.query) for request in arrived] in ([], [(unquote(path.partition("?")[0]), "")])
        assert all(request.path in LISTED for request in arrived)
        assert status == 200 if arrived else status in (400, 401, 404, 405, 501)

    check()
    measured(24, f"{road}: 0 unlisted upstream paths of {len(asked)} made at random (0)")


@pytest.mark.parametrize("road", ROADS)
def test_24_a_query_stays_here(front: Front, road: str) -> None:
    front.provider.requests.clear()
    assert ask(front, road, f"{CHAT}?api-version=1&/../../admin#x").status == 200
    assert [(request.path, request.query) for request in front.provider.requests] == [(CHAT, "")]
