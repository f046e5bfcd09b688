"""Members that are not whom they claim to be: wiped, of another group, or there twice.

What must not live here: disks that fail (`faults.disk_faults`).
"""

from __future__ import annotations

import shutil

import pytest

import coord
from faults.lab import QUICK, FaultMember, Lab, refused_start
from faults.scenarios import scenario


def _never_votes(lab: Lab, stranger: str) -> None:
    """With one real member alone, the stranger makes no majority: nothing is written until another real one is back."""
    first, second = list(lab.others(stranger))
    lab.kill(second)
    lab.hold(0.2)
    before = lab[first].call("acknowledged")
    lab.hold(2.0)
    assert lab[first].call("acknowledged") == before, f"{stranger} was counted in a majority"
    assert lab[first].call("status")["role"] != "leader", f"{first} leads, alone with {stranger}"
    lab.again(second)
    lab.progress(first + second)


@scenario("data directory of one member wiped: refused, never votes", quick=True)
def wiped(lab: Lab) -> None:
    name = lab.others(lab.leads())[0]
    with lab.fault():
        lab.kill(name)
        shutil.rmtree(lab[name].data_dir)
        lab.out.add(name)
        lab[name].start()
        lab.until(lambda: lab[name].call("figures")["refusal"], f"{name} hears that it is refused")
        _never_votes(lab, name)
        with pytest.raises(coord.IdentityError, match="refused by its group"):
            lab[name].call("put", key="k/wiped", value="by the wiped one", timeout=1.0)
        assert lab[name].call("status")["applied_index"] == 0, f"{name} lost its data, and took part"


@scenario("data directories of all but one wiped: nothing is written, nothing is lost")
def mostly_wiped(lab: Lab) -> None:
    left = lab.leads()
    others = lab.others(left)
    with lab.fault():
        lab.kill(*lab.names)
        kept = {name: lab.directory / f"kept-{name}" for name in others}
        for name, place in kept.items():
            shutil.move(lab[name].data_dir, place)
        lab.start(*lab.names)
        lab.hold(2.0)
        lab[left].call("begin_clients", **lab.clients)
        lab.hold(1.0)
        assert lab[left].call("acknowledged") == 0, f"{left} made a majority with members that lost their data"
        # Their own directories again.
        lab.kill(*others)
        for name, place in kept.items():
            shutil.rmtree(lab[name].data_dir)
            shutil.move(place, lab[name].data_dir)
    lab.again(*others)


@scenario("a member of another group, on this one's directory and on its own")
def wrong_group(lab: Lab) -> None:
    name = lab.others(lab.leads())[0]
    member = lab[name]
    with lab.fault():
        lab.kill(name)
        member.settings["group"] = "another"
        why = refused_start(member, coord.IdentityError)
        assert "belongs to group 'faults', not 'another'" in why, why
        own = member.settings["data_dir"]
        member.settings["data_dir"] = str(lab.directory / "another")
        lab.out.add(name)
        member.start()
        _never_votes(lab, name)
        status = member.call("status")
        assert status["leader"] is None and status["applied_index"] == 0, f"{name} took part: {status}"
        dropped = lab[lab.others(name)[0]].call("figures")["dropped"]
        assert dropped["cluster"] > 0, f"frames of another group were not counted: {dropped}"
        member.kill()
        member.settings.update(group="faults", data_dir=own)
    lab.again(name)


@scenario("two processes on one data directory", quick=True, options=QUICK)
def two_on_one(lab: Lab) -> None:
    name = lab.leads()
    second = FaultMember(name, lab.network, lab.directory, QUICK)
    second.starts = 100
    second.settings["bind"] = "tcp://127.0.0.1:0"
    with lab.fault():
        why = refused_start(second, coord.IdentityError)
        assert "in use by another process" in why and str(lab[name].pid) in why, why
        lab.progress(lab.names)
