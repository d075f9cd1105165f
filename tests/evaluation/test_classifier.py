from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.data.image import to_signal
from smalti.evaluation import classifier as module
from smalti.evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    ConvNet,
    PixelFeatures,
    cache_path,
    judge,
    moved,
    read_classifier,
    train_classifier,
    write_classifier,
)

QUICK = ClassifierConfig(width=16, batch=32, passes=1, least_steps=60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))


def bars(count: int, seed: int, channels: int = 1, side: int = 12) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar, somewhere: across (0), down (1) or along the diagonal (2)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    for picture, label in zip(pixels, labels, strict=True):
        at = int(torch.randint(2, side - 2, (1,), generator=generator))
        if label == 0:
            picture[:, at] = 220
        elif label == 1:
            picture[:, :, at] = 220
        else:
            picture[:, torch.arange(side), torch.arange(side)] = 220
    return pixels, labels


def test_it_learns_what_new_pictures_show() -> None:
    network = train_classifier(*bars(400, 0), QUICK)
    assert Classifier(network).agreement(*bars(200, 1)) > 0.95


def test_the_same_seed_gives_the_same_network_and_another_does_not() -> None:
    pixels, labels = bars(64, 0)
    short = QUICK.model_copy(update={"least_steps": 4})
    torch.manual_seed(1)
    first = train_classifier(pixels, labels, short).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = train_classifier(pixels, labels, short).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_classifier(pixels, labels, short.model_copy(update={"seed": 1})).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(("side", "shift"), [(12, 1), (28, 1), (64, 4)])
def test_large_pictures_are_moved_further(side: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(pixels: Tensor, rows: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
        asked.append(shift)
        return moved(pixels, rows, shift, flip, generator)

    monkeypatch.setattr(module, "moved", noted)
    short = QUICK.model_copy(update={"least_steps": 2, "passes": 0.1})
    train_classifier(*bars(40, 0, side=side), short)
    train_classifier(*bars(40, 0, side=side), short.model_copy(update={"shift": 0}))
    assert asked == [shift, shift, 0, 0]


def test_progress_counts_every_step() -> None:
    told: list[tuple[int, int]] = []
    train_classifier(*bars(40, 0), QUICK.model_copy(update={"least_steps": 3}), progress=lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 28, 28), (3, 33, 20), (4, 3, 5), (2, 130, 64), (1, 1, 1)]
)
def test_any_size_has_features(channels: int, height: int, width: int) -> None:
    network = ConvNet(channels, max(height, width), 3, width=8).eval()
    x = torch.rand(2, channels, height, width)
    assert network.features(x).shape == (2, 16)
    assert network(x).shape == (2, 3)


def test_the_kernel_matrix_is_a_convolution() -> None:
    layer = module.KernelConv(5, 7).eval()
    x = torch.randn(2, 5, 6, 4)
    weight = torch.empty(7, 5, 3, 3)
    for o in range(7):
        for i in range(5):
            for y in range(3):
                for z in range(3):
                    weight[o, i, y, z] = layer.kernel[o, (y * 3 + z) * 5 + i]
    torch.testing.assert_close(layer(x), layer.norm(F.conv2d(x, weight, padding=1)).relu())


def test_channels_are_normalised_by_what_was_looked_at() -> None:
    pixels = torch.randint(40, 200, (50, 3, 8, 8), dtype=torch.uint8)
    network = ConvNet(3, 8, 2, width=8)
    network.look_at(pixels)
    x = to_signal(pixels)
    torch.testing.assert_close(network.mean.flatten(), x.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.deviation.flatten(), x.std((0, 2, 3), correction=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_moved_pictures_are_shifts_and_mirrors(flip: bool) -> None:
    pixels = torch.arange(2 * 3 * 5 * 6, dtype=torch.uint8).view(2, 3, 5, 6)
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([0, 1] * 40)
    seen = moved(pixels, rows, 1, flip, generator)
    padded = F.pad(pixels.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    kinds = set()
    for row, picture in zip(rows.tolist(), seen, strict=True):
        candidates = {
            (dy, dx, mirrored): window.flip(-1) if mirrored else window
            for dy in range(3)
            for dx in range(3)
            for window in [padded[row, :, dy : dy + 5, dx : dx + 6]]
            for mirrored in ([False, True] if flip else [False])
        }
        matches = [kind for kind, candidate in candidates.items() if torch.equal(candidate, picture)]
        assert matches
        kinds.update(matches)
    assert len(kinds) > (9 if flip else 5)


def test_nothing_moves_without_being_asked() -> None:
    pixels = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(moved(pixels, torch.tensor([3, 0]), 0, False, torch.Generator()), pixels[[3, 0]])


def test_a_second_judge_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = bars(100, 0)
    first = judge(pixels, labels, "print", bars(50, 1), QUICK)
    assert isinstance(first, Classifier)
    assert first.accuracy is not None
    monkeypatch.setattr(module, "train_classifier", lambda *_: pytest.fail("trained again"))
    second = judge(pixels, labels, "print", bars(50, 1), QUICK)
    assert isinstance(second, Classifier)
    assert second.accuracy == first.accuracy
    assert torch.equal(first.features(pixels), second.features(pixels))


def test_another_recipe_or_source_has_another_file() -> None:
    pixels, labels = bars(10, 0)
    paths = {
        cache_path(QUICK, "a", pixels, labels),
        cache_path(QUICK, "b", pixels, labels),
        cache_path(QUICK.model_copy(update={"seed": 1}), "a", pixels, labels),
        cache_path(QUICK, "a", pixels[:, :, :6], labels),
    }
    assert len(paths) == 4


def test_a_damaged_file_is_none_and_trained_again(tmp_path: Path) -> None:
    pixels, labels = bars(40, 0)
    short = QUICK.model_copy(update={"least_steps": 2})
    kept = judge(pixels, labels, "print", None, short)
    path = cache_path(short, "print", pixels, labels)
    assert path.is_file()
    path.write_bytes(path.read_bytes()[:-50])
    assert read_classifier(path) is None
    again = judge(pixels, labels, "print", None, short)
    assert torch.equal(kept.features(pixels), again.features(pixels))
    assert read_classifier(path) is not None
    assert read_classifier(tmp_path / "nowhere.safetensors") is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_rebuilds_the_network(tmp_path: Path) -> None:
    network = ConvNet(3, 40, 5, width=8)
    network.look_at(torch.randint(0, 256, (9, 3, 40, 40), dtype=torch.uint8))
    write_classifier(tmp_path / "c.safetensors", Classifier(network, accuracy=0.5))
    back = read_classifier(tmp_path / "c.safetensors")
    assert back is not None
    assert back.accuracy == 0.5
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    assert torch.equal(back.logits(x), Classifier(network).logits(x))


def test_floats_are_seen_as_the_eight_bits_of_their_file() -> None:
    pixels, _ = bars(20, 0)
    x = to_signal(pixels)
    for eye in (Classifier(ConvNet(1, 12, 3, width=8)), PixelFeatures()):
        assert torch.equal(eye.features(x + 0.003), eye.features(pixels))


def test_features_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = bars(20, 0)
    eye = Classifier(ConvNet(1, 12, 3, width=8))
    whole = eye.features(pixels)
    monkeypatch.setattr(module, "AT_ONCE", 3 * 144)
    torch.testing.assert_close(eye.features(pixels), whole)


def test_without_labels_or_with_one_class_pixels_are_the_features() -> None:
    pixels, labels = bars(10, 0, side=32)
    for nothing in (None, torch.zeros_like(labels)):
        eye = judge(pixels, nothing, "print")
        assert eye.name == "pixels"
    averaged = to_signal(pixels).view(10, 16, 2, 16, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(eye.features(pixels), averaged)
    assert PixelFeatures().features(pixels[:, :, :5, :7]).shape == (10, 35)
