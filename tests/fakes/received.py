"""One request as the fake provider got it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class Received:
    """One request as it came. `headers` are the last of each name, `fields` all of them; names in lower case."""

    def __init__(self, method: str, path: str, query: str, fields: Sequence[tuple[str, str]], body: bytes, at: float, connection: int) -> None:
        self.method, self.path, self.query, self.fields = method, path, query, tuple(fields)
        self.headers = dict(fields)
        self.body, self.at, self.connection = body, at, connection

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.path} {len(self.body)} bytes>"
