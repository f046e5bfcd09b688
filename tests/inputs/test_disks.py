"""Disks that are full, read-only, wiped or somebody else's: a clear error there, and the group goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import coord
from inputs.conftest import PATIENCE, Nodes, until
from processes.harness import Group, MemberProcess

#: Runs what follows with a file system of its own on the directory named first. `mount -o` options come in %s.
_MOUNT = 'mount -t tmpfs -o %s tmpfs "$0" && exec "$@"'


def mounted(member: MemberProcess, options: str) -> MemberProcess:
    """`member`, with a small file system for its data that only its own process sees, where that is allowed."""
    member.data_dir.mkdir()
    member.prefix = ["unshare", "--mount", "sh", "-c", _MOUNT % options, str(member.data_dir)]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting takes root and unshare")
    if subprocess.run([*member.prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    return member


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ("ro", coord.ConfigurationError, "Read-only file system"),
        ("size=1m", coord.StorageError, "No space left on device"),
        ("size=4k,nr_inodes=2", coord.ConfigurationError, "No space left on device"),
    ],
    ids=["read-only", "too small for a log", "too small for anything"],
)
def test_a_disk_that_cannot_be_used(tmp_path: Path, options: str, error: type[Exception], text: str) -> None:
    member = mounted(Group(tmp_path)["a"], options)
    try:
        with pytest.raises(error, match=text):
            member.start()
    finally:
        member.close()


def test_a_directory_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may do anything")
    (tmp_path / "a").mkdir(mode=0o500)
    with pytest.raises(coord.ConfigurationError, match="Permission denied"):
        coord.Node("a", data_dir=tmp_path / "a", registry=None).start()


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_disk_that_fills_up(tmp_path: Path, which: str) -> None:
    """The member says so and stops; its process lives; the others go on; with room again it comes back, with all."""
    with Group(tmp_path, wal_segment_bytes=1 << 20) as group:
        group["a"].call("put", key="before", value=1)
        leader, follower = group.leader(), group.followers()[0]
        full, other = (leader, follower) if which == "leader" else (follower, leader)
        full.call("fill_disk")
        # Whoever leads, it must write this, and finds that it cannot.
        revision = other.call("put", key="meanwhile", value=2, timeout=PATIENCE)
        with pytest.raises(coord.StorageError, match="the disk failed, and this member has stopped itself"):
            until(lambda: full.call("status") is None, "the member has stopped")
        with pytest.raises(coord.StorageError, match="File too large"):
            full.call("put", key="k", value=3)
        assert other.call("entry", key="meanwhile", linearizable=True) == [2, revision]
        full.close()
        full.start()
        full.call("arrive", revision=revision, timeout=PATIENCE)
        assert full.call("everything").keys() == {"before", "meanwhile"}
        assert len({status["state_hash"] for status in group.settled()}) == 1


def refused(node: coord.Node) -> str:
    """The text of what `node` says about being refused by its group."""

    def ask() -> str:
        try:
            node.config.put("refused", 1, timeout=0.5)
        except coord.IdentityError as error:
            return str(error)
        except coord.Unavailable:
            return ""
        raise AssertionError("a member with another disk took part")

    text: str = until(ask, "refused by the group")
    return text


def test_a_member_with_a_wiped_disk(nodes: Nodes) -> None:
    a, b, c = nodes.start("a", "b", "c")
    a.config.put("k", 1, timeout=PATIENCE)
    c.config.put("k", 2, timeout=PATIENCE)
    c.stop()
    shutil.rmtree(nodes.directory / "c")
    (wiped,) = nodes.start("c")
    assert "refused by its group" in refused(wiped)
    assert wiped.config.snapshot() == {}
    assert a.config.put("k", 3, timeout=PATIENCE) > 0
    assert b.config.get("k", linearizable=True, timeout=PATIENCE) == 3


def test_a_volatile_voter_that_restarts_is_another_member(nodes: Nodes) -> None:
    a, b = nodes.start("a", "b")
    c = nodes.make("c", data_dir=None).start()
    c.config.put("k", 1, timeout=PATIENCE)
    c.stop()
    again = nodes.make("c", data_dir=None).start()
    assert "refused by its group" in refused(again)
    assert a.config.put("k", 2, timeout=PATIENCE) > 0
    assert b.config.get("k", linearizable=True, timeout=PATIENCE) == 2


def test_two_with_one_name(nodes: Nodes) -> None:
    members = nodes.start("a", "b", "c")
    for member in members:
        member.config.put("k", 1, timeout=PATIENCE)
    address = next(iter(Nodes(nodes.directory).peers.values()))
    second = nodes.make("c", bind=address, data_dir=nodes.directory / "second").start()
    with pytest.raises(coord.Unavailable, match="nothing heard from a, b"):
        second.config.put("k", "second", timeout=2.0)
    # What the others answer reaches the one they know, which is not meant.
    assert members[2]._running_loop().replica.refusal == ""
    for member in members:
        assert member.config.put("k", 2, timeout=PATIENCE) > 0
    assert members[2].config.get("k", linearizable=True) == 2
    assert second.config.snapshot() == {}


def test_a_group_with_another_founding(nodes: Nodes) -> None:
    """Same name and addresses, other members: the frames are dropped on both sides."""
    a, b = nodes.start("a", "b")
    a.config.put("k", 1, timeout=PATIENCE)
    peers = {**nodes.peers, "x": "tcp://127.0.0.1:9", "y": "tcp://127.0.0.1:19"}
    odd = nodes.make("c", peers=peers).start()
    with pytest.raises(coord.Unavailable, match="nothing heard from a, b"):
        odd.config.put("k", 2, timeout=1.0)
    until(lambda: a._running_loop().replica.counters.frames_dropped["cluster"], "counted")
    assert b.config.get("k", linearizable=True, timeout=PATIENCE) == 1
