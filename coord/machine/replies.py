"""What a command is answered with: small tuples that start with a status, kept for duplicates and in snapshots.

Every status is named here and nowhere else. The texts a user reads are made by the callers of the machine, from the
status and its details; a reply carries facts only.
"""

from __future__ import annotations

from typing import Any

#: (status, detail, ...): integers, strings, bytes, None and tuples of these.
Reply = tuple[Any, ...]

#: (OK, revision, changed): done. `revision` is the log index at which it happened; `changed` how many keys it changed,
#: 0 for a delete of an absent key; for a lock's commands, how many requests (0: a cancel found none). For
#: `open_session`, `revision` is the index at which the session was opened.
OK = 0
#: (BAD_COMMAND, reason): these bytes are no command. No effect; never remembered, since the bytes say it all.
BAD_COMMAND = 1
#: (SESSION_ENDED,): the session is over, or was never opened. No effect, now or later.
SESSION_ENDED = 2
#: (STALE,): a duplicate of a command whose reply its session has acknowledged. No effect.
STALE = 3
#: (CONFLICT, key, current): a compare failed. No effect. `current` is None when the key is absent, else
#: (value, revision, created, version, session, expires_at); `value` is None when it was too large to remember.
CONFLICT = 4
#: (OWNED_BY_OTHER, key, session): the key is ephemeral and belongs to another live session. No effect.
OWNED_BY_OTHER = 5
#: (QUOTA, name, limit): the command would leave the state over `limit`, the field `name` of Limits. No effect.
QUOTA = 6
#: (SESSION_ID_IN_USE,): another process drew the same session id. Draw again.
SESSION_ID_IN_USE = 7
#: (OWNER_IN_USE, session): the owner has a live session, and it is not the one that the open was to replace.
OWNER_IN_USE = 8

#: (GRANTED, token, slot): the lock is held.
GRANTED = 9
#: (WAITING,): the request is in the queue. It stays the answer to a duplicate when it has been granted since.
WAITING = 10
#: (DENIED, owner): not free, and the request was not to wait. `owner` of the first holder, "" if there is none: others
#: wait, or the lock is under delay, or no epoch is set. No effect.
DENIED = 11
#: (NOT_HELD,): that request does not hold that lock with that token; for a downgrade: or not alone. No effect.
NOT_HELD = 12
#: (PERMITS_DIFFER, permits): the lock has another number of permits. No effect.
PERMITS_DIFFER = 13
#: (QUEUE_FULL, limit): as many wait as may. No effect.
QUEUE_FULL = 14
#: (HOLD_GONE, name): a compare with a hold failed. No effect.
HOLD_GONE = 15
#: (CANCELLED,): the request was cancelled before it came. No effect.
CANCELLED = 16

ENDED_REPLY: Reply = (SESSION_ENDED,)
STALE_REPLY: Reply = (STALE,)
WAITING_REPLY: Reply = (WAITING,)
NOT_HELD_REPLY: Reply = (NOT_HELD,)
CANCELLED_REPLY: Reply = (CANCELLED,)


def remembered_value_bytes(reply: Reply) -> int:
    """How many bytes of a config value `reply`, a conflict, keeps alive."""
    current = reply[2]
    return 0 if current is None or current[0] is None else len(current[0])


def is_reply(reply: object) -> bool:
    """Tell whether a snapshot's bytes hold a reply here: flat, but for the entry in a conflict."""
    if type(reply) is not tuple or not reply or type(reply[0]) is not int or not OK <= reply[0] <= CANCELLED:
        return False
    if reply[0] != CONFLICT:
        return all(type(field) in (int, str) for field in reply)
    if len(reply) != 3 or type(reply[1]) is not str:
        return False
    current = reply[2]
    if current is None:
        return True
    return (
        type(current) is tuple
        and len(current) == 6
        and (current[0] is None or type(current[0]) is bytes)
        and all(type(field) is int for field in current[1:])
    )
