"""Mistakes put back in, one at a time: the proof that the simulation would see them.

Each is what some known system once shipped, or what this one had before it was found. A mutant rewrites a few words of
some functions; if the words are no longer there, applying it fails, so the table cannot silently come to test nothing.
What must not live here: the mistakes themselves, which are in one table for each layer; how many seeds it takes to find
them (`mutants`).
"""

from __future__ import annotations

from simulation.mistakes_consensus import CONSENSUS
from simulation.mistakes_service import SERVICE
from simulation.mistakes_storage import STORAGE
from simulation.mutation import Mutant, applied

MUTANTS: list[Mutant] = [*CONSENSUS, *STORAGE, *SERVICE]

QUICK: list[str] = []

__all__ = ["MUTANTS", "QUICK", "Mutant", "applied"]
