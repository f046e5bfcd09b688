"""One group, one lock, and one fault after the other at random: what is done, and the row it makes in the table.

A campaign is repeatable as to what it does, not as to when. What must not live here: how a fault is done (`locks.lab`),
what may be (`locks.judge`).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coord
from faults.lab import QUICK
from faults.scenarios import network_for
from locks import judge
from locks.contenders import LOCK
from locks.judge import Wait
from locks.lab import Fault, LockLab
from locks.record import read_records
from locks.truth import replay

#: A grant may take so much longer than ttl and lock-delay: an election, and what comes before and after it.
ALLOWED_SECONDS = 2.0
#: A holder is at work for so much longer than it takes to kill or stop it.
AT_WORK_SECONDS = 1.5
#: For more processes than the machine has processors, a little more patience with each other.
CROWDED: dict[str, Any] = {**QUICK, "heartbeat": 0.1, "election_timeout": (0.6, 1.2), "session_ttl": 3.0}

#: Does one fault, and waits until that is over.
Act = Callable[[LockLab, random.Random], None]


@dataclass(slots=True, frozen=True)
class Campaign:
    """What is repeated with one group."""

    name: str
    members: str
    #: Contenders in each member; the rest of the members only take part.
    threads: dict[str, int]
    kinds: tuple[str, ...]
    faults: int
    seed: int = 1
    network: str = "plain"
    lock_delay: float | None = 0.5
    volatile: bool = False
    #: False: they write without asking the guard.
    guarded: bool = True
    options: dict[str, Any] = field(default_factory=lambda: QUICK)
    #: Seconds for which a holder is stopped at least.
    stop: float = 0.0

    @property
    def bound(self) -> float:
        """Seconds that nobody may have to wait longer for a lock that is free."""
        ttl = coord.Options(**self.options).session_ttl
        return ttl + (ttl if self.lock_delay is None else self.lock_delay) + ALLOWED_SECONDS


# ---------------------------------------------------------------------------------------------------------------------
# The faults.


def _wait(lab: LockLab, campaign: Campaign, fault: Fault) -> None:
    """Until others have had the lock since."""
    lab.until_outlived(fault, 2 * campaign.bound)


def _wait_over(lab: LockLab, fault: Fault) -> None:
    """Until the holder that lost it has done what it was about to do, and knows."""
    lab.until(lambda: lab[fault.member].call("over", token=fault.token), f"an end of {fault}")


def kill_holder(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    """It is started again when others have got the lock, which takes its whole ttl and lock-delay."""
    name, token = lab.worker(AT_WORK_SECONDS)
    fault = lab.begin_fault("kill holder", name, token)
    lab.kill(name)
    _wait(lab, campaign, fault)
    if not campaign.volatile:
        lab.again(name)
        lab.end_fault(fault)


def restart_holder(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    """It is started again at once: its next process ends the session of the one that is dead."""
    name, token = lab.worker(AT_WORK_SECONDS)
    fault = lab.begin_fault("kill holder, restart at once", name, token)
    lab.kill(name)
    lab.again(name)
    lab.end_fault(fault)


def stop_holder(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    name, token = lab.worker(AT_WORK_SECONDS)
    fault = lab.begin_fault("stop holder", name, token)
    lab.pause(name)
    lab.hold(campaign.stop)
    _wait(lab, campaign, fault)
    # Before it goes on, so that whatever it does then comes after this.
    lab.end_fault(fault)
    lab.resume(name)
    _wait_over(lab, fault)


def cut_holder(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    # It works on until it is long lost, and writes then.
    name, token = lab.worker(campaign.bound)
    fault = lab.begin_fault("cut holder off", name, token)
    lab.network.isolate(name)
    _wait(lab, campaign, fault)
    lab.network.mend()
    lab.end_fault(fault)
    _wait_over(lab, fault)


def kill_leader(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    name = lab.leads()
    fault = lab.begin_fault("kill leader", name)
    lab.kill(name)
    lab.hold(rng.choice([0.0, 0.5, 1.5]))
    lab.again(name)
    lab.end_fault(fault)


def stop_leader(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    """Beyond the election timeout; perhaps beyond its ttl."""
    name = lab.leads()
    fault = lab.begin_fault("stop leader", name)
    lab.pause(name)
    lab.hold(rng.choice([0.3, 1.0, 3.5]))
    lab.end_fault(fault)
    lab.resume(name)


def cut_leader(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    name = lab.leads()
    fault = lab.begin_fault("cut leader off", name)
    lab.network.isolate(name)
    lab.hold(rng.choice([0.5, 1.5, 3.5]))
    lab.network.mend()
    lab.end_fault(fault)


def kill_waiter(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    name = lab.waiter()
    fault = lab.begin_fault("kill waiter", name)
    lab.kill(name)
    lab.hold(rng.choice([0.0, 0.5, 4.0]))
    lab.again(name)
    lab.end_fault(fault)


def transfer(lab: LockLab, campaign: Campaign, rng: random.Random) -> None:
    fault = lab.begin_fault("transfer leadership", lab.leads())
    # Somebody else may have come to lead meanwhile.
    with contextlib.suppress(coord.Unavailable):
        lab[fault.member].call("transfer", to=None, timeout=5.0)
    lab.end_fault(fault)


KINDS: dict[str, Callable[[LockLab, Campaign, random.Random], None]] = {
    "kill holder": kill_holder,
    "restart holder": restart_holder,
    "stop holder": stop_holder,
    "cut holder": cut_holder,
    "kill leader": kill_leader,
    "stop leader": stop_leader,
    "cut leader": cut_leader,
    "kill waiter": kill_waiter,
    "transfer": transfer,
}


# ---------------------------------------------------------------------------------------------------------------------
# A run.


@dataclass(slots=True)
class Row:
    """What came of one campaign."""

    campaign: Campaign
    seconds: float
    kinds: Counter[str]
    checked: dict[str, int]
    waits: list[Wait]
    told: list[float]
    #: From SIGCONT, and from the mending of the network, until a holder was told that it had lost.
    told_stopped: list[float]
    told_cut: list[float]
    entries: int
    #: Faults that hit a hold at work, and holds that ended so.
    hit: int

    @property
    def after_faults(self) -> list[Wait]:
        """Those for a lock whose holder had not released it."""
        return [wait for wait in self.waits if wait.why not in ("released", "given up")]

    @property
    def exceeded(self) -> list[Wait]:
        return [wait for wait in self.waits if wait.seconds > self.campaign.bound]

    @property
    def unexplained(self) -> list[Wait]:
        """Holders that lost the lock though nothing had been done to them."""
        return [wait for wait in self.waits if not wait.why]

    def cells(self) -> list[str]:
        after = [wait.seconds for wait in self.after_faults]
        released = [1000 * wait.seconds for wait in self.waits if wait.why == "released"]
        return [
            self.campaign.name,
            str(sum(self.kinds.values())),
            str(self.hit),
            str(self.checked["holds"]),
            f"{self.checked['writes']} / {self.checked['refusals']}",
            str(self.checked["looks"]),
            str(self.checked["stopped"]),
            f"{judge.percentile(self.told_stopped, 0.5):.2f} / {max(self.told_stopped, default=0.0):.2f}",
            f"{judge.percentile(self.told_cut, 0.5):.2f} / {max(self.told_cut, default=0.0):.2f}",
            f"{judge.percentile(after, 0.5):.2f} / {max(after, default=0.0):.2f} / {self.campaign.bound:.1f}",
            str(len(self.exceeded)),
            f"{judge.percentile(released, 0.5):.0f} / {judge.percentile(released, 0.99):.0f} / "
            f"{max(released, default=0.0):.0f}",
            f"{self.seconds:.0f}",
        ]


HEAD = [
    *("group", "faults", "of a holder at work", "holds", "writes / refused", "looks", "stopped holders"),
    *("told after SIGCONT, s: p50 / max", "told after a cut, s: p50 / max"),
    *("free after a fault, s: p50 / max / bound", "exceeded"),
    *("free after a release, ms: p50 / p99 / max", "s"),
]


def run(campaign: Campaign, directory: Path) -> Row:
    """Run it on what is permitted. Raises AssertionError at the first thing that must not be."""
    began, rng = time.monotonic(), random.Random(f"{campaign.name} {campaign.seed}")
    lab = LockLab(
        directory,
        network_for(campaign.network),
        campaign.members,
        campaign.threads,
        lock_delay=campaign.lock_delay,
        volatile=campaign.volatile,
        guarded=campaign.guarded,
        **campaign.options,
    )
    # Each kind as often as any other, in any order.
    kinds = [campaign.kinds[number % len(campaign.kinds)] for number in range(campaign.faults)]
    rng.shuffle(kinds)
    with lab:
        lab.begin(*campaign.members)
        lab.progress(_contending(lab), 1)
        for kind in kinds:
            KINDS[kind](lab, campaign, rng)
            lab.leads()
            lab.progress(_contending(lab), 1)
        outcome = lab.judged()
    return judged(campaign, directory, lab, outcome.batches, outcome.state_hash, began)


def _contending(lab: LockLab) -> str:
    return "".join(member.name for member in lab.alive if lab.threads.get(member.name))


def judged(campaign: Campaign, directory: Path, lab: LockLab, batches: Any, state_hash: str, began: float) -> Row:
    truth = replay(batches, LOCK)
    assert truth.state_hash == state_hash, "the log applied again makes another state than the members have"
    records = read_records(directory.glob("*.history"))
    file, faults = judge.read_file(lab.database), lab.faults
    checked = judge.check_all(truth, file, records, faults)
    waits = judge.find_waits(truth, records, faults)
    gone = {
        grant.token
        for grant, held in ((g, records.holds.get(g.request)) for g in truth.grants)
        if held is None or held.release != "ok"
    }
    return Row(
        campaign,
        time.monotonic() - began,
        Counter(fault.kind for fault in faults),
        checked,
        waits,
        judge.find_told(records, truth, faults),
        judge.find_lost(records, faults, "stop"),
        judge.find_lost(records, faults, "cut"),
        truth.entries,
        sum(fault.token in gone for fault in faults if fault.token),
    )


def campaigns(full: bool) -> list[Campaign]:
    """Those that run every time, or all."""
    if not full:
        return _QUICK
    return _FULL


_HOLDER = ("kill holder", "restart holder", "stop holder", "cut holder")
_OTHERS = ("kill leader", "stop leader", "cut leader", "kill waiter", "transfer")
_THREE: dict[str, Any] = {"members": "abc", "threads": {"a": 3, "b": 3, "c": 2}}
_FIVE: dict[str, Any] = {"members": "abcde", "threads": {"a": 2, "b": 2, "c": 2, "d": 1, "e": 1}}
#: The ninth does not contend: its log and its clock are there from the beginning to the end.
_NINE: dict[str, Any] = {"members": "abcdefghi", "threads": dict.fromkeys("abcdefgh", 1), "options": CROWDED}
_LEADER = ("kill leader", "kill leader", "kill holder", "stop holder", "restart holder", "kill waiter", "transfer")

_QUICK = [
    Campaign("3 processes, 8 contenders", kinds=(*_HOLDER, "kill leader"), faults=5, network="cut", **_THREE),
    Campaign("5 processes, 8 contenders", kinds=("kill leader", "stop leader", "kill waiter"), faults=3, **_FIVE),
]
#: The judge has to find something to say about this one.
UNGUARDED = Campaign("3 processes, unguarded", kinds=("stop holder",), faults=1, guarded=False, **_THREE)


def _series(count: int, name: str, **what: Any) -> list[Campaign]:
    """The same with other seeds: each short enough for a test that may not hang."""
    return [Campaign(f"{name}, {seed} of {count}", seed=seed, **what) for seed in range(1, count + 1)]


_ALL_KINDS = _HOLDER + _OTHERS
_DEFAULTS: dict[str, Any] = {"network": "cut", "lock_delay": None, "options": {}, "stop": 30.0, **_THREE}
_FULL = [
    *_series(3, "3 processes, 8 contenders", kinds=_ALL_KINDS, faults=15, network="cut", **_THREE),
    *_series(4, "3 processes, 8 contenders, fenced", kinds=_HOLDER, faults=10, network="cut", lock_delay=0.0, **_THREE),
    *_series(4, "5 processes, 8 contenders", kinds=_ALL_KINDS, faults=14, network="cut", **_FIVE),
    *_series(5, "9 processes, 8 contend", kinds=_LEADER, faults=13, **_NINE),
    *_series(2, "5 volatile processes", kinds=("kill holder",), faults=2, volatile=True, **_FIVE),
    *_series(2, "3 processes, default options", kinds=("stop holder", "kill holder"), faults=2, **_DEFAULTS),
    Campaign("3 processes, default options, cut", kinds=("cut holder",), faults=1, **_DEFAULTS),
]
