"""The shape of the sources: who may import whom, what never appears, how long things may get."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Every module by its importable name. The links coord/transports and coord/metrics are not followed.
SOURCES: dict[str, Path] = {}
for _folder, _package in (("coord", "coord"), ("transports", "coord.transports"), ("metrics", "coord.metrics")):
    for _path in sorted((ROOT / _folder).rglob("*.py")):
        _inside = _path.relative_to(ROOT / _folder)
        if not any((ROOT / _folder / parent).is_symlink() for parent in _inside.parents):
            _parts = [part for part in _inside.with_suffix("").parts if part != "__init__"]
            SOURCES[".".join([_package, *_parts])] = _path
TESTS = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tests").rglob("*.py"))}
EXAMPLES = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "examples").rglob("*.py"))}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


#: What the modules of each package may import of `coord`; the longest fitting name counts. The modules not named here
#: are what a host app uses, and they may import anything but the command line and the package itself.
ARROWS: dict[str, tuple[str, ...]] = {
    "coord": ("coord",),
    "coord.errors": (),
    "coord.logs": (),
    "coord.options": ("coord.errors",),
    "coord.raft": ("coord.raft",),
    "coord.machine": ("coord.machine",),
    "coord.wire": ("coord.raft",),
    "coord.events": ("coord.wire", "coord.raft.roles"),
    "coord.storage": ("coord.storage", "coord.raft", "coord.errors"),
    "coord.transports": ("coord.transports", "coord.errors", "coord.logs", "coord.options"),
    "coord.metrics": ("coord.metrics", "coord.events"),
    "coord.cli": ("coord",),
    "coord.testing": ("coord",),
    "coord.contrib": ("coord",),
}
#: Packages that need no other part of `coord` to be understood, and nothing of the world: all they may import.
PURE = ("coord.raft", "coord.machine", "coord.wire", "coord.events", "coord.errors", "coord.options")
PURE_LIBRARY = {
    *(
        "__future__",
        "abc",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
    ),
    *("heapq", "itertools", "json", "math", "operator", "re", "string", "struct", "types", "typing", "zlib"),
    "msgpack",
}
#: A wall clock jumps, so rates and durations come from the loop's clock, and no two hosts' times are compared.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
#: Who may look at it all the same, and for what.
WALL_CLOCK_USERS = {"coord/loop.py": "when the node was started, shown to people; the epoch of a new group"}
#: The only doors to these libraries.
DOORS = {"zmq": ("coord.transports",), "prometheus_client": ("coord.metrics",)}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "imp"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}

#: No longer than this, in lines, but for what is named, which may only shrink.
MODULE_LINES = 600
LONGER_MODULES = {"coord.raft.core": 640, "coord.replica": 640}
FUNCTION_LINES = 60
#: Constructors that state, field by field, what binds it.
LONGER_FUNCTIONS = {"coord.raft.core.__init__": 96, "coord.replica.__init__": 90}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, *, types_too: bool = True) -> Iterator[str]:
    """Every module `path` imports, anywhere in it. `from x import y` gives x.y when that is a module of ours.

    Without `types_too`, those that only a type checker sees are left out.
    """
    for node in walk(tree(path), types_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in SOURCES else node.module


def walk(node: ast.AST, types_too: bool) -> Iterator[ast.AST]:
    if not types_too and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child, types_too)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(name: str) -> tuple[str, ...] | None:
    """What `name` may import of `coord`; None for the modules of the host's side."""
    fitting = [package for package in ARROWS if within(name, package) and (package != "coord" or name == "coord")]
    return ARROWS[max(fitting, key=len)] if fitting else None


def test_all_parts_are_looked_at() -> None:
    assert {"coord", "coord.raft.core", "coord.transports.base", "coord.metrics.collector"} <= SOURCES.keys()
    assert "tests/test_layout.py" in TESTS


@pytest.mark.parametrize("path", [*SOURCES.values(), *TESTS.values(), *EXAMPLES.values()], ids=relative)
def test_the_mapped_folders_are_reached_through_coord(path: Path) -> None:
    """`import transports` works in the repository by accident, and gives a second copy of every class."""
    assert not {name.split(".")[0] for name in imports(path)} & {"transports", "metrics"}


@pytest.mark.parametrize("name", SOURCES)
def test_the_arrows(name: str) -> None:
    ours = {target for target in imports(SOURCES[name]) if within(target, "coord")}
    may = allowed(name)
    if may is None:
        assert not {target for target in ours if target == "coord" or within(target, "coord.cli")}
    else:
        assert not {target for target in ours if not any(within(target, package) for package in may)}


@pytest.mark.parametrize("name", [name for name in SOURCES if any(within(name, package) for package in PURE)])
def test_what_is_pure_has_no_way_to_the_world(name: str) -> None:
    used = {target.split(".")[0] for target in imports(SOURCES[name], types_too=False)}
    assert not used - PURE_LIBRARY - {"coord"}
    calls = {ast.unparse(node.func) for node in ast.walk(tree(SOURCES[name])) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "input", "hash", "id"} - ({"hash"} if name in HASHES_FOR_DICTS_ONLY else set())


#: `hash()` of a str differs from process to process, so nothing replicated may depend on it. These define `__hash__`.
HASHES_FOR_DICTS_ONLY = {"coord.raft.batch", "coord.raft.membership"}


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    users = {name for name, path in SOURCES.items() if library in {target.split(".")[0] for target in imports(path)}}
    assert users
    assert not {name for name in users if not any(within(name, door) for door in DOORS[library])}


@pytest.mark.parametrize("path", [*SOURCES.values(), *EXAMPLES.values()], ids=relative)
def test_what_never_appears(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN_IMPORTS
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
            assert called not in WALL_CLOCKS or relative(path) in WALL_CLOCK_USERS, f"line {node.lineno}: {called}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            caught = ast.unparse(node.type)
            silent = all(isinstance(child, ast.Pass) for child in node.body)
            assert not (silent and caught in {"Exception", "BaseException"}), f"line {node.lineno}: swallows {caught}"


@pytest.mark.parametrize("path", [*SOURCES.values(), *TESTS.values(), *EXAMPLES.values()], ids=relative)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path))


def test_no_module_grows_too_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    long = {name: length for name, length in lengths.items() if length > MODULE_LINES}
    check_ratchet(long, LONGER_MODULES)


def test_no_function_grows_too_long() -> None:
    long = {}
    for name, path in SOURCES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES:
                    long[f"{name}.{node.name}"] = length
    check_ratchet(long, LONGER_FUNCTIONS)


def check_ratchet(found: dict[str, int], tolerated: dict[str, int]) -> None:
    assert not {name: length for name, length in found.items() if length > tolerated.get(name, 0)}, "too long: split"
    assert not tolerated.keys() - found.keys(), "no longer too long: strike it from the table"


def test_the_packages_are_those_on_the_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    mapped = dict(line.replace(" ", "").split("=") for line in config["options"]["package_dir"].split("\n") if line)
    on_disk = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in SOURCES.items()}
    assert listed == sorted(listed)
    assert set(listed) == on_disk
    assert all(name in SOURCES and SOURCES[name].name == "__init__.py" for name in listed)
    assert mapped == {"coord.metrics": "metrics", "coord.transports": "transports"}


@pytest.mark.parametrize("name", ["transports", "metrics"])
def test_the_links_show_every_tool_the_installed_shape(name: str) -> None:
    link = ROOT / "coord" / name
    if not link.is_symlink():
        pytest.skip("this checkout carries no links; installing works without them")
    assert link.resolve() == ROOT / name


IMPORT_AND_LOOK = """
import gc, logging, os, signal, sys, threading
before = (
    threading.active_count(), gc.isenabled(), gc.get_threshold(), sys.getswitchinterval(), list(logging.root.handlers),
    [signal.getsignal(number) for number in signal.valid_signals()], sys.excepthook, threading.excepthook,
    os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else [],
)
import coord
after = (
    threading.active_count(), gc.isenabled(), gc.get_threshold(), sys.getswitchinterval(), list(logging.root.handlers),
    [signal.getsignal(number) for number in signal.valid_signals()], sys.excepthook, threading.excepthook,
    os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else [],
)
assert before == after, (before, after)
# It reads the environment when imported, so the host app has to be the one that decides when.
assert "prometheus_client" not in sys.modules
assert all(hasattr(coord, name) for name in coord.__all__)
"""


def test_importing_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_AND_LOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_listed_in_order() -> None:
    exported = [
        ast.literal_eval(node.value)
        for node in tree(ROOT / "coord" / "__init__.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(exported) == 1
    # Constants, then classes, then functions: the order ruff keeps them in.
    kinds = [(not name.isupper(), not name[0].isupper(), name) for name in exported[0]]
    assert kinds == sorted(kinds)
