"""A worker is alive exactly as long as its process holds its lock."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.presence import Presence

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path
from gateway.presence import Presence
presence = Presence(Path(sys.argv[1]))
presence.start()
print(presence.owner, flush=True)
sys.stdin.read()
"""


@contextmanager
def workers(run_path: Path, count: int) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    """Processes that start at once and hold their presence until their standard input ends."""
    command = [sys.executable, "-c", WORKER, str(run_path)]
    started = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield [(process, process.stdout.readline().strip() if process.stdout else "") for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_owner_ids_are_never_the_same(tmp_path: Path) -> None:
    assert len({Presence(tmp_path).owner for _ in range(100)}) == 100


def test_worker_is_alive_from_start_to_close(tmp_path: Path) -> None:
    mine, other = Presence(tmp_path), Presence(tmp_path)
    assert not mine.alive(mine.owner)
    mine.start()
    assert mine.alive(mine.owner)
    assert other.alive(mine.owner)
    mine.close()
    assert not mine.alive(mine.owner)
    assert not other.alive(mine.owner)
    mine.close()


def test_a_host_of_the_same_name_and_paths_is_another(tmp_path: Path) -> None:
    """As containers and cloned machines are. Its workers would be taken for dead, and their holds for lost."""
    (tmp_path / "run").mkdir()
    mine = Presence(tmp_path / "run")
    mine.start()
    assert Presence(tmp_path / "run").local(mine.owner)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    assert not Presence(tmp_path / "run").local(mine.owner)
    mine.close()


def test_workers_that_start_at_once_are_of_one_host(tmp_path: Path) -> None:
    with workers(tmp_path, 4) as started:
        assert all(Presence(tmp_path).local(owner) for _, owner in started)


def test_unknown_owner_is_not_alive(tmp_path: Path) -> None:
    assert not Presence(tmp_path).alive("0123456789abcdef")


def test_killed_worker_is_dead_at_once_and_its_file_goes_with_the_next_start(tmp_path: Path) -> None:
    with workers(tmp_path, 2) as ((first, killed), (_, living)):
        mine = Presence(tmp_path)
        assert mine.alive(killed)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not mine.alive(killed)
        assert mine.alive(living)
        mine.start()
        assert {path.name for path in (tmp_path / "owners").iterdir()} == {living, mine.owner}
        assert mine.alive(living)
        mine.close()


def test_workers_that_start_at_the_same_moment_do_not_remove_each_other(tmp_path: Path) -> None:
    with workers(tmp_path, 8) as started:
        asking = Presence(tmp_path)
        owners = [owner for _, owner in started]
        assert len(set(owners)) == 8
        assert all(asking.alive(owner) for owner in owners)
        assert {path.name for path in (tmp_path / "owners").iterdir()} == set(owners)


def test_presences_that_start_and_ask_at_once_are_all_seen_alive(tmp_path: Path) -> None:
    """Many threads in one process: the kernel's locks belong to the open files, not to the process."""
    presences = [Presence(tmp_path) for _ in range(40)]
    begin, missing = threading.Barrier(8), list[str]()

    def start(some: list[Presence]) -> None:
        begin.wait()
        for presence in some:
            presence.start()
            if not Presence(tmp_path).alive(presence.owner):
                missing.append(presence.owner)

    threads = [threading.Thread(target=start, args=(presences[number::8],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == []
    asking = Presence(tmp_path)
    assert all(asking.alive(presence.owner) for presence in presences)
    for presence in presences:
        presence.close()
    assert list((tmp_path / "owners").iterdir()) == []


def test_asking_about_a_dead_owner_never_makes_it_look_alive_to_another_who_asks(tmp_path: Path) -> None:
    directory = tmp_path / "owners"
    directory.mkdir()
    with (directory / "dead").open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # what another one who asks holds for a moment
        assert not Presence(tmp_path).alive("dead")


def test_worker_whose_file_is_removed_while_it_starts_takes_another(tmp_path: Path) -> None:
    mine = Presence(tmp_path)
    path = tmp_path / "owners" / mine.owner
    path.parent.mkdir()
    with path.open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a worker does that takes this file for a dead one's
        starting = threading.Thread(target=mine.start)
        starting.start()
        starting.join(0.1)
        assert starting.is_alive()
        path.unlink()
    starting.join(5)
    assert path.exists()
    assert Presence(tmp_path).alive(mine.owner)
    mine.close()


def test_child_processes_do_not_inherit_the_lock(tmp_path: Path) -> None:
    mine = Presence(tmp_path)
    mine.start()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False)
    mine.close()
    assert not Presence(tmp_path).alive(mine.owner)
    child.communicate()


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    mine = Presence(tmp_path / "run")
    mine.start()
    directory = tmp_path / "run" / "owners"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / mine.owner).stat().st_mode) == 0o600
    mine.close()


def test_presence_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        presence = Presence(tmp_path)
        presence.start()
        presence.alive("nobody")
        Presence(tmp_path).alive(presence.owner)
        presence.close()
    assert len(os.listdir("/proc/self/fd")) == before
