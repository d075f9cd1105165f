from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smalti.errors import UserError
from smalti.tokenizers.perceptual import FrozenNetwork, feature_distance


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Eye(nn.Module):
    """Somebody's network, with all that `.train()` would change."""

    def __init__(self, single: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.dropout, self.single = nn.BatchNorm2d(4), nn.Dropout(0.5), single

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        one = self.norm(self.first(x)).relu()
        other = self.second(self.dropout(one))
        return other if self.single else [one, other]


def exported(path: Path, network: nn.Module, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture
def eye(tmp_path) -> FrozenNetwork:
    return FrozenNetwork(str(exported(tmp_path / "eye.pt2", Eye().eval())))


def test_the_distance_is_the_share_of_the_absolute_difference():
    ours = [torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[[3.0]], [[1.0]]])]
    theirs = [torch.tensor([[1.0, 4.0], [-2.0, 2.0]]), torch.tensor([[[2.0]], [[1.0]]])]
    torch.testing.assert_close(feature_distance(ours, theirs), torch.tensor([(2 / 5 + 1 / 2) / 2, (4 / 4 + 0) / 2]))
    assert torch.equal(feature_distance(theirs, theirs), torch.zeros(2))
    scaled = [100 * each for each in ours], [100 * each for each in theirs]
    torch.testing.assert_close(feature_distance(*scaled), feature_distance(ours, theirs))


def test_layers_that_are_all_zero_are_no_division_by_zero():
    assert feature_distance([torch.ones(2, 3)], [torch.zeros(2, 3)]).isfinite().all()


def test_it_gives_what_the_network_gives(eye):
    network, x = Eye().eval(), drawn(3, 1, 8, 8)
    for ours, theirs in zip(eye.features(x), network(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_tensor_will_do(tmp_path):
    eye = FrozenNetwork(str(exported(tmp_path / "eye.pt2", Eye(single=True).eval())))
    assert [tuple(each.shape) for each in eye.features(drawn(3, 1, 8, 8))] == [(3, 4, 4, 4)]


def test_the_gradient_reaches_the_signal_and_no_weight(eye):
    x = drawn(3, 1, 8, 8).requires_grad_()
    with torch.no_grad():
        theirs = eye.features(drawn(3, 1, 8, 8, seed=1))
    feature_distance(eye.features(x), theirs).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in eye._program.parameters())


def test_no_parent_switches_it_or_holds_its_weights(eye):
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = eye

    parent, x = Parent(), drawn(3, 1, 8, 8)
    before = parent.eval().network.features(x)
    parent.train()
    for _ in range(3):
        for ours, theirs in zip(parent.network.features(x), before, strict=True):
            assert torch.equal(ours, theirs)
    assert not list(parent.parameters())
    assert not parent.state_dict()
    assert copy.deepcopy(parent).network is eye


def test_the_file_is_read_once_and_not_before_it_is_needed(tmp_path):
    network = FrozenNetwork(str(tmp_path / "eye.pt2"))
    exported(tmp_path / "eye.pt2", Eye().eval())
    network.features(drawn(1, 1, 8, 8))
    (tmp_path / "eye.pt2").unlink()
    network.features(drawn(2, 1, 8, 8))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def refused(path: Path, *shape: int) -> str:
    with pytest.raises(UserError) as error:
        FrozenNetwork(str(path)).features(drawn(*(shape or (2, 1, 8, 8))))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("part", ["dropout", "norm"])
def test_a_program_exported_while_training_is_refused(part, tmp_path):
    network = Eye().eval()
    getattr(network, part).train()
    assert "export it after .eval()" in refused(exported(tmp_path / "eye.pt2", network))


def test_a_program_that_passes_no_gradient_is_refused(tmp_path):
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() * 2

    assert "no gradient" in refused(exported(tmp_path / "eye.pt2", Blind()))


@pytest.mark.parametrize("make", [lambda x: x.sum(), lambda x: x.mean(0), lambda x: x.long(), lambda x: {"a": x}])
def test_a_program_must_give_rows(make, tmp_path):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return make(x)

    assert "one row a signal" in refused(exported(tmp_path / "eye.pt2", Odd()))


def test_signals_of_another_shape_are_refused(tmp_path):
    path = exported(tmp_path / "eye.pt2", Eye().eval())
    assert "does not take signals of shape (1, 3, 8, 8)" in refused(path, 2, 3, 8, 8)
    assert "does not take signals of shape (1, 1, 16, 16)" in refused(path, 2, 1, 16, 16)


def test_a_program_for_one_size_of_batch_is_refused(tmp_path):
    assert "does not take signals" in refused(exported(tmp_path / "eye.pt2", Eye().eval(), batch=False))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "nothing")


WRONG: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("no program"),
    "empty": lambda path: path.touch(),
    "another zip": zipped,
    "weights": lambda path: torch.save(Eye().state_dict(), path),
    "a pickled network": lambda path: torch.save(Eye(), path),
}


@pytest.mark.parametrize("kind", WRONG)
def test_another_file_is_refused(kind, tmp_path, capfd):
    WRONG[kind](tmp_path / "eye.pt2")
    assert "is no program of torch.export" in refused(tmp_path / "eye.pt2")
    assert capfd.readouterr().err == ""


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "there is no such file" in refused(tmp_path / "eye.pt2")
    assert "there is no such file" in refused(tmp_path)


def test_a_damaged_program_is_refused(tmp_path):
    path = exported(tmp_path / "eye.pt2", Eye().eval())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is no program of torch.export" in refused(path)
    spoiled = tmp_path / "spoiled.pt2"
    with zipfile.ZipFile(spoiled, "w") as archive:
        archive.writestr("a/models/model.json", "{}")
    assert "cannot be read as a program" in refused(spoiled)
