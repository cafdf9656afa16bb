"""Other gateways, installed from their registries below benchmarks/build/: LiteLLM and Portkey. Both are given the same upstream and no database."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Place, Upstream
from benchmarks.processes import BUILD, Cores, Unavailable, free_port
from benchmarks.targets import Target

INSTALL_LIMIT_S = 600
HOMES = BUILD / ".peers"  # the dot keeps type checkers and test runners out
PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "^1.15.2"},
    "overrides": {"@hono/node-server": "1.13.8"},  # with 1.19 every stream of Portkey 1.15.2 is answered 500
}


class LiteLlm(Target):
    """One worker with a master key. It writes the events of a stream anew, so their content is compared."""

    name = "litellm"
    slow = True
    start_limit_s = 90.0

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path) -> None:
        super().__init__(upstream, cores, directory)
        self._port, self._home = free_port(), HOMES / "litellm"

    @property
    def place(self) -> Place:
        return Place(self._port, "sk-benchmark", exact=False)

    def prepare(self) -> None:
        if not (self._home / "bin" / "litellm").exists():
            install([sys.executable, "-m", "venv", str(self._home)])
            install([str(self._home / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"])
        (self._home / ".env").touch()  # LiteLLM looks for one from its own directory upwards, and would read this project's
        known = {"model_name": "*", "litellm_params": {"model": "openai/*", "api_base": self.upstream.url, "api_key": "sk-upstream-of-the-benchmark"}}
        config = {"model_list": [known], "general_settings": {"master_key": "sk-benchmark"}, "litellm_settings": {"telemetry": False}}
        (self.directory / "config.yaml").write_text(json.dumps(config))  # JSON is YAML

    def command(self) -> Sequence[str]:
        words = ["--config", str(self.directory / "config.yaml"), "--host", "127.0.0.1", "--port", str(self._port), "--num_workers", "1"]
        return [str(self._home / "bin" / "litellm"), *words]

    def environment(self) -> dict[str, str]:
        return {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


class Portkey(Target):
    """The open gateway, which checks no key; headers name the provider and its host."""

    name = "portkey"
    slow = True

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path) -> None:
        super().__init__(upstream, cores, directory)
        self._port, self._home = free_port(), HOMES / "portkey"
        self._node = shutil.which("node")

    @property
    def place(self) -> Place:
        headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {self.upstream.url}")
        return Place(self._port, "sk-upstream-of-the-benchmark", headers=headers, exact=False)

    def prepare(self) -> None:
        npm = shutil.which("npm")
        if self._node is None or npm is None:
            raise Unavailable("Node.js is not installed: apt-get install nodejs npm")
        if not self._program().exists():
            self._home.mkdir(parents=True, exist_ok=True)
            (self._home / "package.json").write_text(json.dumps(PORTKEY))
            install([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(self._home)])

    def command(self) -> Sequence[str]:
        assert self._node is not None
        return [self._node, str(self._program()), f"--port={self._port}", "--headless"]

    def environment(self) -> dict[str, str]:
        return {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}

    def _program(self) -> Path:
        return self._home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"


PEERS: tuple[type[Target], ...] = (LiteLlm, Portkey)


def install(command: Sequence[str]) -> None:
    """Raises Unavailable with the installer's last words."""
    print(f"installing: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"not installed within {INSTALL_LIMIT_S} s") from error
    if done.returncode:
        raise Unavailable(f"the installation failed: {' '.join((done.stderr or done.stdout).split())[-300:]}")
