"""A resolver under a test's hand, for a process that is started with this directory in its PYTHONPATH.

What begins with "hung" gets no answer for 10 s, with the thread that asks; "at-127-0-0-2.example.com" is at 127.0.0.2; the rest is the system's business.
"""

from __future__ import annotations

import _socket
from time import sleep  # before anything is patched: this one holds the thread
from typing import Any

_real = _socket.getaddrinfo


def _resolve(host: Any, *arguments: Any, **named: Any) -> Any:
    label = str(host).partition(".")[0]
    if label.startswith("hung"):
        sleep(10)
        raise _socket.gaierror(_socket.EAI_AGAIN, "no answer")
    return _real(label[3:].replace("-", ".") if label.startswith("at-") else host, *arguments, **named)


_socket.getaddrinfo = _resolve
