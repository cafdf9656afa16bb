"""The rules of the house that no linter knows, read from the syntax trees. Each check is a function of its own, and is shown to find what it forbids."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from gateway.settings import Settings

ROOT = Path(__file__).parents[1]
MODULE_LINES, FUNCTION_LINES = 400, 60
SOURCES = sorted(
    path
    for path in [
        *(path for package in ("gateway", "backends", "agents", "migrations") for path in ROOT.glob(f"{package}/**/*.py")),
        ROOT / "wsgi.py",
        ROOT / "gunicorn.conf.py",
    ]
)
LIBRARY = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("gateway", "backends", "agents")]
AGENTS = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "agents"]

STATE_EXCEPTIONS: Mapping[str, str] = {
    "gateway/store/models.py:database": "Peewee binds models to a DatabaseProxy at import",
    "gateway/concurrency.py:_PLAIN_POOL": "unpatched processes share one pool, as patched ones share the hub's",
}
ENVIRONMENT_EXCEPTIONS: Mapping[str, str] = {
    "gateway/settings.py": "the one module that reads settings",
    "gunicorn.conf.py": "sets what libraries read from the environment",
    "gateway/cli/credentials.py": "reads the variable that the operator names with --from-env: no setting",
    "gateway/metrics.py": "asks whether PROMETHEUS_MULTIPROC_DIR is set, by which prometheus_client decides",
}
MONEY = ("gateway/core/ledger.py", "gateway/core/pricing.py", "gateway/store/ledger.py", "gateway/store/corrections.py")
MONEY += ("gateway/operations/prices.py", "gateway/operations/price_book.py", "gateway/operations/rerate.py", "gateway/operations/teams.py")
MONEY += tuple(f"gateway/operations/{name}.py" for name in ("ledger", "bills", "bills_openai", "bills_anthropic", "discrepancies", "reconcile", "reports"))
MONEY += ("gateway/store/served.py",)
FLOATS_EXCUSED: Mapping[str, str] = {
    "gateway/store/ledger.py:EntryRow.at / SQL(str(DAY_MS))": "SQL, which divides whole numbers to a whole number; a day, no money",
}
COMPARISONS_EXCUSED: Mapping[str, str] = {
    "gateway/operations/server.py:lost[0] == missing.pepper": "paths of files",
    "gateway/store/codes.py:RedeemCodeRow.hash == hash": "SQL, as above",
    "gateway/store/agents.py:EnrolmentRow.hash == hash": "SQL, as above",
    "gateway/store/accounts.py:ApiKeyRow.hash == hash": "SQL: a key is looked up by its HMAC, of which the asker knows nothing",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A module's text and tree. `path` is relative to the repository."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def comments(self) -> dict[int, str]:
        """By line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def source(path: Path) -> Source:
    return Source(str(path.relative_to(ROOT)), path.read_text())


Rule = Callable[[Source], Iterator[str]]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# the rules: each yields its findings


def too_long(module: Source) -> Iterator[str]:
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES:
        yield f"{module.path} has {lines} lines"
    for function in functions(module.tree):
        size = (function.end_lineno or function.lineno) - function.lineno + 1
        if size > FUNCTION_LINES:
            yield f"{module.path}:{function.lineno} {function.name} has {size} lines"


def unexplained_import(module: Source) -> Iterator[str]:
    """An import within a function, without a comment on its line or the line above."""
    for function in functions(module.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom) and not {node.lineno, node.lineno - 1} & module.comments.keys():
                yield f"{module.path}:{node.lineno} imports within a function and does not say why"


MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = frozenset({"list", "dict", "set", "deque", "defaultdict", "Counter", "OrderedDict", "bytearray", "ThreadPoolExecutor", "DatabaseProxy"})
MUTABLE_CALLS |= {"Lock", "RLock", "Event", "Queue", "SimpleQueue", "local", "count", "WeakValueDictionary"}


def called(node: ast.expr) -> str:
    """The last name of what is called, through subscripts: `collections.deque[int]()` is "deque"."""
    if isinstance(node, ast.Subscript):
        return called(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def read_only(statement: ast.Assign | ast.AnnAssign) -> bool:
    """Whether the type says that nobody changes it, which mypy then enforces."""
    annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else ""
    return re.match(r"(?:ClassVar\[)?(?:Mapping|Sequence|Collection|Set)\b", annotation) is not None and isinstance(statement.value, MUTABLE_DISPLAYS)


def module_state(module: Source) -> Iterator[str]:
    """A list, dict, set or other mutable object that a module, or a class's body, holds."""
    bodies: list[list[ast.stmt]] = [module.tree.body, *(node.body for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))]
    for statement in (statement for body in bodies for statement in body):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = statement.value
        mutable = isinstance(value, MUTABLE_DISPLAYS) or (isinstance(value, ast.Call) and called(value.func) in MUTABLE_CALLS)
        if mutable and not read_only(statement) and names != ["__all__"] and not any(f"{module.path}:{name}" in STATE_EXCEPTIONS for name in names):
            yield f"{module.path}:{statement.lineno} {', '.join(names)} is mutable"
    yield from (f"{module.path}:{node.lineno} global {', '.join(node.names)}" for node in ast.walk(module.tree) if isinstance(node, ast.Global))


def reads_environment(module: Source) -> Iterator[str]:
    if module.path in ENVIRONMENT_EXCEPTIONS:
        return
    tree = module.tree
    passed_on = {
        id(argument) for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node.func).startswith(("exec", "spawn")) for argument in node.args
    }
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb", "putenv") and called(node.value) == "os"
        imported = isinstance(node, ast.ImportFrom) and node.module == "os" and any(alias.name in ("environ", "getenv") for alias in node.names)
        if (named and id(node) not in passed_on) or imported:
            yield f"{module.path}:{getattr(node, 'lineno', 0)} reads the environment"


def catches_all(node: ast.ExceptHandler) -> bool:
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(kind is None or called(kind) in ("Exception", "BaseException") for kind in caught)


def silent_catch(module: Source) -> Iterator[str]:
    """`except Exception` (or bare, or BaseException, or suppress(Exception)) that does nothing."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and catches_all(node) and all(does_nothing(statement) for statement in node.body):
            yield f"{module.path}:{node.lineno} passes over every error"
        if isinstance(node, ast.Call) and called(node.func) == "suppress" and any(called(kind) in ("Exception", "BaseException") for kind in node.args):
            yield f"{module.path}:{node.lineno} suppresses every error"


def does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def float_money(module: Source) -> Iterator[str]:
    for node in ast.walk(module.tree):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
        conversion = isinstance(node, ast.Call) and called(node.func) in ("float", "round")
        division = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        module_of_floats = isinstance(node, ast.Import | ast.ImportFrom) and any(alias.name == "math" for alias in node.names)
        found = literal or conversion or division or module_of_floats
        if found and f"{module.path}:{ast.unparse(node)}" not in FLOATS_EXCUSED:
            yield f"{module.path}:{getattr(node, 'lineno', 0)} a float near money: {ast.unparse(node)}"


SECRET_NAME = re.compile(r"secret|token(?!s)|digest|hash|password|passwd|pepper|hmac|signature|(?<![a-z])api_?key(?!s)", re.IGNORECASE)
HARMLESS = re.compile(r"token_?count|max_token|_tokens|needs_secret|no_secret|hash_?name|secrets_(?:path|dir)|SecretsError", re.IGNORECASE)


def names_in(node: ast.expr) -> list[str]:
    """What an operand of a comparison is called; what a call returns is called like the function."""
    if isinstance(node, ast.Call):
        return [called(node.func), *(names_in(node.func.value) if isinstance(node.func, ast.Attribute) else [])]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def plain_comparison_of_secrets(module: Source) -> Iterator[str]:
    """`==` or `!=` between values of which one is named like a secret. A comparison with None, "" or a number tells nothing."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Compare) or not any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
            continue
        operands = [node.left, *node.comparators]
        if any(isinstance(operand, ast.Constant) and not (isinstance(operand.value, str | bytes) and operand.value) for operand in operands):
            continue
        names = [name for operand in operands for name in names_in(operand)]
        found = any(SECRET_NAME.search(name) and not HARMLESS.search(name) for name in names)
        if found and f"{module.path}:{ast.unparse(node)}" not in COMPARISONS_EXCUSED:
            yield f"{module.path}:{node.lineno} compares secrets plainly: {ast.unparse(node)}"


def foreign_import(module: Source) -> Iterator[str]:
    """An agent runs where nothing of the gateway is installed: the standard library and wsproto are all it may need."""
    for node in ast.walk(module.tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] not in (sys.stdlib_module_names | {"agents", "wsproto"}):
                yield f"{module.path}:{getattr(node, 'lineno', 0)} imports {name}"


# the repository keeps them


def findings(rule: Rule, paths: list[Path]) -> list[str]:
    return [finding for path in paths for finding in rule(source(path))]


def test_there_is_something_to_check() -> None:
    assert len(LIBRARY) > 30
    assert all((ROOT / path).exists() for path in MONEY)


def test_every_exception_is_still_needed() -> None:
    for place in (*STATE_EXCEPTIONS, *FLOATS_EXCUSED, *COMPARISONS_EXCUSED):
        path, _, excused = place.partition(":")
        assert excused in (ROOT / path).read_text(), place
    assert all("environ" in (ROOT / path).read_text() for path in ENVIRONMENT_EXCEPTIONS)


def test_modules_and_functions_are_short() -> None:
    assert findings(too_long, SOURCES) == []


def test_imports_within_functions_say_why() -> None:
    assert findings(unexplained_import, SOURCES) == []


def test_modules_hold_no_mutable_state() -> None:
    assert findings(module_state, LIBRARY) == []


def test_only_the_settings_read_the_environment() -> None:
    assert findings(reads_environment, SOURCES) == []


def test_no_error_is_passed_over_in_silence() -> None:
    assert findings(silent_catch, SOURCES) == []


def test_no_float_comes_near_money() -> None:
    assert findings(float_money, [ROOT / path for path in MONEY]) == []


def test_50_secrets_are_compared_in_constant_time() -> None:
    """FAILURES row 50, which asks for a scan of the code: it belongs with the other scans."""
    assert findings(plain_comparison_of_secrets, SOURCES) == []


def test_agents_need_nothing_but_wsproto() -> None:
    assert len(AGENTS) > 2
    assert findings(foreign_import, AGENTS) == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in map(source, SOURCES) if path.text.strip() and not ast.get_docstring(path.tree)]
    assert [module.path for module in silent] == []


def test_env_file_has_one_line_for_each_setting_with_its_default() -> None:
    lines = re.findall(r"^([A-Za-z0-9_]+)=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE)
    fields = {field.metadata["name"]: field for field in dataclasses.fields(Settings) if "name" in field.metadata}
    assert [name for name, _ in lines] == list(fields)
    for name, text in lines:
        written = fields[name].metadata["parse"](text) if text else None
        assert written == fields[name].default, name


def test_env_file_explains_its_settings() -> None:
    """A comment stands above each setting, or above the group that it belongs to."""
    commented = False
    for line in (ROOT / ".env").read_text().splitlines():
        assert line.startswith("#") or commented, line
        commented = line != ""


def test_layers_and_fences_hold() -> None:
    """The contracts of import-linter in setup.cfg."""
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(is_debug_mode=False, show_timings=False, cache_dir=None))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr


# and each rule finds what it forbids

FORBIDDEN: list[tuple[Rule, str]] = [
    (too_long, "x = 1\n" * 401),
    (too_long, "def f():\n" + "    x = 1\n" * 60),
    (unexplained_import, "def f():\n\n    import json\n"),
    (unexplained_import, "class A:\n    def f(self):\n        x = '# no comment'\n        from json import loads\n"),
    (module_state, "CACHE = {}\n"),
    (module_state, "CACHE: dict[str, int] = {'a': 1}\n"),
    (module_state, "A = B = [1]\n"),
    (module_state, "A: MutableMapping[str, int] = {}\n"),
    (module_state, "A: Mapping[str, int] = defaultdict(int)\n"),
    (module_state, "SEEN = set()\n"),
    (module_state, "NAMES = {name for name in 'abc'}\n"),
    (module_state, "import collections\nQ = collections.deque[int]()\n"),
    (module_state, "class A:\n    seen = []\n"),
    (module_state, "def f():\n    global x\n    x = 1\n"),
    (reads_environment, "import os\nx = os.environ['A']\n"),
    (reads_environment, "import os\nx = os.getenv('A')\n"),
    (reads_environment, "from os import environ\n"),
    (silent_catch, "try:\n    f()\nexcept Exception:\n    pass\n"),
    (silent_catch, "try:\n    f()\nexcept:\n    ...\n"),
    (silent_catch, "try:\n    f()\nexcept (ValueError, BaseException):\n    '''why not'''\n"),
    (silent_catch, "for x in y:\n    try:\n        f()\n    except Exception:\n        continue\n"),
    (silent_catch, "import contextlib\nwith contextlib.suppress(Exception):\n    f()\n"),
    (float_money, "x = 0.5\n"),
    (float_money, "x = float(y)\n"),
    (float_money, "x = a / b\n"),
    (float_money, "x /= 2\n"),
    (float_money, "x = round(y)\n"),
    (plain_comparison_of_secrets, "if token == shown: f()\n"),
    (plain_comparison_of_secrets, "if self._hash != other.digest(): f()\n"),
    (plain_comparison_of_secrets, "if a.reveal_secret() == b: f()\n"),
    (plain_comparison_of_secrets, "if password == 'admin': f()\n"),
    (plain_comparison_of_secrets, "if secret.reveal() == b: f()\n"),
    (plain_comparison_of_secrets, "x = [k for k in ks if k.password == p]\n"),
    (foreign_import, "import requests\n"),
    (foreign_import, "import json, gateway.frames\n"),
    (foreign_import, "def f():\n    from gateway import frames\n"),
    (foreign_import, "from . import link\n"),
]


@pytest.mark.parametrize(("rule", "text"), FORBIDDEN, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(FORBIDDEN)])
def test_rule_finds_what_it_forbids(rule: Rule, text: str) -> None:
    assert list(rule(Source("gateway/x.py", text)))


ALLOWED: list[tuple[Rule, str]] = [
    (too_long, "x = 1\n" * 400),
    (too_long, "def f():\n" + "    x = 1\n" * 59),
    (unexplained_import, "import json\ndef f():\n    import gevent  # optional outside a server\n    from gevent import event\n"),
    (module_state, "__all__ = ['a']\nA = (1, 2)\nB = frozenset({1})\nC = MappingProxyType({'a': [1]})\nD: list[int]\nE: Mapping[str, int] = {'a': 1}\n"),
    (module_state, "def f():\n    x = []\n    return x\n"),
    (reads_environment, "import os\nos.execve(path, arguments, os.environ)\nx = environ['wsgi.input']\n"),
    (silent_catch, "try:\n    f()\nexcept ValueError:\n    pass\ntry:\n    f()\nexcept Exception as error:\n    log.warning('%s', error)\n"),
    (float_money, "x = -(-a // b)\ny: float | None = None\nz = 1 * 2\n"),
    (foreign_import, "import json\nfrom agents.link import Link\nfrom wsproto.events import Ping\n"),
    (plain_comparison_of_secrets, "a = token is None\nb = max_tokens == limit\nc = secret == ''\nd = hmac.compare_digest(token, shown)\ne = name == other\n"),
]


@pytest.mark.parametrize(("rule", "text"), ALLOWED, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(ALLOWED)])
def test_rule_leaves_alone_what_it_allows(rule: Rule, text: str) -> None:
    assert list(rule(Source("gateway/x.py", text))) == []
