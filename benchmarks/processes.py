"""Processes of a run: built, started on a core, watched by way of /proc, ended."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = HERE / "build"
TICKS = os.sysconf("SC_CLK_TCK")


class Unavailable(RuntimeError):
    """Something that a run needs is not there; the text says how to get it."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes are pinned: what is measured on one core, the load and the upstream on another, if there is one."""

    target: int
    load: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1 if len(usable) > 1 else 0])


@dataclass(frozen=True, slots=True)
class Memory:
    """Kibibytes: resident, and resident with shared pages divided among those who share them."""

    rss: int
    pss: int


def compiled(name: str) -> Path:
    """The program made of `name`.c, built anew where a source is newer. Raises Unavailable without a C compiler."""
    program, sources = BUILD / name, (HERE / f"{name}.c", HERE / "script.h")
    if program.exists() and all(source.stat().st_mtime < program.stat().st_mtime for source in sources):
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("there is no C compiler: apt-get install gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    made = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-o", str(made), str(sources[0])], check=True)
    return made.replace(program)  # in one step: another run may be using it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def raise_file_limit() -> int:
    """As many descriptors as this user may have, for this process and those it starts; how many that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # only root may go above, and not in every container
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 65_536), max(hard, 65_536)))
        return max(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def clean_environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would change how a target behaves, and with `own`."""
    mine = ("GATEWAY_", "OPENAI_", "DATABASE_URL", "WEB_CONCURRENCY", "PROMETHEUS_", "LITELLM_", "GUNICORN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine) and "proxy" not in name.lower()} | dict(own)


class Started:
    """A process and its descendants, on one core. `log` receives both its outputs."""

    def __init__(self, command: Sequence[str], core: int, log: Path, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=directory,
                env=clean_environment(environment or {}),
            )

    def pids(self) -> list[int]:
        """The process, then its descendants."""
        found, rest = [], [self.process.pid]
        while rest:
            pid = rest.pop(0)
            found.append(pid)
            rest += _children(pid)
        return found

    def workers(self) -> list[int]:
        """Those that do the work: the descendants where there are any."""
        pids = self.pids()
        return pids[1:] or pids

    def cpu_s(self) -> float:
        """Seconds of a core that all of them have used."""
        return sum(_cpu_ticks(pid) for pid in self.pids()) / TICKS

    def alive(self) -> bool:
        return self.process.poll() is None

    def tail(self) -> str:
        """The end of its log, for the report of a failure."""
        return self.log.read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """Asks it to end, and after 20 s makes it."""
        if not self.alive():
            return
        pids = self.pids()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(5)


def memory(pids: Sequence[int]) -> Memory:
    """Of all of these together; those that have ended count nothing."""
    found = [_memory(pid) for pid in pids]
    return Memory(sum(item.rss for item in found), sum(item.pss for item in found))


def open_files(pids: Sequence[int]) -> int:
    """Descriptors that these processes hold."""
    count = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


def busy_s(cores: Cores) -> float:
    """Seconds that these cores have been at work, or taken away by the host, since it started."""
    names = {f"cpu{cores.target}", f"cpu{cores.load}"}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return sum(int(word) for line in lines if line[0] in names for at, word in enumerate(line[1:9]) if at not in (3, 4)) / TICKS  # idle, waiting for disks


def own_s() -> float:
    """Seconds of a core that this process and those that it has waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found += [int(word) for word in path.read_text().split()]
    return sorted(found)


def _cpu_ticks(pid: int) -> int:
    """Its own, all threads', and that of the children it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _memory(pid: int) -> Memory:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return Memory(0, 0)
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.strip().endswith("kB")}
    return Memory(sizes.get("Rss", 0), sizes.get("Pss", 0))
