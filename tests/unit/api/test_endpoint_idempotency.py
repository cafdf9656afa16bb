"""The Idempotency-Key header as a client has it: over the application, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from gateway.backend import Call, Headers, Reply, Target
from gateway.core.claim import KEPT_BYTES
from gateway.errors import UpstreamInterrupted, UpstreamRefused, UpstreamUnreachable
from gateway.store import accounts, budgets, ledger
from gateway.store.models_money import IdempotencyRow
from tests.factories import JSON, SSE, form, reply
from tests.unit.api.served import Served, Server, post_environ, serving
from tests.unit.core.stages import DONE, USAGE, chunk, refused

KEY = {"Idempotency-Key": "one of mine"}
STREAMED = (chunk("a"), chunk("b"), USAGE, DONE)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        served.gateway.presence.start()
        served.price("m", {"input_uncached": 1_000_000, "output_text": 2_000_000})
        yield served


@pytest.fixture
def budgeted(served: Served) -> Served:
    served.database.write(lambda: budgets.set_budget("user", served.ann, "total", "UTC", 10**12, 0))
    return served


def playing(*items: bytes | Exception, headers: Headers = JSON, status: int = 200) -> Callable[[Call, Target], Reply]:
    return lambda call, target: reply(items, headers, status)


def ask(served: Served, word: str = "one of mine", key: str = "", **members: Any) -> TestResponse:
    """An answer, read to its end. `key`: the API key."""
    answer = served.post("/v1/chat/completions", {"model": "m", "messages": [], **members}, headers={"Idempotency-Key": word}, key=key)
    answer.get_data()
    return answer


def amounts(served: Served) -> list[int]:
    return [entry.amount for entry in served.database.read(lambda: ledger.entries(0, 2**62, 0, 100))]


def rows(served: Served) -> Sequence[IdempotencyRow]:
    return served.database.read(lambda: list(IdempotencyRow.select()))


def told(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


def test_a_request_that_comes_again_gets_the_same_answer_and_is_charged_once(budgeted: Served) -> None:
    first, again = ask(budgeted), ask(budgeted)
    assert (again.status_code, again.data, again.content_type) == (200, first.data, first.content_type)
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert again.headers["x-gateway-receipt"] == 'attempts=""'
    assert "server-timing" in again.headers
    assert (len(budgeted.backend.calls), amounts(budgeted)) == (1, [11_000])
    (window,) = budgeted.database.read(lambda: budgets.windows_of([1], 0))
    assert (window.spent, window.held) == (11_000, 0)


def test_calls_without_the_header_leave_nothing(served: Served) -> None:
    assert [served.chat().status_code for _ in range(2)] == [200, 200]
    assert (len(served.backend.calls), rows(served)) == (2, [])


def test_a_stream_comes_again_as_its_bytes_with_its_end(served: Served) -> None:
    served.backend.play(playing(*STREAMED, headers=SSE))
    first, again = ask(served, stream=True, stream_options={"include_usage": True}), ask(served, stream=True, stream_options={"include_usage": True})
    assert first.data == again.data == b"".join(STREAMED)
    assert again.content_type == "text/event-stream"
    assert len(served.backend.calls) == 1


def test_a_usage_that_was_hidden_stays_hidden(served: Served) -> None:
    served.backend.play(playing(*STREAMED, headers=SSE))
    first, again = ask(served, stream=True), ask(served, stream=True)
    assert first.data == again.data == chunk("a") + chunk("b") + DONE


def test_sound_comes_again_byte_for_byte(served: Served) -> None:
    blocks = [b"\0\xff" * 1000] * 10
    served.backend.play(playing(*blocks, headers=(("content-type", "audio/mpeg"), ("set-cookie", "a=b"))))
    asked = [served.post("/v1/audio/speech", {"model": "m", "input": "x"}, headers=KEY, buffered=True) for _ in range(2)]
    assert [answer.data for answer in asked] == [b"".join(blocks)] * 2
    assert [answer.content_type for answer in asked] == ["audio/mpeg"] * 2
    assert len(served.backend.calls) == 1


def test_one_large_block_of_known_length_is_not_kept(served: Served) -> None:
    sound = b"x" * (5 << 20)
    served.backend.play(playing(sound, headers=(("content-type", "audio/mpeg"), ("content-length", str(len(sound))))))
    asked = [served.post("/v1/audio/speech", {"model": "m", "input": "x"}, headers=KEY, buffered=True) for _ in range(2)]
    assert asked[0].data == sound
    assert told(asked[1]) == (409, "idempotency_answer_not_kept")


def test_what_is_kept_is_sealed(served: Served) -> None:
    ask(served)
    (row,) = rows(served)
    assert row.body
    assert served.backend.answer not in bytes(row.body)
    assert b"prompt_tokens" not in bytes(row.body)


def test_an_answer_whose_seal_does_not_open_is_not_given(served: Served) -> None:
    ask(served)
    served.database.write(lambda: IdempotencyRow.update(body=b"\0" * 60).execute())
    assert told(ask(served)) == (409, "idempotency_answer_not_kept")


@pytest.mark.parametrize("members", [{"temperature": 1}, {"stream": True}, {"messages": [{"role": "user", "content": "?"}]}])
def test_another_request_needs_another_key(served: Served, members: dict[str, Any]) -> None:
    first = ask(served)
    answer = ask(served, **members)
    assert told(answer) == (422, "idempotency_key_reused")
    assert first.headers["x-request-id"] in answer.get_json()["error"]["message"]
    assert len(served.backend.calls) == 1


def test_another_path_is_another_request(served: Served) -> None:
    body = {"model": "m", "input": "x"}
    assert served.post("/v1/embeddings", body, headers=KEY).status_code == 200
    assert told(served.post("/v1/moderations", body, headers=KEY)) == (422, "idempotency_key_reused")


def test_a_form_is_the_same_whatever_its_boundary(served: Served) -> None:
    raw, _ = form({"model": "m"}, b"\0sound\0" * 1000)

    def sent(boundary: bytes, data: bytes) -> TestResponse:
        kind = f"multipart/form-data; boundary={boundary.decode()}"
        return served.ask("POST", "/v1/audio/transcriptions", data=data.replace(b"--b", b"--" + boundary), content_type=kind, headers=KEY)

    assert [sent(boundary, raw).status_code for boundary in (b"b", b"x" * 70)] == [200, 200]
    assert told(sent(b"b", raw.replace(b"sound", b"silence"))) == (422, "idempotency_key_reused")
    assert len(served.backend.calls) == 1


def test_another_user_s_key_is_another(served: Served) -> None:
    other = served.new_key(served.new_user("bob"))
    ask(served)
    assert ask(served, key=other).headers.get("idempotent-replayed") is None
    assert len(served.backend.calls) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\xe4"])
def test_a_key_that_is_none_is_refused(served: Served, key: str) -> None:
    raw = json.dumps({"model": "m", "messages": []}).encode()
    server = Server(served.app)
    body = server.call(post_environ(served, raw, HTTP_IDEMPOTENCY_KEY=key))
    assert server.status.startswith("400")
    assert json.loads(body)["error"]["code"] == "idempotency_key_invalid"
    assert served.backend.calls == []


def test_the_longest_key_is_taken(served: Served) -> None:
    assert [ask(served, "~ " * 127 + "x").status_code for _ in range(2)] == [200, 200]
    assert len(served.backend.calls) == 1


def test_an_answer_that_is_too_large_is_not_kept_and_not_paid_again(served: Served) -> None:
    served.backend.answer = b'{"x":"' + b"x" * KEPT_BYTES + b'"}'
    first, again = ask(served), ask(served)
    assert first.status_code == 200
    assert told(again) == (409, "idempotency_answer_not_kept")
    assert again.headers["x-should-retry"] == "false"
    assert f"/v1/requests/{first.headers['x-request-id']}" in again.get_json()["error"]["message"]
    assert len(served.backend.calls) == len(amounts(served)) == 1
    assert rows(served)[0].body is None


def test_the_largest_answer_that_is_kept(served: Served) -> None:
    served.backend.answer = b'"' + b"x" * (KEPT_BYTES - 2) + b'"'
    assert ask(served).data == ask(served).data == served.backend.answer


def test_a_stream_that_was_cut_is_not_kept_and_not_paid_again(served: Served) -> None:
    served.backend.play(playing(chunk("a"), UpstreamInterrupted("cut"), headers=SSE))
    assert b"upstream_interrupted" in ask(served, stream=True).data
    assert told(ask(served, stream=True)) == (409, "idempotency_answer_not_kept")
    assert len(served.backend.calls) == 1


def test_a_stream_whose_client_left_is_not_kept(served: Served) -> None:
    served.backend.play(playing(*STREAMED, headers=SSE))
    raw = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
    environ = post_environ(served, raw, HTTP_IDEMPOTENCY_KEY=KEY["Idempotency-Key"])
    answer = served.app.wsgi_app(environ, Server(served.app).start_response)
    next(iter(answer))
    answer.close()  # type: ignore[attr-defined]
    assert told(ask(served, stream=True)) == (409, "idempotency_answer_not_kept")


@pytest.mark.parametrize("streamed", [True, False])
def test_while_its_call_is_under_way_a_key_is_in_use(served: Served, streamed: bool) -> None:
    inner: list[TestResponse] = []

    def busy(call: Call, target: Target) -> Reply:
        inner.append(ask(served, stream=streamed))
        return reply(STREAMED, SSE) if streamed else reply([served.backend.answer], JSON)

    served.backend.play(busy)
    first = ask(served, stream=streamed)
    assert told(inner[0]) == (409, "idempotency_key_in_use")
    assert 1 <= int(inner[0].headers["retry-after"]) <= 10
    assert "x-should-retry" not in inner[0].headers
    assert first.headers["x-request-id"] in inner[0].get_json()["error"]["message"]
    assert ask(served, stream=streamed).data == first.data
    assert len(served.backend.calls) == 1


FAILURES = [UpstreamUnreachable("no"), refused(400), refused(503), UpstreamRefused(404, JSON, b"{}")]


@pytest.mark.parametrize("budget", [True, False])
@pytest.mark.parametrize("failure", FAILURES, ids=["unreachable", "400", "503", "404"])
def test_a_call_that_failed_and_cost_nothing_may_be_made_again(served: Served, failure: Exception, budget: bool) -> None:
    if budget:
        served.database.write(lambda: budgets.set_budget("user", served.ann, "total", "UTC", 10**12, 0))
    served.backend.play(failure)
    assert ask(served).status_code >= 400
    assert rows(served) == []
    again = ask(served)
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (200, None)
    assert [amount for amount in amounts(served) if amount] == [11_000]


def test_a_call_that_no_budget_has_room_for_may_be_made_again(served: Served) -> None:
    budget = served.database.write(lambda: budgets.set_budget("user", served.ann, "total", "UTC", 1, 0))
    assert told(ask(served)) == (402, "budget_exceeded")
    assert rows(served) == []
    served.database.write(lambda: budgets.end_budget(budget.id, 1))
    served.gateway.catalog.refresh()
    assert ask(served).status_code == 200


def test_a_call_that_nothing_was_fit_to_answer_may_be_made_again(served: Served) -> None:
    served.backend.play(refused(401, "invalid_api_key"))
    assert ask(served).status_code == 502
    assert told(ask(served)) == (503, "no_deployment_available")
    assert rows(served) == []


def test_a_stored_answer_needs_no_deployment_and_no_room(budgeted: Served) -> None:
    first = ask(budgeted)
    budgeted.database.write(lambda: budgets.set_budget("user", budgeted.ann, "total", "UTC", 1, 0))
    budgeted.backend.play(refused(401, "invalid_api_key"))
    assert ask(budgeted, "another").status_code == 402
    assert ask(budgeted).data == first.data


def test_a_stored_answer_is_not_given_to_a_key_that_may_not_use_the_model_any_more(served: Served) -> None:
    assert ask(served).status_code == 200
    for key in served.database.read(accounts.list_keys):
        served.database.write(lambda id=key.id: accounts.set_key(id, denied_models=("m",)))  # type: ignore[misc]
    served.gateway.catalog.refresh()
    assert told(ask(served)) == (403, "model_not_allowed")


def test_a_stored_answer_takes_no_limit(served: Served) -> None:
    served.database.write(lambda: budgets.set_limits("user", served.ann, 1, None, None))
    served.gateway.catalog.refresh()
    first = ask(served)
    assert [ask(served).data for _ in range(3)] == [first.data] * 3
    assert ask(served, "another").status_code == 429
    assert rows(served)[0].exchange == first.headers["x-request-id"]
    assert len(rows(served)) == 1


def test_the_call_of_a_worker_that_is_gone_is_taken_over(budgeted: Served) -> None:
    ask(budgeted)
    budgeted.database.write(lambda: IdempotencyRow.update(state="running", owner="gone", exchange="0" * 26).execute())
    taken = ask(budgeted)
    assert (taken.status_code, taken.headers.get("idempotent-replayed")) == (200, None)
    assert ask(budgeted).headers["x-request-id"] == taken.headers["x-request-id"]
    assert len(budgeted.backend.calls) == 2


def test_without_a_database_a_key_is_neither_known_nor_claimed(served: Served) -> None:
    served.chat()
    place = served.settings.data_dir / "gateway.db"
    place.rename(place.with_name("away"))
    assert told(ask(served)) == (503, "store_unavailable")
    assert len(served.backend.calls) == 1


def test_what_was_replayed_is_counted_and_no_call(served: Served) -> None:
    first = ask(served)
    ask(served)
    assert b"gateway_replays_total 1.0" in served.gateway.metrics.exposition()
    assert b'gateway_exchanges_total{deployment="m-d",ending="complete",endpoint="/chat/completions",status="200"} 1.0' in served.gateway.metrics.exposition()
    assert served.row(first) is not None
