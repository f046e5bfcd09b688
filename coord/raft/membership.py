"""Who the members are, as the log says.

A membership takes effect when it is appended, not when it commits (dissertation 4.1), so the log can take one back:
`MembershipHistory` keeps those above the snapshot and rolls back with a truncation (trap 24). Changing the voters
comes later (joint consensus); what changes today is what the group learns about the members it started with: the
incarnation each was first seen with, and the group's own number.

What must not live here: quorum arithmetic (`coord.raft.quorum`), or deciding when to append one (`coord.raft.core`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgpack

from coord.raft.batch import MEMBERSHIP, Batch

#: An incarnation not yet known. Real ones are random and never 0.
ANY = 0
NAME_BYTES_MAX = 63


@dataclass(slots=True, frozen=True)
class MemberRecord:
    address: str
    #: Random, minted when a data directory is formatted. A wiped disk comes back with another (trap 46).
    incarnation: int = ANY
    voter: bool = True


@dataclass(slots=True, frozen=True)
class Membership:
    """The members by name, in name order, and the group's own random number (0 until the first leader sets it)."""

    members: Mapping[str, MemberRecord]
    group_number: int = 0

    def __hash__(self) -> int:
        return hash((tuple(self.members.items()), self.group_number))

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(name for name, member in self.members.items() if member.voter)

    def with_incarnation(self, name: str, incarnation: int) -> Membership:
        changed = {**self.members, name: replace(self.members[name], incarnation=incarnation)}
        return Membership(changed, self.group_number)

    def encode(self) -> bytes:
        rows = [[name, m.address, m.incarnation, m.voter] for name, m in self.members.items()]
        encoded: bytes = msgpack.packb([self.group_number, rows])
        return encoded


def membership_of(addresses: Mapping[str, str]) -> Membership:
    """The membership a group starts with: all voters, nobody seen yet."""
    return Membership({name: MemberRecord(addresses[name]) for name in sorted(addresses)})


def read_membership(payload: bytes) -> Membership:
    """Decode `Membership.encode`'s bytes; ValueError for anything else."""
    try:
        decoded = msgpack.unpackb(payload, strict_map_key=True)
        group_number, rows = decoded
        members = {name: MemberRecord(address, incarnation, voter) for name, address, incarnation, voter in rows}
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a membership: {error}") from error
    for name, member in members.items():
        kinds_fit = (
            isinstance(name, str)
            and 0 < len(name.encode(errors="replace")) <= NAME_BYTES_MAX
            and isinstance(member.address, str)
            and type(member.incarnation) is int
            and 0 <= member.incarnation < 1 << 64
            and isinstance(member.voter, bool)
        )
        if not kinds_fit:
            raise ValueError(f"not a membership: {rows!r}")
    membership = Membership(members, group_number)
    if type(group_number) is not int or not 0 <= group_number < 1 << 64 or not membership.voters:
        raise ValueError(f"not a membership: group number {group_number!r}, {len(membership.voters)} voters")
    return membership


def membership_in(batch: Batch) -> Membership:
    """The membership a MEMBERSHIP batch sets; ValueError when its bytes are not one."""
    assert batch.kind == MEMBERSHIP
    (payload,) = batch.payloads()
    return read_membership(payload)


class MembershipHistory:
    """Every membership from the snapshot on, by the index that set it. The last one is in force."""

    def __init__(self, index: int, membership: Membership) -> None:
        self._entries: list[tuple[int, Membership]] = [(index, membership)]

    @property
    def latest(self) -> Membership:
        return self._entries[-1][1]

    @property
    def latest_index(self) -> int:
        return self._entries[-1][0]

    def append(self, index: int, membership: Membership) -> None:
        assert index > self.latest_index, f"membership at {index} after {self.latest_index}"
        self._entries.append((index, membership))

    def truncate_from(self, index: int) -> bool:
        """Forget memberships set at `index` or later; tell whether that changed the one in force."""
        before = len(self._entries)
        while len(self._entries) > 1 and self._entries[-1][0] >= index:
            self._entries.pop()
        return len(self._entries) != before

    def at(self, index: int) -> tuple[int, Membership]:
        """The membership in force at `index`, and the index that set it."""
        found = self._entries[0]
        for entry in self._entries:
            if entry[0] > index:
                break
            found = entry
        return found

    def compact(self, index: int) -> None:
        """Keep only what a log that starts after `index` can still need."""
        kept = self.at(index)
        self._entries = [kept, *(entry for entry in self._entries if entry[0] > index)]

    def reset(self, index: int, membership: Membership) -> None:
        self._entries = [(index, membership)]
