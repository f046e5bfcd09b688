"""Frames: every message at its limits there and back, and nothing believed of what was damaged on the way.

`tests/test_wire` tries every single cut and every single flipped bit of one sample of each message; here messages and
damage are drawn, several kinds of damage at once among them.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from coord import wire
from coord.raft.batch import COMMANDS, encode_entry, make_batch
from coord.raft.messages import Append, Message
from coord.wire import BadFrame, Envelope, Identity, decode, encode
from properties.frames import EXTREMES, damaged, forged, name, unsigned
from test_wire import FOUNDING, MESSAGES, SAMPLES, A, B, sent

PROPERTIES = settings.get_profile("properties")
slot = st.sampled_from([0, 1, (1 << 32) - 1])
#: Whole frames from a to b.
whole = st.sampled_from([sent(sample) for sample in SAMPLES.values()]) | (MESSAGES | EXTREMES).map(sent)


def judged(frame: bytes, receiver: Identity = B) -> Envelope | str:
    """What is in `frame`, or the counted reason why it is refused; any other exception passes through."""
    try:
        return decode(frame, receiver)
    except BadFrame as error:
        reason = error.reason
    assert reason in wire.REASONS, f"{reason!r} is not counted"
    return reason


@PROPERTIES
@given(EXTREMES, name, name, st.sampled_from([1, (1 << 64) - 1]), unsigned, slot)
def test_every_field_at_its_limits_comes_back(
    message: Message, sender_name: str, recipient: str, incarnation: int, group_number: int, slot: int
) -> None:
    sender = Identity(sender_name, incarnation, FOUNDING, group_number, slot)
    receiver = Identity(recipient, 7, FOUNDING, group_number, slot)
    for meant in (0, 7):
        envelope = decode(encode(sender, recipient, message, recipient_incarnation=meant), receiver)
        assert (envelope.sender, envelope.message) == (sender, message), "another message came out"
        assert type(envelope.message) is type(message), "another kind of message came out"


@PROPERTIES
@given(damaged(whole) | whole.flatmap(forged))
def test_whatever_arrives_is_a_message_as_encoded_or_a_counted_refusal(frame: bytes) -> None:
    found = judged(frame)
    if isinstance(found, Envelope):
        meant = int.from_bytes(frame[44:52], "little")
        again = encode(found.sender, "b", found.message, recipient_incarnation=meant)
        assert again == frame, "a message was believed that is not as it is written: something was ignored"


@PROPERTIES
@given(frame=whole, place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, (1 << 32) - 1))
def test_a_burst_of_up_to_four_bytes_is_always_noticed(frame: bytes, place: float, bits: int) -> None:
    """What crc32 promises, of any frame, whichever of its parts a burst hits."""
    at = int(place * len(frame))
    changed = bytearray(frame)
    for step, mask in enumerate(bits.to_bytes(4, "little")):
        if at + step < len(frame):
            changed[at + step] ^= mask
    if bytes(changed) != frame:
        assert isinstance(judged(bytes(changed)), str), f"bytes {at} to {at + 3} changed unnoticed"


@PROPERTIES
@given(one=whole, other=whole, data=st.data())
def test_a_splice_is_refused_or_made_of_whole_summed_parts(one: bytes, other: bytes, data: st.DataObject) -> None:
    """A batch carries its own checksum and stays what it is; what is before the batches is summed as one."""
    cut = data.draw(st.integers(0, len(one)), label="up to")
    resume = data.draw(st.sampled_from([cut, max(0, len(other) - len(one) + cut)]), label="from")
    found = judged(one[:cut] + other[resume:])
    if isinstance(found, str):
        return
    sources = [decode(one, B).message, decode(other, B).message]
    if isinstance(found.message, Append):
        parts = [source for source in sources if isinstance(source, Append)]
        known = {batch.data for part in parts for batch in part.batches}
        assert {batch.data for batch in found.message.batches} <= known, "a batch that nobody sent"
        heads = [(part.term, part.prev_index, part.prev_term, part.commit, part.round) for part in parts]
        message = found.message
        head = (message.term, message.prev_index, message.prev_term, message.commit, message.round)
        assert head in heads, "a head that nobody sent"
    else:
        assert found.message in sources, "a message that nobody sent"


@st.composite
def loose_batches(draw: st.DrawFn) -> Append:
    """Whole batches that may or may not follow what is before them."""
    prev_index, prev_term = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    batches, first = [], prev_index + 1
    for _ in range(draw(st.integers(1, 3))):
        first = max(1, first + draw(st.sampled_from([0, 0, 0, 0, 1, -1])))
        count = draw(st.integers(1, 2))
        term, time = draw(st.integers(0, 4)), draw(st.sampled_from([0, 1, 2, wire.NUMBER_LIMIT - 1, wire.NUMBER_LIMIT]))
        batches.append(make_batch(COMMANDS, term, first, time, [encode_entry(b"")] * count, count))
        first += count
    return Append(draw(st.integers(0, 5)), prev_index, prev_term, 0, 0, batches)


@PROPERTIES
@given(loose_batches())
def test_batches_are_believed_when_each_follows_the_one_before(message: Append) -> None:
    entries = [(message.prev_index, message.prev_term, 0)]
    entries += [(index, one.term, one.time) for one in message.batches for index in range(one.first, one.last + 1)]
    follows = all(
        after[0] == before[0] + 1 and before[1] <= after[1] <= message.term and before[2] <= after[2]
        for before, after in pairwise(entries)
    )
    fits = all(entry[2] < wire.NUMBER_LIMIT for entry in entries)
    found = judged(sent(message))
    if follows and fits:
        assert isinstance(found, Envelope), f"a good message was refused: {found}"
    else:
        assert found == "batch", f"entries {entries} in term {message.term} were believed"


@PROPERTIES
@given(whole, st.builds(Identity, name, unsigned, st.sampled_from([FOUNDING, 0, 1]), unsigned, slot))
def test_who_is_not_meant_believes_nothing(frame: bytes, receiver: Identity) -> None:
    found = judged(frame, receiver)
    strangers = not wire.same_cluster(A, receiver)
    if strangers:
        assert found == "cluster", f"{receiver} took a frame of another group for its own"
    elif receiver.name != "b":
        assert found == "recipient", f"{receiver} took a frame for b"
    else:
        assert isinstance(found, Envelope), f"{receiver} refused its own frame: {found}"
