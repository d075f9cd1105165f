from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.errors import UserError
from smalti.model import load
from smalti.sampling.animate import animate_samples, frames_of, write_gif


def test_one_position_after_the_other(tiny):
    model = load(tiny.run, "cpu")
    way: list[torch.Tensor] = []
    codes = model.draw(2, seed=3, trajectory=way)
    frames, whole = frames_of(model, way), model.tokenizer.decode(codes)
    assert frames.shape == (16, 2, 1, 16, 16)
    assert torch.equal(frames[-1], whole)
    for count, frame in enumerate(frames, 1):
        for position in range(16):
            row, column = 4 * (position // 4), 4 * (position % 4)
            patch = (..., slice(row, row + 4), slice(column, column + 4))
            assert torch.equal(frame[patch], whole[patch] if position < count else torch.zeros(2, 1, 4, 4))


def test_the_gif_of_samples(tiny, tmp_path):
    model = load(tiny.run, "cpu")
    animate_samples(model, 3, "Standing", 0, None, tmp_path / "new" / "laid.gif")
    with Image.open(tmp_path / "new" / "laid.gif") as gif:
        assert (gif.n_frames, gif.size) == (16, (3 * 16 * 3, 16 * 3))
        gif.seek(15)
        assert gif.info["duration"] == 1500
        last = np.asarray(gif.convert("L"), np.float32)
    row = torch.cat(list(model.sample(3, "Standing", seed=0)), -1)[0]
    shown = ((row + 1) * 127.5).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert np.abs(last - shown.numpy()).mean() < 4  # a GIF has 256 colours


def test_colour(tmp_path, generator):
    write_gif(torch.rand(5, 1, 3, 60, 60, generator=generator) * 2 - 1, tmp_path / "c.gif")
    with Image.open(tmp_path / "c.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (60, 60))


def test_a_strip_has_a_row_for_each_sample_and_ends_in_it(tiny, tmp_path):
    model = load(tiny.run, "cpu")
    animate_samples(model, 2, "Standing", 0, None, tmp_path / "way.png")
    with Image.open(tmp_path / "way.png") as sheet:
        assert sheet.size == (10 * 16 * 3, 2 * 16 * 3)
        last = np.asarray(sheet.convert("L"), np.float32)[:, -48:]
    whole = torch.cat(list(model.sample(2, "Standing", seed=0)), -2)[0]
    shown = ((whole + 1) * 127.5).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert np.abs(last - shown.numpy()).max() <= 1


def test_only_gifs_and_strips(tiny, tmp_path):
    with pytest.raises(UserError, match=r"\.gif"):
        animate_samples(load(tiny.run, "cpu"), 1, None, 0, None, tmp_path / "laid.mp4")
