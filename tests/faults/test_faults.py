"""Real processes under real faults: those that run every time, or all with COORD_FAULTS=all.

`PYTHONPATH=tests python -m faults` runs them all and prints a table. COORD_FAULTS_NETWORK=proxies does without network
namespaces even where they are permitted.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import coord
from faults import judge, second_opinion
from faults.disk import flip_byte, written_bytes
from faults.lab import QUICK, Lab, refused_start
from faults.scenarios import HEAD, Scenario, network_for, run, scenarios

ALL = os.environ.get("COORD_FAULTS") == "all"


@pytest.mark.parametrize("one", scenarios(quick=not ALL), ids=lambda one: one.name)
def test_fault(one: Scenario, tmp_path: Path) -> None:
    if not network_for(one.network):
        pytest.skip("network namespaces are not permitted here")
    row = run(one, tmp_path)
    print(", ".join(f"{name}: {cell}" for name, cell in zip(HEAD, row.cells(), strict=True)))
    assert not row.problems


def test_a_member_that_lies_is_found_out(tmp_path: Path) -> None:
    """Members that answer linearizable reads from their own copies: so the judge and the clients do bite."""
    with Lab(tmp_path, network_for("cut"), **QUICK) as lab:
        for member in lab.members.values():
            member.settings.update(lies=True)
        lab.begin(*lab.names)
        lab.progress(lab.names)
        leader = lab.leads()
        with lab.fault():
            lab.network.isolate(leader)
            lab.progress(lab.others(leader))
        lab.progress(lab.names)
        recorded, everything = lab.finish()
    # What it does not lie about is as it should be.
    assert judge.check_end(recorded, everything)
    assert judge.check_local_reads(recorded, judge.build_log(recorded))
    with pytest.raises(AssertionError, match=r"after .* was acknowledged"):
        judge.check_all(recorded)
    with pytest.raises(AssertionError, match="not linearizable"):
        second_opinion.check_shared(recorded)


def test_a_damaged_log_is_told_by_start(tmp_path: Path) -> None:
    """`start` raises what went wrong, in a group as in a group of one."""
    with Lab(tmp_path, "plain", **QUICK) as lab:
        lab.begin(*lab.names)
        lab.progress(lab.names)
        lab.kill("b")
        log = max(lab["b"].data_dir.glob("wal-*"))
        flip_byte(log, written_bytes(log) // 3)
        assert "damaged" in refused_start(lab["b"], coord.StorageError)
