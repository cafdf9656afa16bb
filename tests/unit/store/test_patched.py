"""The store in a process patched by gevent, and in forked ones: as servers use it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from gateway.store import accounts
from gateway.store.database import Database

PROGRAM = Path(__file__).with_name("patched_program.py")
ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def write_lock(url: str) -> Iterator[None]:
    """What makes the next write wait."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite://"), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
        connection.close()
    else:
        with psycopg.connect(url) as session:
            session.execute('LOCK TABLE "user" IN EXCLUSIVE MODE')
            yield


def test_a_patched_process_writes_reads_and_never_stalls_its_hub(url: str) -> None:
    """The bounds are wide: a call on the hub itself would stall it for the whole second that the lock is held."""
    command = [sys.executable, "-W", "error::ResourceWarning", str(PROGRAM), url]
    with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "lock\n"
        with write_lock(url):
            program.stdin.write("go\n")
            program.stdin.flush()
            time.sleep(1.0)
        report = json.loads(program.communicate(timeout=30)[0])

    assert report["applied"] == ["0001_initial", "0002_deployment_proxy", "0003_money", "0004_alerts", "0005_lean_hold_lines", "0006_pools", "0007_agents"]
    assert (report["ran"], report["total"], report["seen_meanwhile"]) == (200, 401, 400)
    assert report["runs"] < 200  # some were committed together
    assert report["calm_s"] < 0.5
    assert report["locked_s"] < 0.5
    assert report["late"] == "unavailable"
    assert report["conflict"] == "already exists: user.name"


FORKED = """
import os, sys
from gateway.store import accounts
from gateway.store.database import Database
database = Database(sys.argv[1])
database.bind()
before = len(os.listdir("/proc/self/task"))
database.migrate()
children = []
for number in range(3):
    child = os.fork()
    if not child:
        for turn in range(20):
            database.write(lambda: accounts.create_user(f"{number}-{turn}", 1))
        database.close()
        os._exit(0)
    children.append(child)
print(before, [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_a_database_made_before_a_fork_serves_every_child(url: str, opened: Callable[..., Database]) -> None:
    answer = subprocess.run([sys.executable, "-c", FORKED, url], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout

    assert answer == "1 [0, 0, 0]\n"
    database = opened(url)
    assert len(database.read(accounts.list_users)) == 60
