"""What one simulated world is like: drawn anew for each seed, most troubles switched off in any one of them.

Swarm testing: a world in which everything goes wrong at once hides the mistakes that need one trouble and peace
otherwise. What must not live here: how a trouble is made (`faults`, `network`, `disk`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from coord.raft.batch import encode_entry
from coord.raft.settings import Settings
from simulation.chance import stream
from simulation.state import entry_payload

NEVER = float("inf")


@dataclass(slots=True)
class Knobs:
    """Times in seconds; `every` knobs are mean intervals; rates are probabilities unless said otherwise."""

    members: int = 3
    #: How long things go wrong before everything is repaired.
    chaos: float = 12.0
    settings: Settings = field(default_factory=Settings)
    #: By position; one more than the others, or "never leads".
    priorities: tuple[int, ...] = ()
    #: How fast each member's clock runs.
    rates: tuple[float, ...] = ()

    # The network.
    delay: float = 0.002
    jitter: float = 0.0
    #: None overtakes another, unless it is late or doubled.
    in_order: bool = True
    loss: float = 0.0
    duplicate: float = 0.0
    #: A message is held up for up to `late_by`, on its way whatever happens to its target meanwhile.
    late: float = 0.0
    late_by: float = 4.0
    #: What a cut link could not carry arrives when it is mended, as from a socket's queue, instead of never.
    hold: bool = False
    #: Messages pass through the real codec.
    wire: bool = False

    # Members and their disks.
    #: How long a member leaves what arrived lying, so that a turn takes several at once.
    turn_delay: float = 0.0
    #: A sync takes this long, up to twice; 0: done within the turn.
    sync_time: float = 0.0
    #: The real log on a disk in memory instead of a model of it.
    real_disk: bool = False
    snapshot_entries: int = 1 << 30
    snapshot_chunk_bytes: int = 4096
    #: How long writing a snapshot takes, up to.
    snapshot_time: float = 0.0

    # Troubles.
    partition_every: float = NEVER
    crash_every: float = NEVER
    pause_every: float = NEVER
    stall_every: float = NEVER
    transfer_every: float = NEVER
    #: A leader is in trouble soon after it was elected.
    kill_new_leader: float = 0.0
    #: How likely the death of a process is noticed at once, and how likely evidence is late or wrong.
    notice: float = 1.0
    false_evidence: float = 0.0
    #: A leader that hands over soon hears nobody.
    deaf_on_transfer: float = 0.0
    damaged: bool = False
    #: Members that stay dead while the rest must recover; a minority.
    stay_dead: int = 0

    # Work.
    proposals_every: float = 0.2
    reads_every: float = NEVER
    entries: int = 3
    entry_bytes: int = 40

    def describe(self) -> str:
        """What differs from a quiet world."""
        quiet = Knobs()
        told = []
        for knob in fields(self):
            value = getattr(self, knob.name)
            if value != getattr(quiet, knob.name):
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                told.append(f"{knob.name}={shown}")
        return " ".join(told)


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
    damaged = bool(one_of("damaged", 0, 0, 0, 0, 0, 0, 1)) and minority > 0
    # Those that never lead, are damaged or stay dead must together be a minority, or nobody could promise anything.
    spare = minority - damaged
    priorities = tuple(0 for _ in range(members))
    if one_of("preference", 0, 0, 1):
        priorities = tuple(rng.choice((0, 0, 1, 2)) for _ in range(members))
        if spare and one_of("never leads", 0, 1):
            position = rng.randrange(members)
            priorities = (*priorities[:position], -1, *priorities[position + 1 :])
            spare -= 1
    entry_bytes = int(one_of("entry bytes", 0, 40, 300))
    in_order = bool(one_of("in order", 0, 1))
    pace = one_of("pace", 0.3, 0.3, 1)
    entry_size = len(encode_entry(entry_payload(0, 0, entry_bytes)))
    return Knobs(
        members=members,
        chaos=one_of("chaos", 5, 10, 15),
        settings=Settings(
            heartbeat=one_of("heartbeat", 0.15, 0.3) * pace,
            election_timeout=(1.5 * pace, 3 * pace),
            lease_reads=lease_reads,
            clock_drift=drift,
            disk_stall_timeout=one_of("stall timeout", 0.5, 1.5) * pace,
            max_batch_bytes=int(one_of("batch bytes", 1, 2.5, 10_000) * entry_size),
            max_append_bytes=int(one_of("append bytes", 1, 300, 1 << 20)),
            # Where messages overtake each other, all but the first few of a large window are refused, again and again.
            max_inflight_messages=int(one_of("inflight", 1, 2, 64 if in_order else 8)),
            max_uncommitted_bytes=int(one_of("uncommitted", 1, 500, 64 << 20, 64 << 20)),
        ),
        priorities=priorities,
        rates=rates,
        delay=one_of("delay", 0.0005, 0.002, 0.02) * pace,
        jitter=one_of("jitter", 0, 0, 0.01, 0.2, 1.0) * pace,
        in_order=in_order,
        loss=one_of("loss", 0, 0, 0.02, 0.1, 0.3),
        duplicate=one_of("duplicate", 0, 0, 0.05, 0.3),
        late=one_of("late", 0, 0, 0.01, 0.05),
        hold=bool(one_of("hold", 0, 1)),
        wire=bool(one_of("wire", 0, 0, 0, 1)),
        turn_delay=one_of("turn delay", 0, 0, 0.005, 0.05) * pace,
        sync_time=one_of("sync time", 0, 0.001, 0.01, 0.1, 0.3) * pace,
        real_disk=bool(one_of("real disk", 0, 0, 0, 0, 1)) and not damaged,
        snapshot_entries=int(one_of("snapshot entries", 1 << 30, 4, 16, 64)),
        snapshot_chunk_bytes=int(one_of("chunk bytes", 24, 100, 4096)),
        snapshot_time=one_of("snapshot time", 0, 0.05, 1),
        partition_every=one_of("partitions", NEVER, 0.7, 1.5, 4),
        crash_every=one_of("crashes", NEVER, NEVER, 0.7, 3),
        pause_every=one_of("pauses", NEVER, NEVER, 2),
        stall_every=one_of("stalls", NEVER, NEVER, 3),
        transfer_every=one_of("transfers", NEVER, NEVER, 1, 4),
        kill_new_leader=one_of("new leader", 0, 0.3, 0.7),
        notice=one_of("notice", 0, 0.5, 1),
        false_evidence=one_of("false evidence", 0, 0, 0.5),
        deaf_on_transfer=one_of("deaf", 0, 0.5),
        damaged=damaged,
        stay_dead=spare if one_of("stay dead", 0, 1) else 0,
        proposals_every=one_of("proposals", 0.05, 0.2, 1),
        reads_every=one_of("reads", 0.02, 0.1) if lease_reads else one_of("reads", NEVER, 0.05, 0.5),
        entries=int(one_of("entries", 1, 3, 8)),
        entry_bytes=entry_bytes,
    )
