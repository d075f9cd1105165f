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


def test_lengths_stay_and_place_zero_changes_nothing(generator):
    x = torch.randn(10, generator=generator)
    torch.testing.assert_close(turned(x, [0, 0, 0]), x)
    torch.testing.assert_close(turned(x, [3, 1, 9]).norm(), x.norm())


@pytest.mark.parametrize(("width", "axes"), [(7, 1), (4, 3)])
def test_a_head_too_narrow_is_refused(width, axes):
    with pytest.raises(ValueError, match="no pair"):
        rotations(torch.zeros(1, axes), width)
