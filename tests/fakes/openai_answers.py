"""The fake provider's sane answers: bodies that OpenAI's own SDK parses, whole and streamed, for every stateless endpoint."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.received import Received

Made = tuple[int, str, list[bytes], bool]
"""Status, content type, blocks, and whether each block is a chunk of its own."""

TEXT = "Grüße from the provider 👋, all is well."
MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
CREATED = 1_700_000_000
AUDIO = bytes(range(256)) * 64
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")

HARMS: tuple[str, ...] = ("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent")
HARMS += ("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic")

CHAT_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 12,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
}
RESPONSES_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 21,
}


def error_object(message: str, *, code: str | None = None, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def default_answer(received: Received) -> Made:
    """The sane answer to any request; 404 for a path that is not served, 400 for a body that is no JSON object where one is due."""
    if received.method == "GET":
        return _models(received.path)
    if received.path.startswith("/v1/audio/trans"):
        return _transcription(received)
    if received.path in ("/v1/images/edits", "/v1/images/variations"):
        return _image(form_fields(received))
    make = _POSTED.get(received.path)
    if make is None:
        return _json(error_object(f"Unknown request URL: {received.method} {received.path}", code="unknown_url"), 404)
    try:
        asked = json.loads(received.body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        return _json(error_object("The body is no JSON object"), 400)
    return make(asked)


def form_fields(received: Received) -> dict[str, Any]:
    """The fields of a multipart body that are not files, files as their bytes."""
    boundary = re.search('boundary="?([^";]+)', received.headers.get("content-type", ""))
    fields: dict[str, Any] = {}
    for part in received.body.split(b"--" + boundary[1].encode() if boundary else b"\0"):
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        if name:
            value = content.removesuffix(b"\r\n")
            fields[name[1].decode()] = value if b"filename=" in head else value.decode()
    return fields


def conforming(schema: dict[str, Any]) -> Any:
    """Some value that a JSON schema of the usual keywords accepts."""
    if "const" in schema or "enum" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    for choice in schema.get("anyOf") or schema.get("oneOf") or ():
        return conforming(choice)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: conforming(member) for name, member in schema.get("properties", {}).items()}
    if kind == "array":
        return [conforming(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
    return {"string": "word", "integer": schema.get("minimum", 7), "number": schema.get("minimum", 7.5), "boolean": True}.get(kind)


def _json(value: Any, status: int = 200) -> Made:
    return status, "application/json", [json.dumps(value, ensure_ascii=False).encode()], False


def _stream(events: Iterator[dict[str, Any]], *, named: bool = False, done: bool = True) -> Made:
    blocks = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        blocks.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
    return 200, "text/event-stream; charset=utf-8", blocks + [b"data: [DONE]\n\n"] * done, True


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _models(path: str) -> Made:
    one = [name for name in MODELS if path == f"/v1/models/{name}"]
    listed = [{"id": name, "object": "model", "created": CREATED, "owned_by": "provider"} for name in one or MODELS]
    if one:
        return _json(listed[0])
    if path == "/v1/models":
        return _json({"object": "list", "data": listed})
    return _json(error_object(f"Unknown request URL: GET {path}", code="unknown_url"), 404)


def _chat(asked: dict[str, Any]) -> Made:
    message = _message(asked)
    base = {"id": "chatcmpl-fake", "created": CREATED, "model": asked.get("model"), "system_fingerprint": "fp_fake"}
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choices = range(asked.get("n") or 1)
    if asked.get("stream"):
        return _stream(_chat_chunks(asked, base, message, finish))
    logprobs = _logprobs(message["content"] or "") if asked.get("logprobs") else None
    whole = [{"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish} for index in choices]
    return _json({**base, "object": "chat.completion", "choices": whole, "usage": CHAT_USAGE})


def _message(asked: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _content(asked), "refusal": None}
    answered = bool(asked.get("messages")) and asked["messages"][-1].get("role") == "tool"
    choice = asked.get("tool_choice") or "auto"
    if not asked.get("tools") or choice == "none" or answered:
        return message
    functions = [tool["function"] for tool in asked["tools"] if tool.get("type") == "function"]
    named = choice["function"]["name"] if isinstance(choice, dict) and "function" in choice else functions[0]["name"]
    function = next(one for one in functions if one["name"] == named)
    arguments = json.dumps(conforming(function.get("parameters") or {}))
    call = {"id": "call_fake", "type": "function", "function": {"name": named, "arguments": arguments}}
    return {**message, "content": None, "tool_calls": [call]}


def _content(asked: dict[str, Any]) -> str:
    wanted = asked.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(conforming(wanted["json_schema"].get("schema") or {}))
    return json.dumps({"answer": TEXT}) if wanted.get("type") == "json_object" else TEXT


def _logprobs(text: str) -> dict[str, Any]:
    tokens = [{"token": piece, "logprob": -0.25, "bytes": list(piece.encode()), "top_logprobs": []} for piece in _pieces(text)]
    return {"content": tokens, "refusal": None}


def _chat_chunks(asked: dict[str, Any], base: dict[str, Any], message: dict[str, Any], finish: str) -> Iterator[dict[str, Any]]:
    counted = bool((asked.get("stream_options") or {}).get("include_usage"))
    chunk: dict[str, Any] = {**base, "object": "chat.completion.chunk", **({"usage": None} if counted else {})}
    for index in range(asked.get("n") or 1):
        yield {**chunk, "choices": [_delta(index, {"role": "assistant", "content": ""})]}
        for call in message.get("tool_calls", ()):
            start = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
            yield {**chunk, "choices": [_delta(index, {"tool_calls": [start]})]}
            arguments = call["function"]["arguments"]
            for part in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
                yield {**chunk, "choices": [_delta(index, {"tool_calls": [{"index": 0, "function": {"arguments": part}}]})]}
        for piece in _pieces(message["content"] or ""):
            yield {**chunk, "choices": [{**_delta(index, {"content": piece}), "logprobs": _logprobs(piece) if asked.get("logprobs") else None}]}
        yield {**chunk, "choices": [_delta(index, {}, finish)]}
    if counted:
        yield {**chunk, "choices": [], "usage": CHAT_USAGE}


def _delta(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _completions(asked: dict[str, Any]) -> Made:
    usage = {name: CHAT_USAGE[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    base = {"id": "cmpl-fake", "object": "text_completion", "created": CREATED, "model": asked.get("model")}
    if not asked.get("stream"):
        choice = {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
        return _json({**base, "choices": [choice], "usage": usage})

    def chunks() -> Iterator[dict[str, Any]]:
        pieces = _pieces(TEXT)
        for position, piece in enumerate(pieces):
            finish = "stop" if position == len(pieces) - 1 else None
            yield {**base, "choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": finish}]}
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield {**base, "choices": [], "usage": usage}

    return _stream(chunks())


def _embeddings(asked: dict[str, Any]) -> Made:
    inputs = asked.get("input")
    count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
    vector = [0.25, -0.5, 0.125, 1.0][: asked.get("dimensions") or 4]
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    shown = packed if asked.get("encoding_format") == "base64" else vector
    data = [{"object": "embedding", "index": index, "embedding": shown} for index in range(count)]
    return _json({"object": "list", "data": data, "model": asked.get("model"), "usage": {"prompt_tokens": 9, "total_tokens": 9}})


def _responses(asked: dict[str, Any]) -> Made:
    part = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
    item: dict[str, Any] = {"id": "msg_fake", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    response = {
        "id": "resp_fake",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "metadata": {},
        "model": asked.get("model"),
        "output": [item],
        "parallel_tool_calls": True,
        "store": asked.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSES_USAGE,
    }
    if not asked.get("stream"):
        return _json(response)
    events = [{**event, "sequence_number": number} for number, event in enumerate(_response_events(response, item, part))]
    return _stream(iter(events), named=True, done=False)


def _response_events(response: dict[str, Any], item: dict[str, Any], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", "content": []}}
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
    for piece in _pieces(TEXT):
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": TEXT, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}


def _moderations(asked: dict[str, Any]) -> Made:
    names = HARMS
    inputs = asked.get("input")
    one = {
        "flagged": False,
        "categories": dict.fromkeys(names, False),
        "category_scores": dict.fromkeys(names, 0.001),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    count = len(inputs) if isinstance(inputs, list) and all(isinstance(each, str) for each in inputs) else 1
    return _json({"id": "modr-fake", "model": asked.get("model") or "omni-moderation-latest", "results": [one] * count})


def _image(asked: dict[str, Any]) -> Made:
    packed = base64.b64encode(PNG).decode()
    usage = {"input_tokens": 9, "input_tokens_details": {"image_tokens": 0, "text_tokens": 9}, "output_tokens": 12, "total_tokens": 21}
    if asked.get("stream") in (True, "true"):
        shown = {"b64_json": packed, "created_at": CREATED, "size": "1024x1024", "quality": "high", "background": "opaque", "output_format": "png"}
        partial = {"type": "image_generation.partial_image", **shown, "partial_image_index": 0}
        return _stream(iter((partial, {"type": "image_generation.completed", **shown, "usage": usage})), named=True, done=False)
    return _json({"created": CREATED, "data": [{"b64_json": packed}] * int(asked.get("n") or 1), "usage": usage})


def _speech(asked: dict[str, Any]) -> Made:
    if asked.get("stream_format") == "sse":
        delta = {"type": "speech.audio.delta", "audio": base64.b64encode(AUDIO[:300]).decode()}
        done = {"type": "speech.audio.done", "usage": {"input_tokens": 9, "output_tokens": 12, "total_tokens": 21}}
        return _stream(iter((delta, done)), named=True, done=False)
    kinds = {"wav": "audio/wav", "opus": "audio/opus", "aac": "audio/aac", "flac": "audio/flac", "pcm": "audio/pcm"}
    blocks = [AUDIO[start : start + 4096] for start in range(0, len(AUDIO), 4096)]
    return 200, kinds.get(asked.get("response_format") or "", "audio/mpeg"), blocks, True


def _transcription(received: Received) -> Made:
    asked = form_fields(received)
    if not isinstance(asked.get("file"), bytes):
        return _json(error_object("A file is needed", param="file"), 400)
    usage = {"type": "tokens", "input_tokens": 9, "output_tokens": 12, "total_tokens": 21}
    if asked.get("stream") == "true":
        deltas = [{"type": "transcript.text.delta", "delta": piece} for piece in _pieces(TEXT)]
        return _stream(iter((*deltas, {"type": "transcript.text.done", "text": TEXT, "usage": usage})), named=True, done=False)
    if asked.get("response_format") in ("text", "srt", "vtt"):
        return 200, "text/plain; charset=utf-8", [TEXT.encode() + b"\n"], False
    return _json({"text": TEXT, "usage": usage})


_POSTED: dict[str, Callable[[dict[str, Any]], Made]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _responses,
    "/v1/moderations": _moderations,
    "/v1/images/generations": _image,
    "/v1/audio/speech": _speech,
}
