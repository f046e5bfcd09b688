"""Durable state of one member: the write-ahead log, snapshots, the data directory, and twins of them in memory.

`base` is the contract; `disk` and `volatile` fulfil it. What must not live here: anything about roles and quorums
(`coord.raft`), or what an entry means (`coord.machine`).
"""
