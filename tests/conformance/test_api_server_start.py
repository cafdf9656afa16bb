"""ChatGPT-API-server's command line and its users, taken over as they are: CONTRACTS.md, 1.1."""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.fakes.gateway import free_port
from tests.fakes.old_agents import OldAgent, answers
from tests.integration.test_serve import serving

KEY, TOKEN, USER = "old-admin-key", "6f1b1a52-3f0e-4c39-9d55-0f2f6a6f0c11", "0e0a3a0e-8c1e-4f13-bb0a-9a4b6a1f9e22"


def asked(port: int, path: str, document: Any = None, key: str = "") -> tuple[int, Any]:
    raw = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=raw, headers={"authorization": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_old_command_line_in_the_old_directory_serves_the_old_users_and_agents(tmp_path: Path) -> None:
    (tmp_path / "data" / "Data").mkdir(parents=True)
    with closing(sqlite3.connect(tmp_path / "data" / "Data" / "auth.db")) as old, old:
        old.execute("CREATE TABLE tokens(user_id TEXT PRIMARY KEY, token TEXT UNIQUE)")
        old.execute("INSERT INTO tokens VALUES (?, ?)", (USER, TOKEN))
    port = free_port()
    with serving(tmp_path, words=(str(port), KEY, "-listen", "127.0.0.1")) as server:
        assert "Data/auth.db: 1 users let in" in server.output
        with OldAgent(port, always=answers("as ever", "c-1")) as agent:
            deadline = time.monotonic() + 5
            while asked(port, "/api/ask", {"content": "hi"}, KEY)[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for key in (KEY, TOKEN):
                status, answer = asked(port, "/api/ask", {"content": "hi"}, key)
                assert (status, answer["content"]) == (200, "as ever")
            assert [entry["Id"] for entry in asked(port, "/api/connections")[1]["connections"]] == [agent.id]
        assert asked(port, f"/admin/users?admin_key={KEY}") == (200, {"users": [{"user_id": USER, "token": TOKEN}]})
        assert asked(port, "/admin/users/delete", {"admin_key": KEY, "user_id": USER}) == (200, {"message": "User deleted"})
        assert asked(port, "/api/ask", {"content": "hi"}, TOKEN) == (401, {"error": "Invalid API key"})
        assert server.stop() == 0
        assert KEY not in server.output
    with serving(tmp_path, words=(str(port), KEY)):  # the file is still there: who was deleted stays so
        assert asked(port, "/api/ask", {"content": "hi"}, TOKEN) == (401, {"error": "Invalid API key"})
