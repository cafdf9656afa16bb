"""What an old client is told where the way to an agent fails in a certain place, or the database is away: CONTRACTS.md, 1.2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.errors import AgentFailed, AgentLost, GatewayError, UpstreamError, UpstreamTimeout
from gateway.store import models
from tests.factories import Scripted
from tests.unit.api.served import Served, serving

ADMIN = "the-admins-key"
READ_FAILED = "Failed to read response from the client"
RESPONSE = {"id": "i", "message": "error", "data": "Unknown error"}


class Asked(Scripted):
    dialects = frozenset({"api_server"})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, admin_key=Secret(ADMIN)) as served:
        served.deploy("api-server", f"{__name__}:Asked")
        yield served


def ask(served: Served, error: GatewayError) -> tuple[int, Any]:
    backend = served.app.extensions["backends"].get(f"{__name__}:Asked", {})
    backend.steps = [error] * 3
    answer = served.client.post("/api/ask", json={"content": "hi"}, headers={"Authorization": ADMIN})
    return answer.status_code, answer.json


@pytest.mark.parametrize(
    ("error", "status", "document"),
    [
        (AgentFailed("x", cause="ping_failed"), 503, {"error": "Ping failed"}),
        (AgentFailed("x", cause="send_failed"), 500, {"error": "Failed to send request to the client"}),
        (AgentFailed("x", cause="read_failed", detail="i/o timeout"), 500, {"error": READ_FAILED, "err": "i/o timeout"}),
        (AgentFailed("x", cause="wrong_id"), 500, {"error": "Failed to find response from the client"}),
        (AgentFailed("x", cause="bad_data", detail=RESPONSE), 500, {"error": "Failed to convert response to ChatGptResponse", "response": RESPONSE}),
        (UpstreamTimeout("x", phase="first_byte"), 500, {"error": READ_FAILED, "err": "i/o timeout"}),
        (AgentLost("x"), 500, {"error": READ_FAILED, "err": "the connection was lost"}),
        (AgentFailed("It said no.", cause="internal"), 500, {"error": "It said no."}),
        (UpstreamError("It broke."), 500, {"error": "It broke."}),
    ],
)
def test_each_failure_of_an_agent_has_its_words(served: Served, error: GatewayError, status: int, document: Any) -> None:
    assert ask(served, error) == (status, document)


def test_where_the_database_is_away_each_route_says_what_could_not_be_done(served: Served) -> None:
    served.database.write(lambda: [models.database.execute_sql(f'ALTER TABLE "{name}" RENAME TO "{name}_away"') for name in ("api_key", "user")])
    admin = {"admin_key": ADMIN}
    asked = served.client.post("/api/ask", json={"content": "hi"}, headers={"Authorization": "a-users-token"})
    assert (asked.status_code, asked.json) == (500, {"error": "Failed to verify API key"})
    added = served.client.post("/admin/users/add", json=admin)
    assert (added.status_code, added.json) == (500, {"error": "Failed to insert user_id and token into database"})
    deleted = served.client.post("/admin/users/delete", json=admin | {"user_id": "x"})
    assert (deleted.status_code, deleted.json) == (500, {"error": "Failed to delete user from database"})
    listed = served.client.get("/admin/users", query_string=admin)
    assert (listed.status_code, listed.json["message"]) == (500, "Failed to get users from database")
    assert set(listed.json) == {"message", "error"}
