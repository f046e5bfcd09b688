"""Where `coord node` takes its settings from, and what it refuses."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from coord.cli.settings import NodeSettings, add_arguments, parse_peers, settings_of
from coord.errors import ConfigurationError
from coord.options import Options

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")

FILE = """
name = "file"
bind = "tcp://127.0.0.1:1"
data_dir = "/file"
group = "file"
insecure = true

[peers]
a = "tcp://127.0.0.1:1"

[options]
heartbeat = 0.1
election_timeout = [0.5, 1.0]
"""


def read(*flags: str, **environment: str) -> NodeSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_of(parser.parse_args(flags), environment)


def refusal(*flags: str, **environment: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(*flags, **environment)
    return str(caught.value)


def test_flags_alone() -> None:
    found = read(
        *("--name", "a", "--bind", "tcp://127.0.0.1:1", "--advertise", "tcp://127.0.0.1:2", "--data-dir", "/d"),
        *("--group", "g", "--control", "ipc:///c", "--peers", "a=tcp://127.0.0.1:2,", "--insecure"),
        *("--option", "heartbeat=0.1", "--option", "election_timeout=[0.5,1]", "--option", "fsync=inline"),
    )
    assert found == NodeSettings(
        name="a",
        bind="tcp://127.0.0.1:1",
        advertise="tcp://127.0.0.1:2",
        data_dir="/d",
        group="g",
        control="ipc:///c",
        peers={"a": "tcp://127.0.0.1:2"},
        insecure=True,
        options=Options(heartbeat=0.1, election_timeout=(0.5, 1.0), fsync="inline"),
    )


def test_the_environment_alone() -> None:
    found = read(
        COORD_NAME="a",
        COORD_BIND="ipc:///a",
        COORD_DATA_DIR="/d",
        COORD_PEERS="a=ipc:///a, b=ipc:///b, c=ipc:///c",
        COORD_INSECURE="1",
        COORD_OPTIONS="heartbeat=0.1 priority=3",
        # As a container's template may leave it.
        COORD_GROUP="",
    )
    assert found.peers == {"a": "ipc:///a", "b": "ipc:///b", "c": "ipc:///c"}
    assert (found.name, found.group, found.insecure) == ("a", "coord", True)
    assert found.options == Options(heartbeat=0.1, priority=3)


@needs_toml
def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(FILE)
    found = read("--config", str(path), "--name", "flag", COORD_NAME="environment", COORD_BIND="ipc:///environment")
    assert (found.name, found.bind, found.group) == ("flag", "ipc:///environment", "file")
    assert found.peers == {"a": "tcp://127.0.0.1:1"}
    assert found.insecure
    assert found.options == Options(heartbeat=0.1, election_timeout=(0.5, 1.0))
    assert read(COORD_CONFIG=str(path)).name == "file"


@needs_toml
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = ", "is not TOML"),
        ("port = 1", "there is no setting 'port'; there are advertise, bind"),
        ("name = 1", "name is a int; expected text"),
        ("insecure = 'yes'", "insecure is a str; expected true or false"),
        ("peers = ['a']", "peers is a list; expected a table"),
        ("[peers]\na = 'x'\na = 'y'", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    assert problem in refusal("--config", str(path))
    assert str(path) in refusal("--config", str(path))


@needs_toml
def test_a_file_that_is_not_there() -> None:
    assert refusal("--config", "/nowhere") == "/nowhere cannot be read: No such file or directory"


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="tomllib came with Python 3.11")
def test_before_python_3_11_a_file_is_refused() -> None:
    assert "flags or environment variables instead" in refusal("--config", "/nowhere")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "data_dir is missing"),
        (("-d", "/d", "--peers", "a=ipc:///a,a=ipc:///b"), "--peers: 'a' is named twice"),
        (("-d", "/d", "--peers", "ipc:///a"), "--peers: 'ipc:///a' is not NAME=ADDRESS"),
        (("-d", "/d", "--peers", "=ipc:///a"), "is not NAME=ADDRESS"),
        (("-d", "/d", "--peers", ","), "--peers names no member"),
        (("-d", "/d", "--option", "heartbeat"), "--option: 'heartbeat' is not NAME=VALUE"),
        (("-d", "/d", "--option", "heartbeet=1"), "there is no option 'heartbeet'; there are clock_drift"),
        (("-d", "/d", "--option", "priority=1", "--option", "priority=2"), "'priority' is given twice"),
        (("-d", "/d", "--option", "heartbeat=soon"), "heartbeat='soon'"),
    ],
)
def test_flags_that_are_wrong(flags: tuple[str, ...], problem: str) -> None:
    assert problem in refusal(*flags)


def test_an_environment_that_is_wrong() -> None:
    assert "COORD_INSECURE='yes': expected 0 or 1" in refusal(COORD_DATA_DIR="/d", COORD_INSECURE="yes")
    assert "COORD_PEERS: 'b' is named twice" in refusal(COORD_DATA_DIR="/d", COORD_PEERS="b=x,b=y")


def test_an_address_may_hold_an_equals_sign() -> None:
    assert parse_peers("a=ipc:///run/x=y", "--peers") == {"a": "ipc:///run/x=y"}
