"""Names looked up off the loop: a name server that hangs for a minute may delay nothing but its own answer.

libzmq would look them up itself, but in the one thread that serves every connection, so a slow name server would stall
them all. What must not live here: when to ask again (`coord.transports.link`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from coord.transports.address import Address, Target, look_up


class Resolver:
    """Looks addresses up one after the other, in a daemon thread that lives only while there is something to look up.

    At most one question per peer is waiting, so the queues are bounded by the number of peers. A lookup cannot be
    interrupted: after `close` its answer is thrown away and the thread ends.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        #: Called from the thread after each answer. Must be safe at any time.
        self._notify = notify
        self._lock = threading.Lock()
        self._questions: deque[Address] = deque()
        self._answers: deque[tuple[Address, list[Target], str]] = deque()
        self._running = False
        self._closed = False

    def ask(self, address: Address) -> None:
        """Look `address` up; the answer will be in `answers`. Never blocks."""
        with self._lock:
            if self._closed or address in self._questions:
                return
            self._questions.append(address)
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="coord-resolver", daemon=True).start()
        except RuntimeError as error:  # no thread can start: out of them, or the interpreter is ending
            with self._lock:
                self._running = False
                self._answers.extend((question, [], str(error)) for question in self._questions)
                self._questions.clear()
            self._notify()

    def answers(self) -> list[tuple[Address, list[Target], str]]:
        """What was found since the last call: the address, its targets, and when there are none the reason."""
        found = []
        while self._answers:
            found.append(self._answers.popleft())
        return found

    def close(self) -> None:
        """Forget all questions. Does not wait for a lookup that hangs."""
        with self._lock:
            self._closed = True
            self._questions.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._questions:
                    self._running = False
                    return
                address = self._questions.popleft()
            targets: list[Target] = []
            reason = "the name has no address"
            try:
                targets = look_up(address)
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that idna cannot encode
                reason = str(error)
            with self._lock:
                if self._closed:
                    self._running = False
                    return
                self._answers.append((address, targets, reason))
            self._notify()
