"""The replicated state machine: what the committed commands mean.

Pure and deterministic: no clock, random source, thread, socket, logging or file may be used here, and nothing may
depend on the hash seed or on the order of a set. Same commands, same state, same bytes, on every member (trap 52).
Time is an argument, stamped into the entries by the leader. `coord.machine.machine` is the way in.
"""
