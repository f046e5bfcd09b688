"""The lock model: by hand, and compared with trying every order."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from checkers.brute_force import lock_is_possible
from checkers.text import history
from coord.testing.history import FAILED, OK, UNKNOWN, Operation
from coord.testing.linearizability import LINEARIZABLE, VIOLATION, check_locks

HISTORIES = int(os.environ.get("COORD_CHECKER_HISTORIES", "600"))

GOOD = {
    "one after the other": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        b 4-5 acquire l -> #7""",
    "waiting": """
        a 0-1 acquire l -> #5
        b 0-5 acquire l -> #7
        a 2-3 release l #5 -> yes""",
    "a release that nobody heard of": """
        a 0-1 acquire l -> #5
        a 2- release l #5 -> unknown
        b 4-5 acquire l -> #7""",
    "an acquire that nobody heard of, and its end": """
        a@p 0- acquire l -> unknown
        b 0.5-1 try l -> held
        e@p 2- expire l -> unknown
        b 3-4 acquire l -> #7""",
    "an acquire that never happened": """
        a@p 0- acquire l -> unknown
        b 3-4 acquire l -> #7""",
    "an expiry in time": """
        a@p 0-1 acquire l -> #5
        e@p 2- expire l #5 -> unknown
        b 1-4 acquire l -> #7
        a@p 5-6 release l #5 -> no""",
    "an expiry that did not come": """
        a@p 0-1 acquire l -> #5
        e@p 2- expire l #5 -> unknown
        a@p 5-6 release l #5 -> yes""",
    "a try that fails while another holds it": """
        a 0-1 acquire l -> #5
        b 2-5 try l -> held
        a 3-4 release l #5 -> yes""",
    "a try that succeeds": """
        a 0-1 try l -> #5
        b 2-3 holder l -> #5
        a 4-5 release l #5 -> yes
        b 6-7 holder l -> nobody""",
    "a try that fails beside an acquire": """
        a 0-2 acquire l -> #5
        b 1-3 try l -> held""",
    "a holder nobody had told of": """
        a@p 0- acquire l -> unknown
        b 1-2 holder l -> #5
        e@p 3- expire l -> unknown
        b 4-5 acquire l -> #6""",
    "two locks": """
        a 0-1 acquire l -> #5
        b 2-3 acquire m -> #4""",
    "releasing twice": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        a 4-5 release l #5 -> no""",
}
BAD = {
    "two holders": """
        a 0-1 acquire l -> #5
        b 2-3 acquire l -> #7""",
    "two holders, after a release that came too late": """
        a 0-1 acquire l -> #5
        b 2-3 acquire l -> #7
        a 4-5 release l #5 -> yes""",
    "two holders, one seen before": """
        a@p 0- acquire l -> unknown
        b 1-2 holder l -> #5
        b 3-4 acquire l -> #7""",
    "a token that falls": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        b 4-5 acquire l -> #4""",
    "a token used twice": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        b 4-5 acquire l -> #5""",
    "no room for a token between": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        x@p 4- acquire l -> unknown
        b 4.5-5 try l -> held
        e@p 6- expire l -> unknown
        b 7-8 acquire l -> #6""",
    "a try that fails on a free lock": """
        b 0-1 try l -> held
        a 2-3 acquire l -> #5""",
    "a try that fails after the release": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        b 4-5 try l -> held""",
    "released by another": """
        a 0-1 acquire l -> #5
        b 2-3 release l #5 -> yes""",
    "released with another token": """
        a 0-1 acquire l -> #5
        a 2-3 release l #4 -> yes""",
    "not released by its holder": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> no""",
    "an expiry before its time": """
        a@p 0-1 acquire l -> #5
        b 2-3 acquire l -> #7
        e@p 4- expire l #5 -> unknown""",
    "the expiry of another": """
        a@p 0-1 acquire l -> #5
        e@q 2- expire l -> unknown
        b 3-4 acquire l -> #7""",
    "the expiry of an older hold": """
        a@p 0-1 acquire l -> #5
        a@p 2-3 release l #5 -> yes
        a@p 4-5 acquire l -> #8
        e@p 6- expire l #5 -> unknown
        b 7-8 acquire l -> #9""",
    "held with a token that cannot be": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        x@p 4- acquire l -> unknown
        b 5-6 holder l -> #4""",
    "released with a token that cannot be": """
        a@p 0-1 acquire l -> #5
        a@p 2-3 release l #5 -> yes
        a@p 4- acquire l -> unknown
        b@p 5-6 release l #4 -> yes""",
    "nobody holds what is held": """
        a 0-1 acquire l -> #5
        b 2-3 holder l -> nobody""",
    "somebody else holds it": """
        a 0-1 acquire l -> #5
        b 2-3 holder l -> #6""",
    "held after the release": """
        a 0-1 acquire l -> #5
        a 2-3 release l #5 -> yes
        b 4-5 holder l -> #5""",
    "a grant that was withdrawn": """
        a 0-1 acquire l -> failed
        b 2-3 try l -> held""",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_locks(name: str) -> None:
    operations = history(GOOD[name])
    assert lock_is_possible(operations) or "two locks" in name
    judgement = check_locks(operations)
    assert judgement.verdict == LINEARIZABLE, str(judgement)
    assert judgement.checked == len(operations)


@pytest.mark.parametrize("name", BAD)
def test_bad_locks(name: str) -> None:
    operations = history(BAD[name])
    assert not lock_is_possible(operations)
    judgement = check_locks(operations)
    assert judgement.verdict == VIOLATION, str(judgement)
    assert judgement.partition == ("l",)
    assert not lock_is_possible(judgement.window), f"what is shown is no proof: {judgement}"


class Locked:
    """A lock, and clients that want it, a step at a time: each operation happens at one moment of the time it takes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.operations: list[Operation] = []
        self._holder: tuple[str, int] | None = None
        self._token = 0
        self._had: dict[str, int] = {}

    def run(self) -> list[Operation]:
        for step in range(7):
            client = self.rng.choice("abc")
            kinds = ("acquire", "try_acquire", "release", "release", "expire", "holder")
            at = step + 1.0
            operation = Operation(step, client, f"{client}{step}", self.rng.choice(kinds), 0, key="l", outcome=OK)
            operation.invoked, operation.returned = at - self.rng.random() * 2, at + self.rng.random() * 2
            if self._happen(operation, client):
                if operation.kind == "expire" or (operation.kind != "holder" and self.rng.random() < 0.25):
                    operation.outcome, operation.returned, operation.existed = UNKNOWN, float("inf"), None
                    operation.token = 0 if operation.kind in ("acquire", "try_acquire") else operation.token
                self.operations.append(operation)
        return self.operations

    def _happen(self, operation: Operation, client: str) -> bool:
        if operation.kind in ("acquire", "try_acquire"):
            if self._holder is not None:
                return operation.kind == "try_acquire"
            self._token += self.rng.choice((1, 1, 2))
            operation.token = self._had[client] = self._token
            self._holder = (client, self._token)
        elif operation.kind == "holder":
            operation.token = self._holder[1] if self._holder else 0
        else:
            operation.token = self._had.get(client, 1)
            operation.existed = self._holder == (client, operation.token)
            if operation.existed:
                self._holder = None
        return True


def disturb(operations: list[Operation], rng: random.Random) -> None:
    operation = rng.choice(operations)
    if rng.random() < 0.2:
        operation.outcome, operation.returned = FAILED, float("inf")
    elif operation.kind == "release" and operation.existed is not None:
        operation.existed = not operation.existed
    elif operation.outcome == OK and operation.kind != "acquire":
        operation.token = rng.choice((0, 1, 2, 3)) if operation.kind != "release" else operation.token
    elif operation.outcome == OK:
        operation.token = rng.choice((1, 2, 3))


def test_the_search_agrees_with_trying_every_order() -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(HISTORIES):
        locked = Locked(seed)
        operations = locked.run()
        if operations and seed % 4:
            disturb(operations, locked.rng)
        possible, judgement = lock_is_possible(operations), check_locks(operations)
        verdicts[possible] += 1
        told = "\n".join(map(str, operations))
        assert judgement.ok == possible, f"seed {seed}: possible is {possible}: {judgement}\n{told}"
    print(f"\nlocks: {dict(verdicts)}")
    assert min(verdicts[True], verdicts[False]) > HISTORIES // 10, "nearly all are alike, which shows little"
