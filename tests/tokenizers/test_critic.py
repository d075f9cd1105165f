from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.layers.convnet import CONV
from smalti.tokenizers.critic import CONVOLVE, BlurredConv, Critic, CriticConfig

dimensions = pytest.mark.parametrize("dimensions", [1, 2, 3])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def critic_of(dimensions: int, channels: int = 2, **settings) -> Critic:
    torch.manual_seed(0)
    return Critic(dimensions, channels, CriticConfig(**{"width": 8, **settings}))


@dimensions
@pytest.mark.parametrize("side", [2, 7, 8, 16])
@pytest.mark.parametrize("layers", [1, 3])
def test_one_verdict_a_patch_and_the_activations_of_every_layer(dimensions, side, layers):
    verdicts, features = critic_of(dimensions, layers=layers)(drawn(3, 2, *[side] * dimensions))
    sides = [side // 2]
    while len(sides) < layers:
        sides.append(-(-sides[-1] // 2))
    assert verdicts.shape == (3, 1, *[sides[-1]] * dimensions)
    assert [tuple(each.shape) for each in features] == [
        (3, width, *[s] * dimensions) for width, s in zip([4, 8, 8], sides, strict=False)
    ]


@dimensions
def test_every_signal_is_judged_by_itself(dimensions):
    critic, x = critic_of(dimensions).double(), drawn(5, 2, *[8] * dimensions).double()
    together, alone = critic(x), critic(x[2:4])
    torch.testing.assert_close(together[0][2:4], alone[0])
    for ours, theirs in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(ours[2:4], theirs)


@dimensions
def test_a_blurred_convolution_is_a_blur_then_a_strided_convolution(dimensions):
    torch.manual_seed(0)
    layer = BlurredConv(dimensions, 2, 3).double()
    x = F.pad(drawn(4, 2, *[9] * dimensions).double(), (2, 2) * dimensions)
    for axis in range(2, 2 + dimensions):  # [1, 2, 1] / 4 written out
        length = x.shape[axis] - 2
        x = (x.narrow(axis, 0, length) + 2 * x.narrow(axis, 1, length) + x.narrow(axis, 2, length)) / 4
    expected = CONVOLVE[dimensions](x, layer.weight, layer.bias, stride=2)
    x = drawn(4, 2, *[9] * dimensions).double()
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@dimensions
def test_blurred_a_shift_by_one_sample_changes_less(dimensions):
    """The mean activation of fine noise, before and after a shift: with a plain stride other samples are looked at."""

    def change(layer: nn.Module) -> float:
        x = drawn(16, 2, *[16] * dimensions).double()
        before, after = (F.leaky_relu(layer(each)).flatten(2) for each in (x, x.roll(1, -1)))
        return float(((before.mean(2) - after.mean(2)).norm() / before.std(2).norm()).detach())

    torch.manual_seed(0)
    blurred = BlurredConv(dimensions, 2, 8).double()
    plain = CONV[dimensions](2, 8, 3, stride=2, padding=1).double()
    plain.load_state_dict(blurred.state_dict())
    assert change(blurred) < 0.5 * change(plain)


def textures(n: int, seed: int) -> Tensor:
    """Sharp grey pictures (n, 1, 16, 16): stripes of random direction, width and phase, cut off at ±1."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    angle, width, phase = torch.rand(3, n, 1, 1, generator=generator) * torch.tensor([3.14, 1, 6.28]).view(3, 1, 1, 1)
    return (((angle.cos() * x + angle.sin() * y) * (0.6 + width) + phase).sin() * 3).clamp(-1, 1)[:, None]


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def test_it_learns_to_tell_blurred_from_sharp():
    critic = critic_of(2, channels=1, width=16, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for step in range(60):
        sharp = textures(32, seed=step)
        loss = F.relu(1 - critic(sharp)[0]).mean() + F.relu(1 + critic(blurred(sharp))[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = textures(200, seed=1000)
    with torch.no_grad():
        real, made = (critic(each)[0].mean((1, 2, 3)) for each in (unseen, blurred(unseen)))
    right = torch.cat([real > 0, made < 0]).float().mean()
    assert right > 0.95


def test_its_slope_can_be_differentiated():
    """What R1 asks for: the gradient of the squared slope at x, for every weight, against finite differences."""
    critic = critic_of(2, width=4, layers=2).double()
    x = drawn(2, 2, 8, 8).double().requires_grad_()

    def squared_slope(weight: Tensor) -> Tensor:
        judged = torch.func.functional_call(critic, {"layers.1.weight": weight}, (x,))[0]
        return torch.autograd.grad(judged.sum(), x, create_graph=True)[0].square().sum()

    assert torch.autograd.gradcheck(squared_slope, critic.layers[1].weight.detach().requires_grad_())


def test_gradients_in_half_precision_are_those_of_full_precision_down_to_a_grid_of_one():
    """torch's bf16 gradients of a kernel far larger than its input came from memory that nobody had set."""
    critic, x = critic_of(2, channels=3, width=16, layers=8), drawn(4, 3, 16, 16)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(8):
            junk = [torch.full((1 << 14,), torch.nan) for _ in range(8)]
            del junk
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                critic(x)[0].float().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters()]))
            critic.zero_grad()
    assert all(bool(each.isfinite().all()) for each in gradients)
    torch.testing.assert_close(gradients[-1], gradients[0], atol=0.05 * float(gradients[0].abs().max()), rtol=0.1)
