"""A third party's distribution is installed and found; what is broken in it is listed with its reason, and the rest works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_backend"
BROKEN = """
missing-module = "no_such_module_of_the_example:Nothing"
missing-class = "example_backend:Nothing"
no-class = "example_backend:dataclass"
"""


def run(command: list[str], **options: Any) -> str:
    """A command's standard output. Raises AssertionError with both streams where it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_", "PYTHON", "PYTEST_"))}
    done: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, text=True, timeout=50, env=inherited, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


Python = Callable[[str], Any]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Runs a script in an environment of its own, in which the gateway and the example are installed; gives what it prints, read as JSON."""
    folder = tmp_path_factory.mktemp("example")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    project = source / "pyproject.toml"
    entry = 'backwards = "example_backend:Backwards"\n'
    assert entry in project.read_text()
    project.write_text(project.read_text().replace(entry, entry + BROKEN.lstrip()))
    home = folder / "environment"
    venv.create(home, with_pip=False)
    executable = home / "bin" / "python"
    site = Path(run([str(executable), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # What is installed here, and the gateway itself, without installing either again.
    (site / "gateway.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(executable)]
    run([*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", str(source)])
    assert (site / "example_backend.py").exists()
    return lambda script: json.loads(run([str(executable), "-W", "error", "-c", script], cwd=folder))


def test_installed_backend_is_listed_with_its_distribution_and_resolved(python: Python) -> None:
    name, target, distribution, problem, module = python("""
import dataclasses, json
from gateway import plugins
(found,) = [plugin for plugin in plugins.listing(plugins.BACKENDS) if plugin.name == "backwards"]
print(json.dumps([*dataclasses.astuple(found), plugins.resolve(plugins.BACKENDS, "backwards").__module__]))
""")
    assert (name, target, distribution, problem) == ("backwards", "example_backend:Backwards", "gateway-example-backend", "")
    assert module == "example_backend"


def test_installed_policy_is_resolved_and_chooses(python: Python) -> None:
    assert python('import json; from gateway import plugins; print(json.dumps(plugins.resolve(plugins.POLICIES, "first")().choose(["a", "b"])))') == "a"


def test_broken_entry_points_are_listed_with_their_reasons_and_the_rest_works(python: Python) -> None:
    problems = python("""
import json
from gateway import plugins
print(json.dumps({plugin.name: plugin.problem for plugin in plugins.listing(plugins.BACKENDS)}))
""")
    assert problems["echo"] == problems["openai"] == problems["backwards"] == ""
    assert "No module named 'no_such_module_of_the_example'" in problems["missing-module"]
    assert "has no attribute 'Nothing'" in problems["missing-class"]
    assert "is not a class" in problems["no-class"]


def test_slip_of_the_keyboard_is_answered_with_the_installed_name(python: Python) -> None:
    message = python("""
import json
from gateway import plugins
from gateway.errors import PluginError
try:
    plugins.resolve(plugins.BACKENDS, "backward")
except PluginError as error:
    print(json.dumps(str(error)))
""")
    assert message == "There is no backend 'backward'. Did you mean 'backwards'?"


def test_installed_backend_answers_with_its_options_as_the_gateway_builds_it(python: Python) -> None:
    answered = python("""
import json
from gateway.backend import Services
from gateway.core.catalog import Backends
from gateway.testing import BackendContract, drain
backends = Backends(Services())
class Contract(BackendContract):
    backend_class = type(backends.get("backwards", {}))
    def request(self, dialect): return "/chat/completions", {"messages": [{"role": "user", "content": "abc def"}]}
contract = Contract()
target = contract.target()
ask = lambda options: json.loads(drain(backends.get("backwards", options), contract.call("openai_chat", False, target), target))
print(json.dumps([ask(options)["choices"][0]["message"]["content"] for options in ({}, {"word_by_word": True})]))
""")
    assert answered == ["fed cba", "cba fed"]


def test_installed_backend_keeps_the_contract(python: Python) -> None:
    code, output = python("""
import contextlib, io, json, pathlib, pytest
pathlib.Path("test_backwards.py").write_text('''
from example_backend import Backwards
from gateway.testing import BackendContract
class TestBackwards(BackendContract):
    backend_class = Backwards
''')
with contextlib.redirect_stdout(io.StringIO()) as output:
    code = pytest.main(["-q", "-p", "no:cacheprovider", "test_backwards.py"])
print(json.dumps([int(code), output.getvalue()]))
""")
    assert code == 0, output
