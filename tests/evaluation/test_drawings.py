from __future__ import annotations

import pytest
import torch

from smalti.data.example import Detail
from smalti.data.naming import captions
from smalti.evaluation.drawings import name_in, near_copies, right_names

APPLE = Detail("emoji/twitter/1f34e", ("red apple", "fruit", "mac"), 2, "1f34e")


def test_every_way_to_ask_for_a_drawing_has_its_name():
    *named, others = captions(APPLE)
    assert {name_in(text) for text in named} == {"red apple"}
    assert others == "fruit, mac"


@pytest.mark.parametrize(
    ("said", "name", "keyword"),
    [
        ("red apple", 1, 1),
        ("Red apple, google style", 1, 1),
        ("green apple", 0, 0),
        ("bowl of fruit by twitter", 0, 1),
        ("fruitcake", 0, 0),
        ("fruit, mac", 0, 1),
        ("", 0, 0),
    ],
)
def test_names_and_keywords(said, name, keyword):
    found = right_names([APPLE], [said])
    assert (found.name, found.keyword) == (name, keyword)


def test_shares_are_of_all():
    assert right_names([APPLE] * 4, ["red apple", "x", "fruit", "mac"]).keyword == 3 / 4


def test_a_copy_is_within_twice_the_error():
    train = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    train[1], train[2] = 100, 200
    samples = torch.stack([train[1], train[1] + 10, train[1] + 30])
    assert near_copies(samples, train, error=6 / 255) == pytest.approx(2 / 3)
    assert near_copies(samples, train, error=16 / 255) == 1
