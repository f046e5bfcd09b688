"""A member's directory with any harm done to it, several kinds at once: a start refuses, or finds a promised state.

`tests/storage/test_every_byte` does every single one; here they come together: bytes changed, sectors zeroed or
exchanged, stale bytes in the wrong place, files cut, swapped, removed or renamed.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coord.storage.memory import SECTOR_BYTES, MemoryDisk
from storage.builders import PATH
from storage.damage import Made, directory, is_state, start

MADE = {
    (clean, snapshots): directory(clean=clean, snapshots=snapshots) for clean in (True, False) for snapshots in (0, 2)
}
PROPERTIES = settings.get_profile("properties")


def overwrite(disk: MemoryDisk, path: str, at: int, data: bytes) -> None:
    """As if these bytes had been written there, as far as the file goes."""
    present = disk.read(path, at, len(data))
    for step, (old, new) in enumerate(zip(present, data, strict=False)):
        disk.flip(path, at + step, old ^ new)


@st.composite
def harmed(draw: st.DrawFn, names: st.SearchStrategy[str], disk: MemoryDisk) -> str:
    """Do one harm to `disk`; tell which."""
    name = draw(names)
    path, size = f"{PATH}/{name}", disk.size(f"{PATH}/{name}")
    what = draw(st.sampled_from(["flip", "flip", "change", "zero", "stale", "cut", "swap", "remove"]))
    # Mostly where something is written.
    used = len(disk.read(path, 0, size).rstrip(b"\0"))
    at = draw(st.integers(0, max(used - 1, 0)) | st.integers(0, max(size - 1, 0)))
    if what == "flip":
        disk.flip(path, at, draw(st.integers(1, 255)))
    elif what == "change":
        overwrite(disk, path, at, draw(st.binary(min_size=1, max_size=40)))
    elif what == "zero":
        low = at - at % SECTOR_BYTES if draw(st.booleans()) else at
        overwrite(disk, path, low, bytes(draw(st.sampled_from([1, 48, SECTOR_BYTES, 2 * SECTOR_BYTES]))))
    elif what == "stale":
        source = f"{PATH}/{draw(names)}"
        begin = draw(st.integers(0, max(disk.size(source) - 1, 0)))
        overwrite(disk, path, at, disk.read(source, begin, draw(st.sampled_from([48, 150, SECTOR_BYTES]))))
    elif what == "cut":
        disk.cut(path, at)
    elif what == "swap":
        other = draw(names)
        if other != name:
            for old, new in ((path, f"{PATH}/x"), (f"{PATH}/{other}", path), (f"{PATH}/x", f"{PATH}/{other}")):
                disk.rename(old, new)
    else:
        disk.unlink(path)
    return f"{what} {name} at {at}"


@PROPERTIES
@given(st.sampled_from(sorted(MADE)), st.integers(1, 4), st.data())
def test_any_harm_is_refused_or_leaves_a_promised_state(
    which: tuple[bool, int], times: int, data: st.DataObject
) -> None:
    """Never data that nobody wrote, and no error but those that say what is wrong."""
    made = MADE[which]
    disk = made.again()
    for _ in range(times):
        names = [name for name in disk.names(PATH) if name != "LOCK"]
        if names:
            data.draw(harmed(st.sampled_from(names), disk), label="harm")
    found = start(disk)
    if not found.refusal:
        assert any(is_state(found, state) for state in made.states), f"{found} was never the state"


@PROPERTIES
@given(st.sampled_from(sorted(MADE)), st.integers(1, 3), st.data())
def test_harm_before_the_last_segment_is_refused_or_loses_nothing(
    which: tuple[bool, int], times: int, data: st.DataObject
) -> None:
    """Of what later segments and snapshots vouch for, nothing can go missing unseen."""
    made = MADE[which]
    disk = made.again()
    older = made.segments[:-1] + made.files("snapshot-")[:1]
    for _ in range(times):
        left = sorted(set(older) & set(disk.names(PATH)))
        if left:
            data.draw(harmed(st.sampled_from(left), disk), label="harm")
    found = start(disk)
    assert found.refusal or is_state(found, made.states[-1]), f"{found}, but {made.states[-1]} was promised"


@PROPERTIES
@given(st.sampled_from(sorted(MADE)), st.data())
def test_what_is_refused_once_is_refused_again_and_left_as_it_was(which: tuple[bool, int], data: st.DataObject) -> None:
    disk = MADE[which].again()
    segments = MADE[which].segments
    data.draw(harmed(st.sampled_from(segments), disk), label="harm")
    before = logs(disk)
    first = start(disk)
    if first.refusal:
        assert logs(disk) == before, "a log that is not trusted was changed"
        disk.restart()
        assert start(disk).refusal == first.refusal, "another start thought better of it"


def logs(disk: MemoryDisk) -> dict[str, bytes]:
    return {name: disk.read(f"{PATH}/{name}", 0, 1 << 20) for name in disk.names(PATH) if name != "LOCK"}


def test_the_directories_are_as_told() -> None:
    for (clean, snapshots), made in MADE.items():
        assert isinstance(made, Made)
        assert len(made.segments) >= 2, f"{clean}, {snapshots}: too few segments to tell the last from the others"
        assert is_state(start(made.again()), made.states[-1]), f"{clean}, {snapshots}: not whole to begin with"
