"""What the search takes for granted: a frozen member is the whole member; neither names nor the time of day matter.

Each is held against living cores on long random walks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations

import pytest

from coord.raft.core import Core
from coord.raft.log import Log
from coord.raft.messages import Persist, Send
from coord.raft.progress import Progress
from coord.raft.read_index import ForwardedReads, PendingReads, Rounds
from coord.raft.roles import LEADER
from exhaustive.frozen import (
    INCARNATIONS,
    KNOWN_FIELDS,
    KNOWN_PARTS,
    NAMES,
    NOW,
    FixedChance,
    FrozenDisk,
    FrozenMessage,
    FrozenSend,
    Local,
    freeze,
    freeze_message,
    rename,
    start,
    swap_names,
    thaw,
    thaw_message,
)
from exhaustive.scope import FREE, INSTANT, REAL, Scope
from exhaustive.turn import Input, Process, Turn, deliveries, inputs

SCOPES = [
    Scope(terms=4, entries=4, crashes=9, rounds=30, reads=30, pre_votes=REAL, stickiness=True),
    Scope(terms=4, entries=5, crashes=9, rounds=4, reads=3, pre_votes=FREE, small_appends=True),
    Scope(terms=4, entries=4, crashes=9, rounds=4, reads=3, pre_votes=INSTANT, disk_answers=INSTANT),
]
Said = tuple[str, str, FrozenMessage]


def walk(scope: Scope, seed: int, steps: int = 250) -> Iterator[tuple[Process, Local, Input, Turn]]:
    """Three living cores take in whatever chance brings: (who, what it was before, the input, what came of it)."""
    rng, reads, said = random.Random(seed), 0, set[Said]()
    group = [
        Process(start(name, disk, scope.settings()), disk, scope) for name, disk in zip(NAMES, scope.disks, strict=True)
    ]
    for _ in range(steps):
        process = rng.choice(group)
        local = freeze(process.core, process.disk)
        choices = inputs(local, scope, reads)
        heard = [(sender, message) for sender, to, message in sorted(said, key=repr) if to == local.name]
        for sender, message in rng.sample(heard, min(4, len(heard))):
            choices += deliveries(local, scope, sender, message)
        if len(heard) > 1:
            choices.append(("deliver", False, *rng.sample(heard, 2)))
        if rng.random() < 0.03 or not choices:
            choices = [("crash", rng.randint(0, len(local.core.in_flight)))]
        if len(choices) > 1 and rng.random() < 0.8:
            choices = [given for given in choices if given != ("timeout",)]
        given = rng.choice(choices)
        turn = process.turn(given)
        reads += given[0] == "read"
        # What was said long ago would only keep everybody from getting anywhere.
        newest = max((message[1] for _, _, message in said), default=0)
        said = {one for one in said if one[2][1] >= newest - 1}
        said |= {(local.name, to, message) for to, message in turn.sends}
        yield process, local, given, turn


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scope", SCOPES, ids=Scope.describe)
def test_a_thawed_member_does_what_the_living_one_does(scope: Scope, seed: int) -> None:
    """The living core has never been copied; the other is built from nothing but the tuple."""
    for _, local, given, turn in walk(scope, seed):
        assert freeze(thaw(local, scope.settings()), local.disk) == local, f"changed by freezing and thawing: {local}"
        assert Process.thawed(local, scope).turn(given) == turn, f"the copy of {local} does otherwise at {given}"


@pytest.mark.parametrize("scope", SCOPES, ids=Scope.describe)
def test_a_member_by_another_name_does_the_same(scope: Scope) -> None:
    for _, local, given, turn in walk(scope, 99):
        for order in permutations(range(len(NAMES))):
            names = swap_names(order)
            again = Process.thawed(rename(local, names), scope).turn(rename(given, names))
            assert again.local == rename(turn.local, names), f"{local} called {names} becomes another at {given}"
            assert again.sends == rename(frozenset(turn.sends), names), (
                f"{local} called {names} says otherwise at {given}"
            )


def test_the_walks_get_around() -> None:
    """Else the tests above prove little."""
    met: set[str] = set()
    for scope in SCOPES:
        for seed in range(8):
            for _, local, given, turn in walk(scope, seed):
                met.add(f"as {local.core.role}: {given[0]}")
                met |= {type_of[0].__name__ for _, type_of in turn.sends}
                met |= {name for name in ("won", "committed", "acknowledged", "reads") if getattr(turn, name)}
                if (
                    len(turn.local.core.log) < len(local.core.log)
                    or turn.local.core.log[: len(local.core.log)] != local.core.log
                ):
                    met.add("truncated or lost")
    wanted = {"won", "committed", "acknowledged", "reads", "truncated or lost", "Append", "Heartbeat", "ReadResponse"}
    wanted |= {
        f"as {role}: {kind}" for role in ("leader", "follower", "candidate") for kind in ("deliver", "crash", "sync")
    }
    assert wanted <= met, f"never met: {sorted(wanted - met)}"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_clock_says_the_input_came_at_once_or_late(seed: int) -> None:
    """Cores with a real clock and real timers: what each does is among what the search lets it do."""
    scope = Scope(terms=9, entries=9, crashes=0, rounds=99, reads=0, pre_votes=REAL, stickiness=True)
    rng, now, said = random.Random(seed), NOW, list[tuple[str, Send]]()
    disk = FrozenDisk((0, ""), (), 0)
    group = {name: Process(start(name, disk, scope.settings()), disk, scope) for name in NAMES}
    for name, process in group.items():
        process.core.rng = random.Random(f"{seed} {name}")
    met: set[str] = set()
    for _ in range(600):
        now += rng.choice([0.0, 0.001, 0.02, 0.16, 0.7])
        process = rng.choice(list(group.values()))
        sender, send = said.pop(min(rng.randrange(3), len(said) - 1)) if said and rng.random() < 0.8 else ("", None)
        if send is not None:
            process = group[send.to]
        core = process.core
        before = freeze(core, process.disk)
        allowed: list[Input] = [("beat",), ("timeout",)]
        if send is not None:
            message = freeze_message(send.message)
            core.step(now, sender, INCARNATIONS[sender], thaw_message(message))
            allowed = [("deliver", late, (sender, message)) for late in (False, True)]
        elif core._in_flight:
            core.persisted(now, process._sync(1))
            allowed = [("sync", 1)]
        else:
            core.tick(now)
        sent = _take(core, said)
        after = freeze(core, process.disk)
        ways = {given: Process.thawed(before, scope).turn(given) for given in allowed}
        made = [given for given, turn in ways.items() if (turn.local, turn.sends) == (after, sent)]
        assert made or (after, sent) == (before, set()), (
            f"{before} at {now} became {after}, said {sent}; not one of {ways}"
        )
        met |= {str(given[:2]) for given in made[:1]} | {core.role}
    wanted = {LEADER, "('beat',)", "('timeout',)", "('sync', 1)"}
    assert wanted <= met, f"never met: {wanted - met}"


def _take(core: Core, said: list[tuple[str, Send]]) -> set[FrozenSend]:
    """Perform what it asks for; what it sent."""
    sent = set()
    while commands := core.take():
        for command in commands:
            if isinstance(command, Send):
                sent.add((command.to, freeze_message(command.message)))
                said.append((core.name, command))
            elif not isinstance(command, Persist) and hasattr(command, "batches"):
                core.applied_to(command.batches[-1].last)
    return sent


def test_every_field_is_thought_of() -> None:
    """A new field must go into the frozen form, or be shown not to matter; then its name goes into the list."""
    core = start("a", FrozenDisk((0, ""), (), 0), Scope().settings())
    assert set(vars(core)) == KNOWN_FIELDS[Core], f"{set(vars(core)) ^ KNOWN_FIELDS[Core]}"
    assert set(Progress.__slots__) == KNOWN_FIELDS[Progress], f"{set(Progress.__slots__) ^ KNOWN_FIELDS[Progress]}"
    for part, kind in (("log", Log), ("rounds", Rounds), ("reads", PendingReads), ("forwarded", ForwardedReads)):
        assert type(getattr(core, part)) is kind, f"{part} is another class now"
    for part, fields in KNOWN_PARTS.items():
        assert set(vars(getattr(core, part))) == fields, f"{part}: {set(vars(getattr(core, part))) ^ fields}"


def test_chance_is_fixed() -> None:
    assert FixedChance(5).uniform(1.5, 3.0) == 1.5
    assert FixedChance(5).getrandbits(62) == 5
