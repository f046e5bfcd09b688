"""`coord wal dump|verify`: look into a member's data directory, running or not. Takes no lock, changes no byte.

What must not live here: the judging of what is read (`coord.storage.replay`), shared with the member's own start.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from coord.storage.directory import DamagedIdentity, read_identity
from coord.storage.files import Files, OsFiles
from coord.storage.records import (
    CHECKPOINT,
    KIND_NAMES,
    SEGMENT_HEADER_BYTES,
    DamagedRecord,
    Record,
    read_contents,
    read_record,
    read_segment_header,
)
from coord.storage.replay import is_segment_name, read_log
from coord.storage.snapshots import DamagedSnapshot, is_snapshot_name, read_meta, verify_content

OK, DAMAGED, USAGE = 0, 1, 2
#: A running member may drop a segment while it is read; then everything is read again.
_ATTEMPTS = 5

Row = dict[str, object]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `wal` with its two commands; each sets `func`, which takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser("wal", help="look into a member's log", description=__doc__)
    commands = parser.add_subparsers(dest="wal_command", required=True)
    for name, function, text in (
        ("dump", dump, "print every record in order, one line each"),
        ("verify", verify, "check every checksum; exit 0: fine, 1: damaged, 2: not a data directory"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", metavar="DIR", help="the member's data_dir")
        command.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
        command.set_defaults(func=function)


def dump(args: argparse.Namespace) -> int:
    """Print every segment and record, up to the end or the first damage in each segment."""
    files = OsFiles()
    if not _is_data_directory(files, args.directory):
        return USAGE
    for row in _rows(files, args.directory):
        print(json.dumps(row) if args.output == "json" else _line(row))
    return OK


def verify(args: argparse.Namespace) -> int:
    """Read everything as a start would, and say where it is damaged and what to do."""
    files = OsFiles()
    if not _is_data_directory(files, args.directory):
        return USAGE
    report = _again_if_gone(lambda: _examine(files, args.directory))
    if args.output == "json":
        print(json.dumps(report))
    else:
        for key, value in report.items():
            for item in value if isinstance(value, list) else [value]:
                print(f"{key}: {item}")
    return DAMAGED if report["damage"] else OK


def _is_data_directory(files: Files, directory: str) -> bool:
    try:
        names = files.names(directory)
    except OSError as error:
        print(f"coord wal: {directory!r} cannot be read: {error}", file=sys.stderr)
        return False
    if "identity" in names or any(map(is_segment_name, names)):
        return True
    print(f"coord wal: {directory!r} holds no member's data; give the data_dir of one", file=sys.stderr)
    return False


def _again_if_gone(action: Callable[[], Row]) -> Row:
    for _ in range(_ATTEMPTS - 1):
        try:
            return action()
        except FileNotFoundError:
            continue
    return action()


def _examine(files: Files, directory: str) -> Row:
    damage: list[str] = []
    notes: list[str] = []
    try:
        identity = read_identity(files, directory)
    except DamagedIdentity as error:
        damage.append(f"identity: {error}")
    else:
        if identity is None:
            damage.append("identity: the file is gone, so nobody can say whose data this is")
        else:
            notes.append(f"member {identity.name!r} of group {identity.group!r}, incarnation {identity.incarnation}")
    reading = read_log(files, directory)
    if reading.damage:
        damage.append(reading.damage)
    elif reading.cut is not None:
        notes.append(f"torn tail, to be cut at the next start (or a write is under way): {reading.cut}")
    usable = _examine_snapshots(files, directory, damage)
    begin = reading.replay.base[0]
    if reading.segments and begin > max(usable, default=0):
        damage.append(f"the log begins after entry {begin}, but no whole snapshot reaches that far")
    last_index, last_term = reading.replay.last
    notes.append(f"{len(reading.segments)} segments, records up to {reading.next_sequence - 1}")
    notes.append(f"entries {begin + 1} to {last_index} (term {last_term}); {reading.replay.hard_state}")
    report: Row = {"note": notes, "damage": damage}
    if damage:
        report["what to do"] = (
            "change nothing in the directory, keep a copy, and replace this member: start it with an empty data_dir "
            "and let it join anew; the others hold what was committed"
        )
    else:
        report["result"] = "no damage"
    return report


def _examine_snapshots(files: Files, directory: str, damage: list[str]) -> list[int]:
    """Return the indexes of whole snapshots; add what is wrong with others to `damage`."""
    usable = []
    for name in filter(is_snapshot_name, files.names(directory)):
        path = f"{directory}/{name}"
        try:
            meta = read_meta(files, path)
            verify_content(files, path, meta)
        except DamagedSnapshot as error:
            damage.append(f"{name}: {error}")
        else:
            usable.append(meta.index)
    return usable


def _rows(files: Files, directory: str) -> Iterator[Row]:
    for name in filter(is_segment_name, files.names(directory)):
        path = f"{directory}/{name}"
        try:
            data = files.read(path, 0, files.size(path))
            header = read_segment_header(data)
        except FileNotFoundError:
            yield {"segment": name, "offset": 0, "kind": "gone", "why": "dropped while it was to be read"}
            continue
        except DamagedRecord as error:
            yield {"segment": name, "offset": 0, "kind": "damaged", "why": str(error)}
            continue
        yield {
            "segment": name,
            "offset": 0,
            "kind": "segment",
            "first": header.first_sequence,
            "through": header.through,
            "seed": header.seed,
            "size": len(data),
        }
        yield from _record_rows(name, data, header.seed)


def _record_rows(name: str, data: bytes, seed: int) -> Iterator[Row]:
    offset, previous = SEGMENT_HEADER_BYTES, seed
    while True:
        try:
            record = read_record(data, offset, seed, previous)
            row = _record_row(name, record)
        except ValueError as error:
            rest = len(data[offset:].rstrip(b"\0"))
            if rest:
                yield {"segment": name, "offset": offset, "kind": "unreadable", "bytes": rest, "why": str(error)}
            return
        yield row
        offset, previous = record.end, record.crc


def _record_row(name: str, record: Record) -> Row:
    contents = read_contents(record)
    row: Row = {
        "segment": name,
        "offset": record.start,
        "kind": KIND_NAMES[record.kind],
        "sequence": record.sequence,
        "durable": record.durable,
        "commit": record.commit,
    }
    if contents.hard_state is not None:
        row.update(term=contents.hard_state.term, vote=contents.hard_state.vote)
    if contents.position is not None:
        key = "log_end" if record.kind == CHECKPOINT else "reset_to"
        row[key] = "{}t{}".format(*contents.position)
    if contents.truncate_from is not None:
        row["truncate_from"] = contents.truncate_from
    if contents.batches:
        row["batches"] = [f"{batch.first}-{batch.last}t{batch.term}" for batch in contents.batches]
    row["bytes"] = record.end - record.start
    return row


def _line(row: Row) -> str:
    """One line: place and kind in columns, the rest by name."""
    rest = [
        f"{key}={','.join(value) if isinstance(value, list) else value}"
        for key, value in row.items()
        if key not in ("segment", "offset", "kind")
    ]
    return f"{row['segment']} {row['offset']:>9} {row['kind']:<10} {' '.join(rest)}"
