"""What /proc tells about a process: its children, memory and open descriptors."""

from __future__ import annotations

import os
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
