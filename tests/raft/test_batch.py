"""The batch's encoding: what is made is read back, and nothing else passes for one."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.raft.batch import (
    BATCH_BYTES_MAX,
    COMMANDS,
    HEADER_BYTES,
    KINDS,
    NOOP,
    Batch,
    DamagedBatch,
    encode_entry,
    make_batch,
    read_batch,
)

numbers = st.integers(0, (1 << 64) - 1)
batches = st.builds(
    lambda kind, term, first, time, payloads: make_batch(
        kind, term, first, time, [encode_entry(payload) for payload in payloads], len(payloads)
    ),
    st.sampled_from(KINDS),
    numbers,
    st.integers(1, (1 << 63) - 1),
    numbers,
    st.lists(st.binary(max_size=20), min_size=1, max_size=8),
)


def forged(body: bytes, *, kind: int = COMMANDS, count: int = 1, first: int = 1, length: int | None = None) -> bytes:
    """A batch whose crc is right, whatever else it says."""
    rest = struct.pack("<IB3xIQQQ", len(body) if length is None else length, kind, count, 1, first, 0) + body
    return struct.pack("<I", zlib.crc32(rest)) + rest


@given(batch=batches, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_a_batch_is_read_back_from_anywhere_in_a_buffer(batch: Batch, before: bytes, after: bytes) -> None:
    found = read_batch(before + batch.data + after, len(before))
    assert found == batch
    assert hash(found) == hash(batch)
    for field in ("kind", "term", "first", "last", "time", "count", "data"):
        assert getattr(found, field) == getattr(batch, field)
    assert list(found.payloads()) == list(batch.payloads())
    assert isinstance(found.data, bytes)


def test_the_layout_is_fixed() -> None:
    batch = make_batch(COMMANDS, 2, 3, 4, [encode_entry(b"ab"), encode_entry(b"")], 2)
    assert batch.data.hex() == (
        "2fa276e0" "0a000000" "00" "000000" "02000000" "0200000000000000" "0300000000000000" "0400000000000000"
        "02000000" "6162" "00000000"
    )  # fmt: skip


def test_any_single_bit_flip_is_detected() -> None:
    batch = make_batch(
        COMMANDS, 5, 77, 123456789, [encode_entry(b"some"), encode_entry(b""), encode_entry(b"bytes")], 3
    )
    for place in range(len(batch.data)):
        for bit in range(8):
            damaged = bytearray(batch.data)
            damaged[place] ^= 1 << bit
            with pytest.raises(DamagedBatch):
                read_batch(bytes(damaged))


def test_any_truncation_is_detected() -> None:
    batch = make_batch(NOOP, 5, 77, 1, [encode_entry(b"payload")], 1)
    for length in range(len(batch.data)):
        with pytest.raises(DamagedBatch):
            read_batch(batch.data[:length])


@given(st.binary(max_size=100))
def test_any_bytes_are_a_batch_or_damaged(data: bytes) -> None:
    try:
        found = read_batch(data)
    except DamagedBatch:
        return
    assert data.startswith(found.data)


@pytest.mark.parametrize(
    "data",
    [
        forged(b""),
        forged(encode_entry(b"x"), count=0),
        forged(encode_entry(b"x"), count=2),
        forged(encode_entry(b"x") * 2, count=1),
        forged(encode_entry(b"x"), count=(1 << 32) - 1),
        forged(encode_entry(b"x"), first=0),
        forged(encode_entry(b"x"), kind=3),
        forged(encode_entry(b"x"), length=4),
        forged(encode_entry(b"x"), length=6),
        forged(struct.pack("<I", 9) + b"x"),
        forged(struct.pack("<I", (1 << 32) - 1) + b"x"),
        forged(encode_entry(b"xxxx")[:-1] + struct.pack("<I", 0), count=2),
        forged(b"", length=BATCH_BYTES_MAX + 1, count=1),
    ],
)
def test_a_right_crc_does_not_excuse_the_rest(data: bytes) -> None:
    with pytest.raises(DamagedBatch):
        read_batch(data)


def test_a_forgery_that_says_the_truth_is_a_batch() -> None:
    assert list(read_batch(forged(encode_entry(b"x"))).payloads()) == [b"x"]


def test_batches_with_the_same_bytes_are_the_same() -> None:
    one, two = (make_batch(NOOP, 1, 1, time, [encode_entry(b"")], 1) for time in (1, 2))
    assert one != two
    assert one != one.data
    assert len({one, two, read_batch(one.data)}) == 2
    assert len(one.data) == HEADER_BYTES + 4
