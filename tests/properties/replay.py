"""The machine in another process, of another Python or another hash seed: what it makes of the same entries.

Run as a script it answers one line of JSON with one line of JSON, until its input ends. It needs nothing of `coord` but
the machine, which imports nothing but msgpack; so an interpreter without the other libraries will do.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

#: (index, term, time, payload) of each entry.
Entries = list[tuple[int, int, int, bytes]]


def bare_coord(package: str) -> None:
    """Make `coord` a package without running what it imports."""
    module = types.ModuleType("coord")
    module.__path__ = [package]
    sys.modules["coord"] = module


def account(entries: Entries, cut_after: int) -> dict[str, Any]:
    """Everything that must be the same everywhere. A second machine goes on from a snapshot cut after `cut_after`."""
    from coord.machine.machine import Machine

    machine, other = Machine(), Machine()
    replies, changes = [], hashlib.sha256()
    hashes = hashlib.sha256()
    for number, entry in enumerate(entries):
        if number == cut_after:
            other.restore(machine.cut().chunks())
        replies.append(repr(machine.apply(*entry)))
        if number >= cut_after:
            other.apply(*entry)
        hashes.update(b"%d;" % machine.state_hash)
        changes.update(repr((machine.take_changes(), machine.take_session_events(), machine.next_due())).encode())
    whole = b"".join(machine.cut().chunks())
    return {
        "state hash": machine.state_hash,
        "every state hash": hashes.hexdigest(),
        "replies": replies,
        "changes": changes.hexdigest(),
        "snapshot": hashlib.sha256(whole).hexdigest(),
        "state hash after a snapshot": other.state_hash,
        "snapshot after a snapshot": hashlib.sha256(b"".join(other.cut().chunks())).hexdigest(),
    }


def encode(entries: Entries, cut_after: int) -> str:
    return json.dumps([[[*numbers, payload.hex()] for *numbers, payload in entries], cut_after])


def main() -> None:
    package, spare = sys.argv[1:]
    bare_coord(package)
    # After the interpreter's own: another Python cannot load ours' compiled part, and msgpack then does without.
    sys.path.append(spare)
    import msgpack

    print(json.dumps([list(sys.version_info[:3]), list(msgpack.version), msgpack.Unpacker.__module__]), flush=True)
    for line in sys.stdin:
        rows, cut_after = json.loads(line)
        entries = [(index, term, time, bytes.fromhex(payload)) for index, term, time, payload in rows]
        print(json.dumps(account(entries, cut_after)), flush=True)


if __name__ == "__main__":
    # Its own folder is no place to import from: modules there have names of the standard library's.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main()
