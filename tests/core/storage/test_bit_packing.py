"""Packed codes against one long integer in Python, and the round trip, for every bit width."""

from math import prod

import pytest
import torch
from hypothesis import given, strategies as st

from qplug.core.storage.bit_packing import pack_bits, packed_bytes, unpack_bits

BITS = range(1, 17)


@st.composite
def coded(draw):
    bits = draw(st.sampled_from(BITS))
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    values = draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=prod(shape), max_size=prod(shape)))
    return bits, torch.tensor(values, dtype=torch.int32).view(shape)


@given(coded(), st.sampled_from([torch.int32, torch.int64]))
def test_the_bytes_are_one_long_little_endian_integer(case, dtype):
    bits, codes = case
    packed = pack_bits(codes.to(dtype), bits)
    whole = sum(code << (i * bits) for i, code in enumerate(codes.flatten().tolist()))
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == whole.to_bytes(-(-codes.numel() * bits // 8), "little")


@given(coded())
def test_the_round_trip_is_exact(case):
    bits, codes = case
    packed = pack_bits(codes, bits)
    assert len(packed) == packed_bytes(codes.numel(), bits)
    again = unpack_bits(packed, bits, tuple(codes.shape))
    assert again.dtype == torch.int32
    assert torch.equal(again, codes)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_of_every_width(bits):
    codes = torch.arange(1 << bits).flip(0)
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, (1 << bits,)), codes.int())


def test_inputs_are_not_modified_and_may_have_any_layout():
    codes = torch.arange(12, dtype=torch.uint8).view(3, 4).T
    before = codes.clone()
    packed = pack_bits(codes, 5)
    copy = packed.clone()
    assert torch.equal(unpack_bits(packed, 5, (4, 3)), before.int())
    assert torch.equal(codes, before)
    assert torch.equal(packed, copy)


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([8]), 3, "codes of 3 bits in 0 … 7, received 8 … 8"),
        (torch.tensor([-1, 0]), 3, "received -1 … 0"),
        (torch.tensor([1.0]), 3, "expected integer codes"),
        (torch.tensor([True]), 3, "expected integer codes"),
        (torch.tensor([0]), 0, "1 to 16 bits"),
        (torch.tensor([0]), 17, "1 to 16 bits"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, bits, message):
    with pytest.raises(ValueError, match=message):
        pack_bits(codes, bits)


@pytest.mark.parametrize(
    ("packed", "bits", "shape"),
    [
        (torch.zeros(3, dtype=torch.uint8), 4, (3,)),
        (torch.zeros(1, dtype=torch.uint8), 4, (3,)),
        (torch.zeros(2, dtype=torch.int32), 4, (3,)),
        (torch.zeros(1, 2, dtype=torch.uint8), 4, (3,)),
        (torch.zeros(2, dtype=torch.uint8), 0, (3,)),
    ],
)
def test_tensors_that_are_not_packed_codes_are_refused(packed, bits, shape):
    with pytest.raises(ValueError, match="received"):
        unpack_bits(packed, bits, shape)
