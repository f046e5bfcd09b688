"""Disks that are full, fail, are slow or hang, and files that rot.

What must not live here: how a disk is made to fail (`faults.disk`).
"""

from __future__ import annotations

import contextlib
import shutil
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import coord
from faults.disk import SmallDisk, flip_byte, written_bytes
from faults.lab import QUICK, SMALL, Lab
from faults.scenarios import scenario

#: The log is written often, in small files, by a thread of its own.
THREAD: dict[str, Any] = {**SMALL, "fsync": "thread"}
#: And nobody who falls behind needs a snapshot.
UNCUT: dict[str, Any] = {**THREAD, "snapshot_entries": 10_000}
INLINE: dict[str, Any] = {**SMALL, "fsync": "inline"}


def _role(lab: Lab, which: str) -> str:
    leader = lab.leads()
    return leader if which == "leader" else lab.others(leader)[0]


def _failed(lab: Lab, name: str) -> None:
    """Until the member has stopped itself over its disk; its process lives and says so."""
    lab.out.add(name)
    lab.until(lambda: lab[name].call("figures")["failure"] == "StorageError", f"{name} stops itself")
    try:
        lab[name].call("put", key="k/refused", value=f"refused by {name}", timeout=1.0)
    except coord.StorageError:
        return
    raise AssertionError(f"{name} has stopped itself, and takes a write")


def _fail(lab: Lab, name: str, mode: str) -> None:
    """The member's disk fails; the others go on; with a disk that is well it comes back."""
    with lab.fault():
        lab[name].call("disk", mode=mode)
        _failed(lab, name)
        lab.progress(lab.others(name))
        assert lab[name].call("disk_figures")["syncs_after_failure"] == 0, "a failed sync was tried again"
        lab[name].kill()
    lab.again(name)


@scenario("fsync of the leader fails: EIO", quick=True, options=THREAD)
def leader_eio(lab: Lab) -> None:
    _fail(lab, _role(lab, "leader"), "rotten")


@scenario("fsync of the leader fails inline: EIO", options=INLINE)
def leader_eio_inline(lab: Lab) -> None:
    _fail(lab, _role(lab, "leader"), "rotten")


@scenario("fsync of a follower fails: EIO", options=THREAD)
def follower_eio(lab: Lab) -> None:
    _fail(lab, _role(lab, "follower"), "rotten")


@scenario("write of the leader fails: ENOSPC", options=THREAD)
def leader_enospc(lab: Lab) -> None:
    _fail(lab, _role(lab, "leader"), "full")


@scenario("write of a follower fails half way: EIO", options=INLINE)
def follower_torn(lab: Lab) -> None:
    _fail(lab, _role(lab, "follower"), "torn")


@scenario("fsync of all fails: EIO", options=THREAD)
def all_eio(lab: Lab) -> None:
    with lab.fault():
        for name in lab.names:
            lab[name].call("disk", mode="rotten")
        for name in lab.names:
            _failed(lab, name)
        lab.kill(*lab.names)
    lab.again(*lab.names)


@scenario("fsync of the leader by the system fails: EIO, by strace", options=UNCUT)
def leader_strace(lab: Lab) -> None:
    """As above with nothing of ours in between."""
    if shutil.which("strace") is None:
        lab.notes.append("strace is not installed: not done")
        with lab.fault():
            lab.hold(0.1)
        return
    leader = lab.leads()
    inject = "inject=fdatasync:error=EIO:when=60+"
    plain = lab[leader].prefix
    lab.kill(leader)
    # -D: the tracer is the child, so that the process started is the member.
    lab[leader].prefix = [*plain, "strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", inject]
    with lab.fault():
        lab.again(leader)
        _failed(lab, leader)
        lab.progress(lab.others(leader))
        lab[leader].kill()
    lab[leader].prefix = plain
    lab.again(leader)


def _slow(lab: Lab, names: str, seconds: float, hold: float, go_on: str) -> None:
    with lab.fault():
        for name in names:
            lab[name].call("disk", mode="slow", seconds=seconds)
        lab.progress(go_on)
        lab.hold(hold)
        for name in names:
            lab[name].call("disk", mode="well")


@scenario("fsync of the leader takes 1 s", options=UNCUT, quick=True)
def slow_leader(lab: Lab) -> None:
    leader = lab.leads()
    _slow(lab, leader, 1.0, 3.0, lab.others(leader))


@scenario("fsync of the leader takes 1 s, inline", options=INLINE)
def slow_leader_inline(lab: Lab) -> None:
    leader = lab.leads()
    _slow(lab, leader, 1.0, 3.0, lab.others(leader))


@scenario("fsync of a follower takes 1 s", options=THREAD)
def slow_follower(lab: Lab) -> None:
    follower = _role(lab, "follower")
    _slow(lab, follower, 1.0, 3.0, lab.others(follower))


@scenario("fsync of all takes 1 s", options=THREAD)
def all_slow(lab: Lab) -> None:
    _slow(lab, lab.names, 1.0, 5.0, "")


@scenario("fsync of the leader hangs for 5 s", options=THREAD)
def hanging_leader(lab: Lab) -> None:
    _hang(lab, _role(lab, "leader"))


@scenario("fsync of the leader hangs for 5 s, inline", options=INLINE)
def hanging_leader_inline(lab: Lab) -> None:
    _hang(lab, _role(lab, "leader"))


@scenario("fsync of a follower hangs for 5 s", options=THREAD)
def hanging_follower(lab: Lab) -> None:
    _hang(lab, _role(lab, "follower"))


def _hang(lab: Lab, name: str) -> None:
    with lab.fault():
        # Its background thread may hang with it, and then it answers nothing.
        lab.out.add(name)
        lab[name].call("disk", mode="hanging")
        lab.progress(lab.others(name))
        lab.hold(5.0)
        lab[name].call("disk", mode="well")
        lab.out.discard(name)


@scenario("fsync of the leader hangs for ever, and the process is killed", options=THREAD)
def hanging_and_killed(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.out.add(leader)
        lab[leader].call("disk", mode="hanging")
        lab.progress(lab.others(leader))
        lab[leader].kill()
    lab.again(leader)


@scenario("where the leader's log messages go is blocked for 8 s", options=QUICK)
def blocked_log(lab: Lab) -> None:
    """A member that has something to say goes on all the same."""
    leader = lab.leads()
    others = lab.others(leader)
    with lab.fault():
        lab[leader].call("block_logs", seconds=8.0)
        # A change of leader is worth a message.
        lab[leader].ask("transfer", to=others[0], timeout=10.0)
        lab.leader_among(others)
        lab.progress(others)
        try:
            lab[leader].ask("entry", key="k/0/0", linearizable=True, timeout=20.0).result(3.0)
        except FutureTimeout as error:
            raise AssertionError(f"{leader} stands still for as long as nobody takes its log messages") from error


@scenario("data directory of a stopped member put back from an older copy", options=QUICK)
def old_copy(lab: Lab) -> None:
    """It has forgotten what it acknowledged. It must not be believed, or be brought up to date; nothing may be lost."""
    follower = _role(lab, "follower")
    member, copy = lab[follower], lab.directory / "copy"
    lab.kill(follower)
    shutil.copytree(member.data_dir, copy)
    lab.again(follower)
    lab.progress(lab.names)
    with lab.fault():
        lab.kill(follower)
        shutil.rmtree(member.data_dir)
        shutil.copytree(copy, member.data_dir)
        lab.progress(lab.others(follower))
    lab.again(follower)


@contextlib.contextmanager
def _small_disk(lab: Lab, name: str) -> Any:
    """Start the member anew, from nothing but a copy of its files, on a small disk of its own."""
    member = lab[name]
    try:
        disk = SmallDisk(lab.directory / f"disk-{name}", "4m")
    except (OSError, PermissionError) as error:
        lab.notes.append(f"no small disk here: {error}; not done")
        with lab.fault():
            lab.hold(0.1)
        yield None
        return
    lab.cleanup.callback(disk.close)
    member.kill()
    shutil.copytree(member.data_dir, disk.path / "data", symlinks=True)
    member.data_dir = disk.path / "data"
    member.settings["data_dir"] = str(lab.directory / f"disk-{name}" / "data")
    member.prefix = [*disk.prefix, *member.prefix]
    lab.again(name)
    lab.progress(name)
    yield disk


def _fill(lab: Lab, which: str) -> None:
    # Only a follower can be moved; then leadership goes where it is wanted.
    name = _role(lab, "follower")
    with _small_disk(lab, name) as disk:
        if disk is None:
            return
        if which == "leader":
            lab[lab.leads()].call("transfer", to=name, timeout=10.0)
            assert lab.leads() == name, "leadership did not go where it was sent"
        with lab.fault():
            disk.fill()
            log = lab[name].log
            lab.until(lambda: "too full for the log" in log.read_text(errors="replace"), f"{name} has no room left")
            if which == "leader":
                lab.until(lambda: lab.leads() != name, f"{name} leads on with a full disk")
            lab.progress(lab.others(name))
            disk.empty()
        # It goes on by itself, in the same process.
        lab.until(lambda: "there is room again" in log.read_text(errors="replace"), f"{name} does not go on")
        lab.progress(name)


@scenario("disk of the leader is full, then has room again", options=THREAD, value_bytes=2000)
def leader_full(lab: Lab) -> None:
    _fill(lab, "leader")


@scenario("disk of a follower is full, then has room again", options=THREAD, value_bytes=2000)
def follower_full(lab: Lab) -> None:
    _fill(lab, "follower")


@scenario("one byte of a stopped member's log is not what it was", quick=True, options=QUICK)
def rot(lab: Lab) -> None:
    follower = _role(lab, "follower")
    with lab.fault():
        lab.kill(follower)
        log = max(lab[follower].data_dir.glob("wal-*"))
        place = written_bytes(log) // 3
        flip_byte(log, place)
        before = log.read_bytes()
        why = _refused_sooner_or_later(lab, follower)
        assert "damaged" in why, why
        assert log.read_bytes() == before, "a damaged log was changed"
        lab.progress(lab.others(follower))
        flip_byte(log, place)
    # Restored, it is what it was.
    lab.again(follower)


def _refused_sooner_or_later(lab: Lab, name: str) -> str:
    """Start a member that must be refused, at its start or at its first use; the text of why."""
    member = lab[name]
    try:
        member.start()
        member.call("put", key="k/refused", value=f"refused by {name}", timeout=1.0)
    except coord.StorageError as error:
        return str(error)
    finally:
        member.close()
    raise AssertionError(f"{name} has a damaged log, and takes a write")


@scenario("the log of a stopped member is gone")
def lost_log(lab: Lab) -> None:
    follower = _role(lab, "follower")
    with lab.fault():
        lab.kill(follower)
        for log in lab[follower].data_dir.glob("wal-*"):
            log.unlink()
        why = _refused_sooner_or_later(lab, follower)
        assert "the log is gone" in why, why
        lab.progress(lab.others(follower))
