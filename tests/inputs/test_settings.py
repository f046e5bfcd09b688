"""What a node refuses at construction or start, each with the field and the fix in the text."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

import coord
from inputs.conftest import Nodes

HOME = "tcp://127.0.0.1:7400"
THREE: dict[Any, str] = {"a": HOME, "b": "tcp://127.0.0.1:7401", "c": "tcp://127.0.0.1:7402"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bind": "127.0.0.1:7400"}, "begins with neither tcp:// nor ipc://"),
        ({"bind": "tcp://127.0.0.1"}, "has no port"),
        ({"bind": "tcp://127.0.0.1:99999"}, "above 65535"),
        ({"bind": 7400}, "is not text"),
        ({"bind": None}, "bind is missing"),
        ({"bind": "tcp://10.1.2.3:7400"}, "insecure=True"),
        ({"advertise": "tcp://*:7400"}, "advertise"),
        ({"peers": {**THREE, "b": "tcp://127.0.0.1:0"}}, r"peers\['b'\]: .* has port 0"),
        ({"peers": {**THREE, "b": "tcp://0.0.0.0:7401"}}, "every interface"),
        ({"peers": {**THREE, "b": "tcp://[::1:7401"}}, r"peers\['b'\]"),
        ({"peers": {**THREE, "b c": HOME}}, "'b c' is no member's name"),
        ({"peers": {**THREE, 4: HOME}}, "4 is no member's name"),
        ({"peers": {"b": HOME}}, "does not name this member, 'a'"),
        ({"peers": {"a": HOME, "b": THREE["b"]}}, "odd number"),
        ({"peers": {**THREE, "c": THREE["b"]}}, "more than one member"),
        ({"peers": list(THREE)}, "peers"),
        ({"name": "a b"}, "name='a b'"),
        ({"name": ""}, "name=''"),
        ({"name": "x" * 64}, "1 to 63"),
        ({"name": None}, "name is missing"),
        ({"group": ""}, "group=''"),
        ({"group": "g" * 256}, "255 bytes"),
        ({"group": None}, "group=None"),
        ({"keys": object()}, "keys"),
    ],
)
def test_refused_at_construction(changes: dict[str, Any], text: str) -> None:
    settings: dict[str, Any] = {"name": "a", "bind": HOME, "peers": THREE, "registry": None, **changes}
    with pytest.raises(coord.ConfigurationError, match=text):
        coord.Node(settings.pop("name"), **settings)


def test_a_file_in_the_way_of_the_directory(nodes: Nodes) -> None:
    (nodes.directory / "a").write_text("mine")
    with pytest.raises(coord.ConfigurationError, match="a file is in the way"):
        nodes.start("a")
    assert (nodes.directory / "a").read_text() == "mine"


def test_a_directory_with_something_else_in_it(nodes: Nodes) -> None:
    (nodes.directory / "a").mkdir()
    (nodes.directory / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(coord.ConfigurationError, match=r"thesis\.txt"):
        nodes.start("a")
    assert os.listdir(nodes.directory / "a") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"group": "other"}, "belongs to group 'coord', not 'other'"), ({"peers": None}, "founded with other members")],
)
def test_the_directory_of_another_group(nodes: Nodes, changes: dict[str, Any], text: str) -> None:
    nodes.start("a")[0].stop()
    with pytest.raises(coord.IdentityError, match=text):
        nodes.make("a", **changes).start()
    nodes.start("a")


def test_the_directory_of_another_member(nodes: Nodes) -> None:
    nodes.start("a")[0].stop()
    with pytest.raises(coord.IdentityError, match="belongs to member 'a', not 'b'"):
        nodes.make("b", data_dir=nodes.directory / "a").start()


def test_a_directory_in_use(nodes: Nodes) -> None:
    (first,) = nodes.start("a")
    with pytest.raises(coord.IdentityError, match=f"in use by this very process .pid {os.getpid()}"):
        nodes.start("a")
    assert first.status().name == "a"
    first.stop()
    nodes.start("a")


def test_a_port_in_use(nodes: Nodes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(coord.ConfigurationError, match=f"another process listens on {address}"):
            nodes.make("a", bind=address).start()
    # Nothing was kept: the directory is free again.
    nodes.start("a")


def test_an_address_that_is_not_ours(nodes: Nodes) -> None:
    with pytest.raises(coord.ConfigurationError, match="is not an address of this host"):
        nodes.make("a", bind="tcp://192.0.2.1:7400", insecure=True).start()


def test_a_bind_name_without_an_address(nodes: Nodes) -> None:
    with pytest.raises(coord.ConfigurationError, match=r"nowhere\.invalid"):
        nodes.make("a", bind="tcp://nowhere.invalid:7400", insecure=True).start()


def test_a_peer_whose_name_cannot_be_resolved_is_waited_for(nodes: Nodes) -> None:
    nodes.peers["c"] = "tcp://nowhere.invalid:7402"
    a, _ = nodes.start("a", "b")
    assert a.config.put("k", 1, timeout=30) > 0


def test_a_group_of_one_with_a_directory_keeps_it(tmp_path: Path) -> None:
    with coord.Node("a", data_dir=tmp_path / "a", registry=None) as node:
        node.config["k"] = 1
    with coord.Node("a", data_dir=tmp_path / "a", registry=None) as node:
        assert node.config["k"] == 1
