"""An upstream that answers each credential in its own way."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

from tests.fakes.answers import Action, Answer, Default, Step
from tests.fakes.received import Received


class BySecret:
    """A step of the fake provider. `asked`: how often each secret was presented. What a secret has no step left for is answered well."""

    def __init__(self, **always: Step) -> None:
        self._guard = threading.Lock()
        self._always = {name.replace("_", "-"): step for name, step in always.items()}
        self._next: defaultdict[str, deque[Step]] = defaultdict(deque)
        self.asked: Counter[str] = Counter()

    def then(self, secret: str, *steps: Step) -> None:
        with self._guard:
            self._next[secret].extend(steps)

    def always(self, secret: str, step: Step | None) -> None:
        with self._guard:
            if step is None:
                self._always.pop(secret, None)
            else:
                self._always[secret] = step

    def __call__(self, received: Received) -> Answer | Iterable[Action]:
        secret = received.headers.get("authorization", "").removeprefix("Bearer ")
        with self._guard:
            self.asked[secret] += 1
            step = self._next[secret].popleft() if self._next[secret] else self._always.get(secret, Default())
        return step(received)
