"""A member that forks, as a web server's worker pool does, and whose child lets go of the transport.

Lines on its input: "fork", "fork and exit" as Python does, "fork and stay", "receive", "close". It ends with its input.
"""

from __future__ import annotations

import os
import sys

from coord.transports.zeromq import ZeroMQTransport


def child(transport: ZeroMQTransport, parent_lives: int, stay: bool) -> int:
    before = len(os.listdir("/proc/self/fd"))
    transport.abandon()
    closed = before - len(os.listdir("/proc/self/fd"))
    transport.abandon()
    transport.close()
    transport.wake()
    transport.poll(5.0)
    assert transport.receive(10) == []
    assert not transport.send("b", b"x")
    if stay:
        print("child stays", flush=True)
        os.read(parent_lives, 1)
    # The wake-up, the lock of the path, the listening socket.
    return 3 - closed


def main() -> None:
    # Never written to: its reading end is at its end when the parent is.
    parent_lives, keep_open = os.pipe()
    transport = ZeroMQTransport(sys.argv[1])
    transport.start()
    transport.set_peers({"b": "tcp://127.0.0.1:1"})
    print(transport.address, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command.startswith("fork"):
            pid = os.fork()
            if pid == 0:
                os.close(keep_open)
                if command == "fork and exit":
                    transport.abandon()
                    del transport
                    sys.exit(0)
                os._exit(child(transport, parent_lives, stay=command.endswith("stay")))
            if command == "fork and exit":
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            elif command == "fork":
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "descriptors of ours left", flush=True)
        elif command == "receive":
            frames: list[bytes] = []
            while not frames:
                transport.poll(5.0)
                frames = transport.receive(10)
            print(frames[0].decode(), flush=True)
        elif command == "close":
            transport.close()
            print("closed", flush=True)


if __name__ == "__main__":
    main()
