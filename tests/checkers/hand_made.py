"""Histories of a config map made by hand, with what the checkers must say of each.

`== name`, then `expect:` an anomaly or ok, as the revision checks say; `search:` what the search says, where the two
differ; `changes:` the log, if it is known; `vanish:` keys the group may end; then lines of `checkers.text`.
What must not live here: histories of locks and of watches, which have their own tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from checkers.text import changes, history
from coord.testing.history import Change, Operation
from coord.testing.linearizability import LINEARIZABLE, VIOLATION

CASES = """
== nothing happened to a key nobody wrote
expect: ok
a 0-1 get k -> absent

== a read after a write
expect: ok
a 0-1 put k 1 -> @5
b 2-3 get k -> 1@5

== a read before a write
expect: ok
b 0-1 get k -> absent
a 2-3 put k 1 -> @5

== a read beside a write finds it
expect: ok
a 0-3 put k 1 -> @5
b 1-2 get k -> 1@5

== a read beside a write does not find it
expect: ok
a 0-3 put k 1 -> @5
b 1-2 get k -> absent

== what ends when another begins is beside it
expect: ok
a 0-1 put k 1 -> @5
b 1-2 get k -> absent

== an acknowledged write is missed
expect: stale read
a 0-1 put k 1 -> @5
b 2-3 get k -> absent

== the newer of two is missed
expect: stale read
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
b 4-5 get k -> 1@5

== the newer of two is missed, values only
expect: ok
search: not linearizable
a 0-1 put k 1 ->
a 2-3 put k 2 ->
b 4-5 get k -> 1

== the newer of two is found, values only
expect: ok
a 0-1 put k 1 ->
a 2-3 put k 2 ->
b 4-5 get k -> 2

== two reads beside a write go back
expect: stale read
a 0-9 put k 1 -> @5
b 1-2 get k -> 1@5
c 3-4 get k -> absent

== two reads beside a write go forward
expect: ok
a 0-9 put k 1 -> @5
b 1-2 get k -> absent
c 3-4 get k -> 1@5

== two readers see two writes in different orders
expect: stale read
a 0-9 put k 1 -> @5
b 0-9 put k 2 -> @6
c 1-2 get k -> 2@6
c 3-4 get k -> 1@5

== two readers see two writes in different orders, values only
expect: ok
search: not linearizable
a 0-9 put k 1 ->
b 0-9 put k 2 ->
c 1-2 get k -> 1
c 3-4 get k -> 2
d 5-6 get k -> 1

== a read of another key after a newer revision was read
expect: stale read
search: linearizable
a 0-9 put x 1 -> @5
b 0-9 put y 1 -> @6
c 1-2 get y -> 1@6
c 3-4 get x -> absent

== a read of what is only asked for later
expect: read of the future
b 0-1 get k -> 1@5
a 2-3 put k 1 -> @5

== a read of what is only asked for later, of unknown outcome
expect: read of the future
b 0-1 get k -> 1@5
a 2- put k 1 -> unknown

== a read of a value that is only asked for later
expect: read of the future
b 0-1 get k -> 1
a 2-3 put k 1 -> @5

== a read of a value that is only asked for later, of unknown outcome
expect: read of the future
b 0-1 get k -> 1
a 2- put k 1 -> unknown

== a look at what is only asked for later
expect: read of the future
search: linearizable
b 0-1 look k -> 1@5
a 2-3 put k 1 -> @5

== a copy older than what it shows
expect: read of the future
search: linearizable
a 0-1 put k 1 -> @5
b 0-3 get k -> 1@5 up to 4

== a copy that does not show what it should
expect: stale read
search: linearizable
a 0-9 put k 1 -> @5
b 1-2 get k -> absent up to 5

== a copy that shows what was replaced in it
expect: stale read
search: linearizable
a 0-1 put k 1 -> @5
a 2-9 put k 2 -> @7
b 3-4 get k -> 1@5 up to 8

== a copy that shows what it holds
expect: ok
a 0-1 put k 1 -> @5
a 2-9 put k 2 -> @7
b 3-4 get k -> 1@5 up to 6

== a failed write is read
expect: dirty read of a failed write
a 0-1 put k 1 -> failed
b 2-3 get k -> 1@5

== a failed write is read, values only
expect: dirty read of a failed write
a 0-1 put k 1 -> failed
b 2-3 get k -> 1

== a conflicting write is read
expect: dirty read of a failed write
a 0-1 put k 1 -> @5
b 2-3 cas k 2 if 4 -> conflict 1@5
c 4-5 get k -> 2@6

== a failed write is shown by a conflict
expect: dirty read of a failed write
a 0-1 put k 1 -> failed
b 2-3 cas k 2 if 4 -> conflict 1@5

== a failed write is seen in a copy
expect: dirty read of a failed write
search: linearizable
a 0-1 put k 1 -> failed
b 2-3 look k -> 1@5

== a failed write is in the log
expect: dirty read of a failed write
search: linearizable
changes: 5 k=1
a 0-1 put k 1 -> failed

== a failed write is not read
expect: ok
a 0-1 put k 1 -> failed
b 2-3 get k -> absent

== out of thin air
expect: never written
b 2-3 get k -> 1@5

== out of thin air, values only
expect: never written
b 2-3 get k -> 1

== out of thin air, in a copy
expect: never written
search: linearizable
b 2-3 look k -> 1@5

== out of thin air, in the log
expect: never written
search: linearizable
changes: 5 k=1
b 2-3 get x -> absent

== written under another key
expect: never written
a 0-1 put x 1 -> @5
b 2-3 get k -> 1@6

== another value at that revision
expect: wrong value
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
b 4-5 get k -> 1@6

== one that was true under another revision
expect: written twice
a 0-1 put k 1 -> @5
b 4-5 get k -> 1@6

== two readers told differently of a revision
expect: wrong value
a 0- put k 1 -> unknown
b 0- put k 2 -> unknown
c 1-2 get k -> 1@5
c 3-4 get k -> 2@5

== values that are equal in Python but differ
expect: wrong value
search: not linearizable
a 0-1 put k 1 -> @5
b 2-3 get k -> True@5

== two writes at one revision
expect: revision used twice
a 0-2 put k 1 -> @5
b 1-3 put k 2 -> @5

== two writes of two keys at one revision
expect: revision used twice
search: linearizable
a 0-2 put x 1 -> @5
b 1-3 put y 2 -> @5

== revisions against time
expect: revisions out of order
a 0-1 put k 1 -> @6
b 2-3 put k 2 -> @5

== revisions of two keys against time
expect: revisions out of order
search: linearizable
a 0-1 put x 1 -> @6
b 2-3 put y 2 -> @5

== a write before what had been read
expect: revisions out of order
search: linearizable
a 0- put x 1 -> unknown
b 1-2 get x -> 1@7
c 3-4 put y 1 -> @6

== revisions beside each other in any order
expect: ok
a 0-2 put k 1 -> @6
b 1-3 put k 2 -> @5
c 4-5 get k -> 1@6

== an unknown write is read
expect: ok
a 0- put k 1 -> unknown
b 2-3 get k -> 1@5

== an unknown write is never read
expect: ok
a 0- put k 1 -> unknown
b 2-3 get k -> absent

== an unknown write happens late
expect: ok
a 0- put k 1 -> unknown
b 2-3 get k -> absent
b 4-5 put k 2 -> @4
b 6-7 get k -> 1@5

== an unknown write is read and then not
expect: stale read
a 0- put k 1 -> unknown
b 2-3 get k -> 1@5
b 4-5 get k -> absent

== an unknown write happens twice
expect: written twice
a 0- put k 1 -> unknown
b 2-3 get k -> 1@5
b 4-5 put k 2 -> @6
b 6-7 get k -> 1@7

== an unknown write happens twice, in the log
expect: written twice
search: linearizable
changes: 5 k=1, 6 k=2, 7 k=1
a 0- put k 1 -> unknown
b 4-5 put k 2 -> @6

== two unknown writes of one value happen
expect: ok
a 0- put k 1 -> unknown
b 0- put k 1 -> unknown
c 2-3 get k -> 1@5
c 4-5 put k 2 -> @6
c 6-7 get k -> 1@7

== two unknown writes of one value happen three times
expect: written twice
a 0- put k 1 -> unknown
b 0- put k 1 -> unknown
c 2-3 get k -> 1@5
c 4-5 put k 2 -> @6
c 6-7 get k -> 1@7
c 8-9 put k 3 -> @8
c 10-11 get k -> 1@9

== an acknowledged write happens twice, in the log
expect: written twice
search: linearizable
changes: 5 k=1, 7 k=1
a 0-1 put k 1 -> @5

== an acknowledged write is not in the log
expect: lost write
search: linearizable
changes: 5 k=1
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6

== an acknowledged write without a revision is not in the log
expect: lost write
search: linearizable
changes: 5 k=1
a 0-1 put k 1 -> @5
a 2-3 put k 2 ->

== an acknowledged delete is not in the log
expect: lost write
search: linearizable
changes: 5 k=1
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes @6

== everything is in the log
expect: ok
changes: 5 k=1, 6 k=2, 7 no k, 9 k=4
a 0-1 put k 1 -> @5
a 2-3 put k 2 ->
a 4-5 delete k -> yes
a 6- put k 4 -> unknown
b 8-9 get k -> 4@9

== a delete
expect: ok
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes @6
b 4-5 get k -> absent

== a deleted key is read
expect: stale read
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes @6
b 4-5 get k -> 1@5

== a deleted key is read, the delete without a revision
expect: ok
search: not linearizable
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes
b 4-5 get k -> 1@5

== a delete that nobody asked for is in the log
expect: never written
search: linearizable
changes: 5 k=1, 6 no k
a 0-1 put k 1 -> @5

== a key that may vanish
expect: ok
vanish: k
search: not linearizable
changes: 5 k=1, 6 no k
a 0-1 put k 1 -> @5
b 2-3 get k -> absent

== a key that may not vanish
expect: stale read
vanish: x
a 0-1 put k 1 -> @5
b 2-3 get k -> absent

== a key that may vanish, without the log
expect: ok
vanish: k
search: not linearizable
a 0-1 put k 1 -> @5
b 2-3 get k -> absent

== an unknown delete explains
expect: ok
a 0-1 put k 1 -> @5
b 2- delete k -> unknown
c 4-5 get k -> absent

== an unknown delete of another key does not
expect: stale read
a 0-1 put k 1 -> @5
b 2- delete x -> unknown
c 4-5 get k -> absent

== a delete of what is not there
expect: ok
a 0-1 delete k -> no @5

== a delete that found what was not there
expect: wrong answer to a delete
a 0-1 delete k -> yes @5

== a delete that did not find what was there
expect: wrong answer to a delete
a 0-1 put k 1 -> @5
a 2-3 delete k -> no @6

== a delete that finds what an unknown write left
expect: ok
a 0- put k 1 -> unknown
b 2-3 delete k -> yes @6

== two deletes of one value
expect: wrong answer to a delete
a 0-1 put k 1 -> @5
b 2-3 delete k -> yes @6
c 2-4 delete k -> yes @7

== a compare-and-set
expect: ok
a 0-1 put k 1 -> @5
b 2-3 cas k 2 if 5 -> @6
c 4-5 get k -> 2@6

== a compare-and-set of an absent key
expect: ok
a 0-1 cas k 1 if 0 -> @5
b 2-3 cas k 2 if 0 -> conflict 1@5

== two winners
expect: two winners of a compare-and-set
a 0-1 put k 1 -> @5
b 2-4 cas k 2 if 5 -> @6
c 3-5 cas k 3 if 5 -> @7

== two winners of an absent key
expect: two winners of a compare-and-set
b 2-4 cas k 2 if 0 -> @6
c 3-5 cas k 3 if 0 -> @7

== two winners, one of unknown outcome but seen
expect: two winners of a compare-and-set
a 0-1 put k 1 -> @5
b 2- cas k 2 if 5 -> unknown
d 3-4 get k -> 2@6
c 5-6 cas k 3 if 5 -> @7

== one winner, the other of unknown outcome and not seen
expect: ok
a 0-1 put k 1 -> @5
b 2- cas k 2 if 5 -> unknown
c 5-6 cas k 3 if 5 -> @7

== a lost update
expect: lost update
a 0-1 put k 1 -> @5
b 2-3 put k 2 -> @6
c 4-5 cas k 3 if 5 -> @7

== a lost update of a deleted key
expect: lost update
a 0-1 put k 1 -> @5
b 2-3 delete k -> yes @6
c 4-5 cas k 3 if 5 -> @7

== a compare-and-set on absence of what is there
expect: lost update
a 0-1 put k 1 -> @5
c 4-5 cas k 3 if 0 -> @7

== a compare-and-set on absence, and an unknown delete
expect: ok
a 0-1 put k 1 -> @5
b 2- delete k -> unknown
c 4-5 cas k 3 if 0 -> @7

== a conditional delete of something newer
expect: lost update
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
c 4-5 delete k if 5 -> yes @7

== a condition on what nobody wrote
expect: never written
a 0-1 put k 1 -> @5
c 4-5 cas k 3 if 6 -> @7

== a condition on what nobody wrote, and an unknown write that was elsewhere
expect: never written
a 0- put k 1 -> unknown
b 1-2 get k -> 1@5
c 3-4 cas k 3 if 6 -> @7

== a condition on what an unknown write left
expect: ok
a 0-1 put k 1 -> @5
b 2- put k 2 -> unknown
c 4-5 cas k 3 if 6 -> @7

== a condition that held, told of as a conflict
expect: false conflict
a 0-1 put k 1 -> @5
c 4-5 cas k 3 if 5 -> conflict 1@5

== a condition on absence that held, told of as a conflict
expect: false conflict
c 4-5 cas k 3 if 0 -> conflict absent

== a conflict that does not say what is there
expect: ok
a 0-1 put k 1 -> @5
c 4-5 cas k 3 if 4 -> conflict

== a conflict that does not say what is there, and there was none
expect: ok
search: not linearizable
a 0-1 put k 1 -> @5
c 4-5 cas k 3 if 5 -> conflict

== a conflict that does not say what is there, over what an unknown write left
expect: ok
a 0- put k 1 -> unknown
c 4-5 cas k 3 if 0 -> conflict

== a conflict that does not say what is there, over what an unknown delete took
expect: ok
a 0-1 put k 1 -> @5
b 2- delete k -> unknown
c 4-5 cas k 3 if 5 -> conflict

== a condition says where an unknown write was, which it cannot have been
expect: revisions out of order
search: linearizable
a 0-1 put x 1 -> @8
b 2- put k 2 -> unknown
c 3-4 cas k 3 if 6 -> @9

== a conflict shows what was replaced
expect: stale read
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
c 4-5 cas k 3 if 4 -> conflict 1@5

== a conflict shows what is not there yet
expect: read of the future
c 0-1 cas k 3 if 4 -> conflict 1@5
a 2-3 put k 1 -> @5

== a transaction
expect: ok
a 0-1 txn x=1 y=2 -> @5
b 2-3 get x -> 1@5
b 4-5 get y -> 2@5

== a transaction with a condition
expect: ok
a 0-1 put z 0 -> @4
a 2-3 txn x=1 no y if z=4 -> @5
b 4-5 txn x=2 if z=5 -> conflict z 0@4

== two unknown writes in an order that their revisions deny
expect: revisions out of order
a 0- put x 1 -> unknown
b 1-2 get x -> 1
c 3- put y 1 -> unknown
d 4-5 get y -> 1
b 6-7 get x -> 1@9
d 8-9 get y -> 1@8
b 10-11 txn x=2 y=2 -> @20

== half of an unknown transaction is read
expect: split transaction
a 0- txn x=1 y=2 -> unknown
b 2-3 get x -> 1@5
b 4-5 get y -> absent

== half of an acknowledged transaction is read before it returns
expect: split transaction
a 0-9 txn x=1 y=2 -> @5
b 2-3 get x -> 1@5
c 4-5 get y -> absent

== half of an acknowledged transaction is read after it returned
expect: stale read
a 0-1 txn x=1 y=2 -> @5
b 2-3 get x -> 1@5
c 4-5 get y -> absent

== an unknown transaction's delete explains only what was missed at its place
expect: stale read
a 0-1 put y 0 -> @4
b 2- txn x=1 no y -> unknown
c 3-4 get x -> 1@6
c 5-6 put y 5 -> @8
c 7-8 get y -> absent

== two parts of an unknown transaction at two revisions
expect: split transaction
a 0- txn x=1 y=2 -> unknown
b 2-3 get x -> 1@5
b 4-5 get y -> 2@6

== half of a transaction is in the log
expect: split transaction
search: linearizable
changes: 5 x=1
a 0-1 txn x=1 y=2 -> @5

== half of a transaction, a delete, is not in the log
expect: split transaction
search: linearizable
changes: 4 y=0, 5 x=1
a 0-1 put y 0 -> @4
a 2-3 txn x=1 no y -> @5

== a transaction that lost an update
expect: lost update
a 0-1 put x 1 -> @5
b 2-3 put x 2 -> @6
c 4-5 txn y=1 if x=5 -> @7

== a transaction on the absence of what is there
expect: lost update
a 0-1 put x 1 -> @5
c 4-5 txn y=1 if x=0 -> @7

== write skew
expect: lost update
a 0-1 txn x=1 y=1 -> @5
b 2-5 txn x=2 if y=5 -> @6
c 3-6 txn y=2 if x=5 -> @7

== a transaction told of a conflict over a key that was right
expect: false conflict
a 0-1 put x 1 -> @5
c 4-5 txn y=1 if x=5 -> conflict x 1@5

== a transaction's conflict over one of two
expect: ok
a 0-1 put x 1 -> @5
c 4-5 txn y=1 if x=5 if y=4 -> conflict y absent

== a failed transaction is half seen
expect: dirty read of a failed write
a 0-1 txn x=1 y=2 -> failed
b 2-3 get y -> 2@5

== something at a transaction's revision that is not in it
expect: wrong value
search: linearizable
changes: 5 x=1, 5 y=3
a 0-1 txn x=1 -> @5
b 0- put y 3 -> unknown

== a copy that lags
expect: ok
a@p 0-1 put k 1 -> @5
b@q 2-3 look k -> absent
b@q 4-5 look k -> 1@5

== a copy that goes back
expect: copy went back
search: linearizable
a@p 0-1 put k 1 -> @5
b@q 2-3 look k -> 1@5
c@q 4-5 look k -> absent

== two copies may show different things
expect: ok
a@p 0-1 put k 1 -> @5
b@q 2-3 look k -> 1@5
c@r 4-5 look k -> absent

== a copy goes back over two keys
expect: copy went back
search: linearizable
a@p 0-1 put x 1 -> @5
a@p 2-3 put y 1 -> @6
b@q 4-5 look y -> 1@6
c@q 6-7 look x -> absent

== half of a transaction in a copy
expect: copy went back
search: linearizable
a@p 0-1 txn x=1 y=1 -> @5
b@q 4-5 look y -> 1@5
c@q 6-7 look x -> absent

== looks beside each other in any order
expect: ok
a@p 0-1 put k 1 -> @5
b@q 2-4 look k -> 1@5
c@q 3-5 look k -> absent

== the own write is not seen
expect: own write not seen
search: linearizable
a@p 0-1 put k 1 -> @5
b@p 2-3 look k -> absent

== the own write is seen
expect: ok
a@p 0-1 put k 1 -> @5
b@p 2-3 look k -> 1@5

== the own delete is not seen
expect: own write not seen
search: linearizable
a@p 0-1 put k 1 -> @5
a@p 2-3 delete k -> yes @6
b@p 4-5 look k -> 1@5

== the own write is seen, though not yet acknowledged
expect: ok
a@p 0-3 put k 1 -> @5
b@p 1-2 look k -> 1@5

== the own copy is behind the own linearizable read
expect: copy went back
search: linearizable
a@p 0-1 put k 1 -> @5
b@q 2-3 get k -> 1@5
b@q 4-5 look k -> absent

== a copy misses what was deleted and put again
expect: copy went back
search: linearizable
a@p 0-1 put k 1 -> @5
a@p 2-3 delete k -> yes @6
a@p 4-5 put k 2 -> @7
b@q 6-7 look k -> 2@7
b@q 8-9 look k -> absent

== a copy may show the time between
expect: ok
a@p 0-1 put k 1 -> @5
a@p 2-3 delete k -> yes @6
a@p 4-5 put k 2 -> @7
b@q 6-7 look k -> 1@5
b@q 8-9 look k -> absent
b@q 10-11 look k -> 2@7

== versions
expect: ok
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
b 4-5 get k -> 2@6 created 5 version 2

== a version that is not that of a first put
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
b 4-5 get k -> 1@5 created 5 version 2

== a version too low
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
a 4-5 put k 3 -> @7
b 6-7 get k -> 3@7 created 5 version 2

== a version too high for the log
expect: wrong version
search: linearizable
changes: 5 k=1, 6 k=2
a 0-1 put k 1 -> @5
a 2-3 put k 2 -> @6
b 6-7 get k -> 2@6 created 5 version 3

== a version that counts what nobody knows of
expect: ok
a 0-1 put k 1 -> @5
b 2- put k 9 -> unknown
a 3-4 put k 2 -> @7
c 6-7 get k -> 2@7 created 5 version 3

== created after it was written
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
b 6-7 get k -> 1@5 created 6

== created before it was deleted
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes @6
a 4-5 put k 2 -> @7
b 6-7 get k -> 2@7 created 5 version 2

== created before it was deleted, and the version is not told
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
a 2-3 delete k -> yes @6
a 4-5 put k 2 -> @7
b 6-7 get k -> 2@7 created 5

== created after it was written, and perhaps deleted
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
c 2- delete k -> unknown
b 6-7 get k -> 1@5 created 6

== created while it was another
expect: wrong version
search: linearizable
a 0- put k 1 -> unknown
b 0- put k 2 -> unknown
c 1-2 get k -> 1@5 created 3 version 2
c 3-4 get k -> 2@9 created 4 version 3

== created although it was there
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
a 4-5 put k 2 -> @7
b 6-7 get k -> 2@7 created 7 version 1

== two readers told of different versions
expect: wrong version
search: linearizable
a 0-1 put k 1 -> @5
b 2- put k 2 -> unknown
c 4-5 get k -> 2@9 created 5 version 3
c 6-7 get k -> 2@9 created 5 version 4
"""


@dataclass
class Case:
    name: str
    expect: str = ""
    search: str = ""
    changes: list[Change] | None = None
    vanish: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)

    @property
    def operations(self) -> list[Operation]:
        return history("\n".join(self.lines))


def cases() -> list[Case]:
    found: list[Case] = []
    for line in filter(None, (line.strip() for line in CASES.splitlines())):
        name, _, text = line.partition(": ")
        if line.startswith("== "):
            found.append(Case(line[3:]))
        elif name == "expect":
            found[-1].expect = text
        elif name == "search":
            found[-1].search = text
        elif name == "changes":
            found[-1].changes = changes(text)
        elif name == "vanish":
            found[-1].vanish = set(text.split())
        else:
            found[-1].lines.append(line)
    for case in found:
        case.search = case.search or (LINEARIZABLE if case.expect == "ok" else VIOLATION)
    return found
