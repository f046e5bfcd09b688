"""A member in a process of its own: listens where it is told, prints the address, and lives as long as its input.

A line "close" closes the transport and keeps the process.
"""

from __future__ import annotations

import sys
import threading

from coord.transports.zeromq import ZeroMQTransport


def main() -> None:
    transport = ZeroMQTransport(sys.argv[1])
    transport.start()
    print(transport.address, flush=True)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            transport.poll(5.0)
            transport.receive(64)
            transport.events()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for line in sys.stdin:
        if line.strip() == "close":
            ended.set()
            transport.wake()
            thread.join()
            transport.close()
            print("closed", flush=True)


if __name__ == "__main__":
    main()
