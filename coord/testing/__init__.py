"""For tests: a group in one process, its faults, and judges of what it did.

What must not live here: anything a production process needs. Nothing in `coord` outside this package imports it.
"""
