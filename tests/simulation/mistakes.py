"""Mistakes put back in, one at a time: the proof that the simulation would see them.

Each is what some known system once shipped, or what this one had before it was found. A mutant rewrites a few words of
some functions; if the words are no longer there, applying it fails, so the table cannot silently come to test nothing.
What must not live here: the mistakes themselves, which are in one table for each layer; how many seeds it takes to find
them (`mutants`).
"""

from __future__ import annotations

from simulation.mistakes_consensus import CONSENSUS
from simulation.mistakes_locks import LOCKS
from simulation.mistakes_service import SERVICE
from simulation.mistakes_storage import STORAGE
from simulation.mutation import Mutant, applied

MUTANTS: list[Mutant] = [*CONSENSUS, *STORAGE, *SERVICE, *LOCKS]

#: Some of each kind that are quickly found: for every run of the tests.
QUICK = [
    "terms and votes are told before they are durable",
    "a conflicting tail is kept",
    "a lost acknowledgement is never asked for again",
    "reads are confirmed by nobody",
    "the log is not synced",
    "a failed sync is tried again and believed",
    "damage in the middle is cut like a torn tail",
    "the term is kept and the vote is not",
    "the log is dropped up to the newest snapshot",
    "a command that comes twice is done twice",
    "every leader is given the writes under new numbers",
    "a withdrawn write is sent all the same",
    "a new leader counts silence from before its election",
    "a leader renews its own session by itself",
    "a lease lasts longer than its session",
    "the newest is served first",
    "a token is the index of the request",
    "what is given up while it waits is not cancelled",
    "compare-and-set does not compare",
    "a watch resumes across what is forgotten",
]

__all__ = ["MUTANTS", "QUICK", "Mutant", "applied"]
