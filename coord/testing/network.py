"""The simulated network: frames that are lost, doubled, damaged, overtaken or late, and links that are cut or clogged.

It carries bytes and outlives the processes: what was on its way to a process arrives at its successor, as it does with
sockets that reconnect. `coord.transports.memory`, for members with threads of their own, forgets what was meant for an
earlier life, and so would hide mistakes that this one shows. What must not live here: when links are cut.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coord.testing.chance import stream
from coord.testing.timeline import Timeline

#: The newest that wait at a cut link.
_HELD_MAX = 40

Link = tuple[str, str]


@dataclass(slots=True)
class Conditions:
    """How every link behaves. Times in seconds, the rest probabilities of each frame."""

    delay: float = 0.002
    #: Up to so much more than `delay`.
    jitter: float = 0.0
    #: None overtakes another, unless it is late or doubled.
    in_order: bool = True
    loss: float = 0.0
    duplicate: float = 0.0
    #: One bit changes on the way.
    damage: float = 0.0
    #: A frame is held up for up to `late_by`, on its way whatever happens to its target meanwhile.
    late: float = 0.0
    late_by: float = 4.0
    #: What a cut link could not carry arrives when it is mended, as from a socket's queue, instead of never.
    hold: bool = False


class Network:
    """`deliver(target, source, frame)` is called for each frame that arrives. `calm`: nothing but cuts goes wrong."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions,
        timeline: Timeline,
        deliver: Callable[[str, str, bytes], None],
    ) -> None:
        self.conditions = conditions
        self.calm = False
        self.sent = self.lost = self.doubled = self.damaged = self.clogs = 0
        self._seed = seed
        self._timeline = timeline
        self._deliver = deliver
        self._chances: dict[Link, random.Random] = {}
        #: When the last frame of each link arrives, where none overtakes another.
        self._arrivals: dict[Link, float] = {}
        self._cut: set[Link] = set()
        self._clogged: dict[Link, float] = {}
        self._longest_clog = 0.0
        self._held: dict[Link, deque[bytes]] = {}

    def send(self, source: str, target: str, frame: bytes) -> None:
        """Always the same number of draws, so that no frame's fate depends on another's."""
        link = (source, target)
        conditions, timeline = self.conditions, self._timeline
        rng = self._chances.get(link)
        if rng is None:
            rng = self._chances[link] = stream(self._seed, "link", source, target)
        chance = rng.random
        loss, duplicate, late, jitter, second, held, damage = [chance() for _ in range(7)]
        self.sent += 1
        if link in self._cut:
            self._hold(link, frame)
            return
        arrival = timeline.now + conditions.delay * (1 + jitter / 4)
        if not self.calm:
            if loss < conditions.loss:
                self.lost += 1
                return
            arrival += conditions.jitter * jitter
            arrival = max(arrival, self._clogged.get(link, 0.0))
            if conditions.in_order:
                arrival = self._arrivals[link] = max(arrival, self._arrivals.get(link, 0.0))
            if late < conditions.late:
                arrival += conditions.late_by * held
            if damage < conditions.damage:
                self.damaged += 1
                bit = int(held * 8 * len(frame))
                frame = frame[: bit // 8] + bytes([frame[bit // 8] ^ (1 << bit % 8)]) + frame[bit // 8 + 1 :]
        timeline.at(arrival, self._arrive, link, frame)
        if not self.calm and duplicate < conditions.duplicate:
            self.doubled += 1
            timeline.at(arrival + (conditions.delay + conditions.jitter) * 5 * second, self._arrive, link, frame)

    def _arrive(self, link: Link, frame: bytes) -> None:
        if link in self._cut:
            self._hold(link, frame)
        else:
            self._deliver(link[1], link[0], frame)

    def _hold(self, link: Link, frame: bytes) -> None:
        if self.conditions.hold:
            self._held.setdefault(link, deque(maxlen=_HELD_MAX)).append(frame)
        else:
            self.lost += 1

    # Cuts and clogs.

    def cut(self, links: Iterable[Link]) -> None:
        """Nothing sent or on its way along these, (source, target), arrives before they are mended."""
        self._cut.update(links)

    def clog(self, links: Iterable[Link], seconds: float) -> None:
        """What is sent along these arrives only after `seconds`, all at once."""
        self.clogs += 1
        self._longest_clog = max(self._longest_clog, seconds)
        for link in links:
            self._clogged[link] = self._timeline.now + seconds

    def heal(self) -> None:
        self._clogged.clear()
        self.mend(sorted(self._cut))

    def mend(self, links: Iterable[Link]) -> None:
        """These links work again."""
        for link in links:
            self._cut.discard(link)
            for frame in self._held.pop(link, ()):
                self._timeline.after(self.conditions.delay, self._arrive, link, frame)

    @property
    def slowest(self) -> float:
        """No frame is on its way for longer than this."""
        conditions = self.conditions
        second = 5 * (conditions.delay + conditions.jitter) if conditions.duplicate else 0.0
        late = conditions.late_by if conditions.late else 0.0
        return 2 * conditions.delay + conditions.jitter + second + late + self._longest_clog

    @property
    def whole(self) -> bool:
        return not self._cut and not self._clogged

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def both_ways(self, one: str, other: str) -> bool:
        return (one, other) not in self._cut and (other, one) not in self._cut


def between(some: Sequence[str], others: Sequence[str]) -> list[Link]:
    """Every link between two sets of members, both ways."""
    return [pair for one in some for other in others if one != other for pair in ((one, other), (other, one))]
