"""Moving frames between members: the contract (`base`), ZeroMQ (`zeromq`), and a faulty network in memory (`memory`).

What must not live here: anything about what is inside a frame (`coord.wire`), or about roles and terms (`coord.raft`).
"""
