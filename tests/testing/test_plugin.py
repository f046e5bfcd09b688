"""The pytest plugin, in pytest processes of its own: as a user's tests meet it."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coord
import coord.testing
import coord.testing.plugin

#: Where `coord` can be imported from: the checkout, or where it is installed.
HOME = Path(coord.__file__).resolve().parent.parent
ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs" / "testing.md"
EXAMPLE = ROOT / "examples" / "test_with_coord.py"
PLUGIN = ("-p", "coord.testing.plugin")
PATIENCE = 120.0


def run(folder: Path, *arguments: str, path: tuple[Path, ...] = ()) -> tuple[int, str]:
    """pytest in `folder`: its exit code, and what it printed. Any warning is an error, as is any unknown marker."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(map(str, (*path, HOME))),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def write(folder: Path, text: str, name: str = "test_it.py") -> None:
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that makes `coord` look installed, with the entry points that it declares, also in a checkout."""
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    points = declared["options.entry_points"]["pytest11"].strip()
    folder = tmp_path_factory.mktemp("site")
    information = folder / "coord-0.dist-info"
    information.mkdir()
    write(information, "Metadata-Version: 2.1\nName: coord\nVersion: 0\n", "METADATA")
    write(information, f"[pytest11]\n{points}\n", "entry_points.txt")
    modules = sorted(path.relative_to(HOME).as_posix() for path in (HOME / "coord").rglob("*.py"))
    # What pytest reads to know whose assertions to rewrite.
    write(information, "".join(f"{module},,\n" for module in modules), "RECORD")
    return folder


PASSING = """
import coord, pytest

def test_group(coord_group):
    assert coord_group.names == ("a", "b", "c")
    coord_group["a"].config["k"] = 1
    coord_group.kill(coord_group.leader())

def test_node(coord_node):
    coord_node.config["k"] = 1
    assert coord_node.status().role == "leader"

def test_virtual(coord_virtual_group):
    coord_virtual_group["b"].config["k"] = 1
    coord_virtual_group.run(60)

@pytest.mark.coord(members=5, seed=3, loss=0.01, options=coord.Options(priority=4))
def test_marked(coord_virtual_group, coord_node):
    assert coord_virtual_group.names == tuple("abcde")
    assert coord_virtual_group.seed == 3
    assert coord_virtual_group.loss == 0.01
    assert coord_virtual_group["a"].options.priority == coord_node.options.priority == 4

@pytest.mark.coord(seed=4, members=5)
class TestMarkedTwice:
    @pytest.mark.coord(members=1)
    def test_the_nearer_goes_first(self, coord_group):
        assert (coord_group.seed, coord_group.names) == (4, ("a",))
"""


ONE_NODE = """
import pytest

@pytest.mark.coord(seed=1)
def test_node(coord_node):
    coord_node.config["k"] = 1
"""


def test_the_fixtures(tmp_path: Path) -> None:
    write(tmp_path, PASSING)
    code, text = run(tmp_path, *PLUGIN)
    assert (code, "5 passed" in text) == (0, True), text
    assert [path.name for path in tmp_path.iterdir()] == ["test_it.py"]


@pytest.mark.parametrize("also", [(), PLUGIN, ("-p", "coord")], ids=["by itself", "and by -p", "and by its short name"])
def test_where_coord_is_installed_the_plugin_is_there(tmp_path: Path, installed: Path, also: tuple[str, ...]) -> None:
    write(tmp_path, ONE_NODE)
    code, text = run(tmp_path, *also, path=(installed,))
    assert (code, "1 passed" in text) == (0, True), text


def test_it_can_be_named_in_a_conftest(tmp_path: Path, installed: Path) -> None:
    write(tmp_path, 'pytest_plugins = ["coord.testing.plugin"]\n', "conftest.py")
    write(tmp_path, ONE_NODE)
    for path in ((), (installed,)):
        code, text = run(tmp_path, path=path)
        assert (code, "1 passed" in text) == (0, True), text


def test_it_can_be_turned_off(tmp_path: Path, installed: Path) -> None:
    write(tmp_path, "def test_it(coord_node):\n    pass\n")
    code, text = run(tmp_path, "-p", "no:coord", path=(installed,))
    assert (code, "fixture 'coord_node' not found" in text) == (1, True), text


def test_unused_it_imports_next_to_nothing_of_coord_testing(tmp_path: Path) -> None:
    write(
        tmp_path,
        "import sys\ndef test_it():\n"
        "    print('loaded', sorted(name for name in sys.modules if name.startswith('coord.testing')))\n",
    )
    code, text = run(tmp_path, *PLUGIN, "-s")
    assert code == 0, text
    found = re.search(r"loaded \[(.*)\]", text)
    assert found, text
    # The second is there where coord is installed.
    assert {name.strip("' ") for name in found[1].split(",")} <= {
        "coord.testing",
        "coord.testing.autoload",
        "coord.testing.plugin",
    }


FAILING = """
def test_one(coord_virtual_group):
    coord_virtual_group.kill("a")
    assert coord_virtual_group["b"].config.put("k", 1) == 0

def test_two(coord_group):
    coord_group.leader(timeout=30)
    assert coord_group is None
"""


def test_a_failure_shows_the_group_and_its_seed(tmp_path: Path) -> None:
    write(tmp_path, FAILING)
    code, text = run(tmp_path, *PLUGIN)
    assert (code, "2 failed" in text) == (1, True), text
    assert re.search(r"- coord -\S*\ncoord.testing.Group\(a, b, c; virtual time, seed \d+\)", text), text
    assert "  a: it was killed" in text
    assert re.search(r"coord.testing.Group\(a, b, c; real time, seed \d+\).*\n  a: (leads|follows [bc]), term", text)


def seeds(text: str) -> list[str]:
    return re.findall(r"^coord.testing.Group\(.*seed (\d+)\)", text, re.MULTILINE)


def test_the_seed_comes_from_the_name_and_can_be_given(tmp_path: Path) -> None:
    write(tmp_path, FAILING)
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper", FAILING, "test_other.py")
    first = seeds(run(tmp_path, *PLUGIN, "test_it.py")[1])
    assert len(set(first)) == 2
    assert seeds(run(tmp_path / "deeper", *PLUGIN)[1]) == first, "another folder, the same tests"
    assert seeds(run(tmp_path, *PLUGIN, "test_it.py", "--coord-seed=11")[1]) == ["11", "11"]


def test_a_marker_with_a_mistake(tmp_path: Path) -> None:
    write(
        tmp_path,
        "import pytest\n@pytest.mark.coord(5)\ndef test_one(coord_group):\n    pass\n"
        "@pytest.mark.coord(member=5)\ndef test_two(coord_group):\n    pass\n"
        "@pytest.mark.coord(members=4)\ndef test_three(coord_group):\n    pass\n",
    )
    code, text = run(tmp_path, *PLUGIN)
    assert (code, "3 errors" in text) == (1, True), text
    assert "takes named arguments only, not (5,)" in text
    assert "unexpected keyword argument 'member'" in text
    assert "members=4: expected an odd number" in text


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_code_in_the_documentation_runs(tmp_path: Path) -> None:
    found = blocks()
    for number, block in enumerate(found):
        # One that is no test runs as it is, when it is imported.
        extra = "" if "def test_" in block else "\ndef test_it_was_imported():\n    pass\n"
        write(tmp_path, block + extra, f"test_block_{number}.py")
    code, text = run(tmp_path, *PLUGIN)
    count = sum(max(1, block.count("def test_")) for block in found)
    assert (code, f"{count} passed" in text) == (0, True), text
    assert len(found) == 5


def test_what_the_documentation_names_exists() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:coord_)?group\.(\w+)", text):
        assert hasattr(coord.testing.Group, name), name
    for name in re.findall(r"^\| `(coord_\w+)` \|", text, re.MULTILINE):
        assert hasattr(coord.testing.plugin, name), name


def test_the_example_runs_as_a_script_and_under_pytest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOME), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 passed" in done.stdout
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, EXAMPLE.read_text(encoding="utf-8"), EXAMPLE.name)
    code, text = run(tmp_path, *PLUGIN)
    assert (code, "4 passed" in text) == (0, True), text
