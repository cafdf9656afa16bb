"""The server's settings, and what each worker does when it starts and ends. docs/operator.md tells what may be changed."""

from gevent import monkey

monkey.patch_all()

import faulthandler  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from gunicorn import glogging  # noqa: E402

# A reload (SIGHUP) executes this file again, in the arbiter: what the next workers inherit from it must be the new code.
for _name in [name for name in sys.modules if name.partition(".")[0] in ("gateway", "backends", "migrations")]:
    del sys.modules[_name]

from gateway import logs  # noqa: E402
from gateway.settings import Settings  # noqa: E402
from gateway.stalls import StallMonitor  # noqa: E402
from gateway.succession import Succession, hear  # noqa: E402

settings = Settings.load()
logs.set_up(settings.log_level, logs.Redactor())
logs.take_stderr()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold every secret that was opened

wsgi_app = "wsgi:app"
bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
workers = settings.workers
worker_class = "gateway.server.Worker"
worker_connections = 12_000
backlog = 4096
keepalive = 15  # seconds; also the deadline for reading a request's header
timeout = 20
graceful_timeout = settings.drain_s
max_requests = 0  # with one worker a restart is an outage
forwarder_headers = ""  # the default lets a peer on the local host set SCRIPT_NAME and walk round path rules
limit_request_line = 8190
http_parser = "python"  # "auto" would take the one in C wherever it is installed: it reads bare LF and folded fields
limit_request_fields = 100
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
accesslog = None  # the gateway writes one line per exchange itself
errorlog = "-"
loglevel = settings.log_level

# prometheus_client reads this from the environment when it is imported: one directory for all workers of this server.
_metrics_dir = settings.run_path / f"metrics-{os.getpid()}"
if "--check-config" in sys.argv:  # how a reload is tried out: that process leaves nothing behind
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
else:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_dir)


class logger_class(glogging.Logger):
    """gunicorn's own lines, from the first one on, are like ours: JSON, redacted."""

    def setup(self, cfg):
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


def on_starting(server):
    """In the arbiter, before the first worker: the counters begin at zero, in a directory that no other server uses."""
    for path in settings.run_path.glob("metrics-*"):
        gone = not Path(f"/proc/{path.name.removeprefix('metrics-')}").exists()
        if gone or path == _metrics_dir:  # in a container every server has the same process id
            shutil.rmtree(path, ignore_errors=True)
    on_reload(server)
    Succession(server).install()


def on_reload(server):
    """The new settings may name another directory; where they do not, the counters go on."""
    _metrics_dir.mkdir(parents=True, mode=0o700, exist_ok=True)


def when_ready(server):
    """`gateway serve` keeps Ctrl-C back while Python could only answer it with a traceback; from here on it is heard."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def post_worker_init(worker):
    """Presence, polls and the stall monitor belong to the worker, so they begin after the fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process: the arbiter will tell this one
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    faulthandler.enable(sys.stderr, all_threads=True)  # SIGABRT, which the arbiter sends to a worker that hangs, shows where, and ends it
    worker.send_s = settings.send_s
    gateway = worker.wsgi.extensions["gateway"]
    gateway.start()
    StallMonitor(gateway.metrics.stalled).start()
    # SIGTERM never reaches the application: its worker passes it on.
    worker.on_leave = lambda: gateway.drain(time.monotonic() + settings.drain_s - 1)
    gc.collect()
    gc.freeze()  # what was made until now stays; looking through it again and again would be a tenth of every call
    gc.set_threshold(5_000, 20, 20)
    hear()


def worker_exit(server, worker):
    """In the worker, when its last connection is closed; in the arbiter for one that it finds gone."""
    if worker.pid == os.getpid() and hasattr(worker, "wsgi"):
        worker.wsgi.extensions["gateway"].close()


def child_exit(server, worker):
    from prometheus_client import multiprocess  # after PROMETHEUS_MULTIPROC_DIR is set

    multiprocess.mark_process_dead(worker.pid, str(_metrics_dir))


def on_exit(server):
    shutil.rmtree(_metrics_dir, ignore_errors=True)
