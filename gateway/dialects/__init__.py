"""The dialects that clients and upstreams speak: sans-I/O codecs between bytes, JSON and chat events."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.dialects.api_server import ApiServer
from gateway.dialects.chatgpt_web import ChatGPTWeb
from gateway.dialects.codec import ChatCodec, Codec
from gateway.dialects.openai_chat import OpenAIChat
from gateway.dialects.openai_completions import OpenAICompletions
from gateway.dialects.openai_rest import OpenAIRest

CHAT_CODECS: Mapping[str, ChatCodec] = MappingProxyType({"openai_chat": OpenAIChat(), "openai_completions": OpenAICompletions(), "api_server": ApiServer()})
CODECS: Mapping[str, Codec] = MappingProxyType({**CHAT_CODECS, "openai_rest": OpenAIRest(), "chatgpt_web": ChatGPTWeb()})
