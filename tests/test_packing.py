"""Bit packing against big Python integers."""

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tqlab.packing import pack, unpack

BITS = [1, 2, 3, 4, 8]


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_a_little_endian_stream(bits, data):
    groups = data.draw(st.integers(1, 4), "groups of 8 values")
    columns = data.draw(st.integers(1, 3), "columns")
    size = 8 * groups * columns
    values = st.lists(st.integers(0, 2**bits - 1), min_size=size, max_size=size)
    index = torch.tensor(data.draw(values), dtype=torch.uint8).view(8 * groups, columns)
    stream = pack(index, bits)
    assert stream.shape == (bits * groups, columns)
    for column in range(columns):
        expected = oracle.stream(index[:, column].tolist(), bits)
        assert bytes(stream[:, column].tolist()) == expected
        assert oracle.unstream(expected, bits) == index[:, column].tolist()
    assert torch.equal(unpack(stream, bits), index)


@pytest.mark.parametrize("bits", BITS)
def test_every_stream_of_bytes_has_one_meaning(bits, device):
    """pack(unpack(b)) = b for all bytes: no bit is lost, none is read twice."""
    stream = torch.randint(256, (24, 50), generator=torch.Generator().manual_seed(0))
    stream = stream.to(torch.uint8).to(device)
    index = unpack(stream, bits)
    assert int(index.max()) == 2**bits - 1
    assert torch.equal(pack(index, bits), stream)


def test_inputs_are_left_alone(device):
    index = torch.full((8, 2), 1, dtype=torch.uint8, device=device)
    for bits in (1, 2, 3, 4):
        pack(index, bits)
    assert (index == 1).all()
