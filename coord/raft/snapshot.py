"""Bringing a member that fell behind the log up to date (section 7): the leader offers, the member pulls.

The one that receives sets the pace: one piece at a time, from where it stands, so a lost piece or a new leader with the
same snapshot costs only a repeat. Bytes pass through the driver; this file never sees a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coord.raft import replication
from coord.raft.messages import (
    AppendResponse,
    InstallSnapshot,
    RenewSnapshot,
    SendSnapshot,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotOffer,
    SnapshotPull,
    StoreSnapshot,
)
from coord.raft.progress import SNAPSHOT, Progress
from coord.raft.roles import LEADER

if TYPE_CHECKING:
    from coord.raft.core import Core


@dataclass(slots=True)
class Pull:
    """A snapshot on its way in."""

    meta: SnapshotMeta
    #: Bytes kept so far; the next piece begins here.
    held: int
    #: When to ask again if the piece does not come.
    retry_at: float
    #: The piece at `held` is being stored: ask for nothing until that is done.
    storing: bool = False


def offer(core: Core, name: str, progress: Progress) -> None:
    """Leader: `name` needs what the log no longer has. It goes on with the snapshot it is already pulling, if that is
    still kept: were it to begin again with each newer one, a slow member might never end."""
    meta = _kept(core, progress.snapshot_index) or core.snapshot
    if meta is None:
        # Only possible while this member itself has not finished its first snapshot: keep probing.
        progress.become_probe(core.log.base + 1)
        progress.paused = True
        return
    progress.become_snapshot(meta.index, core.now)
    core.send(name, SnapshotOffer(core.term, core.rounds.newest, meta))


def on_offer(core: Core, sender: str, message: SnapshotOffer) -> None:
    if not replication.follow(core, sender, message.term):
        if not core.halted:
            core.send(sender, AppendResponse(core.term, False, 0, 0))
        return
    meta = message.meta
    if not (0 < meta.term <= message.term and meta.membership_index <= meta.index and meta.membership.voters):
        return
    if meta.index <= core.commit:
        # An old offer, or we caught up meanwhile: what is committed is shared.
        core.send_when_durable(sender, AppendResponse(core.term, True, core.commit, message.round))
        return
    if core.pull is None or core.pull.meta != meta:
        core.pull = Pull(meta, 0, 0.0)
    core.pull.retry_at = min(core.pull.retry_at, core.now)
    _ask(core)


def on_pull(core: Core, sender: str, message: SnapshotPull) -> None:
    progress = core.progress.get(sender)
    if core.role != LEADER or message.term != core.term or progress is None:
        return
    if progress.state == SNAPSHOT:
        progress.offered_at = core.now
    meta = _kept(core, message.index)
    if meta is not None:
        if 0 <= message.offset < meta.size:
            core.command(SendSnapshot(sender, message.index, message.offset))
        elif message.offset == meta.size and progress.state == SNAPSHOT:
            # Rot, most likely. It would be pulled in vain for ever; the state in memory is good, so it makes another.
            progress.snapshot_index = 0
            core.command(RenewSnapshot())
    elif progress.state == SNAPSHOT:
        # Newer ones have taken its place.
        offer(core, sender, progress)


def on_chunk(core: Core, sender: str, message: SnapshotChunk) -> None:
    pull = core.pull
    if message.term != core.term or core.leader != sender or pull is None:
        return
    if pull.storing or message.index != pull.meta.index or message.offset != pull.held:
        return
    if not 0 < len(message.data) <= pull.meta.size - pull.held:
        return
    pull.storing = True
    core.command(StoreSnapshot(pull.meta, message.offset, message.data))


def progressed(core: Core, index: int, held: int) -> None:
    pull = core.pull
    if pull is None or pull.meta.index != index:
        return
    pull.held, pull.storing = held, False
    pull.retry_at = core.now
    if held < pull.meta.size:
        _ask(core)


def unreadable(core: Core, name: str, index: int) -> None:
    """Leader: what `name` pulls is gone or cannot be read here; nobody is sent to it again."""
    progress = core.progress.get(name)
    if progress is not None and progress.snapshot_index == index:
        progress.snapshot_index = 0
    if core.older_snapshot is not None and core.older_snapshot.index == index:
        core.older_snapshot = None
    elif core.role == LEADER and core.snapshot is not None and core.snapshot.index == index:
        core.command(RenewSnapshot())


def failed(core: Core, index: int, *, doubted: bool) -> None:
    """What was pulled is not kept. `doubted`: no byte is missing, and they are not what was offered, so the leader is
    to make another."""
    pull = core.pull
    if pull is None or pull.meta.index != index:
        return
    if doubted and core.leader is not None:
        core.send(core.leader, SnapshotPull(core.term, index, pull.meta.size))
    core.pull = None


def install(core: Core, meta: SnapshotMeta) -> None:
    """The snapshot is durable: it takes the place of the log, unless the log has caught up meanwhile."""
    if core.pull is not None and core.pull.meta.index <= meta.index:
        core.pull = None
    if meta.index <= core.commit or core.role == LEADER:
        return
    core.snapshot, core.older_snapshot = meta, None
    if core.log.term_at(meta.index) != meta.term or not core.log.ends_batch(meta.index):
        core.reset_log(meta)
    core.commit = core.handed = core.applied = meta.index
    core.command(InstallSnapshot(meta))
    if core.leader is not None:
        core.verified = max(core.verified, meta.index)
        core.send_when_durable(core.leader, AppendResponse(core.term, True, meta.index, 0))


def tick(core: Core) -> None:
    """Ask again for a piece that did not come; offer again to a member that stopped pulling."""
    if core.pull is not None and core.leader is not None and core.now >= core.pull.retry_at:
        _ask(core)
    if core.role == LEADER:
        patience = 2 * core.settings.heartbeat
        for name, progress in core.progress.items():
            if progress.state == SNAPSHOT and core.now - progress.offered_at > patience:
                offer(core, name, progress)


def _kept(core: Core, index: int) -> SnapshotMeta | None:
    """The snapshot of `index`, if it is one of the two that are kept."""
    for meta in (core.snapshot, core.older_snapshot):
        if meta is not None and meta.index == index:
            return meta
    return None


def _ask(core: Core) -> None:
    pull = core.pull
    assert pull is not None
    if pull.storing or core.leader is None or core.now < pull.retry_at:
        return
    pull.retry_at = core.now + 2 * core.settings.heartbeat
    core.send(core.leader, SnapshotPull(core.term, pull.meta.index, pull.held))
