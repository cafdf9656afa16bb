"""`python -m benchmarks.fast_agent PORT TOKEN`: an agent that answers as upstream.c does, as fast as there is credit; `agent-` stands before its models."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from tests.fakes.websocket import WebSocketClient

SUBPROTOCOL = "chat-gateway.agent.v2"
PREFIX = "agent-"


def models(*scripts: str) -> list[str]:
    return [PREFIX + script for script in scripts]


@dataclass(slots=True)
class Answer:
    """A stream under way: `left` chunks more, the next of which has the number `seq`."""

    id: str
    nonce: str
    seq: int
    last: int
    allowed: int

    def frames(self) -> bytes:
        """What may be sent now."""
        out = []
        while self.seq <= min(self.last, self.allowed):
            if self.seq < self.last:
                rest = f'"type":"delta","text":" {self.nonce}.{self.seq - 1}"'
            else:
                rest = f'"type":"done","reason":"stop","usage":{{"prompt_tokens":12,"completion_tokens":{self.last - 1},"total_tokens":{self.last + 11}}}'
            out.append(framed(f'{{"id":"{self.id}","seq":{self.seq},{rest}}}'.encode()))
            self.seq += 1
        return b"".join(out)


def framed(payload: bytes) -> bytes:
    """A text frame, with a mask of zeros, which changes nothing."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0x80 | 126)) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


def serve(client: WebSocketClient) -> None:
    """Raises Closed."""
    under_way: dict[str, Answer] = {}
    while True:
        frame: dict[str, Any] = client.receive_json()
        kind = frame["type"]
        if kind == "ping":
            client.send_json({"type": "pong", "at": frame["at"]})
        elif kind == "request":
            under_way[frame["id"]] = answer = begun(frame)
            client.send_raw(answer.frames())
        elif kind == "credit" and frame["id"] in under_way:
            answer = under_way[frame["id"]]
            answer.allowed += frame["n"]
            if more := answer.frames():
                client.send_raw(more)
            if answer.seq > answer.last:
                del under_way[frame["id"]]
        elif kind == "cancel":
            under_way.pop(frame["id"], None)


def begun(frame: dict[str, Any]) -> Answer:
    text, count = frame["body"]["messages"][-1]["content"], int(frame["model"].removeprefix(PREFIX).split("-")[1])
    return Answer(frame["id"], text.partition("nonce-")[2][:8], 1, count + 1, frame["credit"])


def connected(port: int, token: str, name: str, served: list[str], concurrency: int) -> WebSocketClient:
    client = WebSocketClient(port, headers={"authorization": f"Bearer {token}"}, subprotocols=(SUBPROTOCOL,), timeout_s=60)
    client.send_json({"type": "hello", "agent": name, "models": served, "concurrency": concurrency, "session": os.urandom(8).hex(), "resumes": True})
    welcome = client.receive_json()
    assert welcome["type"] == "welcome", welcome
    client.sock.settimeout(None)
    return client


if __name__ == "__main__":
    port, token, *served = sys.argv[1:]
    serving = connected(int(port), token, "", served, 64)
    print(serving.sock.getsockname()[1], flush=True)
    serve(serving)
