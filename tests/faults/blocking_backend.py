"""A stranger's backend that does what no backend may: it keeps every greenlet of the worker waiting."""

from __future__ import annotations

from gevent import monkey

from gateway.backend import Backend, Call, Reply, Target

sleep = monkey.get_original("time", "sleep")


class Blocking(Backend):
    """Sleeps for as many seconds as the upstream model's name says, through the function that is not patched; "c-" before it: in C code that never lets go."""

    dialects = frozenset({"openai_chat"})

    def send(self, call: Call, target: Target) -> Reply:
        kind, _, seconds = target.model.rpartition("-")
        if kind:
            sum(range(int(float(seconds) * 60_000_000)))
        else:
            sleep(float(seconds))
        body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'
        return Reply(200, (("content-type", "application/json"),), iter([body]), lambda: None)
