"""A stranger's backend that fails in the worst way: its error shows the secret."""

from __future__ import annotations

from gateway.backend import Backend, Call, Reply, Target


class Broken(Backend):
    dialects = frozenset({"openai_chat"})

    def send(self, call: Call, target: Target) -> Reply:
        secret = target.secret.reveal()
        raise RuntimeError(f"cannot sign in at {target.base_url} with {secret!r}\nAuthorization: Bearer {secret}\n")
