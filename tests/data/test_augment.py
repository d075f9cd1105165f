from __future__ import annotations

import torch
import torch.nn.functional as F

from smalti.data.augment import augment


def picture_numbers(count: int, height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.arange(count * 3 * height * width).reshape(count, 3, height, width)


def variants(picture: torch.Tensor, flip: bool, shift: int) -> set[bytes]:
    """All that augmentation may make of (C, H, W): pad with the edge, cut out at every place, mirror or not."""
    made = set()
    _, height, width = picture.shape
    for mirrored in [picture, picture.flip(-1)] if flip else [picture]:
        padded = F.pad(mirrored[None].double(), [shift] * 4, mode="replicate")[0].long()
        for top in range(2 * shift + 1):
            for left in range(2 * shift + 1):
                made.add(padded[:, top : top + height, left : left + width].contiguous().numpy().tobytes())
    return made


def test_every_result_is_a_mirrored_moved_picture_and_all_occur():
    x = picture_numbers(1).expand(2000, -1, -1, -1)
    for flip, shift in [(True, 0), (False, 1), (True, 2)]:
        made = augment(x, 0, 0, torch.arange(2000), flip, shift)
        seen = {each.contiguous().numpy().tobytes() for each in made}
        assert seen == variants(x[0], flip, shift)


def test_half_are_mirrored():
    x = picture_numbers(4000, 1, 3)
    made = augment(x, 1, 5, torch.arange(4000), True, 0)
    assert 0.45 < (made == x).flatten(1).all(1).double().mean() < 0.55


def test_the_choice_belongs_to_the_row_and_step():
    x = picture_numbers(32)
    rows = torch.arange(32)
    whole = augment(x, 3, 9, rows, True, 2)
    parts = [augment(x[part], 3, 9, rows[part], True, 2) for part in (slice(0, 20), slice(20, 32))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(x, 3, 10, rows, True, 2), whole)
    assert not torch.equal(augment(x, 4, 9, rows, True, 2), whole)


def test_nothing_asked_nothing_done():
    x = picture_numbers(2)
    assert augment(x, 0, 0, torch.arange(2), False, 0) is x
