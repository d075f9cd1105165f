from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.data.example import MemorySource, held_out


def pictures(count: int = 4) -> torch.Tensor:
    return torch.arange(count * 12, dtype=torch.uint8).reshape(count, 1, 3, 4)


def test_a_source_in_memory():
    source = MemorySource("some", pictures(), torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
    assert len(source) == 4
    assert source.signal.shape == (3, 4)
    item = source.item(1)
    assert torch.equal(item.pixels, pictures()[1])
    assert (item.label, item.text, item.name) == (1, (), "some/1")
    assert torch.equal(source.pixels(), pictures())
    assert MemorySource("some", pictures()).item(0).label is None
    with pytest.raises(ValueError, match="uint8"):
        MemorySource("some", pictures().float())


def test_the_fingerprint_tells_pixels_shape_and_labels_apart():
    labels = torch.tensor([0, 1, 1, 0])
    same = [MemorySource("some", pictures(), labels, ("a", "b")).fingerprint for _ in range(2)]
    assert same[0] == same[1]
    changed = pictures()
    changed[3, 0, 0, 0] += 1
    others = [
        MemorySource("some", changed, labels, ("a", "b")),
        MemorySource("some", pictures().mT.contiguous(), labels, ("a", "b")),
        MemorySource("some", pictures(), labels.flip(0) ^ 1, ("a", "b")),
        MemorySource("some", pictures(), labels, ("a", "c")),
        MemorySource("some", pictures()),
    ]
    assert len({same[0], *(other.fingerprint for other in others)}) == 6


@given(
    contents=st.lists(st.binary(min_size=0, max_size=2), min_size=2, max_size=60),
    share=st.floats(0.01, 0.5),
)
def test_equal_contents_are_held_out_together_and_both_sides_get_some(contents, share):
    out = held_out(contents, share)
    held, kept = ({c for c, o in zip(contents, out, strict=True) if o == side} for side in (True, False))
    assert not held & kept
    if len(set(contents)) > 1:
        assert held
        assert kept
    order = list(range(len(contents)))[::-1]
    assert out[order].tolist() == held_out([contents[i] for i in order], share).tolist()


def test_the_share_is_met_and_a_newcomer_moves_few():
    contents = [str(i).encode() for i in range(1000)]
    out = held_out(contents, 0.1)
    assert out.sum() == 100
    more = held_out([*contents, b"new", b"newer"], 0.1)
    assert (more[:1000] != out).sum() <= 2
    assert 40 < out[:500].sum() < 60  # no bias to where they stand
    assert not held_out(contents, 0).any()
