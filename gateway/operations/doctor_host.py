"""The doctor's look at the machine: limits, files' modes, file systems, disk, clock, cores, and the server that runs here. Linux only, offline."""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.operations.findings import Finding, ok, problem, warning
from gateway.settings import Settings

CONNECTIONS = 12_000
"""gunicorn.conf.py's worker_connections."""
OPEN_FILES = 65_536
SPARE_FILES = 100
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "ocfs2", "gfs2"})
MEMORY = frozenset({"tmpfs", "ramfs"})
LITTLE_BYTES, TOO_LITTLE_BYTES, LITTLE_SHARE = 1 << 30, 100 << 20, 0.05
SECRET_NAMES = ("OPENAI_API_KEY", "GATEWAY_MASTER_KEY", "GATEWAY_PEPPER", "GATEWAY_METRICS_TOKEN")
_TIME_ERROR = 5
_TIMEX_BYTES = 208
_PROC = Path("/proc")


def look_at_host(settings: Settings, directory: Path) -> Iterator[Finding]:
    """`directory` is where the settings' files are."""
    server = running_server(settings)
    yield open_files(server)
    yield from core_dumps(server)
    yield from settings_files(directory)
    yield from file_systems(settings, (_PROC / "self/mountinfo").read_text())
    yield from disk(settings)
    yield clock()
    yield cores(settings.workers, usable_cores())
    yield from stop_timeout(settings, server)


# the server that runs here


def running_server(settings: Settings) -> int | None:
    """The process id of a server on this data directory, by the directory in which it keeps its counters."""
    for path in sorted(settings.run_path.glob("metrics-*")):
        pid = path.name.removeprefix("metrics-")
        if pid.isdecimal() and b"gunicorn" in _read(_PROC / pid / "cmdline"):
            return int(pid)
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def limit(server: int, name: str) -> float | None:
    """A soft limit of a running process; None where it cannot be read."""
    found = re.search(rf"^{name} +(\d+|unlimited) ", _read(_PROC / str(server) / "limits").decode(), re.MULTILINE)
    return None if found is None else math.inf if found[1] == "unlimited" else int(found[1])


def open_files(server: int | None) -> Finding:
    of_server = limit(server, "Max open files") if server is not None else None
    soft = of_server if of_server is not None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    whose = "the running server" if of_server is not None else "this shell"
    if soft != resource.RLIM_INFINITY and soft < 2 * CONNECTIONS + SPARE_FILES:
        streams = max(int(soft) - SPARE_FILES, 0) // 2
        todo = f"a worker takes {CONNECTIONS}: ulimit -n {OPEN_FILES} before it starts, LimitNOFILE={OPEN_FILES} in a systemd unit"
        return warning("open files", f"{whose} may open {soft:.0f}, enough for about {streams} streams at once; {todo}")
    return ok("open files", f"{whose} may open {soft:.0f}" if soft not in (math.inf, resource.RLIM_INFINITY) else f"{whose} may open any number")


def core_dumps(server: int | None) -> Iterator[Finding]:
    """A core dump holds every secret that was opened."""
    size = limit(server, "Max core file size") if server is not None else None
    if size:
        yield warning("core dumps", "the running server may write core dumps, which hold secrets; start it by `gateway serve`, or with LimitCORE=0")
    elif size == 0:
        yield ok("core dumps", "off in the running server")


def stop_timeout(settings: Settings, server: int | None) -> Iterator[Finding]:
    """Whether systemd gives the running server the time that its drain takes."""
    found = re.search(r"/([^/\s]+\.service)$", _read(_PROC / str(server) / "cgroup").decode(), re.MULTILINE) if server is not None else None
    if found is None or (command := shutil.which("systemctl")) is None:
        return
    try:
        shown = subprocess.run([command, "show", "-p", "TimeoutStopUSec", "--value", found[1]], check=False, capture_output=True, text=True, timeout=3)  # noqa: S603
    except subprocess.TimeoutExpired:
        return
    if (seconds := timespan_s(shown.stdout.strip())) is not None:
        yield judged_stop_timeout(found[1], seconds, settings.drain_s)


def judged_stop_timeout(unit: str, seconds: float, drain_s: int) -> Finding:
    if seconds <= drain_s + 1:
        todo = f"set TimeoutStopSec={drain_s + 10} in the unit, then systemctl daemon-reload"
        return problem("stopping", f"systemd kills {unit} after {seconds:.0f} s, before GATEWAY_DRAIN_S ({drain_s} s) is over: open answers are lost; {todo}")
    return ok("stopping", f"systemd waits {seconds:.0f} s for a drain of {drain_s} s")


def timespan_s(text: str) -> float | None:
    """systemd's way to write a time: "1min 30s". None for anything else."""
    if text == "infinity":
        return math.inf
    units = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001, "us": 0.000001}
    parts = [re.fullmatch(r"(\d+(?:\.\d+)?)(h|min|s|ms|us)", part) for part in text.split()]
    return sum(float(part[1]) * units[part[2]] for part in parts if part) if parts and all(parts) else None


# files


def settings_files(directory: Path) -> Iterator[Finding]:
    """`.env` is made for git, `.env.local` for secrets."""
    local, shared = directory / ".env.local", directory / ".env"
    if local.is_file():
        if stat.S_IMODE(local.stat().st_mode) & 0o077:
            yield warning("settings", f"{local} can be read by other users of this host; chmod 600 {local}")
        else:
            yield ok("settings", f"{local} can be read by its owner alone")
    written = _read(shared).decode(errors="replace")
    held = [name for name in SECRET_NAMES if re.search(rf"^[ \t]*(?:export[ \t]+)?{name}[ \t]*=[ \t]*[^\s#]", written, re.MULTILINE)]
    if re.search(r"^[ \t]*(?:export[ \t]+)?DATABASE_URL[ \t]*=.*://[^/@\s]*:[^/@\s]+@", written, re.MULTILINE):
        held.append("DATABASE_URL")
    yield from (warning("settings", f"{name} stands with a secret in {shared}, which is meant for git; move it to {local}, chmod 600") for name in held)


@dataclass(frozen=True, slots=True)
class Mount:
    point: str
    kind: str


def mount_of(path: Path, mountinfo: str) -> Mount:
    """The file system that holds `path`, or will hold it."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if path.is_relative_to(point):
            mounts.append(Mount(point, after.split()[0]))
    return max(reversed(mounts), key=lambda mount: len(mount.point), default=Mount("/", "unknown"))


def file_systems(settings: Settings, mountinfo: str) -> Iterator[Finding]:
    embedded = settings.database.startswith("sqlite:")
    for setting, path in (
        ("GATEWAY_DATA_DIR", settings.data_dir.resolve()),
        ("GATEWAY_SECRETS_DIR", settings.secrets_path),
        ("GATEWAY_RUN_DIR", settings.run_path),
    ):
        mount = mount_of(path, mountinfo)
        kind = mount.kind.removeprefix("fuse.")
        if kind in NETWORK or (mount.kind.startswith("fuse") and kind != "fuse-overlayfs"):
            found = problem if embedded and setting == "GATEWAY_DATA_DIR" else warning
            yield found(
                "file system", f"{setting} {path} is on {mount.kind}: locks and SQLite's shared memory do not work there; move it to a disk of this host"
            )
        elif setting == "GATEWAY_RUN_DIR":
            continue  # nothing is lost with it
        elif kind in MEMORY:
            yield warning("file system", f"{setting} {path} is in memory ({mount.kind} on {mount.point}) and gone after a restart; move it to a disk")
        elif kind in ("overlay", "fuse-overlayfs", "aufs"):
            yield warning("file system", f"{setting} {path} is in the container's own layer and gone with the container; mount a volume there")
        else:
            yield ok("file system", f"{setting} is on {mount.kind}")


def disk(settings: Settings) -> Iterator[Finding]:
    """Room for the embedded database: on a full disk no answer can be booked."""
    path = settings.data_dir.resolve()
    if not settings.database.startswith("sqlite:") or not path.is_dir():
        return
    usage = shutil.disk_usage(path)
    text = f"{usage.free >> 20} MB are free at {path}"
    if usage.free < TOO_LITTLE_BYTES:
        yield problem("disk", f"{text}: soon no answer can be booked, and none is given; make room")
    elif usage.free < min(LITTLE_BYTES, int(usage.total * LITTLE_SHARE)):
        yield warning("disk", f"{text}; make room before answers cannot be booked")
    else:
        yield ok("disk", text)


# clock and cores


def clock() -> Finding:
    """Asks the kernel, which whoever keeps the time (chrony, ntpd, systemd-timesyncd) tells that it is synchronised; containers share it."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) if adjtimex is not None else -1
    return judged_clock(state)


def judged_clock(state: int) -> Finding:
    if state == _TIME_ERROR:
        text = "the kernel says that its clock is not synchronised: expiry of keys, prices and ledger entries go by it; run chrony or systemd-timesyncd"
        return warning("clock", f"{text} (some virtual machines take the host's time unsaid: then all is well)")
    if state < 0:
        return ok("clock", "the kernel does not say whether it is synchronised; `gateway doctor --url` compares it with another host's")
    return ok("clock", "synchronised, says the kernel")


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """What this process may use: the cores that it is allowed, or the share of them that its container has."""
    allowed = float(len(os.sched_getaffinity(0)))
    limit_us, _, period_us = _read(quota).decode().strip().partition(" ")
    if limit_us.isdecimal() and period_us.isdecimal() and int(period_us):
        return min(allowed, int(limit_us) / int(period_us))
    return allowed


def cores(workers: int, usable: float) -> Finding:
    if workers > max(1, math.ceil(usable)):
        return warning("workers", f"WEB_CONCURRENCY={workers} on {usable:g} cores: workers wait for each other; set it to {max(1, math.floor(usable))}")
    return ok("workers", f"WEB_CONCURRENCY={workers} on {usable:g} cores")
