from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.errors import UserError
from smalti.model import load
from smalti.sampling.complete import complete, first_part, mask_from_file
from smalti.sampling.files import read_fitted

SHAPE = (2, 4, 3)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 6), (0.25, 3), (1, 1), (11, 11), (5.0, 5), (0.05, 1), (0.95, 11)])
def test_the_first_part_in_reading_order(keep, count):
    mask = first_part(SHAPE, 5, keep)
    assert (mask.shape, mask.dtype) == ((5, 2, 4, 3), torch.bool)
    for row in range(4):
        for column in range(3):
            assert bool((mask[:, :, row, column] == (3 * row + column < count)).all())


@pytest.mark.parametrize("keep", [0, -0.5, -1, 12, 13, 1.5, 0.01, 0.99, float("nan"), float("inf")])
def test_what_cannot_be_kept(keep):
    with pytest.raises(UserError, match="--keep"):
        first_part(SHAPE, 1, keep)


def drawn(path, white: np.ndarray):
    Image.fromarray((white * 255).astype(np.uint8)).save(path)
    return path


def test_white_is_kept(tmp_path):
    white = np.zeros((16, 12), bool)
    white[:9] = True  # two whole rows of codes, and a part of the third
    white[1, 5] = False  # one black pixel, and its code is drawn anew
    mask = mask_from_file(drawn(tmp_path / "m.png", white), SHAPE, (16, 12), 3)
    expected = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]).bool()
    assert torch.equal(mask, expected.expand(3, 2, 4, 3))


def test_masks_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match=r"is 16×16, the model's pictures are 16×12"):
        mask_from_file(drawn(tmp_path / "m.png", np.zeros((16, 16))), SHAPE, (16, 12), 1)
    with pytest.raises(UserError, match="keeps everything"):
        mask_from_file(drawn(tmp_path / "w.png", np.ones((16, 12))), SHAPE, (16, 12), 1)
    white = np.zeros((16, 12))
    white[3:6, 3:7] = 1  # larger than one code, and yet of none the whole
    for nothing in (np.zeros((16, 12)), white):
        with pytest.raises(UserError, match="keeps nothing, for no square of 4×4 pixels is white"):
            mask_from_file(drawn(tmp_path / "b.png", nothing), SHAPE, (16, 12), 1)
    assert int(mask_from_file(tmp_path / "b.png", (1, 16, 12), (16, 12), 1).sum()) == 12
    with pytest.raises(UserError, match="for no pixel is white"):
        mask_from_file(drawn(tmp_path / "b.png", np.zeros((16, 12))), (1, 16, 12), (16, 12), 1)
    with pytest.raises(UserError, match="no such file"):
        mask_from_file(tmp_path / "nothing.png", SHAPE, (16, 12), 1)


def test_what_is_kept_stays(tiny):
    model = load(tiny.run, "cpu")
    x = torch.stack([read_fitted(tiny.data / "Standing" / f"{i:03}.png", model) for i in range(3)])
    codes = model.tokenizer.encode(x)
    mask = first_part(model.shape, 3, 0.5)
    done = complete(model, x, mask, "Standing", seed=1)
    new = model.draw(3, "Standing", codes, mask, seed=1)
    assert torch.equal(new[mask], codes[mask])
    assert torch.equal(done, model.tokenizer.decode(new))
    assert not torch.equal(done, complete(model, x, mask, "Standing", seed=2))


def test_a_mask_that_looks_ahead_is_refused(tiny, tmp_path):
    model = load(tiny.run, "cpu")
    white = np.zeros((16, 16), bool)
    white[:, :8] = True
    mask = mask_from_file(drawn(tmp_path / "m.png", white), model.shape, (16, 16), 1)
    with pytest.raises(UserError, match="reading order"):
        complete(model, read_fitted(tiny.picture, model)[None], mask)
