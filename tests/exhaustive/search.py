"""Breadth first through every state a small group of real cores can reach, each state once.

**A state** is the three members (`frozen.Local`: core and disk), all that was ever said, and a little history
(`rules.History`). Everything in it is numbered, so a state is five small numbers; that is why a search in plain Python
can visit tens of thousands a second although every step is made by the real core: what a member makes of an input is
worked out once (`turn`) and then looked up.

**The network** is the set of all messages ever sent. Each may arrive at any moment, in any order, again and again, or
never: so loss, reordering and any number of repetitions need no steps of their own, and nothing said is ever forgotten.

**Fewer states, the same findings:**

- *Answers that cost nothing.* When a member would answer a message without changing itself in the least, the answer is
  added to the network at once. Whatever could be done without it can be done with it.
- *Dead letters.* An answer of an older term than its receiver's disk knows is dropped, if indeed it does nothing to it
  now. A test compares with a search that drops nothing: the same groups of members are reached.
- *Names.* States that differ only in who is called what are one (`frozen.rename`), as the core does not care about
  names; a test holds that.
- *Turns are atomic* (`turn`), and a member that crashes is back at once: while it is away, messages are simply late.

Breadth first, so the first violation found has the shortest story, up to those free answers.

What must not live here: the rules, or what a turn is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import NamedTuple

from coord.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadResponse,
    VoteResponse,
)
from exhaustive.frozen import NAMES, FrozenMessage, Local, rename, swap_names
from exhaustive.rules import History, judge
from exhaustive.scope import INSTANT, Scope
from exhaustive.story import Story
from exhaustive.turn import Input, Process, Step, Turn, Violation, deliveries, inputs, require

PLACES = range(len(NAMES))
ORDERS = list(permutations(PLACES))
_PLACE = {name: place for place, name in enumerate(NAMES)}
#: A state is one number: three members, the network and the history, so many bits each.
_BITS = 32
_MASK = (1 << _BITS) - 1


class Effect(NamedTuple):
    """What one input does to one member."""

    given: Input
    local: int
    #: The messages sent, as bits.
    sends: int
    #: If it says anything that others could contradict.
    turn: Turn | None
    crash: bool


@dataclass
class Member:
    """What is known so far of what can happen to a member."""

    local: Local
    place: int
    #: By the number of reads asked before.
    moves: dict[int, list[Effect]] = field(default_factory=dict)
    #: By two messages that arrive within one turn.
    pairs: dict[tuple[int, int], list[Effect]] = field(default_factory=dict)
    #: Messages tried; of these, those that change it, and those it only answers.
    tried: int = 0
    moved_by: int = 0
    answers: int = 0
    effects: dict[int, list[Effect]] = field(default_factory=dict)
    #: The same member under other names, by the number of the order; -1: not yet known.
    images: list[int] = field(default_factory=lambda: [-1] * len(ORDERS))


class FoundViolation(Exception):
    """Raised where it is found, with the steps that lead there from the state being looked at."""

    def __init__(self, steps: list[Step], violation: Violation) -> None:
        super().__init__(str(violation))
        self.steps = steps
        self.violation = violation


@dataclass
class Outcome:
    """What a search found."""

    scope: Scope
    states: int = 0
    transitions: int = 0
    #: Steps to the farthest state.
    depth: int = 0
    #: States known and not looked at, when it ended early.
    frontier: int = 0
    seconds: float = 0.0
    #: Distinct members, turns worked out by the real core, messages, and networks.
    members: int = 0
    turns: int = 0
    messages: int = 0
    networks: int = 0
    #: The steps to a violation, from the beginning, in the names of that story; and what is wrong.
    story: list[Step] = field(default_factory=list)
    violation: str = ""

    @property
    def complete(self) -> bool:
        return not self.violation and not self.frontier

    def describe(self) -> str:
        end = "COMPLETE" if self.complete else f"{self.frontier} states not looked at"
        if self.violation:
            end = f"VIOLATION after {len(self.story)} steps: {self.violation}"
        return (
            f"{self.states} states, {self.transitions} transitions, depth {self.depth}, {self.seconds:.1f} s "
            f"({self.states / max(self.seconds, 1e-9):.0f} states/s, {self.transitions / max(self.seconds, 1e-9):.0f} "
            f"transitions/s); {self.turns} turns of the real core, {self.members} distinct members, "
            f"{self.messages} messages, {self.networks} networks: {end}"
        )


class Search:
    """One search. Tables are numbered in the order of discovery, which is the same in every run."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.turns = 0
        #: Each state, and the one it was first reached from.
        self._seen: dict[int, int] = {}
        self._members: list[Member] = []
        self._member_of: dict[Local, int] = {}
        #: (sender, to, message), by bit.
        self._messages: list[tuple[str, str, FrozenMessage]] = []
        self._message_of: dict[tuple[str, str, FrozenMessage], int] = {}
        self._message_images: list[list[int]] = []
        self._inbox = [0 for _ in PLACES]
        #: Words of a leader: by (sender's place, term).
        self._words: dict[tuple[int, int], int] = {}
        self._networks: list[int] = []
        self._network_of: dict[int, int] = {}
        self._network_images: list[dict[int, int]] = [{} for _ in ORDERS]
        self._histories: list[History] = []
        self._history_of: dict[History, int] = {}
        #: Of three members: the orders that bring them into canonical order, and that.
        self._canonical: dict[tuple[int, ...], tuple[list[int], tuple[int, ...]]] = {}
        #: By (place, term): how many messages were looked at, and which of them are dead there.
        self._dead: dict[tuple[int, int], tuple[int, int]] = {}
        self._names = [swap_names(order) for order in ORDERS]
        self._inverse = [ORDERS.index(tuple(order.index(place) for place in PLACES)) for order in ORDERS]

    # ----------------------------------------------------------------------------------------------------------------
    # The search.

    def run(
        self,
        *,
        max_states: int = 1 << 62,
        max_seconds: float = float("inf"),
        progress: Callable[[Outcome], None] | None = None,
    ) -> Outcome:
        """Until everything was visited, something is wrong, or a limit is reached."""
        outcome, began = Outcome(self.scope), time.process_time()
        first, _ = self._first()
        seen = self._seen = {first: first}
        level, done = [first], 0
        while level and not outcome.violation:
            following: list[int] = []
            for position, state in enumerate(level):
                done += 1
                if len(seen) >= max_states or (done & 255 == 0 and time.process_time() - began > max_seconds):
                    outcome.frontier = len(level) - position + len(following)
                    break
                try:
                    for successor in self._successors(state):
                        outcome.transitions += 1
                        if successor not in seen:
                            seen[successor] = state
                            following.append(successor)
                except FoundViolation as found:
                    outcome.violation = str(found.violation)
                    outcome.story = self._retrace(seen, state, found.steps)
                    break
            self._count(outcome, len(seen), began)
            if outcome.frontier or outcome.violation:
                break
            level = following
            if level:
                outcome.depth += 1
            if progress is not None:
                outcome.frontier = len(level)
                progress(outcome)
                outcome.frontier = 0
        return outcome

    def groups(self) -> set[tuple[Local, ...]]:
        """The three members of every state that was found."""
        found = {_unpack(state)[: len(NAMES)] for state in self._seen}
        return {tuple(self._members[number].local for number in group) for group in found}

    def _count(self, outcome: Outcome, states: int, began: float) -> None:
        outcome.states, outcome.seconds = states, time.process_time() - began
        outcome.members = sum(bool(member.tried or member.moves) for member in self._members)
        outcome.turns, outcome.messages, outcome.networks = self.turns, len(self._messages), len(self._networks)

    def _first(self) -> tuple[int, int]:
        """The state to begin with, and the order that makes it canonical."""
        story = Story(self.scope)
        sent = 0
        for said in story.said:
            sent |= 1 << self._message(*said)
        group = [self._member(local) for local in story.locals()]
        return self._canonical_state(group, sent, self._history(story.history))

    def _retrace(self, seen: dict[int, int], state: int, last: list[Step]) -> list[Step]:
        """The steps from the beginning to `state`, then `last`, all in the first state's names."""
        line = [state]
        while seen[line[-1]] != line[-1]:
            line.append(seen[line[-1]])
        line.reverse()
        # What those who have these names in a state were called at first.
        names = self._names[self._inverse[self._first()[1]]]
        story: list[Step] = []
        for before, after in pairwise(line):
            step, order = self._step_to(before, after)
            story.append(_renamed(step, names))
            back = self._names[self._inverse[order]]
            names = {name: names[back[name]] for name in NAMES}
        return story + [_renamed(step, names) for step in last]

    def _step_to(self, state: int, target: int) -> tuple[Step, int]:
        for place, effect in self._enabled(state):
            successor, order = self._apply(state, place, effect)
            if successor == target:
                return (place, effect.given), order
        raise AssertionError("no step leads there, though one did")

    # ----------------------------------------------------------------------------------------------------------------
    # Steps.

    def _successors(self, state: int) -> Iterator[int]:
        for place, effect in self._enabled(state):
            yield self._apply(state, place, effect)[0]

    def _enabled(self, state: int) -> Iterator[tuple[int, Effect]]:
        *group, network, history_number = _unpack(state)
        sent, history = self._networks[network], self._histories[history_number]
        asked = len(history.asked)
        for place in PLACES:
            number = group[place]
            member = self._members[number]
            moves = member.moves.get(asked)
            if moves is None:
                moves = member.moves[asked] = self._try_moves(number, asked)
            pending = sent & self._inbox[place]
            if pending & ~member.tried:
                self._try_messages(number, pending & ~member.tried)
            for effect in self._possible(member, moves, pending):
                if not effect.crash or history.crashes < self.scope.crashes:
                    yield place, effect

    def _possible(self, member: Member, moves: list[Effect], pending: int) -> Iterator[Effect]:
        yield from moves
        if self.scope.joined:
            yield from self._try_pairs(member, pending)
        pending &= member.moved_by
        while pending:
            bit = pending & -pending
            pending ^= bit
            yield from member.effects[bit]

    def _apply(self, state: int, place: int, effect: Effect) -> tuple[int, int]:
        """The state that follows, in canonical order, and which order that was."""
        *group, network, history = _unpack(state)
        group[place] = effect.local
        before = self._networks[network]
        sent = before | effect.sends
        if effect.turn is not None or effect.crash or effect.given[0] == "read":
            history = self._judge(place, effect, group, sent, history)
        sent = self._answered(group, before, sent, history, (place, effect.given))
        return self._canonical_state(group, sent, history)

    def _judge(self, place: int, effect: Effect, group: list[int], sent: int, number: int) -> int:
        history = self._histories[number]
        if effect.crash:
            history = history._replace(crashes=history.crashes + 1)
        elif effect.given[0] == "read":
            history = history._replace(asked=(*history.asked, len(history.committed)))
        turn = effect.turn
        if turn is not None:
            try:
                if turn.won:
                    self._nobody_else_led(place, turn.local.core.term, sent)
                history = judge(
                    turn, [self._members[member].local for member in group], history, harm_only=self.scope.harm_only
                )
            except Violation as violation:
                raise FoundViolation([(place, effect.given)], violation) from violation
        return self._history(history)

    def _nobody_else_led(self, place: int, term: int, sent: int) -> None:
        for other in PLACES:
            said = sent & self._words.get((other, term), 0)
            require(other == place or not said, f"{NAMES[other]} led term {term}, now {NAMES[place]} does")

    def _answered(self, group: list[int], before: int, sent: int, history: int, step: Step) -> int:
        """All that was sent, and every answer to it that changes nobody."""
        fresh = sent & ~before
        dirty = [place for place in PLACES if place == step[0] or fresh & self._inbox[place]]
        while dirty:
            known = sent
            for place in dirty:
                member = self._members[group[place]]
                pending = sent & self._inbox[place]
                if pending & ~member.tried:
                    with _after(step):
                        self._try_messages(group[place], pending & ~member.tried)
                pending &= member.answers
                while pending:
                    bit = pending & -pending
                    pending ^= bit
                    for effect in member.effects[~bit]:
                        if effect.sends & ~sent:
                            sent |= effect.sends
                            with _after(step):
                                self._judge(place, effect, group, sent, history)
            fresh = sent & ~known
            dirty = [place for place in PLACES if fresh & self._inbox[place]] if fresh else []
        return sent

    # ----------------------------------------------------------------------------------------------------------------
    # What the real core makes of an input, each once.

    def _turn(self, number: int, given: Input) -> Effect:
        member = self._members[number]
        self.turns += 1
        try:
            turn = Process.thawed(member.local, self.scope).turn(given)
        except Violation as violation:
            raise FoundViolation([(member.place, given)], violation) from violation
        sends = 0
        for to, message in sorted(turn.sends, key=repr):
            sends |= 1 << self._message(member.local.name, to, message)
        crash = given[0] in ("crash", "cut short")
        return Effect(given, self._member(turn.local), sends, turn if turn.claims else None, crash)

    def _turns(self, number: int, given: Input) -> list[Effect]:
        """What comes of it, and if it makes the disk work, what comes of it when that is not done."""
        member = self._members[number]
        effect = self._turn(number, given)
        found = [effect]
        wrote = self._members[effect.local].local.disk != member.local.disk
        if wrote and self.scope.crashes and self.scope.disk_answers == INSTANT:
            found.append(self._turn(number, ("cut short", given)))
        return found

    def _try_moves(self, number: int, asked: int) -> list[Effect]:
        local, found = self._members[number].local, []
        for given in inputs(local, self.scope, asked):
            found += self._turns(number, given)
        if self.scope.crashes:
            found += [self._turn(number, ("crash", kept)) for kept in range(len(local.core.in_flight) + 1)]
        return [one for one in found if one.local != number or one.sends or one.given[0] == "read"]

    def _try_messages(self, number: int, bits: int) -> None:
        member = self._members[number]
        while bits:
            bit = bits & -bits
            bits ^= bit
            sender, _, message = self._messages[bit.bit_length() - 1]
            moves, answers = [], []
            for given in deliveries(member.local, self.scope, sender, message):
                for effect in self._turns(number, given):
                    if effect.local != number or effect.crash:
                        moves.append(effect)
                    elif effect.sends or effect.turn is not None:
                        answers.append(effect)
            if moves:
                member.moved_by |= bit
                member.effects[bit] = moves
            if answers:
                member.answers |= bit
                member.effects[~bit] = answers
            member.tried |= bit

    def _try_pairs(self, member: Member, pending: int) -> Iterator[Effect]:
        """Two messages within one turn, where the first is not as good as lost."""
        bits = [1 << place for place in range(pending.bit_length()) if pending >> place & 1]
        for one in bits:
            for other in bits:
                if one != other and one & (member.moved_by | member.answers):
                    found = member.pairs.get((one, other))
                    if found is None:
                        found = member.pairs[one, other] = self._pair(member, one, other)
                    yield from found

    def _pair(self, member: Member, one: int, other: int) -> list[Effect]:
        number, found = self._member_of[member.local], []
        first, second = (self._messages[bit.bit_length() - 1] for bit in (one, other))
        for given in deliveries(member.local, self.scope, first[0], first[2]):
            both = (*given, (second[0], second[2]))
            found += [effect for effect in self._turns(number, both) if effect.local != number]
        return found

    # ----------------------------------------------------------------------------------------------------------------
    # Numbers.

    def _member(self, local: Local) -> int:
        number = self._member_of.get(local)
        if number is None:
            number = self._member_of[local] = len(self._members)
            self._members.append(Member(local, _PLACE[local.name]))
        return number

    def _message(self, sender: str, to: str, message: FrozenMessage) -> int:
        key = (sender, to, message)
        number = self._message_of.get(key)
        if number is None:
            number = self._message_of[key] = len(self._messages)
            self._messages.append(key)
            self._message_images.append([-1] * len(ORDERS))
            self._inbox[_PLACE[to]] |= 1 << number
            if message[0] in (Append, Heartbeat):
                words = (_PLACE[sender], message[1])
                self._words[words] = self._words.get(words, 0) | 1 << number
        return number

    def _network(self, sent: int) -> int:
        number = self._network_of.get(sent)
        if number is None:
            number = self._network_of[sent] = len(self._networks)
            self._networks.append(sent)
        return number

    def _history(self, history: History) -> int:
        number = self._history_of.get(history)
        if number is None:
            number = self._history_of[history] = len(self._histories)
            self._histories.append(history)
        return number

    def _dead_at(self, place: int, term: int) -> int:
        """Messages that can do nothing any more to this member, whose disk knows `term`."""
        known, bits = self._dead.get((place, term), (0, 0))
        if known < len(self._messages):
            for number in range(known, len(self._messages)):
                _, to, message = self._messages[number]
                if (
                    to == NAMES[place]
                    and message[1] < term
                    and (_dies_with_its_term(message) or not self.scope.old_messages)
                ):
                    bits |= 1 << number
            self._dead[place, term] = (len(self._messages), bits)
        return bits

    # ----------------------------------------------------------------------------------------------------------------
    # Names.

    def _canonical_state(self, group: list[int], sent: int, history: int) -> tuple[int, int]:
        for place in PLACES if not self.scope.dead_letters else ():
            member = self._members[group[place]]
            dead = sent & self._dead_at(place, member.local.disk.hard_state[0])
            if dead:
                sent &= ~dead if not self.scope.old_messages else ~(dead & ~member.moved_by & ~member.answers)
        network = self._network(sent)
        key = tuple(group)
        found = self._canonical.get(key)
        if found is None:
            found = self._canonical[key] = self._best_orders(key)
        orders, members = found
        best, chosen = -1, 0
        for order in orders:
            # The first order changes nothing.
            image = network if order == 0 else self._network_images[order].get(network)
            if image is None:
                image = self._network_images[order][network] = self._image_of_network(sent, order)
            if best < 0 or image < best:
                best, chosen = image, order
        return _pack(members, best, history), chosen

    def _best_orders(self, group: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
        images = []
        for order, places in enumerate(ORDERS):
            moved = [0 for _ in PLACES]
            for place in PLACES:
                moved[places[place]] = self._image_of_member(group[place], order)
            images.append(tuple(moved))
        best = min(images)
        return [order for order, image in enumerate(images) if image == best], best

    def _image_of_member(self, number: int, order: int) -> int:
        image = self._members[number].images[order]
        if image < 0:
            image = self._member(rename(self._members[number].local, self._names[order]))
            self._members[number].images[order] = image
        return image

    def _image_of_network(self, sent: int, order: int) -> int:
        moved = 0
        while sent:
            bit = sent & -sent
            sent ^= bit
            number = bit.bit_length() - 1
            image = self._message_images[number][order]
            if image < 0:
                sender, to, message = self._messages[number]
                names = self._names[order]
                image = self._message(names[sender], names[to], message)
                self._message_images[number][order] = image
            moved |= 1 << image
        return self._network(moved)


def _dies_with_its_term(message: FrozenMessage) -> bool:
    """Is it of no use to anybody in a newer term? Not so questions, whose answer tells of that term, or a refused vote,
    which ends even a later campaign."""
    if message[0] is VoteResponse:
        return bool(message[2])
    return message[0] in (AppendResponse, HeartbeatResponse, ReadResponse)


@contextmanager
def _after(step: Step) -> Iterator[None]:
    """What is found in here comes after `step`."""
    try:
        yield
    except FoundViolation as found:
        raise FoundViolation([step, *found.steps], found.violation) from found


def _pack(group: tuple[int, ...], network: int, history: int) -> int:
    return (((group[0] << _BITS | group[1]) << _BITS | group[2]) << _BITS | network) << _BITS | history


def _unpack(state: int) -> tuple[int, int, int, int, int]:
    return (
        state >> 4 * _BITS,
        state >> 3 * _BITS & _MASK,
        state >> 2 * _BITS & _MASK,
        state >> _BITS & _MASK,
        state & _MASK,
    )


def _renamed(step: Step, names: dict[str, str]) -> Step:
    place, given = step
    return _PLACE[names[NAMES[place]]], rename(given, names)
