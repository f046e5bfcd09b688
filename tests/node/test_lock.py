"""Locks against real groups: alone, in real time and in virtual time. What misuse gets is in `test_lock_misuse`."""

from __future__ import annotations

import contextlib
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import coord
from coord import hold as hold_module
from coord import lock as lock_module
from coord.hold import blocks_inside
from coord.lock import Hold
from coord.testing import Group
from coord.testing.virtual import VirtualWaiter
from node.group import PATIENCE, until

DEFAULTS = coord.Options()


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(virtual=True, seed=11) as group:
        group.leader()
        yield group


def take(node: coord.Node, name: str = "lock", timeout: float = PATIENCE, **options: Any) -> Hold:
    hold = node.lock(name, **options).acquire(timeout=timeout)
    assert hold is not None, f"{node.name} was not granted {name!r} in {timeout:g} s"
    return hold


def idle(node: coord.Node, name: str = "lock") -> bool:
    """Nobody has it, wants it, or keeps it back, and this member has nothing on its way."""
    info = node.lock(name).describe()
    return (info.permits, info.why, len(node._running_loop().replica.requests)) == (0, "", 0)


def token_of(node: coord.Node, name: str = "lock") -> int:
    """Of the one who holds it, as `node` sees it."""
    (holder,) = node.lock(name).describe().holders
    return holder.token


class Others:
    """Threads that each acquire once, and say so."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.holds: dict[str, Hold | None] = {}
        self._threads: list[threading.Thread] = []

    def acquire(self, label: str, lock: lock_module.Lock, **arguments: Any) -> None:
        """Returns when it waits, or has been answered."""

        def work() -> None:
            self.holds[label] = lock.acquire(**arguments)
            self.got.append(label)

        waiting = len(lock.describe().waiting)
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        until(lambda: label in self.holds or len(lock.describe().waiting) > waiting, f"{label} to wait")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


# ---------------------------------------------------------------------------------------------------------------------
# Alone.


def test_acquire_and_release(alone: coord.Node) -> None:
    lock = alone.lock("lock")
    assert not lock.locked()
    hold = lock.acquire()
    assert hold
    assert hold.held() and lock.locked()
    assert (hold.name, hold.shared, hold.slot, hold.lost.is_set()) == ("lock", False, 0, False)
    assert 0 < hold.remaining() <= alone.options.lease
    hold.check(min_remaining=0.0)
    lock.release()
    assert not hold.held() and not lock.locked()
    assert hold.remaining() == 0.0
    assert not hold.lost.is_set(), "it was released"
    assert idle(alone)


def test_a_with_block_holds_and_the_handle_is_good_for_more(alone: coord.Node) -> None:
    lock, tokens = alone.lock("lock"), []
    for _ in range(3):
        with lock as hold:
            assert hold.held()
            tokens.append(hold.token)
        assert not hold.held()
    assert tokens == sorted(set(tokens)), "every hold has a greater token than the last"
    assert max(tokens) < 2**63
    assert idle(alone)


def test_a_hold_in_a_with_statement(alone: coord.Node) -> None:
    with take(alone) as hold:
        assert alone.lock("lock").locked()
    assert idle(alone)
    with pytest.raises(coord.NotHeld, match="released before"):
        hold.release()


def test_an_exception_goes_through_and_releases(alone: coord.Node) -> None:
    with pytest.raises(KeyError), alone.lock("lock"):
        raise KeyError("the block's own")
    assert idle(alone)


def test_a_block_may_be_left_by_another_thread(alone: coord.Node) -> None:
    lock = alone.lock("lock")
    hold = lock.__enter__()
    thread = threading.Thread(target=lock.__exit__, args=(None, None, None))
    thread.start()
    thread.join(PATIENCE)
    assert not hold.held()
    with lock as hold:
        assert blocks_inside(alone) == [(lock, hold)], "what was left elsewhere is forgotten"
    assert blocks_inside(alone) == []


def test_a_loss_that_comes_after_the_release_is_none(alone: coord.Node) -> None:
    """The session may end between the call and the moment the loop's thread hears of it."""
    told: list[str] = []
    hold = take(alone)
    hold.on_lost(told.append)
    hold.release()
    hold._was_lost(hold._request, "expired")
    hold.on_lost(told.append)
    assert not hold.lost.is_set()
    with pytest.raises(coord.NotHeld, match="released before"):
        hold.release()
    assert told == []


def test_a_release_within_the_block_is_enough(alone: coord.Node) -> None:
    with alone.lock("lock") as hold:
        hold.release()
        assert idle(alone)


def test_two_handles_exclude_each_other(alone: coord.Node) -> None:
    hold = take(alone)
    other = alone.lock("lock")
    assert other.acquire(blocking=False) is None
    assert other.acquire(timeout=0.05) is None
    until(lambda: other.describe().waiting == (), "who gave up to leave the queue")
    hold.release()
    with other:
        pass


def test_any_thread_may_release(alone: coord.Node) -> None:
    hold = take(alone)
    thread = threading.Thread(target=hold.release)
    thread.start()
    thread.join(PATIENCE)
    assert idle(alone)


def test_they_are_served_in_order_of_arrival(alone: coord.Node) -> None:
    hold, others = take(alone), Others()
    for label in "abc":
        others.acquire(label, alone.lock("lock"))
    for number, label in enumerate("abc"):
        (hold if not number else others.holds["abc"[number - 1]] or hold).release()
        until(lambda label=label: others.holds.get(label), f"{label} to be granted")  # type: ignore[misc]
    others.join()
    assert others.got == ["a", "b", "c"]


def test_higher_priorities_go_first(alone: coord.Node) -> None:
    hold, others = take(alone), Others()
    others.acquire("usual", alone.lock("lock"))
    others.acquire("urgent", alone.lock("lock", priority=5))
    assert [waiting.priority for waiting in alone.lock("lock").describe().waiting] == [5, 0]
    hold.release()
    until(lambda: others.got == ["urgent"], "the urgent one")
    urgent = others.holds["urgent"]
    assert urgent is not None
    urgent.release()
    others.join()


def test_shared_holders_share_a_token_and_one_that_is_exclusive_waits_its_turn(alone: coord.Node) -> None:
    first, second = take(alone, shared=True), take(alone, shared=True)
    assert first.token == second.token
    others = Others()
    others.acquire("writer", alone.lock("lock"))
    late = alone.lock("lock", shared=True)
    assert not late.locked(), "nobody holds it exclusively"
    assert late.describe().why == "1 wait for it already"
    assert late.acquire(blocking=False) is None, "or writers would starve"
    first.release()
    assert others.got == []
    token = second.token
    second.release()
    others.join()
    writer = others.holds["writer"]
    assert writer is not None
    assert writer.token > token
    assert late.locked()


def test_a_downgrade_lets_others_in_without_a_gap(alone: coord.Node) -> None:
    hold, others = take(alone), Others()
    others.acquire("reader", alone.lock("lock", shared=True))
    before = hold.token
    assert hold.downgrade() == hold.token > before
    others.join()
    reader = others.holds["reader"]
    assert reader is not None
    assert (hold.shared, hold.token) == (True, reader.token)
    assert hold.held()
    reader.release()
    hold.release()
    assert idle(alone)


def test_permits_are_slots_with_tokens_of_their_own(alone: coord.Node) -> None:
    holds = [take(alone, permits=3) for _ in range(3)]
    assert [hold.slot for hold in holds] == [0, 1, 2]
    assert len({hold.token for hold in holds}) == 3
    lock = alone.lock("lock", permits=3)
    assert lock.locked()
    assert lock.acquire(blocking=False) is None
    holds[1].release()
    assert not lock.locked()
    hold = lock.acquire()
    assert hold is not None
    assert hold.slot == 1
    assert hold.token > max(other.token for other in (holds[0], holds[2]))


def test_describe_tells_who_and_why(alone: coord.Node) -> None:
    lock = alone.lock("lock")
    assert lock.describe() == lock_module.LockInfo("lock", 0, (), (), 0.0, "")
    hold, others = take(alone), Others()
    others.acquire("next", alone.lock("lock", priority=-3), timeout=PATIENCE)
    info = lock.describe()
    (holder,) = info.holders
    assert (holder.owner, holder.shared, holder.slot, holder.token) == ("node", False, 0, hold.token)
    assert 0 <= holder.age < PATIENCE
    (waiting,) = info.waiting
    assert (waiting.owner, waiting.shared, waiting.priority) == ("node", False, -3)
    assert (info.permits, info.delay, info.why) == (1, 0.0, "held by 'node'")
    hold.release()
    others.join()


def test_a_sequencer_is_good_while_the_hold_is(alone: coord.Node) -> None:
    hold = take(alone, "a:name:with:colons")
    text = hold.sequencer
    assert text.startswith(f"v1:{alone.status().cluster_id}:x:{hold.token}:")
    for linearizable in (True, False):
        assert alone.check_sequencer(text, linearizable=linearizable)
        assert not alone.check_sequencer(text.replace(":x:", ":s:"), linearizable=linearizable)
        assert not alone.check_sequencer(text.replace(str(hold.token), str(hold.token + 1)), linearizable=linearizable)
        assert not alone.check_sequencer(text + "x", linearizable=linearizable), "another lock"
        for cluster in ("0" * 16 + text[19:35], text[3:19] + "0" * 16):
            assert not alone.check_sequencer(f"v1:{cluster}{text[35:]}", linearizable=linearizable), "another group"
    hold.downgrade()
    assert not alone.check_sequencer(text), "its token is an old one now"
    assert alone.check_sequencer(hold.sequencer)
    text = hold.sequencer
    hold.release()
    assert not alone.check_sequencer(text)


def test_a_transaction_can_require_the_hold(alone: coord.Node) -> None:
    hold = take(alone)
    with alone.config.transaction() as transaction:
        transaction.require(hold)
        transaction.put("k", 1)
    assert alone.config["k"] == 1
    hold.release()
    with pytest.raises(coord.LockLost), alone.config.transaction() as transaction:
        transaction.require(hold)


def test_names_may_be_anything_and_are_apart(alone: coord.Node) -> None:
    names = ["a", "a/b", " ", "ключ", "x" * 255, "election", "'\"\n\0"]
    holds = [take(alone, name) for name in names]
    assert [alone.lock(name).describe().holders[0].token for name in names] == [hold.token for hold in holds]
    assert all(alone.check_sequencer(hold.sequencer) for hold in holds)


def test_works_before_the_start(directory: str) -> None:
    node = coord.Node(registry=None)
    lock = node.lock("lock")
    with node, lock as hold:
        assert hold.held()


def test_a_stop_ends_holds_and_waits(alone: coord.Node) -> None:
    told: list[str] = []
    hold = take(alone)
    hold.on_lost(told.append)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            alone.lock("lock").acquire()
        except coord.CoordError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: alone.lock("lock").describe().waiting, "somebody to wait")
    alone.stop()
    thread.join(PATIENCE)
    assert [type(error) for error in errors] == [coord.ClosedError]
    assert not hold.held() and hold.lost.is_set()
    until(lambda: told, "the callback")
    assert told == ["closed"]


def test_many_threads_and_never_two_inside(alone: coord.Node) -> None:
    inside, worst, tokens = [0], [0], []

    def work() -> None:
        lock = alone.lock("lock")
        for _ in range(25):
            with lock as hold:
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                tokens.append(hold.token)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert worst == [1]
    assert len(tokens) == 150
    assert tokens == sorted(set(tokens))
    assert idle(alone)


#: Where interrupts come.
FILES = {lock_module.__file__, hold_module.__file__}


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line that runs of the lock's own modules, in this thread.

    But not before the beginning or end of a `with` of a bare lock, where the interpreter never takes a signal; nor in
    the first few lines of `__exit__`, where no code could do anything about it.
    """

    def __init__(self, line: int) -> None:
        self.left = line

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not line.startswith("with self._mutex") and not _is_out_of_reach(frame, line):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)


def _is_out_of_reach(frame: FrameType, line: str) -> bool:
    return frame.f_code.co_name == "__exit__" or (frame.f_code.co_name == "_exit" and line in ("held = False", "try:"))


def _interrupted(action: Callable[[], object]) -> Iterator[int]:
    """Have `action` interrupted at every one of its lines in turn; yields after each."""
    for line in range(1, 500):
        interrupter = Interrupter(line)
        try:
            with interrupter.active():
                action()
        except KeyboardInterrupt:
            yield line
        else:
            assert line > 12, "it was never interrupted"
            return
    raise AssertionError("it has no end")


@pytest.mark.parametrize("busy", [False, True])
def test_an_interrupt_at_any_line_of_acquire_leaves_nothing(alone: coord.Node, busy: bool) -> None:
    holder = take(alone) if busy else None
    lock = alone.lock("lock")
    for line in _interrupted(lambda: lock.acquire(timeout=0.01)):
        if holder is not None:
            until(lambda: not lock.describe().waiting, f"an empty queue, after line {line}")
            assert len(lock.describe().holders) == 1
        else:
            until(lambda: idle(alone), f"nothing left, after line {line}")
        assert lock._hold is None or lock._hold._ended, f"the handle is not free, after line {line}"


def test_an_interrupt_at_any_line_of_a_with_statement_leaves_nothing(alone: coord.Node) -> None:
    lock = alone.lock("lock")

    def action() -> None:
        with lock:
            pass

    for line in _interrupted(action):
        until(lambda: idle(alone), f"nothing left, after line {line}")


def test_an_interrupt_at_any_line_of_release_releases(alone: coord.Node) -> None:
    def action() -> None:
        hold.release()

    lock, first = alone.lock("lock"), True
    hold = take(alone)
    for line in _interrupted(action):
        if hold.held():
            assert first, f"after line {line} it is held still, though it had begun to be released before"
            hold.release()
        else:
            first = False
        until(lambda: idle(alone), f"the lock to be free, after line {line}")
        acquired = lock.acquire(timeout=PATIENCE)
        assert acquired is not None
        hold = acquired


# ---------------------------------------------------------------------------------------------------------------------
# The decorator.


def test_a_locked_function(alone: coord.Node) -> None:
    @alone.locked("lock")
    def add(a: int, b: int = 2, *, hold: Hold) -> tuple[int, bool, bool]:
        """Adds."""
        return a + b, hold.held(), alone.lock("lock").locked()

    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert add(1) == (3, True, True)
    assert add(1, b=1) == (2, True, True)
    assert idle(alone)

    @alone.locked("lock")
    def plain() -> bool:
        return alone.lock("lock").locked()

    assert plain() is True
    with pytest.raises(ZeroDivisionError):
        alone.locked("lock")(lambda: 1 // 0)()
    assert idle(alone)


def test_a_locked_function_when_somebody_else_has_it(alone: coord.Node) -> None:
    hold, called = take(alone), []

    def work() -> str:
        called.append(1)
        return "done"

    assert alone.locked("lock", on_busy="skip")(work)() is None
    assert alone.locked("lock", on_busy="skip", timeout=0.02)(work)() is None
    with pytest.raises(coord.LockTimeout, match="work was not called"):
        alone.locked("lock", on_busy="raise")(work)()
    with pytest.raises(coord.LockTimeout):
        alone.locked("lock", timeout=0.02)(work)()
    assert called == []
    until(lambda: alone.lock("lock").describe().waiting == (), "an empty queue")
    hold.release()
    for on_busy in ("wait", "skip", "raise"):
        assert alone.locked("lock", on_busy=on_busy)(work)() == "done"
    assert len(called) == 3


# ---------------------------------------------------------------------------------------------------------------------
# A group, in virtual time.


def test_the_deadline_is_one_and_absolute(group: Group) -> None:
    """However often what it waits for seems near (kazoo's `acquire(timeout=1)` once took 3.4 s)."""
    take(group["a"])
    for _ in range(3):
        began = group.now
        assert group["b"].lock("lock").acquire(timeout=1.5) is None
        assert group.now - began == pytest.approx(1.5)
    queue = group["b"].lock("lock")
    group.wait_until(lambda: not queue.describe().waiting, what="an empty queue")
    assert len(group["b"]._running_loop().replica.requests) == 0


def test_the_deadline_holds_without_a_quorum_and_for_the_paused(group: Group) -> None:
    node = group.followers()[0]
    group.partition(*group.names)
    began = group.now
    assert node.lock("lock").acquire(timeout=2.0) is None
    assert group.now - began == pytest.approx(2.0)
    with pytest.raises(coord.Unavailable, match="within 10 s"):
        node.lock("lock").acquire(blocking=False)
    assert group.now - began == pytest.approx(12.0)
    group.heal()
    group.leader()
    group.pause(node)
    began = group.now
    assert node.lock("lock").acquire(timeout=2.0) is None
    assert group.now - began == pytest.approx(2.0)
    group.resume(node)
    group.wait_until(lambda: idle(node), what="nothing left of what timed out")


def test_what_timed_out_on_its_way_is_not_granted_later(group: Group) -> None:
    leader, (follower, other) = group.leader(), group.followers()
    group.delay = 0.5
    assert follower.lock("lock").acquire(timeout=0.7) is None
    group.delay = 0.001
    group.run(3)
    assert idle(leader) and idle(follower)
    take(other).release()


def test_the_wait_ends_when_another_member_releases(group: Group) -> None:
    hold = take(group["a"])
    group.after(3.0, hold.release)
    began = group.now
    other = take(group["b"])
    assert group.now - began == pytest.approx(3.0, abs=0.2)
    assert other.token > hold._request.token


def test_it_goes_on_through_a_change_of_leader(group: Group) -> None:
    leader, (a, b) = group.leader(), group.followers()
    hold = take(a)
    group.after(0.5, group.kill, leader)
    group.after(6.0, hold.release)
    token = hold.token
    began = group.now
    other = take(b, timeout=30.0)
    assert group.now - began == pytest.approx(6.0, abs=1.0)
    assert not hold.lost.is_set()
    assert other.token > token


def test_a_holder_that_dies_is_waited_out(group: Group) -> None:
    hold = take(group["a"])
    token = hold.token
    group.kill("a")
    assert not hold.held()
    assert hold.lost.is_set()
    began = group.now
    other = take(group["b"], timeout=60.0)
    waited = group.now - began
    assert DEFAULTS.session_ttl * 2 - 1.5 < waited < DEFAULTS.session_ttl * 2 + 5, "the ttl, and the lock-delay"
    assert other.token > token


def test_with_fencing_there_is_no_delay(group: Group) -> None:
    take(group["a"], fenced=True)
    group.kill("a")
    began = group.now
    take(group["b"], timeout=60.0)
    assert group.now - began < DEFAULTS.session_ttl + 4


@pytest.mark.parametrize("reclaim", [False, True])
def test_a_lost_lock_is_kept_back_but_for_who_reclaims_it(group: Group, reclaim: bool) -> None:
    hold = take(group["a"], lock_delay=20.0)
    token = hold.token
    group.lose_lock_now("a")
    info = group.leader().lock("lock").describe()
    assert info.holders == ()
    assert 15.0 < info.delay <= 20.0
    assert "a holder was lost" in info.why
    assert group["b"].lock("lock", reclaim=True).acquire(timeout=1.0) is None, "it is another's"
    began = group.now
    again = take(group["a"], reclaim=reclaim)
    assert again.token > token
    assert (group.now - began < 2.0) is reclaim


def test_a_holder_cut_off_knows_before_anybody_else_can_hold(group: Group) -> None:
    leader, (cut, other) = group.leader(), group.followers()
    hold = take(cut, fenced=True)
    changes: list[tuple[float, bool]] = []

    def look() -> None:
        held, others = hold.held(), bool(leader.lock("lock", fenced=True).describe().holders[0].owner != cut.name)
        assert not (held and others), "two hold it"
        changes.append((group.now, held))
        group.after(0.05, look)

    group.partition([cut.name])
    began = group.now
    look()
    granted = take(other, timeout=60.0, fenced=True)
    ended = min(at for at, held in changes if not held)
    assert ended - began == pytest.approx(DEFAULTS.lease, abs=1.1)
    assert ended < group.now
    with pytest.raises(coord.LockLost, match="no renewal"):
        hold.token  # noqa: B018
    assert not hold.lost.is_set(), "it cannot know yet"
    assert granted.token > hold._request.token
    group.heal()
    group.wait_until(hold.lost.is_set, what="the news")
    with pytest.raises(coord.NotHeld, match="session expired"):
        hold.release()
    assert granted.held()


def test_a_holder_has_time_to_stop(group: Group) -> None:
    _, (cut, _) = group.leader(), group.followers()
    hold = take(cut)
    group.partition([cut.name])
    group.run(8.0)
    hold.check()
    with pytest.raises(coord.LockLost, match="min_remaining=5"):
        hold.check(min_remaining=5.0)
    group.run(3.0)
    with pytest.raises(coord.LockLost, match="lease has run out"):
        hold.check()


def test_when_nobody_could_decide_anything_nothing_is_lost(group: Group) -> None:
    node = group.followers()[0]
    hold = take(node)
    token = hold.token
    group.partition(*group.names)
    group.run(25.0)
    assert not hold.held()
    group.heal()
    group.wait_until(hold.held, what="the hold to be good again")
    assert hold.token == token
    hold.release()
    assert idle(node)


def test_a_block_whose_lock_was_lost_says_so(group: Group) -> None:
    node = group["b"]

    def lose(error: Exception | None) -> None:
        with node.lock("lock", reclaim=True) as hold:
            group.lose_lock_now("b")
            assert hold.lost.is_set()
            if error is not None:
                raise error

    with pytest.raises(coord.LockLost, match="session expired"):
        lose(None)
    with pytest.raises(KeyError, match="the block's own"):
        lose(KeyError("the block's own"))
    # The session it was lost with is over; there is another.
    take(node, reclaim=True).release()


def test_a_block_within_one_whose_lock_was_lost(group: Group) -> None:
    """Inside, the same handle holds again; at the end of the outer block that does not count."""
    lock, reached = group["b"].lock("lock", reclaim=True), []

    def lose() -> None:
        with lock:
            group.lose_lock_now("b")
            with lock as hold:
                assert hold.held()
            reached.append(hold.held())

    with pytest.raises(coord.LockLost, match="session expired"):
        lose()
    assert reached == [False]


def test_a_block_is_not_entered_with_what_is_not_sure(group: Group) -> None:
    node = group.followers()[0]
    hold = take(node)
    group.partition([node.name])
    group.run(9.7)
    assert not hold.held()
    with pytest.raises(coord.LockLost, match="lease has run out"):
        hold.__enter__()
    group.heal()
    group.wait_until(lambda: idle(node), what="it to be given up")


def test_a_block_that_cannot_prove_it_says_so_too(group: Group) -> None:
    node = group.followers()[0]

    def lose() -> None:
        with node.lock("lock"):
            group.partition([node.name])
            group.run(12.0)

    with pytest.raises(coord.LockLost, match="not held any more at the end"):
        lose()


def test_callbacks_for_the_loss(group: Group) -> None:
    hold, told = take(group["b"]), []

    def broken(reason: str) -> None:
        told.append(f"broken: {reason}")
        raise ValueError("made up")

    assert hold.on_lost(broken) is broken
    hold.on_lost(told.append)
    group.lose_lock_now("b")
    group.wait_until(lambda: len(told) == 2, what="both callbacks")
    assert told == ["broken: expired", "expired"]
    hold.on_lost(told.append)
    group.wait_until(lambda: len(told) == 3, what="one that comes late")
    released = take(group["b"], "other")
    released.on_lost(told.append)
    released.release()
    released.on_lost(told.append)
    group.lose_lock_now("b")
    group.run(1.0)
    assert len(told) == 3


def test_who_waits_in_a_lost_session_is_asked_again(group: Group) -> None:
    hold = take(group["a"])
    group.after(1.0, group.lose_lock_now, "b")
    group.after(5.0, hold.release)
    began = group.now
    other = take(group["b"])
    assert group.now - began == pytest.approx(5.0, abs=0.2)
    assert other.held()


def test_a_member_that_learns_by_snapshot_that_it_was_granted() -> None:
    options = coord.Options(snapshot_entries=20)
    with Group(virtual=True, seed=5, options=options) as group:
        leader, (cut, other) = group.leader(), group.followers()
        hold = take(leader)

        def act() -> None:
            group.partition([cut.name])
            hold.release()
            for number in range(100):
                leader.config["k"] = number
            group.heal()

        group.after(1.0, act)
        granted = take(cut)
        assert cut._running_loop().replica.counters.snapshots_installed == 1
        assert granted.held()
        assert leader.lock("lock").describe().holders[0].token == granted.token
        assert other.check_sequencer(granted.sequencer)


def test_a_release_that_nobody_answers_goes_on(group: Group) -> None:
    node = group.followers()[0]
    hold = take(node)
    group.partition(*group.names)
    began = group.now
    with pytest.raises(coord.OutcomeUnknown, match="goes on in the background"):
        hold.release()
    assert group.now - began == pytest.approx(DEFAULTS.default_timeout)
    assert not hold.held()
    with pytest.raises(coord.NotHeld, match="released before"):
        hold.release()
    group.heal()
    group.wait_until(lambda: idle(node), what="the release")
    assert not hold.lost.is_set()


def test_a_block_that_ends_without_an_answer_says_that_and_not_that_it_was_lost(group: Group) -> None:
    node = group.followers()[0]

    def work() -> None:
        with node.lock("lock"):
            group.partition(*group.names)

    with pytest.raises(coord.OutcomeUnknown, match="goes on in the background"):
        work()
    group.heal()
    group.wait_until(lambda: idle(node), what="the release")


@pytest.mark.parametrize("late", [False, True])
def test_a_release_that_the_end_of_the_session_overtakes(late: bool) -> None:
    """The work was done while the lock was held, or it may not have been."""
    options = coord.Options(default_timeout=60.0)
    with Group(virtual=True, seed=3, options=options) as group:
        group.leader()
        node = group.followers()[0]
        hold = take(node)
        group.partition([node.name])
        group.after(25.0, group.heal)
        if late:
            group.run(options.lease + 0.2)
            with pytest.raises(coord.NotHeld, match="lease had run out"):
                hold.release()
        else:
            hold.release()
        assert group.now > 25.0
        assert not hold.lost.is_set()


def test_a_clean_stop_lets_the_next_in_at_once(group: Group) -> None:
    take(group["b"])
    group["b"].stop()
    began = group.now
    take(group["a"])
    assert group.now - began < 1.0


def test_a_sequencer_is_checked_anywhere(group: Group) -> None:
    leader, (a, b) = group.leader(), group.followers()
    hold = take(a)
    text = hold.sequencer
    assert all(node.check_sequencer(text) for node in (leader, a, b))
    hold.release()
    assert not any(node.check_sequencer(text) for node in (leader, a, b))
    group.partition([b.name])
    with pytest.raises(coord.Unavailable):
        b.check_sequencer(text, timeout=1.0)
    assert b.check_sequencer(text, linearizable=False) is False


def test_a_grant_that_came_in_a_pause_is_not_given_before_it_is_sure(group: Group) -> None:
    """The session is over by the time the member goes on: it asks again, and is granted in the next."""
    leader, (paused, _) = group.leader(), group.followers()
    hold = take(leader, fenced=True)

    def pause() -> None:
        group.pause(paused)
        hold.release()
        group.after(20.0, group.resume, paused)

    group.after(1.0, pause)
    granted = paused.lock("lock", fenced=True).acquire(timeout=60.0)
    assert granted is not None
    assert granted.held()
    assert leader.lock("lock").describe().holders[0].token == granted.token


def pause_after_next_answer(
    monkeypatch: pytest.MonkeyPatch, group: Group, name: str, also: Callable[[], object] = lambda: None
) -> None:
    """Right after this member's next caller was answered its clock jumps beyond its lease: a pause nobody noticed."""
    wait = VirtualWaiter.wait

    def pause(waiter: VirtualWaiter, patience: float) -> bool:
        answered = wait(waiter, patience)
        if waiter._loop.name == name:
            monkeypatch.setattr(VirtualWaiter, "wait", wait)
            world: Any = group._world
            world.simulation.jump(name, DEFAULTS.lease + 1)
            also()
        return answered

    monkeypatch.setattr(VirtualWaiter, "wait", pause)


def test_a_pause_right_after_the_grant_is_noticed(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is alive still, so the grant is good once that is known; and not given out before."""
    leader, node = group.leader(), group.followers()[0]
    take(node).release()
    granted: list[int] = []
    pause_after_next_answer(monkeypatch, group, node.name, lambda: granted.append(token_of(leader)))
    began = group.now
    hold = take(node, timeout=100.0)
    assert hold.held()
    assert group.now > began, "it has asked the group"
    assert [hold.token] == granted, "it did not queue again"
    hold.release()
    assert idle(node)


def test_a_pause_that_lasts_beyond_the_deadline_gives_none(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    node = group.followers()[0]
    pause_after_next_answer(monkeypatch, group, node.name)
    assert node.lock("lock").acquire(timeout=3.0) is None
    group.wait_until(lambda: idle(node), what="nothing left of it")


def test_a_pause_that_cost_the_session_asks_again(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, (node, _) = group.leader(), group.followers()
    pause_after_next_answer(monkeypatch, group, node.name, lambda: group.partition([node.name]))
    group.after(30.0, group.heal)
    granted = node.lock("lock", fenced=True).acquire(timeout=100.0)
    assert granted is not None
    assert granted.held()
    assert group.now > 30.0
    assert leader.lock("lock").describe().holders[0].token == granted.token
    assert not granted.lost.is_set()
    granted.release()
    assert idle(node)


# ---------------------------------------------------------------------------------------------------------------------
# A group, in real time.


@pytest.mark.parametrize("kill", [False, True])
def test_members_exclude_each_other(kill: bool) -> None:
    with Group() as group:
        group.leader()
        inside, worst, tokens = [0], [0], []
        errors: list[coord.CoordError] = []

        def work(node: coord.Node) -> None:
            lock = node.lock("lock", lock_delay=0)
            for _ in range(10):
                try:
                    with lock as hold:
                        tokens.append(hold.token)
                        inside[0] += 1
                        worst[0] = max(worst[0], inside[0])
                        inside[0] -= 1
                except coord.CoordError as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(group[name],)) for name in "abc"]
        for thread in threads:
            thread.start()
        if kill:
            until(lambda: len(tokens) > 5, "some to have held it")
            group.kill(group.leader())
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert worst == [1]
        assert tokens == sorted(set(tokens))
        if kill:
            # Killed between two holds, in the midst of one, or while it was being released.
            assert all(isinstance(error, coord.ClosedError | coord.LockLost | coord.OutcomeUnknown) for error in errors)
        else:
            assert (len(tokens), errors) == (30, [])
