"""What must hold between the members, and the little history that takes to know.

What one member must keep by itself (its term and its commit index never fall, it says nothing its disk would not
remember, it votes once) is checked in `exhaustive.turn`. Here is what two or more must agree about.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from coord.raft.roles import LEADER
from exhaustive.frozen import NAMES, FrozenLog, Local
from exhaustive.turn import Turn, log_end, log_term, require

MAJORITY = len(NAMES) // 2 + 1


class History(NamedTuple):
    """What happened, as far as a present state does not tell: it holds no names, so it suits everybody."""

    #: Of each entry ever committed: (its term, the term of the leader that committed it).
    committed: tuple[tuple[int, int], ...] = ()
    crashes: int = 0
    #: How much was committed when each read was asked.
    asked: tuple[int, ...] = ()


def judge(turn: Turn, group: Sequence[Local], history: History, *, harm_only: bool) -> History:
    """`turn` has led to `group`: raises Violation, or returns what is known now."""
    local = turn.local
    if turn.log_changed:
        for other in group:
            index = differ_at(local.core.log, other.core.log)
            require(not index, f"{local.name} and {other.name} share an entry at {index}, and differ before it")
    if turn.won:
        for other in group:
            same = other.name != local.name and other.core.role == LEADER and other.core.term == local.core.term
            require(not same, f"{other.name} and {local.name} both lead term {local.core.term}")
    if turn.committed:
        history = _committed(local, group, history, harm_only)
    if turn.won or turn.committed:
        for other in group:
            _leader_is_complete(other, history)
    if not harm_only:
        for to, term, index, held in turn.acknowledged:
            _agrees(f"{local.name} acknowledges", group, to, term, index, held)
        for to, term, index, held in turn.agreed:
            _agrees(f"{local.name} says it agrees up to", group, to, term, index, held)
        for index in [*turn.told, *(index for _, index in turn.reads)]:
            require(index <= len(history.committed), f"a read at {index}, committed {len(history.committed)}")
    for read, index in turn.reads:
        asked = history.asked[read - 1]
        require(index >= asked, f"read {read} is answered as of {index}; {asked} was committed when it was asked")
    return history


def _committed(local: Local, group: Sequence[Local], history: History, harm_only: bool) -> History:
    """State machine safety, and what it takes to commit."""
    core, known = local.core, history.committed
    for index in range(1, min(core.commit, len(known)) + 1):
        term, was = log_term(core.log, index), known[index - 1][0]
        require(term == was, f"{local.name} commits {index} of term {term}; one of term {was} was committed there")
    if core.commit <= len(known):
        return history
    index = core.commit
    require(
        core.role == LEADER or harm_only,
        f"{local.name} does not lead, and commits {index}, which nobody committed before",
    )
    term = log_term(core.log, index)
    require(
        term == core.term or harm_only,
        f"{local.name} leads term {core.term}, and commits {index} of term {term} by counting",
    )
    holders = [other.name for other in group if _same_up_to(other.disk.log, core.log, index)]
    require(
        len(holders) >= MAJORITY or harm_only, f"{local.name} commits {index}, which only the disks of {holders} hold"
    )
    new = [(log_term(core.log, place) or 0, core.term) for place in range(len(known) + 1, index + 1)]
    return history._replace(committed=(*known, *new))


def _leader_is_complete(local: Local, history: History) -> None:
    """It holds all that was committed up to its term. An older leader, not yet aware of a newer one, may lack more."""
    core = local.core
    if core.role != LEADER:
        return
    for index, (term, committed_in) in enumerate(history.committed, start=1):
        held = log_term(core.log, index)
        require(
            committed_in > core.term or held == term,
            f"{local.name} leads term {core.term}; at {index} it has {held}, term {committed_in} committed {term}",
        )


@cache
def differ_at(one: FrozenLog, other: FrozenLog) -> int:
    """Where two logs have an entry of the same term at the same index, they must be the same up to there: 0, or the
    index of one before which they are not."""
    for index in range(min(log_end(one), log_end(other)), 0, -1):
        if log_term(one, index) == log_term(other, index):
            return 0 if _same_up_to(one, other, index) else index
    return 0


def _same_up_to(one: FrozenLog, other: FrozenLog, index: int) -> bool:
    short, long = _up_to(one, index), _up_to(other, index)
    return short == long and log_end(short) >= index


def _up_to(log: FrozenLog, index: int) -> FrozenLog:
    return tuple(batch for batch in log if batch[2] <= index)


def _agrees(says: str, group: Sequence[Local], to: str, term: int, index: int, held: int | None) -> None:
    """If `to` still leads `term`, its log has the same entry there."""
    for other in group:
        if other.name == to and other.core.role == LEADER and other.core.term == term:
            theirs = log_term(other.core.log, index)
            require(theirs == held, f"{says} {index} of term {held}; {to} has one of term {theirs} there")
