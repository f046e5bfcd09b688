"""Networks that are cut, in every shape, and networks that are merely bad.

What must not live here: how a network is cut (`faults.network`).
"""

from __future__ import annotations

import random
from typing import Any

from coord.clock import clock
from faults.lab import DEFAULTS, QUICK, SMALL, Lab
from faults.network import Namespaces, Proxies
from faults.scenarios import scenario

FIVE: Any = {"members": "abcde", "pace": 0.02, "writers": 1, "readers": 1}
#: Several of the longest election timeouts of QUICK.
WHILE = 2.0


@scenario("leader isolated", network="cut", quick=True, readers=4)
def isolate_the_leader(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.network.isolate(leader)
        lab.progress(lab.others(leader))
        lab.hold(WHILE)
        assert lab[leader].call("status")["role"] != "leader", f"{leader} still leads, and hears nobody"


@scenario("leader isolated, through proxies", network="proxies")
def isolate_the_leader_by_proxy(lab: Lab) -> None:
    isolate_the_leader(lab)


@scenario("leader isolated, default options", network="cut", options=DEFAULTS)
def isolate_the_leader_by_default(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.network.isolate(leader)
        lab.progress(lab.others(leader))
        lab.hold(4.0)


@scenario("follower isolated", network="cut")
def isolate_a_follower(lab: Lab) -> None:
    follower = lab.others(lab.leads())[0]
    with lab.fault():
        lab.network.isolate(follower)
        lab.progress(lab.others(follower))
        lab.hold(WHILE)


@scenario("all isolated", network="cut")
def isolate_all(lab: Lab) -> None:
    with lab.fault():
        lab.network.isolate(*lab.names)
        lab.hold(WHILE)


@scenario("halves, the leader among the fewer", network="cut", quick=True, **FIVE)
def halves(lab: Lab) -> None:
    leader = lab.leads()
    fewer = leader + lab.others(leader)[0]
    with lab.fault():
        lab.network.split(fewer, lab.others(*fewer))
        lab.progress(lab.others(*fewer))
        lab.hold(WHILE)


@scenario("halves, the leader among the more", network="cut", **FIVE)
def halves_with_the_leader(lab: Lab) -> None:
    leader = lab.leads()
    fewer = lab.others(leader)[:2]
    with lab.fault():
        lab.network.split(fewer, lab.others(*fewer))
        lab.progress(lab.others(*fewer))
        lab.hold(WHILE)


@scenario("leader deaf", network="cut")
def deaf_leader(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.network.deafen(leader)
        lab.progress(lab.others(leader))
        lab.hold(WHILE)


@scenario("leader deaf, for good: through proxies", network="proxies", quick=True)
def deaf_leader_by_proxy(lab: Lab) -> None:
    deaf_leader(lab)


@scenario("leader mute", network="cut")
def mute_leader(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.network.mute(leader)
        lab.progress(lab.others(leader))
        lab.hold(WHILE)


@scenario("leader mute, for good: through proxies", network="proxies")
def mute_leader_by_proxy(lab: Lab) -> None:
    mute_leader(lab)


@scenario("follower deaf, for good: through proxies", network="proxies")
def deaf_follower(lab: Lab) -> None:
    follower = lab.others(lab.leads())[0]
    with lab.fault():
        lab.network.deafen(follower)
        lab.progress(lab.others(follower))
        lab.hold(WHILE)


@scenario("quorum loss: all reach only one, not the leader", network="cut", quick=True, **FIVE)
def quorum_loss(lab: Lab) -> None:
    hub = lab.others(lab.leads())[0]
    with lab.fault():
        lab.network.keep(*(hub + other for other in lab.others(hub)))
        # The old one steps down by itself, once a majority has been silent for an election timeout.
        lab.until(lambda: lab[hub].call("status")["role"] == "leader", f"{hub}, whom all reach, leads")
        lab.progress(lab.names)
        lab.hold(WHILE)


@scenario("chain A-B-C, the leader at its end", network="cut", quick=True)
def chain(lab: Lab) -> None:
    leader = lab.leads()
    middle, end = list(lab.others(leader))
    with lab.fault():
        lab.network.keep(leader + middle, middle + end)
        lab.progress(leader + middle)
        lab.hold(WHILE)


@scenario("chain A-B-C, the leader at its end, default options", network="cut", options=DEFAULTS)
def chain_by_default(lab: Lab) -> None:
    leader = lab.leads()
    term = lab[leader].call("status")["term"]
    middle, end = list(lab.others(leader))
    with lab.fault():
        lab.network.keep(leader + middle, middle + end)
        lab.progress(leader + middle)
        lab.hold(5.0)
        assert lab[leader].call("status")["term"] == term, "the end of the chain that is cut off deposed the leader"


@scenario("constrained election: all reach only one, whose log is old", network="cut", **FIVE)
def constrained_election(lab: Lab) -> None:
    leader = lab.leads()
    hub = lab.others(leader)[0]
    with lab.fault():
        lab.network.isolate(hub)
        lab.progress(lab.others(hub))
        lab.network.keep(*(hub + other for other in lab.others(hub, leader)))
        lab.hold(1.0)
        before = {name: lab[name].call("acknowledged") for name in lab.names}
        lab.hold(WHILE)
        written = sum(lab[name].call("acknowledged") - before[name] for name in lab.names)
        lab.notes.append(f"{written} writes in the last {WHILE:g} s of it")


@scenario("flapping link between leader and follower, 10 Hz", network="cut")
def flapping(lab: Lab) -> None:
    _flap(lab, 0.05, 3.0)


@scenario("flapping link between leader and follower, 1 Hz", network="cut")
def flapping_slowly(lab: Lab) -> None:
    _flap(lab, 0.5, 5.0)


def _flap(lab: Lab, half: float, seconds: float) -> None:
    leader = lab.leads()
    follower = lab.others(leader)[0]
    term = lab[leader].call("status")["term"]
    with lab.fault():
        end = clock() + seconds
        while clock() < end:
            lab.network.cut([(leader, follower), (follower, leader)])
            lab.hold(half)
            lab.network.mend()
            lab.hold(half)
        lab.progress(lab.others(follower))
    lab.progress(lab.names)
    grown = lab[lab.leads()].call("status")["term"] - term
    most = 2 + seconds / QUICK["election_timeout"][0]
    assert grown <= most, f"{grown} terms in {seconds} s: more than one for each election timeout"


@scenario("ring of majorities: each reaches only two others", network="cut", **FIVE)
def ring(lab: Lab) -> None:
    leader = lab.leads()
    order = leader + lab.others(leader)
    pairs = [order[number] + order[(number + 1) % 5] for number in range(5)]
    with lab.fault():
        lab.network.keep(*pairs)
        lab.progress(order[0] + order[1] + order[4])
        lab.hold(WHILE)


@scenario("bridge: two sides that meet in one member", network="cut", **FIVE)
def bridge(lab: Lab) -> None:
    leader = lab.leads()
    near, middle, far, farther = list(lab.others(leader))
    with lab.fault():
        lab.network.split(leader + near + middle, middle + far + farther)
        lab.progress(leader + near + middle)
        lab.hold(WHILE)


@scenario("members cut off and let back in random order", network="cut", **FIVE)
def swizzle(lab: Lab) -> None:
    rng = random.Random(5)
    with lab.fault():
        for _ in range(3):
            out: list[str] = []
            for name in rng.sample(lab.names, 3):
                out.append(name)
                lab.network.isolate(*out)
                lab.hold(0.3)
            for name in rng.sample(out, 3):
                out.remove(name)
                lab.network.isolate(*out)
                lab.hold(0.3)
            lab.progress(lab.names, 3)


@scenario("packets lost: a fifth of all, in bursts of 15 ms", network="cut", options=DEFAULTS)
def loss(lab: Lab) -> None:
    rng = random.Random(6)
    with lab.fault():
        end = clock() + 5.0
        while clock() < end:
            lab.network.cut(way for way in lab.network.ways if rng.random() < 0.2)
            lab.hold(0.015)


@scenario("delay of 20 to 200 ms each way, default options", network="proxies", options=DEFAULTS)
def delay(lab: Lab) -> None:
    assert isinstance(lab.network, Proxies)
    with lab.fault():
        lab.network.weather(delay=(0.02, 0.2))
        lab.progress(lab.names)
        lab.hold(3.0)


@scenario("delay of 20 to 200 ms each way, and the leader dies", network="proxies", options=DEFAULTS)
def delay_and_kill(lab: Lab) -> None:
    assert isinstance(lab.network, Proxies)
    leader = lab.leads()
    with lab.fault():
        lab.network.weather(delay=(0.02, 0.2))
        lab.progress(lab.names)
        lab.kill(leader)
        lab.progress(lab.others(leader))
    lab.again(leader)


@scenario("delay beyond the election timeout: 0 to 500 ms each way", network="proxies", quick=True)
def delay_beyond(lab: Lab) -> None:
    """Nothing need succeed; nothing may go wrong."""
    assert isinstance(lab.network, Proxies)
    with lab.fault():
        lab.network.weather(delay=(0.0, 0.5))
        lab.hold(3.0)


@scenario("all ways stall for 1 s, and all that was held arrives", network="proxies")
def stall(lab: Lab) -> None:
    with lab.fault():
        for _ in range(3):
            lab.network.cut(lab.network.ways)
            lab.hold(1.0)
            lab.network.mend()
            lab.progress(lab.names, 3)


@scenario("connections reset, 20 a second", network="proxies")
def resets(lab: Lab) -> None:
    assert isinstance(lab.network, Proxies)
    rng = random.Random(7)
    with lab.fault():
        for _ in range(60):
            lab.network.reset(rng.choice(lab.network.ways))
            lab.hold(0.05)
        lab.progress(lab.names, 3)


@scenario("1 Mbit/s and what does not fit is lost", network="namespaces", options=DEFAULTS, value_bytes=2000)
def slow_wire(lab: Lab) -> None:
    assert isinstance(lab.network, Namespaces)
    with lab.fault():
        lab.network.slow_down("1mbit")
        lab.progress(lab.names)
        lab.hold(4.0)


@scenario("1 Mbit/s, through proxies", network="proxies", options=DEFAULTS, value_bytes=2000)
def slow_proxies(lab: Lab) -> None:
    assert isinstance(lab.network, Proxies)
    with lab.fault():
        lab.network.weather(rate=125_000)
        lab.progress(lab.names)
        lab.hold(4.0)


@scenario("1 Mbit/s, and a member that needs a snapshot", network="proxies", options=SMALL, value_bytes=8000)
def slow_snapshot(lab: Lab) -> None:
    assert isinstance(lab.network, Proxies)
    follower = lab.others(lab.leads())[0]
    lab.kill(follower)
    before = lab[lab.leads()].call("status")["applied_index"]
    enough = 3 * SMALL["snapshot_entries"]
    lab.until(lambda: lab[lab.leads()].call("status")["applied_index"] > before + enough, "a log cut short")
    with lab.fault():
        lab.network.weather(rate=125_000)
        lab.again(follower)
        lab.progress(lab.others(follower))
        lab.hold(3.0)


@scenario("half-open: silence until connections are given up, then healed", network="cut")
def half_open(lab: Lab) -> None:
    follower = lab.others(lab.leads())[0]
    with lab.fault():
        lab.network.isolate(follower)
        lab.hold(5.0)


@scenario("half-open: a leader dies and comes back behind the silence", network="cut")
def half_open_restart(lab: Lab) -> None:
    leader = lab.leads()
    with lab.fault():
        lab.network.isolate(leader)
        lab.kill(leader)
        lab.progress(lab.others(leader))
        lab.again(leader)
        lab.hold(0.5)
