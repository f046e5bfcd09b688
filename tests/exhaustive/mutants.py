"""Mistakes put back into the core, one at a time, and the scope in which the search must find each.

A mutant rewrites a few words of one function; where the words are no longer there, applying it fails, so the table
cannot silently come to test nothing. What must not live here: the search.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from coord.raft import core, election, quorum, replication
from coord.raft.core import Core
from exhaustive.scope import INSTANT, REAL, Scope, disk_of


@dataclass(frozen=True)
class Mutant:
    name: str
    #: In `owner.name`, `old` becomes `new`: (owner, name, old, new).
    edits: tuple[tuple[Any, str, str, str], ...]
    scope: Scope
    #: Where the harm shows that comes of it, if not there too.
    harm_scope: Scope | None = None
    #: False: only the broken promise shows in a small scope.
    harm: bool = True


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Within this context every core makes the mistake."""
    with ExitStack() as stack:
        for owner, name in dict.fromkeys((owner, name) for owner, name, _, _ in mutant.edits):
            _rewrite(owner, name, [edit[2:] for edit in mutant.edits if edit[:2] == (owner, name)], stack)
        yield


def _rewrite(owner: Any, name: str, words: list[tuple[str, str]], stack: ExitStack) -> None:
    original = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in words:
        assert source.count(old) == 1, f"{name} has {source.count(old)} times: {old}"
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    # In the original's own module, so that all names mean the same.
    scope = sys.modules[original.__module__].__dict__
    exec(compile(source, f"<mutant of {name}>", "exec", __future__.annotations.compiler_flag), scope, made)
    stack.enter_context(mock.patch.object(owner, name, made[name]))
    for kind, handler in list(core._HANDLERS.items()):
        if handler is original:
            stack.enter_context(mock.patch.dict(core._HANDLERS, {kind: made[name]}))


#: Fewest states in which most mistakes show.
_TWO_TERMS = Scope(terms=2, entries=1, pre_votes=INSTANT, disk_answers=INSTANT)
_CRASH = Scope(terms=1, entries=1, crashes=1, pre_votes=INSTANT, disk_answers=INSTANT)
_SLOW = Scope(terms=1, entries=1, pre_votes=INSTANT)
#: "a" leads and has committed its first entry.
_READS = Scope(
    terms=2,
    entries=0,
    rounds=2,
    reads=1,
    pre_votes=INSTANT,
    disk_answers=INSTANT,
    opening=("a stands", "a > b", "b > a", "a > b", "b > a"),
)
#: By now "b" leads as well; what "c" answered to "a" before is still under way.
TWO_LEAD = replace(
    _READS,
    old_messages=False,
    opening=(*_READS.opening, "a > c", "b stands", "b > c", "c > b", "b > c", "c > b"),
)
#: As in figure 8 of the paper: in term 1 only "a" got its entry, in term 2 only "b"; then both come back.
_FIGURE_8 = Scope(
    terms=4,
    entries=0,
    pre_votes=INSTANT,
    disk_answers=INSTANT,
    small_appends=True,
    disks=(disk_of(2, "", 1), disk_of(2, "b", 2), disk_of(2, "b")),
)

_SECOND_VOTE = (
    Core,
    "set_vote",
    'assert self.vote in ("", name), f"second vote in term {self.term}: {self.vote} then {name}"',
    "pass",
)
_UP_TO_DATE = "(message.last_term, message.last_index) >= (core.log.last_term, core.log.last_index)"

MUTANTS = [
    Mutant(
        "two votes in one term",
        (
            (
                election,
                "_may_vote_for",
                "# The same candidate asking again is granted again (trap 11).\n"
                '        free = core.vote in ("", sender)',
                "free = True",
            ),
            _SECOND_VOTE,
        ),
        _CRASH,
    ),
    Mutant(
        "terms and votes are told before they are durable",
        ((Core, "send", "if self._hard_state_in_doubt():", "if False:"),),
        _CRASH,
    ),
    Mutant(
        "what is to wait for the disk is told at once",
        ((Core, "send_when_durable", "self._riding.append(", "self._out.append("),),
        _CRASH,
    ),
    Mutant(
        "entries are acknowledged before they are durable",
        ((replication, "on_append", "core.send_when_durable(", "core.send("),),
        _SLOW,
        Scope(
            terms=2,
            entries=0,
            crashes=1,
            pre_votes=INSTANT,
            # The first entry of "a" is on its own disk, and "b" has heard of it.
            opening=("a stands", "a syncs", "a > b", "b syncs", "b > a", "a syncs", "a > b"),
        ),
    ),
    Mutant(
        "the leader counts what its own disk has not kept",
        ((replication, "advance_commit", "log.persisted if", "log.last_index if"),),
        _SLOW,
        Scope(
            terms=2,
            entries=0,
            crashes=1,
            pre_votes=INSTANT,
            # "a" leads; its first entry is on the disk of "b", and not on its own.
            opening=("a stands", "a syncs", "a > b", "b syncs", "b > a", "a > b", "b syncs", "b > a"),
        ),
    ),
    Mutant(
        "entries of older terms are committed by counting",
        ((replication, "advance_commit", " and log.term_at(index) == core.term", ""),),
        _FIGURE_8,
    ),
    Mutant(
        "the log does not matter for a vote",
        ((election, "_may_vote_for", f"return free and {_UP_TO_DATE}", "return free"),),
        _TWO_TERMS,
    ),
    Mutant(
        "a conflicting tail is kept",
        ((replication, "_accept", "if log.term_at(batch.first) == batch.term:", "if batch.last <= log.last_index:"),),
        _TWO_TERMS,
    ),
    Mutant(
        "an acknowledgement names the end of the log",
        (
            (replication, "on_append", "batches[-1].last if batches else previous", "core.log.last_index"),
            # With hints there is never a matching append before a conflicting one, so that alone would do no harm.
            (replication, "_refused", "log.newest_not_above(message.hint_index, message.hint_term)", "log.base, 0"),
        ),
        Scope(
            terms=3,
            entries=0,
            pre_votes=INSTANT,
            disk_answers=INSTANT,
            small_appends=True,
            disks=(disk_of(2, "b", 1, 1, 1), disk_of(2, "b", 1, 2), disk_of(2, "b", 1)),
        ),
    ),
    Mutant(
        "one fewer is a majority",
        ((quorum, "majority", "count // 2 + 1", "max(1, count // 2)"),),
        _CRASH,
    ),
    Mutant(
        "the vote is forgotten on stepping down",
        ((Core, "become_follower", "was_leader = ", 'self.vote = ""; was_leader = '),),
        _CRASH,
        Scope(terms=1, entries=0, rounds=2, pre_votes=INSTANT, disk_answers=INSTANT),
    ),
    Mutant(
        "a heartbeat commits what the leader was not seen to share",
        ((replication, "on_heartbeat", "message.commit, core.verified)", "message.commit, core.log.last_index)"),),
        Scope(
            terms=2,
            entries=0,
            rounds=2,
            pre_votes=INSTANT,
            disk_answers=INSTANT,
            disks=(disk_of(1, "a", 1), disk_of(1, "a"), disk_of(1, "")),
        ),
    ),
    Mutant(
        "an older leader is followed",
        ((replication, "follow", "if term < core.term:\n        return False", "pass"),),
        _TWO_TERMS,
    ),
    Mutant(
        "votes of older terms count",
        ((election, "on_vote_response", "message.term == asked_for if message.granted", "True if message.granted"),),
        _TWO_TERMS,
    ),
    Mutant(
        "a granted pre-vote counts as a vote",
        (
            (
                election,
                "on_vote_response",
                "== (PRE_CANDIDATE if message.pre else CANDIDATE)",
                "in (PRE_CANDIDATE, CANDIDATE)",
            ),
            (
                election,
                "on_vote_response",
                "core.term + 1 if message.pre else",
                "core.term + 1 if core.role != CANDIDATE else",
            ),
        ),
        Scope(terms=1, entries=0, pre_votes=REAL, disk_answers=INSTANT),
    ),
    Mutant(
        "reads are confirmed by nobody",
        ((replication, "confirm_reads", "core.reads.confirmed(confirmed)", "core.reads.confirmed(newest)"),),
        TWO_LEAD,
    ),
    Mutant(
        "reads before the first commit of the term",
        ((replication, "add_read", "parked=not core.leads_surely", "parked=False"),),
        _READS,
    ),
    Mutant(
        "reads ride on a round already sent",
        (
            (
                replication,
                "replicate_all",
                "core.rounds.begin(core.now), core.commit",
                "core.rounds.newest, core.commit",
            ),
        ),
        TWO_LEAD,
    ),
    Mutant(
        "a sync begun before a truncation counts for what came after",
        ((Core, "persisted", "if epoch == self.log.epoch:", "if True:"),),
        Scope(
            terms=2,
            entries=0,
            crashes=1,
            pre_votes=INSTANT,
            # "a" leads, its first entry has reached "c", and is on nobody's disk.
            opening=("a stands", "a syncs", "a > b", "b syncs", "b > a", "a > c"),
        ),
        harm=False,
    ),
]
