"""The simulated network: messages that are lost, doubled, overtaken or late, and links that are cut one way or both.

It carries message objects, or bytes where the knob says so, and outlives the processes: what was on its way to a
process arrives at its successor, as it does with sockets that reconnect. `coord.transports.memory` is the network for
frames; it forgets what was meant for an earlier life, and so would hide mistakes that this one shows.
What must not live here: when links are cut (`faults`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from coord.raft.messages import Message
from coord.wire import Identity, decode, encode
from simulation.chance import stream
from simulation.knobs import Knobs
from simulation.timeline import Timeline

#: The newest that wait at a cut link.
_HELD_MAX = 40

#: (target, sender, its incarnation, message)
Deliver = Callable[[str, str, int, Message], None]


class Network:
    def __init__(
        self, seed: int, knobs: Knobs, timeline: Timeline, identities: dict[str, Identity], deliver: Deliver
    ) -> None:
        self._knobs = knobs
        self._timeline = timeline
        self._identities = identities
        self._deliver = deliver
        self._chances: dict[tuple[str, str], random.Random] = {
            (source, target): stream(seed, "link", source, target)
            for source in identities
            for target in identities
            if source != target
        }
        #: When the last message of each link arrives, where none overtakes another.
        self._arrivals: dict[tuple[str, str], float] = {}
        self._cut: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], deque[Message]] = {}
        self.calm = False
        self.sent = self.lost = self.doubled = 0

    def send(self, source: str, target: str, message: Message) -> None:
        """Always the same number of draws, so that no message's fate depends on another's."""
        knobs, timeline = self._knobs, self._timeline
        chance = self._chances[source, target].random
        loss, duplicate, late, jitter, second, held = chance(), chance(), chance(), chance(), chance(), chance()
        self.sent += 1
        if (source, target) in self._cut:
            self._hold(source, target, message)
            return
        arrival = timeline.now + knobs.delay * (1 + jitter / 4)
        if not self.calm:
            if loss < knobs.loss:
                self.lost += 1
                return
            arrival += knobs.jitter * jitter
            if knobs.in_order:
                arrival = self._arrivals[source, target] = max(arrival, self._arrivals.get((source, target), 0.0))
            if late < knobs.late:
                arrival += knobs.late_by * held
        timeline.at(arrival, self._arrive, source, target, message)
        if not self.calm and duplicate < knobs.duplicate:
            self.doubled += 1
            timeline.at(arrival + (knobs.delay + knobs.jitter) * 5 * second, self._arrive, source, target, message)

    def _arrive(self, source: str, target: str, message: Message) -> None:
        if (source, target) in self._cut:
            self._hold(source, target, message)
            return
        sender = self._identities[source]
        if self._knobs.wire:
            message = decode(encode(sender, target, message), self._identities[target]).message
        self._deliver(target, source, sender.incarnation, message)

    def _hold(self, source: str, target: str, message: Message) -> None:
        if self._knobs.hold:
            self._held.setdefault((source, target), deque(maxlen=_HELD_MAX)).append(message)
        else:
            self.lost += 1

    # Cuts.

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Nothing sent or on its way along these, (source, target), arrives before they are mended."""
        self._cut.update(pairs)

    def heal(self) -> None:
        self.mend(sorted(self._cut))

    def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """These links work again."""
        for source, target in pairs:
            self._cut.discard((source, target))
            for message in self._held.pop((source, target), ()):
                self._timeline.after(self._knobs.delay, self._arrive, source, target, message)

    @property
    def slowest(self) -> float:
        """No message is on its way for longer than this."""
        knobs = self._knobs
        second = 5 * (knobs.delay + knobs.jitter) if knobs.duplicate else 0.0
        return 2 * knobs.delay + knobs.jitter + second + (knobs.late_by if knobs.late else 0.0)

    @property
    def whole(self) -> bool:
        return not self._cut

    def both_ways(self, one: str, other: str) -> bool:
        return (one, other) not in self._cut and (other, one) not in self._cut


def between(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Every link between two sets of members, both ways."""
    return [pair for one in some for other in others if one != other for pair in ((one, other), (other, one))]
