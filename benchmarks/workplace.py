"""Where a run takes place: the upstream, and a directory on the disk. Both are gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load import Upstream
from benchmarks.processes import BUILD, Cores, compiled, raise_file_limit


@contextlib.contextmanager
def workplace(cores: Cores) -> Iterator[tuple[Upstream, Path]]:
    """Also after a SIGTERM nothing stays. Raises Unavailable without a C compiler."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BUILD.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        raise_file_limit()
        compiled("load")
        upstream = Upstream(cores, directory)
        try:
            yield upstream, directory
        finally:
            upstream.started.stop()
    finally:
        shutil.rmtree(directory)
