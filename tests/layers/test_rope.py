from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.layers.rope import rotate, rotations


def turned(vector: torch.Tensor, place: list[int], base: float = 100.0) -> torch.Tensor:
    """One vector (width,) at one place, turned."""
    cos, sin = rotations(torch.tensor([place]), len(vector), base)
    return rotate(vector[None, None, None].float(), cos, sin)[0, 0, 0]


@given(st.integers(1, 3), st.data())
def test_a_product_depends_on_the_distance_alone(axes, data):
    place = st.lists(st.integers(0, 30), min_size=axes, max_size=axes)
    one, other, shift = data.draw(place), data.draw(place), data.draw(place)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 5)))
    q, k = torch.randn(2, 10, generator=generator)
    here = turned(q, one) @ turned(k, other)
    there = turned(q, [a + b for a, b in zip(one, shift, strict=True)]) @ turned(
        k, [a + b for a, b in zip(other, shift, strict=True)]
    )
    torch.testing.assert_close(here, there, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_axis_is_told_apart(axes, generator):
    q, k = torch.randn(2, 12, generator=generator)
    products = [float(turned(q, [0] * axes) @ turned(k, [0] * axes))]
    for axis in range(axes):
        place = [0] * axes
        place[axis] = 1
        products.append(float(turned(q, [0] * axes) @ turned(k, place)))
    assert len({round(product, 4) for product in products}) == axes + 1


def test_one_axis_against_complex_numbers(generator):
    x = torch.randn(8, generator=generator)
    for place in (0, 1, 7):
        expected = [
            complex(x[i], x[i + 4]) * complex(math.cos(place * 100 ** (-i / 4)), math.sin(place * 100 ** (-i / 4)))
            for i in range(4)
        ]
        torch.testing.assert_close(
            turned(x, [place]), torch.tensor([c.real for c in expected] + [c.imag for c in expected])
        )


@pytest.mark.parametrize("axes", [2, 3])
def test_interleaved_text_is_turned_as_on_one_axis(axes):
    """It stands at the same place on all axes; a grid does not, and every axis has quick and slow pairs."""
    alone = rotations(torch.arange(7)[:, None], 12, 1000.0)
    for one, same in zip(alone, rotations(torch.arange(7)[:, None].expand(-1, axes), 12, 1000.0, True), strict=True):
        torch.testing.assert_close(same, one)
    for axis in range(axes):
        place = torch.zeros(1, axes)
        place[0, axis] = 1
        moved = rotations(place, 12, 1000.0, True)[1][0, 6:] != 0
        assert moved.tolist() == [pair % axes == axis for pair in range(6)]


def test_lengths_stay_and_place_zero_changes_nothing(generator):
    x = torch.randn(10, generator=generator)
    torch.testing.assert_close(turned(x, [0, 0, 0]), x)
    torch.testing.assert_close(turned(x, [3, 1, 9]).norm(), x.norm())


@pytest.mark.parametrize(("width", "axes"), [(7, 1), (4, 3)])
def test_a_head_too_narrow_is_refused(width, axes):
    with pytest.raises(ValueError, match="no pair"):
        rotations(torch.zeros(1, axes), width)
