"""Every byte of a member's directory damaged, and every file cut at every length (reliability 2.1).

A start then says that something is wrong, or finds a state that was promised; never wrong data, never less than what a
mark that is still there says was on disk, and never another error. `test_log` flips two bits of every byte of a log
without snapshots; here are other bits, whole bytes, every length, and directories with snapshots.
"""

from __future__ import annotations

import pytest

from coord.storage.memory import MemoryDisk
from storage.builders import PATH
from storage.damage import Made, directory, is_state, start

CASES = [(clean, snapshots) for clean in (True, False) for snapshots in (0, 1, 2)]
every_directory = pytest.mark.parametrize(
    "made",
    [pytest.param(case, id=f"{'marked' if case[0] else 'unmarked'}, {case[1]} snapshots") for case in CASES],
)


def damaged_or_whole(made: Made, name: str, at: int, what: str, found_in: list[str]) -> None:
    """The verdict on a segment damaged at byte `at`; `found_in` collects how it was taken."""
    disk = made.again()
    if what == "cut":
        disk.cut(f"{PATH}/{name}", at)
    else:
        disk.flip(f"{PATH}/{name}", at, int(what))
    found = start(disk)
    where = f"{what} at {name}, byte {at}"
    records = made.records(name)
    if found.refusal:
        found_in.append("damage")
        assert at < records[-1].end, f"{where}: nothing was lost, yet {found.refusal}"
        return
    if at >= records[-1].end:
        found_in.append("unused")
        assert is_state(found, made.states[-1]), f"{where}: nothing was lost, but {found} was found"
        return
    # Only the last segment may end early, and not below what the records that are left say was on disk.
    found_in.append("torn")
    assert name == made.segments[-1], f"{where}: a hole in the log went unseen"
    left = [record for record in records if record.end <= at]
    assert left, f"{where}: a segment without its first record went unseen"
    assert is_state(found, made.after(left[-1])), f"{where}: {found}, but the log held up to {left[-1].sequence}"
    statements = [record.durable for record in (left if what == "cut" else records)]
    assert max(statements) <= left[-1].sequence, f"{where}: record {max(statements)} was on disk, and is not missed"


def contents(disk: MemoryDisk) -> dict[str, bytes]:
    """All files, but the one every start writes its process id into."""
    paths = [f"{PATH}/{name}" for name in disk.names(PATH) if name != "LOCK"]
    return {path: disk.read(path, 0, disk.size(path)) for path in paths}


@every_directory
def test_every_length_of_every_segment(made: tuple[bool, int]) -> None:
    directory_made = directory(clean=made[0], snapshots=made[1])
    taken: list[str] = []
    for name in directory_made.segments:
        for length in range(directory_made.size(name)):
            damaged_or_whole(directory_made, name, length, "cut", taken)
    assert {"damage", "torn", "unused"} <= set(taken), "a kind of end never came up"


@every_directory
@pytest.mark.parametrize("mask", [0x02, 0x24, 0xFF])
def test_every_byte_of_every_segment(made: tuple[bool, int], mask: int) -> None:
    directory_made = directory(clean=made[0], snapshots=made[1])
    taken: list[str] = []
    for name in directory_made.segments:
        for at in range(directory_made.size(name)):
            damaged_or_whole(directory_made, name, at, str(mask), taken)
    assert taken.count("damage") > 500
    # The last record of all, when nothing after it says that it was on disk; the mark itself, when there is one.
    last = directory_made.records(directory_made.segments[-1])[-1]
    assert taken.count("torn") == last.end - last.start, "more than the very last record could be lost unseen"


@every_directory
def test_every_byte_and_every_length_of_every_snapshot(made: tuple[bool, int]) -> None:
    """One that cannot be read loses nothing: the one before it, and the log, are enough."""
    directory_made = directory(clean=made[0], snapshots=made[1])
    names = directory_made.files("snapshot-")
    assert len(names) == made[1]
    for name in names:
        path, size = f"{PATH}/{name}", directory_made.size(name)
        for at in range(size):
            for mask in (0x01, 0x80, 0xFF, None):
                disk = directory_made.again()
                if mask is None:
                    disk.cut(path, at)
                else:
                    disk.flip(path, at, mask)
                found = start(disk)
                where = f"{name} {'cut' if mask is None else 'changed'} at byte {at}"
                assert not found.refusal, f"{where}: {found.refusal}"
                whole = [one for one in directory_made.snapshots if not name.endswith(f"{one[0]:020d}")]
                # The older one is only read when it is needed; the newest is never trusted unread.
                newest = directory_made.snapshots[-1]
                expected = {newest} if name != names[-1] else {whole[-1] if whole else (0, 0)}
                assert found.snapshot in expected, f"{where}: snapshot {found.snapshot} was used"
                assert is_state(found, directory_made.states[-1]), f"{where}: {found}"


@pytest.mark.parametrize("clean", [True, False])
def test_every_byte_and_every_length_of_the_identity(clean: bool) -> None:
    made = directory(clean=clean, snapshots=1)
    path = f"{PATH}/identity"
    for at in range(made.size("identity")):
        for mask in (0x01, 0x10, 0x80, 0xFF, None):
            disk = made.again()
            if mask is None:
                disk.cut(path, at)
            else:
                disk.flip(path, at, mask)
            before = contents(disk)
            assert "cannot be trusted" in start(disk).refusal, f"byte {at}, mask {mask}: whose it is was believed"
            assert contents(disk) == before, f"byte {at}, mask {mask}: the directory was changed"


@pytest.mark.parametrize("name", ["LOCK", "reserve"])
def test_what_holds_nothing_can_rot(name: str) -> None:
    made = directory(clean=False, snapshots=1)
    for at in range(made.size(name)):
        for cut in (True, False):
            disk = made.again()
            if cut:
                disk.cut(f"{PATH}/{name}", at)
            else:
                disk.flip(f"{PATH}/{name}", at, 0xFF)
            found = start(disk)
            assert is_state(found, made.states[-1]), f"{name}, byte {at}: {found}"
