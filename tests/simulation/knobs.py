"""What one simulated world is like: drawn anew for each seed, most troubles switched off in any one of them.

Swarm testing: a world in which everything goes wrong at once hides the mistakes that need one trouble and peace
otherwise. What must not live here: how a trouble is made (`faults`, `coord.testing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from coord.options import Options
from coord.testing.chance import stream
from coord.testing.network import Conditions
from coord.testing.simulation import Hardware

NEVER = float("inf")
#: Those that keep to the rules between fields; the others are set past the checks.
_CHECKED = (
    "heartbeat",
    "election_timeout",
    "session_ttl",
    "session_grace",
    "lease_reads",
    "clock_drift",
    "disk_stall_timeout",
)


def tight(**settings: Any) -> Options:
    """Options with limits smaller than any user may set, so that what is rare with large ones becomes common."""
    options = Options(**{name: value for name, value in settings.items() if name in _CHECKED})
    for name, value in settings.items():
        object.__setattr__(options, name, value)
    return options


@dataclass(slots=True)
class Knobs:
    """Times in seconds; `every` knobs are mean intervals; rates are probabilities unless said otherwise."""

    members: int = 3
    #: How long things go wrong before everything is repaired.
    chaos: float = 12.0
    options: dict[str, Any] = field(default_factory=dict)
    #: By position; one more than the others, or "never leads".
    priorities: tuple[int, ...] = ()
    #: How fast each member's clock runs.
    rates: tuple[float, ...] = ()

    conditions: Conditions = field(default_factory=Conditions)
    hardware: Hardware = field(default_factory=Hardware)

    # Troubles.
    partition_every: float = NEVER
    clog_every: float = NEVER
    crash_every: float = NEVER
    #: A member is stopped as a user stops it.
    stop_every: float = NEVER
    pause_every: float = NEVER
    stall_every: float = NEVER
    transfer_every: float = NEVER
    jump_every: float = NEVER
    #: A file operation fails; a disk is full for a while.
    disk_error_every: float = NEVER
    full_every: float = NEVER
    #: A bit rots; a write goes astray; everything is lost. Within what the atlas allows.
    rot_every: float = NEVER
    misdirect_every: float = NEVER
    wipe_every: float = NEVER
    #: A leader is in trouble soon after it was elected.
    kill_new_leader: float = 0.0
    #: How likely the death of a process is noticed at once, and how likely evidence is late or wrong.
    notice: float = 1.0
    false_evidence: float = 0.0
    #: A leader that hands over soon hears nobody.
    deaf_on_transfer: float = 0.0
    #: A process dies while it starts.
    crash_at_start: float = 0.0
    #: Members that stay dead while the rest must recover; a minority.
    stay_dead: int = 0

    # Work.
    clients: int = 3
    #: Mean pause of a client between an answer and its next wish.
    think: float = 0.2
    #: What clients do, by weight: writes, linearizable reads, local reads.
    writes: int = 6
    reads: int = 0
    local_reads: int = 2
    #: Several clients' worth of plain writes at once.
    burst_every: float = NEVER
    burst: int = 8
    keys: int = 4
    #: Of several keys at once; without them each key's history stands for itself.
    transactions: bool = True
    value_bytes: int = 20
    client_timeout: float = 6.0
    watches: bool = True

    # Locks.
    lock_clients: int = 0
    locks: int = 1
    #: Mean pause of a lock's client, and mean time from one thing it does with what it holds to the next.
    lock_think: float = 0.1
    lock_hold: float = 0.3
    #: Lock-delay, at most.
    lock_delay: float = 0.0
    #: The acknowledgement of a renewal is held up, for up to one and a half times as long as a session lasts.
    acknowledgements_late: float = 0.0

    def describe(self) -> str:
        """What differs from a quiet world."""
        quiet = Knobs()
        told = []
        for knob in fields(self):
            value, usual = getattr(self, knob.name), getattr(quiet, knob.name)
            if knob.name in ("conditions", "hardware"):
                told += [
                    f"{part.name}={_shown(getattr(value, part.name))}"
                    for part in fields(value)
                    if getattr(value, part.name) != getattr(usual, part.name)
                ]
            elif value != usual:
                told.append(f"{knob.name}={_shown(value)}")
        return " ".join(told)

    def options_of(self, position: int) -> Options:
        priority = self.priorities[position] if self.priorities else 0
        return tight(**{**self.options, "priority": priority})


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


def draw(seed: int) -> Knobs:
    """The world of `seed`."""
    rng = stream(seed, "knobs")

    def one_of(name: str, *values: float) -> float:
        # A stream for each knob: a new knob changes no world that existed before it.
        return stream(seed, "knob", name).choice(values)

    members = int(one_of("members", 3, 3, 3, 3, 5, 5, 5, 1))
    minority = (members - 1) // 2
    lease_reads = bool(one_of("lease", 0, 0, 1))
    drift = one_of("drift", 0.001, 0.01, 0.05) if lease_reads else 0.01
    widest = drift if lease_reads else one_of("clocks", 0, 0.01, 0.3)
    rates = tuple(1 + stream(seed, "rate", position).uniform(-widest, widest) for position in range(members))
    # Those that never lead, are harmed or stay dead must together be a minority, or nobody could promise anything.
    spare = minority
    stay_dead = spare if one_of("stay dead", 0, 1) else 0
    spare -= stay_dead
    priorities = tuple(0 for _ in range(members))
    if one_of("preference", 0, 0, 1):
        priorities = tuple(rng.choice((0, 0, 1, 2)) for _ in range(members))
        if spare and one_of("never leads", 0, 1):
            position = rng.randrange(members)
            priorities = (*priorities[:position], -1, *priorities[position + 1 :])
            spare -= 1
    harms = spare > 0
    in_order = bool(one_of("in order", 0, 1))
    pace = one_of("pace", 0.3, 0.3, 1)
    return Knobs(
        members=members,
        chaos=one_of("chaos", 5, 10, 15),
        options={
            "heartbeat": one_of("heartbeat", 0.15, 0.3) * pace,
            "election_timeout": (1.5 * pace, 3 * pace),
            "session_ttl": one_of("session ttl", 6, 6, 20) * pace,
            "session_grace": one_of("session grace", 0, 1, 45) * pace,
            "lease_reads": lease_reads,
            "clock_drift": drift,
            "disk_stall_timeout": one_of("stall timeout", 0.5, 1.5) * pace,
            "max_batch_bytes": int(one_of("batch bytes", 300, 600, 10_000)),
            "max_append_bytes": int(one_of("append bytes", 1, 600, 1 << 20)),
            # Where messages overtake each other, all but the first few of a large window are refused, again and again.
            "max_inflight_messages": int(one_of("inflight", 1, 2, 64 if in_order else 8)),
            "max_uncommitted_bytes": int(one_of("uncommitted", 1, 900, 64 << 20, 64 << 20)),
            "snapshot_entries": int(one_of("snapshot entries", 1 << 30, 6, 20, 80)),
            "snapshot_chunk_bytes": int(one_of("chunk bytes", 100, 400, 4096)),
            "history_revisions": int(one_of("history", 5, 40, 10_000)),
        },
        priorities=priorities,
        rates=rates,
        conditions=Conditions(
            delay=one_of("delay", 0.0005, 0.002, 0.02) * pace,
            jitter=one_of("jitter", 0, 0, 0.01, 0.2, 1.0) * pace,
            in_order=in_order,
            loss=one_of("loss", 0, 0, 0.02, 0.1, 0.3),
            duplicate=one_of("duplicate", 0, 0, 0.05, 0.3),
            damage=one_of("damage", 0, 0, 0, 0.01),
            late=one_of("late", 0, 0, 0.01, 0.05),
            hold=bool(one_of("hold", 0, 1)),
        ),
        hardware=Hardware(
            sync_time=one_of("sync time", 0, 0.001, 0.01, 0.1, 0.3) * pace,
            snapshot_time=one_of("snapshot time", 0, 0.05, 1),
            turn_delay=one_of("turn delay", 0, 0, 0.005, 0.05) * pace,
            timer_delay=one_of("timer delay", 0, 0, 0.02) * pace,
            segment_bytes=int(one_of("segment bytes", 2048, 4096, 16384)),
        ),
        partition_every=one_of("partitions", NEVER, 0.7, 1.5, 4),
        clog_every=one_of("clogs", NEVER, NEVER, 2),
        crash_every=one_of("crashes", NEVER, NEVER, 0.7, 3),
        stop_every=one_of("stops", NEVER, NEVER, 3),
        pause_every=one_of("pauses", NEVER, NEVER, 2),
        stall_every=one_of("stalls", NEVER, NEVER, 3),
        transfer_every=one_of("transfers", NEVER, NEVER, 1, 4),
        # A clock that jumps breaks what a lease rests on: that its rate is right.
        jump_every=NEVER if lease_reads else one_of("jumps", NEVER, NEVER, 3),
        disk_error_every=one_of("disk errors", NEVER, NEVER, NEVER, 2),
        full_every=one_of("full disks", NEVER, NEVER, NEVER, 3),
        rot_every=one_of("rot", NEVER, NEVER, 1.5) if harms else NEVER,
        misdirect_every=one_of("misdirected", NEVER, NEVER, NEVER, 3) if harms else NEVER,
        wipe_every=one_of("wipes", NEVER, NEVER, NEVER, 5) if harms else NEVER,
        kill_new_leader=one_of("new leader", 0, 0.3, 0.7),
        notice=one_of("notice", 0, 0.5, 1),
        false_evidence=one_of("false evidence", 0, 0, 0.5),
        deaf_on_transfer=one_of("deaf", 0, 0.5),
        crash_at_start=one_of("crash at start", 0, 0, 0.3),
        stay_dead=stay_dead,
        clients=int(one_of("clients", 1, 3, 6)),
        think=one_of("think", 0.02, 0.1, 0.5),
        reads=int(one_of("reads", 3, 10) if lease_reads else one_of("reads", 0, 3, 10)),
        burst_every=one_of("bursts", NEVER, NEVER, 0.5),
        burst=int(one_of("burst", 4, 30)),
        keys=int(one_of("keys", 1, 4, 12)),
        transactions=bool(one_of("transactions", 0, 0, 1)),
        value_bytes=int(one_of("value bytes", 1, 20, 150)),
        client_timeout=one_of("client timeout", 1, 6) * pace,
        lock_clients=int(one_of("lock clients", 0, 0, 3, 6)),
        locks=int(one_of("locks", 1, 3, 4)),
        lock_think=one_of("lock think", 0.02, 0.2, 0.5),
        lock_hold=one_of("lock hold", 0.02, 0.2, 1),
        lock_delay=one_of("lock delay", 0, 1, 4) * pace,
        acknowledgements_late=one_of("late acknowledgements", 0, 0, 0, 0.3, 0.9),
    )


def spare_of(knobs: Knobs) -> int:
    """How many disks may be harmed."""
    unable = sum(priority < 0 for priority in knobs.priorities) + knobs.stay_dead
    return max(0, (knobs.members - 1) // 2 - unable)
