"""Three members, one of them killed: the other two go on, and what was written is there.

This process is member `a`; `b` and `c` run in processes of their own, as they would on other machines. `a` votes but
never leads, so that killing the leader does not end the example.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import coord

NAMES = ("a", "b", "c")


def member(name: str, folder: str) -> coord.Node:
    """How every process of the group makes its node; only `name` differs."""
    return coord.Node(
        name,
        bind=f"ipc://{folder}/{name}.sock",
        peers={peer: f"ipc://{folder}/{peer}.sock" for peer in NAMES},
        data_dir=f"{folder}/{name}",
        group="example",
        options=coord.Options(priority=-1 if name == "a" else 0),
    )


def serve(name: str, folder: str) -> None:
    """What `b` and `c` do: run until the parent closes their stdin, by purpose or by dying."""
    with member(name, folder):
        sys.stdin.read()


def main(folder: str) -> None:
    # A list of arguments, no shell; the pipe is how a child notices that its parent is gone.
    others = {
        name: subprocess.Popen([sys.executable, __file__, name, folder], stdin=subprocess.PIPE) for name in NAMES[1:]
    }
    try:
        with member("a", folder) as node:
            node.config["greeting"] = "hello"
            leader = node.cluster.leader()
            assert leader is not None
            print(f"{leader} leads; a wrote through it, at revision {node.config.revision}")

            others[leader].kill()
            print(f"{leader} is killed")
            revision = node.config.put("greeting", "still here")
            print(f"{node.cluster.leader()} leads; a wrote revision {revision}, with two of three members")

            # Asks the quorum, so it is as new as any write that was finished before.
            print("greeting is", repr(node.config.get("greeting", linearizable=True)))
            for row in node.cluster.members():
                print(f"  {row.name} at {row.address.rpartition('/')[2]}")
    finally:
        for process in others.values():
            process.communicate(timeout=10)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(sys.argv[1], sys.argv[2])
    else:
        with tempfile.TemporaryDirectory(prefix="coord-") as folder:
            main(folder)
