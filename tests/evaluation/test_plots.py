from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from smalti.data.image import to_signal
from smalti.evaluation import plots


def drawn(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_grid_is_there_enlarged(channels: int) -> None:
    pixels = torch.randint(0, 256, (5, channels, 6, 4), dtype=torch.uint8)
    sheet = np.asarray(plots.picture_grid(to_signal(pixels), columns=3, scale=3))
    gap = 4
    assert sheet.shape[:2] == (2 * 18 + gap, 3 * 12 + 2 * gap)
    for n in range(5):
        top, left = n // 3 * (18 + gap), n % 3 * (12 + gap)
        shown = torch.from_numpy(sheet[top : top + 18 : 3, left : left + 12 : 3].copy())
        expected = pixels[n, 0] if channels == 1 else pixels[n].permute(1, 2, 0)
        assert torch.equal(shown, expected)
    assert (sheet[18 + gap :, 2 * (12 + gap) :] == 255).all()  # the place left over is paper


def test_small_pictures_are_enlarged_by_default_and_large_ones_are_not() -> None:
    assert plots.picture_grid(torch.zeros(1, 1, 28, 28), 1).size == (56, 56)
    assert plots.picture_grid(torch.zeros(1, 3, 256, 256), 1).size == (256, 256)


def test_alpha_lies_on_white() -> None:
    clear = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    assert (np.asarray(plots.picture_grid(clear, 1, scale=1)) == 255).all()
    clear[:, 3] = 255
    assert (np.asarray(plots.picture_grid(clear, 1, scale=1)) == 0).all()
    assert plots.picture_grid(torch.zeros(1, 2, 2, 2, dtype=torch.uint8), 1, scale=1).mode == "L"


def test_names_and_captions_take_room_and_leave_pictures_as_they_are() -> None:
    x = torch.full((2, 1, 28, 28), -1.0)
    bare, named = plots.strip(x), plots.picture_rows({"a rather long name for a row": x, "b": x[:1]})
    assert named.width > bare.width
    assert named.height > 2 * bare.height
    captioned = plots.strip(x, captions=["0 %", "a caption far too long for its picture"])
    assert captioned.width == bare.width
    assert captioned.height > bare.height
    assert (np.asarray(captioned)[:56, :56] == 0).all()


def test_pairs_stand_above_one_another() -> None:
    x = torch.full((3, 1, 28, 28), -1.0)
    sheet = np.asarray(plots.picture_pairs(x, -x, columns=2).convert("L"))[:, -56:]
    dark = (sheet == 0).all(1)
    assert dark[:56].all()
    assert not dark[56:120].any()
    assert len(sheet) == 4 * 56 + 3 * 4 + 12


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        plots.picture_grid(torch.zeros(0, 1, 4, 4), 3)


def test_a_code_grid_says_its_codes() -> None:
    codes = torch.tensor([[0, 1, 127], [5, 5, 0]])
    axis = plots.code_grid(codes, 128).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "127", "5", "5", "0"]
    colours = np.asarray(axis.images[0].get_array())
    assert (colours[0, 0] == colours[1, 2]).all()
    assert (colours[1, 0] == colours[1, 1]).all()
    assert not np.allclose(colours[0, 0], colours[0, 1], atol=0.05)
    assert not plots.code_grid(torch.zeros(64, 64).long(), 8192).axes[0].texts  # too small to read


def test_a_picture_stands_beside_its_codes() -> None:
    figure = plots.code_grid(torch.zeros(4, 4).long(), 8, torch.zeros(3, 16, 16))
    assert len(figure.axes) == 2
    drawn(figure)


def test_usage_bars_are_sorted_shares() -> None:
    figure = plots.usage_bars([1, 0, 7, 2])
    axis = figure.axes[0]
    heights = axis.patches[0].get_data().values  # type: ignore[attr-defined]
    assert heights.tolist() == [70, 20, 10, 0]
    assert "3 of 4 codes used" in axis.get_title(loc="left")
    assert "10 tokens" in axis.get_title(loc="left")


def test_curves_have_a_panel_a_value_and_a_line_a_split() -> None:
    rows = [
        {"step": step, "time": step / 9, "split": split, "values": {"loss": 1 / (step + 1), "usage": 0.5}}
        for split in ("train", "validation")
        for step in range(0, 50, 1 if split == "train" else 10)
    ]
    rows.append({"step": 50, "time": 6.0, "split": "train", "values": {"loss": float("nan")}})
    figure = plots.curves(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "usage"]
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines][-1] == [0, 10, 20, 30, 40]
    assert len(plots.curves(rows, names=["usage"]).axes) == 1
    drawn(figure)
    with pytest.raises(ValueError, match="no values"):
        plots.curves(rows, names=["elsewhere"])


def test_smoothing_keeps_lines_and_length() -> None:
    line = np.linspace(3, 7, 200)
    np.testing.assert_allclose(plots._smooth(line), line)
    noisy = np.random.default_rng(0).normal(size=500)
    assert plots._smooth(noisy).std() < 0.5 * noisy.std()


def test_a_histogram_holds_every_group_and_bears_equal_values() -> None:
    figure = plots.histogram({"new": torch.zeros(5), "held out": torch.zeros(5)}, "distance")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["new (median 0)", "held out (median 0)"]
    drawn(figure)


def test_drawing_leaves_the_users_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(plots.usage_bars([1, 2]))
    assert dict(matplotlib.rcParams) == before
    assert isinstance(plots.picture_grid(torch.zeros(1, 1, 2, 2), 1), Image.Image)
