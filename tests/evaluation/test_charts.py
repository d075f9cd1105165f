from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from smalti.evaluation import charts


def drawn(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]


def test_a_code_grid_says_its_codes() -> None:
    codes = torch.tensor([[0, 1, 127], [5, 5, 0]])
    axis = charts.code_grid(codes, 128).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "127", "5", "5", "0"]
    colours = np.asarray(axis.images[0].get_array())
    assert (colours[0, 0] == colours[1, 2]).all()
    assert (colours[1, 0] == colours[1, 1]).all()
    assert not np.allclose(colours[0, 0], colours[0, 1], atol=0.05)
    assert not charts.code_grid(torch.zeros(64, 64).long(), 8192).axes[0].texts  # too small to read


def test_a_picture_stands_beside_its_codes() -> None:
    figure = charts.code_grid(torch.zeros(4, 4).long(), 8, torch.zeros(3, 16, 16))
    assert len(figure.axes) == 2
    drawn(figure)


def test_codes_of_several_codebooks_stand_side_by_side() -> None:
    codes = torch.arange(12).view(3, 2, 2)
    figure = charts.code_grid(codes, 70_000, torch.zeros(1, 8, 8))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[:4] == ["picture", "codebook 1", "codebook 2", "codebook 3"]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == [str(code) for code in range(12)]
    drawn(figure)


def test_usage_bars_are_sorted_shares_on_a_logarithmic_scale() -> None:
    figure = charts.usage_bars([1, 0, 7, 2])
    axis = figure.axes[0]
    heights = axis.patches[0].get_data().values  # type: ignore[attr-defined]
    assert heights.tolist() == [70, 20, 10, 0]
    assert axis.get_yscale() == "log"
    assert axis.lines[0].get_ydata()[0] == 25  # used evenly
    assert 0 < axis.get_ylim()[0] < 10
    title = axis.get_title(loc="left")
    assert all(said in title for said in ("3 of 4 codes used", "1 unused", "10 tokens"))
    drawn(figure)


@pytest.mark.parametrize("counts", [torch.zeros(2, 4), torch.tensor([[1, 0, 7, 2], [5, 5, 0, 0]])])
def test_every_codebook_has_its_bars(counts: torch.Tensor) -> None:
    figure = charts.usage_bars(counts)
    assert len(figure.axes) == 2
    assert f"codebook 2: {int((counts[1] > 0).sum())} of 4 used" in figure.axes[1].get_title(loc="left")
    drawn(figure)


def test_rate_and_distortion_meet_at_their_points() -> None:
    figure = charts.rate_distortion([8, 16, 24], {"PSNR": [20, 24, 26], "SSIM": [0.5, 0.7, 0.8]})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["PSNR", "SSIM"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[8, 20], [16, 24], [24, 26]]
    drawn(figure)


def test_units_are_sorted_beside_the_threshold() -> None:
    figure = charts.unit_bars(torch.tensor([[[0.5]], [[0.0]], [[2.0]]]))
    axis = figure.axes[0]
    assert axis.patches[0].get_data().values.tolist() == [2, 0.5, 0]  # type: ignore[attr-defined]
    assert axis.lines[0].get_ydata()[0] == 0.01
    assert axis.get_title(loc="left") == "2 of 3 latent numbers active"
    drawn(figure)


def test_channels_reach_as_far_as_they_deviate() -> None:
    figure = charts.channel_ranges(torch.tensor([0.5, -1.0]), torch.tensor([0.1, 2.0]))
    bars = figure.axes[0].collections[0].get_segments()  # type: ignore[attr-defined]
    assert [bar[:, 1].tolist() for bar in bars] == [pytest.approx([0.4, 0.6]), pytest.approx([-3.0, 1.0])]
    drawn(figure)


def test_points_are_where_they_are_under_their_labels() -> None:
    points = torch.tensor([[0.0, 1.0], [-5.0, 0.5], [2.0, 2.0]])
    figure = charts.scatter(points, torch.tensor([1, 0, 1]), ["a", "b", "none of it"])
    axis = figure.axes[0]
    drawn_at = {each.get_label(): np.asarray(each.get_offsets()).tolist() for each in axis.collections}
    assert drawn_at == {"a": [[-5.0, 0.5]], "b": [[0.0, 1.0], [2.0, 2.0]], "none of it": []}
    assert axis.get_xlim()[0] < -5
    drawn(figure)
    bare = charts.scatter(points).axes[0]
    assert len(bare.collections[0].get_offsets()) == 3
    assert bare.get_legend() is None


def test_values_that_differ_in_a_number_share_a_panel() -> None:
    names = ("codes_used_1", "codes_used_2", "codes_used_10", "critic_real", "critic_fake", "real", "fake", "l1", "kl")
    rows = [{"step": s, "time": s, "split": "train", "values": dict.fromkeys(names, s + 1.0)} for s in range(4)]
    figure = charts.curves(rows)
    panels = {axis.get_title(loc="left"): len(axis.lines) for axis in figure.axes if axis.get_visible()}
    assert panels == {"codes used": 3, "critic": 2, "real and fake": 2, "l1": 1, "kl": 1}
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1", "2", "10"]
    drawn(figure)


def test_curves_have_a_panel_a_value_and_a_line_a_split() -> None:
    rows = [
        {"step": step, "time": step / 9, "split": split, "values": {"loss": 1 / (step + 1), "usage": 0.5}}
        for split in ("train", "validation")
        for step in range(0, 50, 1 if split == "train" else 10)
    ]
    rows.append({"step": 50, "time": 6.0, "split": "train", "values": {"loss": float("nan")}})
    figure = charts.curves(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "usage"]
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines][-1] == [0, 10, 20, 30, 40]
    assert len(charts.curves(rows, names=["usage"]).axes) == 1
    drawn(figure)
    with pytest.raises(ValueError, match="no values"):
        charts.curves(rows, names=["elsewhere"])


def test_smoothing_keeps_lines_and_length() -> None:
    line = np.linspace(3, 7, 200)
    np.testing.assert_allclose(charts._smooth(line), line)
    noisy = np.random.default_rng(0).normal(size=500)
    assert charts._smooth(noisy).std() < 0.5 * noisy.std()


def test_a_histogram_holds_every_group_and_bears_equal_values() -> None:
    figure = charts.histogram({"new": torch.zeros(5), "held out": torch.zeros(5)}, "distance")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["new (median 0)", "held out (median 0)"]
    drawn(figure)


def test_drawing_leaves_the_users_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(charts.usage_bars([1, 2]))
    assert dict(matplotlib.rcParams) == before
