"""The roles of a member, and the only changes between them.

::

    FOLLOWER ──timeout──▶ PRE_CANDIDATE ──majority would vote──▶ CANDIDATE ──majority voted──▶ LEADER
        ▲                      │                                     │                            │
        └──────────────────────┴── a leader, a newer term, or lost ──┴────────────────────────────┘

A lone voter, and a target of a leadership transfer, go from FOLLOWER to CANDIDATE at once.
Nobody becomes leader by restarting (trap 6).
"""

from __future__ import annotations

FOLLOWER = "follower"
PRE_CANDIDATE = "pre-candidate"
CANDIDATE = "candidate"
LEADER = "leader"

ALLOWED = {
    FOLLOWER: {FOLLOWER, PRE_CANDIDATE, CANDIDATE},
    PRE_CANDIDATE: {FOLLOWER, PRE_CANDIDATE, CANDIDATE},
    CANDIDATE: {FOLLOWER, PRE_CANDIDATE, LEADER},
    LEADER: {FOLLOWER},
}
