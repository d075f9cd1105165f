from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.errors import UserError
from smalti.model import load
from smalti.sampling.animate import animate_samples, laid_so_far, write_gif


def test_one_position_after_the_other(tiny):
    model = load(tiny.run, "cpu")
    codes = model.sample_codes(2, seed=3)
    frames, whole = laid_so_far(model, codes), model.tokenizer.decode(codes)
    assert frames.shape == (17, 2, 1, 16, 16)
    assert not frames[0].any()
    assert torch.equal(frames[-1], whole)
    for count, frame in enumerate(frames):
        for position in range(16):
            row, column = 4 * (position // 4), 4 * (position % 4)
            patch = (..., slice(row, row + 4), slice(column, column + 4))
            assert torch.equal(frame[patch], whole[patch] if position < count else torch.zeros(2, 1, 4, 4))


def test_the_gif_of_samples(tiny, tmp_path):
    model = load(tiny.run, "cpu")
    animate_samples(model, 3, "Standing", 0, None, tmp_path / "new" / "laid.gif")
    with Image.open(tmp_path / "new" / "laid.gif") as gif:
        assert (gif.n_frames, gif.size) == (17, (3 * 16 * 3, 16 * 3))
        gif.seek(16)
        assert gif.info["duration"] == 1500
        last = np.asarray(gif.convert("L"), np.float32)
    row = torch.cat(list(model.sample(3, "Standing", seed=0)), -1)[0]
    shown = ((row + 1) * 127.5).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert np.abs(last - shown.numpy()).mean() < 4  # a GIF has 256 colours


def test_colour(tmp_path, generator):
    write_gif(torch.rand(5, 1, 3, 60, 60, generator=generator) * 2 - 1, tmp_path / "c.gif")
    with Image.open(tmp_path / "c.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (60, 60))


def test_only_gifs(tiny, tmp_path):
    with pytest.raises(UserError, match=r"\.gif"):
        animate_samples(load(tiny.run, "cpu"), 1, None, 0, None, tmp_path / "laid.png")
