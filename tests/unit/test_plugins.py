"""Plugins are found by name, entry point or dotted path; a broken one says why, and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.echo import Echo
from gateway import plugins
from gateway.errors import PluginError
from gateway.plugins import BACKENDS, BUILTIN, POLICIES, Plugin

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with these entry points, and these modules, on the path."""

    def make(distribution: str, entry_points: str, **modules: str) -> None:
        metadata = tmp_path / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def listed(name: str, group: str = BACKENDS) -> list[Plugin]:
    return [plugin for plugin in plugins.listing(group) if plugin.name == name]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in BUILTIN for name in BUILTIN[group]])
def test_built_ins_load_and_are_listed_first(group: str, name: str) -> None:
    assert isinstance(plugins.resolve(group, name), type)
    assert Plugin(name, BUILTIN[group][name], "") in plugins.listing(group)[: len(BUILTIN[group])]


def test_entry_point_is_found_and_listed_with_its_distribution(install: Install) -> None:
    install("acme", "[gateway.backends]\nacme = acme_backend:Acme\n", acme_backend="class Acme: pass\n")
    assert plugins.resolve(BACKENDS, "acme").__name__ == "Acme"
    assert listed("acme") == [Plugin("acme", "acme_backend:Acme", "acme")]
    assert listed("acme", POLICIES) == []


def test_entry_point_may_name_extras_and_a_nested_class(install: Install) -> None:
    install("acme", "[gateway.backends]\none = acme_nested:Outer.Inner\ntwo = acme_nested:Outer [speed]\n", acme_nested="class Outer:\n    class Inner: pass\n")
    assert plugins.resolve(BACKENDS, "one").__name__ == "Inner"
    assert plugins.resolve(BACKENDS, "two").__name__ == "Outer"


def test_dotted_path_needs_no_entry_point() -> None:
    assert plugins.resolve(BACKENDS, "backends.echo:Echo") is Echo


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise RuntimeError('needs a licence')\n", "RuntimeError: needs a licence"),
        ("def (:\n", "SyntaxError"),
        ("import sys\nsys.exit('wrong machine')\n", "SystemExit: wrong machine"),
        ("", "AttributeError"),
        ("Broken = 7\n", "is not a class"),
    ],
)
def test_broken_plugin_says_why_and_the_others_go_on(install: Install, source: str, reason: str) -> None:
    install("acme", "[gateway.backends]\nbroken = acme_broken:Broken\ngood = acme_good:Good\n", acme_broken=source, acme_good="class Good: pass\n")
    with pytest.raises(PluginError) as error:
        plugins.resolve(BACKENDS, "broken")
    assert reason in str(error.value)
    (broken,) = listed("broken")
    assert reason in broken.problem
    assert listed("good") == [Plugin("good", "acme_good:Good", "acme")]
    assert plugins.resolve(BACKENDS, "echo") is Echo


def test_name_that_is_taken_is_listed_as_such(install: Install) -> None:
    install("acme", "[gateway.backends]\nopenai = acme_taken:Mine\n", acme_taken="class Mine: pass\n")
    assert plugins.resolve(BACKENDS, "openai").__module__ == "backends.openai"
    ours, theirs = listed("openai")
    assert (ours.problem, theirs.distribution, theirs.problem) == ("", "acme", "the name 'openai' is taken by another plugin")


def test_of_two_distributions_with_one_name_the_listed_one_is_used(install: Install) -> None:
    install("acme", "[gateway.backends]\nsame = acme_one:One\n", acme_one="class One: pass\n")
    install("bolt", "[gateway.backends]\nsame = bolt_two:Two\n", bolt_two="class Two: pass\n")
    (used,) = [plugin for plugin in listed("same") if not plugin.problem]
    assert plugins.resolve(BACKENDS, "same").__module__ == used.target.partition(":")[0]
    assert len(listed("same")) == 2


def test_unknown_name_is_answered_with_a_close_one() -> None:
    with pytest.raises(PluginError, match=r"There is no backend 'opnai'\. Did you mean 'openai'\?"):
        plugins.resolve(BACKENDS, "opnai")


def test_unknown_name_that_is_close_to_none_is_answered_with_all() -> None:
    with pytest.raises(PluginError, match=r"There is no policy 'zzz'\. Known: .*weighted"):
        plugins.resolve(POLICIES, "zzz")


@pytest.mark.parametrize("name", ["no.such:Thing", "backends.echo:Nothing", "backends.echo:", ":", "a b:c", "backends.echo:_WORD"])
def test_dotted_path_that_leads_nowhere_says_so(name: str) -> None:
    with pytest.raises(PluginError, match=r"cannot be loaded|is not a class"):
        plugins.resolve(BACKENDS, name)
