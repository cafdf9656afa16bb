"""What /proc tells about a process: its children, memory, open descriptors, and whose connections are its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_bytes(pid: int) -> int:
    """Its resident set, without what it shares with files."""
    return _status(pid, "RssAnon")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def forget_peak(pid: int) -> int:
    """Its resident set now; `peak_bytes` begins anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most that was resident since `forget_peak`."""
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def accepted_by(port: int, pids: Sequence[int], socks: Sequence[socket.socket]) -> list[int | None]:
    """Which of these processes has the other end of each connection to this port of this host; None where nobody accepted it yet, or it is closed."""
    own = _sockets(pids)
    links: dict[int, str] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *rest = line.split()
        if int(local.rpartition(":")[2], 16) == port:
            links[int(remote.rpartition(":")[2], 16)] = f"socket:[{rest[6]}]"
    return [own.get(links.get(_port(sock), "")) for sock in socks]


def _port(sock: socket.socket) -> int:
    try:
        return int(sock.getsockname()[1])
    except OSError:
        return 0


def _sockets(pids: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended, or closed one meanwhile
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found[os.readlink(f"/proc/{pid}/fd/{name}")] = pid
    return found
