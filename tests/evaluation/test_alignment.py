from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.evaluation.alignment import AMONG, HUNDREDS, hundreds, recall


def test_a_hundred_has_no_caption_twice_and_is_drawn_anew_each_time():
    captions = [f"{'Thing' if i % 2 else 'thing'} {i // 3}" for i in range(600)]
    drawn = hundreds(captions)
    assert [len(rows) for rows in drawn] == [AMONG] * HUNDREDS
    for rows in drawn:
        assert len({captions[i].casefold() for i in rows.tolist()}) == AMONG
    assert len({tuple(sorted(rows.tolist())) for rows in drawn}) == HUNDREDS
    assert all(torch.equal(one, other) for one, other in zip(drawn, hundreds(captions), strict=True))


def test_where_there_are_fewer_all_different_ones_are_taken():
    drawn = hundreds(["a", "A", "b", "c", "b"])
    assert all(len(rows) == 3 for rows in drawn)


def test_recall_is_that_of_two_loops():
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(150, 6, generator=generator), dim=1)
    pictures = F.normalize(texts + 0.3 * torch.randn(150, 6, generator=generator), dim=1)
    drawn = hundreds([str(i) for i in range(150)])
    right = {"caption_recall_at_1": 0, "picture_recall_at_1": 0}
    for rows in drawn:
        for i in rows.tolist():
            right["caption_recall_at_1"] += all(
                pictures[i] @ texts[i] > pictures[i] @ texts[j] for j in rows.tolist() if j != i
            )
            right["picture_recall_at_1"] += all(
                pictures[i] @ texts[i] > pictures[j] @ texts[i] for j in rows.tolist() if j != i
            )
    found = recall(pictures, texts, drawn)
    assert found == {name: pytest.approx(count / AMONG / HUNDREDS, abs=2e-3) for name, count in right.items()}
    assert 0.05 < found["caption_recall_at_1"] < 0.95


def test_what_says_the_same_of_all_is_never_right():
    same = F.normalize(torch.ones(20, 4), dim=1)
    assert set(recall(same, same, hundreds([str(i) for i in range(20)])).values()) == {0.0}
