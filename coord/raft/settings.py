"""What a core may be told: times in seconds, sizes in bytes. Checked where users give them (`coord.options`)."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True, frozen=True)
class Settings:
    heartbeat: float = 0.15
    #: Randomised between these two.
    election_timeout: tuple[float, float] = (1.5, 3.0)
    #: Higher is preferred as leader; negative never leads.
    priority: int = 0
    lease_reads: bool = False
    #: Clock rates of two members differ by at most this fraction.
    clock_drift: float = 0.01
    #: A leader whose disk has not answered for so long hands over; a follower does not campaign.
    disk_stall_timeout: float = 1.5
    max_batch_bytes: int = 1 << 20
    #: Batches are joined into one append up to this; a larger single batch still goes whole.
    max_append_bytes: int = 1 << 20
    #: Sent to one follower and not yet answered.
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 8 << 20
    #: In the leader's log and not yet committed; beyond it proposals are refused (backpressure).
    max_uncommitted_bytes: int = 64 << 20

    @classmethod
    def of(cls, options: object) -> Settings:
        """What `options` says, field by field of the same name."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})
