from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.state.file import StateFile

SCHEMA = "CREATE TABLE IF NOT EXISTS word (text TEXT);"
OTHER_PROCESS = """
import sys
from pathlib import Path
from gateway.state.file import StateFile

file = StateFile(Path(sys.argv[1]), "")
print(*[row[0] for row in file.run(lambda db: db.execute("SELECT text FROM word").fetchall())])
file.close()
"""


def seen_elsewhere(directory: Path) -> list[str]:
    """What another process finds in the file, before it closes it."""
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(directory)], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.split()


def test_process_that_comes_and_goes_takes_nothing_from_those_that_stay(tmp_path: Path) -> None:
    """A process drops its locks on a file when it closes any descriptor of it, and who closes it then takes itself for the last: the log of changes goes."""
    first, second = StateFile(tmp_path, SCHEMA), StateFile(tmp_path, SCHEMA)
    first.run(lambda db: db.execute("INSERT INTO word VALUES ('one')"))
    second.run(lambda db: db.execute("INSERT INTO word VALUES ('two')"))
    assert seen_elsewhere(tmp_path) == ["one", "two"]
    first.run(lambda db: db.execute("INSERT INTO word VALUES ('three')"))
    assert seen_elsewhere(tmp_path) == ["one", "two", "three"]
    first.close()
    second.close()


def test_file_is_for_its_user_alone(tmp_path: Path) -> None:
    file = StateFile(tmp_path, SCHEMA)
    file.run(lambda db: None)
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.close()
