"""The server's settings, and what each worker does when it starts and ends. docs/operator.md tells what may be changed."""

from gevent import monkey

monkey.patch_all()

import faulthandler  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from gateway import logs  # noqa: E402
from gateway.settings import Settings  # noqa: E402

settings = Settings.load()
logs.set_up(settings.log_level, logs.Redactor())
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
limit_request_fields = 100
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
accesslog = None  # the gateway writes one line per exchange itself
errorlog = "-"
loglevel = settings.log_level

# prometheus_client reads this from the environment when it is imported: one directory for all workers of this server.
_metrics_dir = settings.run_path / f"metrics-{os.getpid()}"
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_dir)


def on_starting(server):
    """In the arbiter, before the first worker: the counters begin at zero, in a directory that no other server uses."""
    for path in settings.run_path.glob("metrics-*"):
        gone = not Path(f"/proc/{path.name.removeprefix('metrics-')}").exists()
        if gone or path == _metrics_dir:  # in a container every server has the same process id
            shutil.rmtree(path, ignore_errors=True)
    _metrics_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
    server.handle_int = server.handle_quit = server.handle_term  # Ctrl-C too lets open answers end, and books them
    server_log = logging.getLogger("gunicorn.error")
    server_log.handlers.clear()  # its lines are ours: JSON, redacted
    server_log.propagate = True


def post_worker_init(worker):
    """Presence, polls and the drain watch belong to the worker, so they begin after the fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process: the arbiter will tell this one
    signal.signal(signal.SIGQUIT, worker.handle_exit)
    worker.send_s = settings.send_s
    gateway = worker.wsgi.extensions["gateway"]
    gateway.start()
    threading.Thread(target=_drain_when_told, args=(worker, gateway), name="drain-watch", daemon=True).start()


def _drain_when_told(worker, gateway):
    """SIGTERM never reaches the application: gunicorn clears `worker.alive`, and waits for the open requests."""
    while worker.alive:
        time.sleep(0.2)
    gateway.drain(time.monotonic() + settings.drain_s - 1)


def worker_abort(worker):
    """Called when the arbiter gives up on a worker that has not beaten for `timeout` seconds: say where it hangs, and be gone."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(1)


def child_exit(server, worker):
    from prometheus_client import multiprocess  # after PROMETHEUS_MULTIPROC_DIR is set

    multiprocess.mark_process_dead(worker.pid, str(_metrics_dir))


def on_exit(server):
    shutil.rmtree(_metrics_dir, ignore_errors=True)
