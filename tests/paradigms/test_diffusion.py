from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from smalti.config import Examples, LatentSpec, SignalSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms import likelihood
from smalti.paradigms.bound import variational_bound
from smalti.paradigms.diffusion import START, Diffusion, DiffusionConfig, DiffusionOptions
from smalti.paradigms.noise import PATHS, Estimate, slerp
from smalti.training.totals import Totals

SMALL = TransformerConfig(layers=1, width=24, heads=2, dropout=0.0)
SPACES = {"sound": (8,), "picture": (4, 6), "video": (2, 4, 4)}
FEW = DiffusionOptions(steps=4)


def made(space: tuple[int, ...] = (4, 6), channels: int = 2, classes: int = 3, **settings) -> Diffusion:
    """A model that says something: an untrained one says 0."""
    torch.manual_seed(0)
    model = Diffusion(DiffusionConfig(**settings), SMALL, channels, space, classes).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "label" in name else 0.15, generator=generator)
    model.initialise(torch.randn(64, channels, generator=generator) * 0.4 - 0.2)
    return model


def data_of(model: Diffusion, n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *model.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch_of(x: Tensor, labels: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(step, torch.arange(len(x)), torch.arange(len(x)), x, labels)


# --- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
@pytest.mark.parametrize("patch", [1, 2])
def test_patches_are_cut_and_joined(space, patch):
    model = made(space, patch=patch)
    x = data_of(model, 3)
    tokens = model.cut(x)
    assert tokens.shape == (3, math.prod(space) // patch ** len(space), 2 * patch ** len(space))
    assert torch.equal(model.joined(tokens), x)
    corner = x[(slice(None), slice(None), *[slice(0, patch)] * len(space))]
    assert torch.equal(tokens[:, 0], corner.flatten(1))


def test_patches_stand_in_raster_order():
    model = made((4, 6), channels=1)
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert model.cut(x)[0, :, 0].tolist() == [0, 2, 4, 12, 14, 16]
    assert model.positions.tolist() == [[i, j] for i in range(2) for j in range(3)]


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_the_loss_of_a_network_that_knows_is_none(path, predict, monkeypatch):
    """It is told x and t alone, and the data: what it then says must be what is asked of it."""
    if (path, predict) == ("flow", "noise"):
        return
    model = made(path=path, predict=predict)
    x = data_of(model, 6)

    def knows(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        alpha, sigma = (each.float().view(-1, 1, 1, 1) for each in model.path.levels(t))
        data = model.normal(x)
        noise = (x_t - alpha * data) / sigma
        return {"noise": noise, "data": data, "velocity": model.path.velocity(data, noise, alpha, sigma)}[predict], None

    monkeypatch.setattr(model, "forward", knows)
    (term,) = model.loss("network", batch_of(x), 0).terms
    assert term.sum < 1e-3
    assert term.weight == 6
    monkeypatch.setattr(model, "forward", lambda x, t, labels, sweep=None: (torch.zeros_like(x), None))
    (term,) = model.loss("network", batch_of(data_of(model, 500)), 0).terms
    assert 0.3 < term.sum / 500 < 6


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_the_soft_weight_is_that_of_the_datas_error(predict):
    model = made(path="cosine", predict=predict, weighting="soft-min-snr")
    t = torch.tensor([0.05, 0.3, 0.8])
    alpha, sigma = model.path.levels(t)
    x, said, wrong = torch.randn(3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (model.path.estimate(predict, x, each, alpha[:, None], sigma[:, None])[0] for each in (said, wrong))
    ratio = (alpha / sigma).square()
    expected = (one - other).square().mean(1) * 4 * ratio / (4 + ratio)
    torch.testing.assert_close((said - wrong).square().mean(1) * model._weight(alpha, sigma), expected)


def test_held_out_losses_are_the_same_each_time_and_belong_to_rows():
    model = made(times="logit-normal")
    batch = batch_of(data_of(model, 6), torch.arange(6) % 3, step=4)
    first, second = (model.loss("network", batch, 9).terms[0].sum for _ in range(2))
    assert torch.equal(first, second)
    parts = sum(model.loss("network", part, 0).terms[0].sum for part in batch.split(4))
    torch.testing.assert_close(parts, first)
    other = Batch(5, batch.rows, batch.indices, batch.x, batch.labels)
    assert not torch.equal(model.loss("network", other, 9).terms[0].sum, first)


def test_times_are_drawn_as_the_settings_say():
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert torch.equal(made()._times(uniform), uniform)
    middle = made(times="logit-normal")._times(uniform)
    logit = (middle / (1 - middle)).log()
    assert logit.mean().item() == pytest.approx(0, abs=1e-6)
    assert logit.std().item() == pytest.approx(1, abs=0.01)


def test_a_shift_trains_on_more_noise(monkeypatch):
    seen = []
    for shift in (1.0, 4.0):
        model = made(shift=shift)
        monkeypatch.setattr(model, "forward", lambda x, t, labels, sweep=None: seen.append(t) or (x, None))
        model.loss("network", batch_of(data_of(model, 40), torch.arange(40) % 3, step=2), 0)
    plain, noisy = seen
    torch.testing.assert_close(noisy, 4 * plain / (1 + 3 * plain))


def test_labels_are_hidden_while_training_alone(monkeypatch):
    model, seen = made(label_dropout=0.3), []
    monkeypatch.setattr(model, "forward", lambda x, t, labels, sweep=None: seen.append(labels) or (x, None))
    batch = batch_of(data_of(model, 300), torch.arange(300) % 3, step=2)
    for training in (True, False):
        model.train(training).loss("network", batch, 0)
    assert 0.2 < (seen[0] == 3).float().mean() < 0.4
    assert torch.equal(seen[1], batch.labels)


def test_data_are_measured_by_channel():
    model = made(channels=2)
    x = torch.stack([torch.randn(50, 4, 6) * 3 + 5, torch.full((50, 4, 6), 0.5)], 1)
    model.initialise(model.first_latents(batch_of(x)))
    normal = model.normal(x)
    assert normal[:, 0].mean().abs() < 1e-4
    assert normal[:, 0].std().item() == pytest.approx(1, abs=1e-3)
    assert (normal[:, 1] == 0).all()  # and nothing that never changes is divided by 0
    torch.testing.assert_close(model.plain(normal), x)
    assert {"mean", "deviation"} <= set(model.state_dict())


# --- the learned variance --------------------------------------------------------------------------------------------


def test_the_bound_is_that_of_another_library_of_distributions():
    """Each step's divergence by torch.distributions, from the betas, one number at a time."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    generator = torch.Generator().manual_seed(0)
    miss, spread = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64)
    for row, step in enumerate([0, 1, 10, 500, 999]):
        before = kept[step - 1] if step else torch.tensor(1.0, dtype=torch.float64)
        small = betas[step] * (1 - before) / (1 - kept[step])
        low = small if step else betas[1] * (1 - kept[0]) / (1 - kept[1])
        variance = low ** (1 - spread[row]) * betas[step] ** spread[row]
        mean = before.sqrt() * betas[step] / (1 - kept[step]) * miss[row]
        model = torch.distributions.Normal(0.0, variance.sqrt())
        if step:
            exact = torch.distributions.Normal(mean, small.sqrt())
            expected = torch.distributions.kl_divergence(exact, model).mean()
        else:
            expected = -model.log_prob(mean).mean()
        t = torch.tensor([(step + 1) / 1000])
        ours = variational_bound(miss[row : row + 1], spread[row : row + 1], t)
        torch.testing.assert_close(ours, 1000 * expected[None], rtol=1e-6, atol=1e-9)


def test_the_bound_teaches_the_variance_alone():
    model = made(path="ddpm", predict="noise", variance="learned").train()
    error, bound = model.loss("network", batch_of(data_of(model, 5)), 0).terms
    assert (error.name, bound.name, bound.coefficient) == ("error", "bound", 0.001)
    half = model.head.out_features // 2
    slopes = [torch.autograd.grad(term.sum, model.head.weight, retain_graph=True)[0] for term in (error, bound)]
    assert slopes[0][:half].abs().sum() > 0
    assert (slopes[0][half:] == 0).all()
    assert (slopes[1][:half] == 0).all()
    assert slopes[1][half:].abs().sum() > 0
    totals = Totals()
    totals.add([error, bound]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_smallest_variance_is_the_best_where_the_data_are_known():
    t = torch.tensor([0.5])
    miss = torch.zeros(1, 4)
    bounds = [float(variational_bound(miss, torch.full((1, 4), spread), t)) for spread in (0.0, 0.5, 1.0)]
    assert bounds[0] == pytest.approx(0, abs=1e-3)
    assert bounds[0] < bounds[1] < bounds[2]


# --- sampling --------------------------------------------------------------------------------------------------------

EVERY = [
    {"path": "flow", "predict": "velocity"},
    {"path": "flow", "predict": "data"},
    {"path": "cosine", "predict": "velocity"},
    {"path": "ddpm", "predict": "noise", "variance": "learned"},
    {"path": "ddpm", "predict": "data", "variance": "fixed-large"},
]
SOLVERS = ["ddpm", "ddim", "euler", "heun", "dpm-solver-2m"]
kinds = pytest.mark.parametrize("settings", EVERY, ids=lambda each: "-".join(each.values()))


@kinds
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_how_the_batch_was_split(settings, solver):
    model, labels = made(**settings), torch.arange(5) % 3
    options = DiffusionOptions(solver=solver, steps=3, guidance=1.5, eta=0.5)
    whole = model.sample(5, labels, seed=4, options=options)
    parts = [
        model.sample(end - start, labels[start:end], seed=4, options=options, first=start)
        for start, end in ((0, 1), (1, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)
    assert whole.shape == (5, 2, 4, 6)
    assert whole.dtype == torch.float32
    assert whole.abs().max() <= 1
    assert whole.std() > 0.05


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_any_number_of_axes(space):
    model = made(space, on="latents")
    drawn = model.sample(2, options=FEW)
    assert drawn.shape == (2, 2, *space)
    assert drawn.isfinite().all()


def test_seeds_and_rows_draw_differently():
    model = made()
    draws = [model.sample(3, seed=seed, options=FEW) for seed in range(3)]
    rows = torch.stack(draws).flatten(0, 1).flatten(1)
    assert torch.cdist(rows, rows).add(torch.eye(9) * 9).min() > 0.1
    assert torch.equal(model.sample(3, seed=1, options=FEW), draws[1])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("on", ["pixels", "latents"])
def test_known_parts_come_back_bit_for_bit(solver, on):
    model = made(on=on, path="ddpm", variance="learned")
    known = data_of(model, 4) * (1 if on == "pixels" else 3)
    mask = torch.rand(known.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[0], mask[1] = False, True
    options = DiffusionOptions(solver=solver, steps=5, guidance=2.0)
    trajectory: list[Tensor] = []
    drawn = model.sample(4, torch.tensor([0, 1, 2, 0]), known, mask, 1, options, trajectory=trajectory)
    assert torch.equal(drawn[mask], known[mask])
    assert torch.equal(drawn[1], known[1])
    free = model.sample(4, torch.tensor([0, 1, 2, 0]), seed=1, options=options)
    torch.testing.assert_close(drawn[0], free[0], atol=1e-4, rtol=1e-4)  # nothing was known of it
    assert not torch.equal(drawn[2][~mask[2]], free[2][~mask[2]])
    assert len(trajectory) == 5
    assert all(torch.equal(data[mask], known[mask]) for data in trajectory)


def test_what_is_not_known_is_not_looked_at():
    model = made()
    known, mask = data_of(model, 2), torch.zeros(2, 2, 4, 6, dtype=torch.bool)
    mask[..., :3] = True
    hidden = torch.where(mask, known, torch.nan)
    assert torch.equal(
        model.sample(2, None, known, mask, options=FEW), model.sample(2, None, hidden, mask, options=FEW)
    )


def test_the_network_sees_the_known_part_at_the_noise_of_each_step(monkeypatch):
    """Its noise is always the same, and what is known of it is exactly the data."""
    model, seen = made(), []
    known, mask = data_of(model, 2), torch.ones(2, 2, 4, 6, dtype=torch.bool)
    monkeypatch.setattr(model, "forward", lambda x, t, labels, sweep=None: seen.append((float(t[0]), x)) or (x, None))
    model.sample(2, None, known, mask, options=FEW)
    noise = seen[0][1]  # at t = 1
    assert torch.equal(noise, model._noise(2, 0, START, 0, 0))
    for t, x in seen:
        torch.testing.assert_close(x, (1 - t) * model.normal(known) + t * noise)
    assert [t for t, _ in seen] == [1.0, 0.75, 0.5, 0.25]


def test_the_trajectory_ends_at_the_sample():
    model, trajectory = made(), []
    drawn = model.sample(3, seed=2, options=FEW, trajectory=trajectory)
    assert [each.shape for each in trajectory] == [(3, 2, 4, 6)] * 4
    torch.testing.assert_close(trajectory[-1], drawn)
    assert not torch.equal(trajectory[0], trajectory[-1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_is_told(solver):
    model, told = made(), []
    options = DiffusionOptions(solver=solver, steps=6)
    x = model.sample(2, options=options, progress=lambda *step: told.append(step))
    assert told == [(step, 6) for step in range(1, 7)]
    told.clear()
    model.vary(x, 0.5, options=options, progress=lambda *step: told.append(step))
    assert told == [(step, 3) for step in range(1, 4)]


@pytest.mark.parametrize("settings", EVERY, ids=lambda each: "-".join(each.values()))
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_last_step_adds_no_noise(settings, solver):
    """What comes out is what the network says of the data in the end, and no more."""
    model, trajectory = made(**settings), []
    options = DiffusionOptions(solver=solver, steps=3, eta=1.0)
    drawn = model.sample(3, seed=2, options=options, trajectory=trajectory)
    torch.testing.assert_close(trajectory[-1], drawn, atol=1e-5, rtol=0)


def test_fresh_noise_is_drawn_only_where_a_solver_asks_for_it(monkeypatch):
    model, steps = made(path="ddpm"), []
    draw = model._noise
    monkeypatch.setattr(model, "_noise", lambda n, seed, *rest: steps.append(rest) or draw(n, seed, *rest))
    for solver, drawn in (("ddpm", 3), ("ddim", 0), ("heun", 0)):
        steps.clear()
        model.sample(2, options=DiffusionOptions(solver=solver, steps=4))
        assert len(steps) == 1 + drawn
        assert len(set(steps)) == len(steps)


def test_no_samples():
    assert made().sample(0, options=FEW).shape == (0, 2, 4, 6)


# --- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guidance_moves_every_channel(scale):
    """u + s (c - u) on all channels: some leave the last out (Peebles & Xie's own program guides three)."""
    model, labels = made(channels=4), torch.tensor([0, 2])
    x, t = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.7)
    with torch.no_grad():
        c, u = model(x, t, labels)[0], model(x, t, torch.tensor([3, 3]))[0]
        said, _ = model._said(x, 0.7, labels, scale, None)
    assert ((c - u).abs().amax((0, 2, 3)) > 1e-2).all()
    torch.testing.assert_close(said, u + scale * (c - u))


def test_guidance_leaves_the_variance_to_the_class():
    model, labels = made(path="ddpm", variance="learned"), torch.tensor([0, 2])
    x = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, spread = model(x, torch.full((2,), 0.7), labels)
        torch.testing.assert_close(model._said(x, 0.7, labels, 3.0, None)[1], spread)


def test_guidance_has_its_interval(monkeypatch):
    """In shares of the steps: the first has gone none of the way, the last all of it."""
    model, scales = made(), []
    said = model._said
    monkeypatch.setattr(
        model, "_said", lambda x, t, labels, scale, sweep: scales.append(scale) or said(x, t, labels, scale, sweep)
    )
    options = DiffusionOptions(steps=5, guidance=3, guidance_from=0.3, guidance_until=0.8)
    model.sample(1, torch.tensor([0]), options=options)
    assert scales == [1, 1, 3, 3, 1]
    scales.clear()
    model.sample(1, torch.tensor([0]), options=DiffusionOptions(steps=5, guidance=3, guidance_ramp="linear"))
    assert scales == [1, 1.5, 2, 2.5, 3]
    scales.clear()
    model.sample(1, options=DiffusionOptions(steps=5, guidance=3))  # no class: nothing to be guided to
    assert scales == [1] * 5


# --- variations, inversion, likelihood -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"path": "flow"}, {"path": "ddpm", "predict": "noise"}])
def test_variations_are_nearer_the_less_noise_they_had(settings):
    model = made(**settings)
    with torch.no_grad():
        model.head.weight.mul_(0.02)  # one that leaves a signal nearly as it is
        model.head.bias.zero_()
    x = data_of(model, 6) * 0.5
    options = DiffusionOptions(steps=20)
    distances = [float((model.vary(x, level, seed=1, options=options) - x).square().mean()) for level in (0.05, 0.4, 1)]
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.02


def test_a_variation_from_all_noise_is_a_sample():
    model = made()
    x = data_of(model, 2)
    torch.testing.assert_close(model.vary(x, 1.0, seed=3, options=FEW), model.sample(2, seed=3, options=FEW))


@pytest.mark.parametrize("settings", [{"path": "flow"}, {"path": "cosine"}, {"path": "ddpm", "predict": "noise"}])
def test_noise_of_data_becomes_the_data_again(settings):
    model = made(on="latents", **settings)
    with torch.no_grad():
        model.head.weight.mul_(0.3)
    x, labels = data_of(model, 3), torch.tensor([0, 1, 2])
    options = DiffusionOptions(steps=50)
    noise = model.noise_of(x, labels, options)
    again = model.from_noise(noise, labels, options)
    assert (again - x).abs().max() < 0.02
    assert (noise - model.normal(x)).abs().max() > 0.1


def test_between_two_noises_lies_noise():
    one, other = torch.randn(2, 3, 2, 30, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)
    half = slerp(one, other, 0.5)
    assert half.std().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(slerp(one, one, 0.3), one)


def normal_denoiser(path, deviations: Tensor, centre: float):
    """The best estimate where the data are normal and independent, each number with its own deviation."""

    def denoise(x: Tensor, t: float) -> Estimate:
        alpha, sigma = path.level(t)
        total = (alpha * deviations).square() + sigma**2
        return Estimate(
            centre + alpha * deviations.square() * (x - alpha * centre) / total, sigma * (x - alpha * centre) / total
        )

    return denoise


@pytest.mark.parametrize("name", PATHS)
def test_the_likelihood_of_normal_data_is_the_exact_one(name):
    path, deviations = PATHS[name], torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * deviations + 0.4
    times = [0.001, *(t for t in path.times(250)[::-1] if t > 0.001)]
    probe = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    ours = likelihood.log_likelihood(normal_denoiser(path, deviations, 0.4), x, times, path, probe)
    exact = torch.distributions.Normal(0.4, deviations).log_prob(x).sum(1)
    torch.testing.assert_close(ours, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("deviation", [0.003, 0.3])
def test_fifty_steps_find_the_density_of_data_however_narrow(name, deviation):
    """Pixels within one level of their own are as narrow as that; steps as wide everywhere miss it by whole nats."""
    path, deviations = PATHS[name], torch.tensor([deviation], dtype=torch.float64)
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * deviations + 0.4
    times = path.rising(50)
    alpha, sigma = path.level(times[0])  # the data count as being there
    exact = torch.distributions.Normal(alpha * 0.4, ((alpha * deviations) ** 2 + sigma**2).sqrt()).log_prob(x).sum(1)
    ours = likelihood.log_likelihood(normal_denoiser(path, deviations, 0.4), x, times, path, torch.ones_like(x))
    torch.testing.assert_close(ours, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", PATHS)
def test_the_times_of_a_likelihood_rise_to_where_all_is_noise(name):
    times = PATHS[name].rising(50)
    assert times[0] == pytest.approx(0.001)
    assert times[-1] == 1
    assert 40 < len(times) <= 51
    widths = torch.tensor(times).diff()
    assert (widths > 0).all()
    assert widths[-1] > 20 * widths[0]


@pytest.mark.parametrize("name", ["flow"])
def test_the_likelihood_against_another_librarys_solver(name):
    """Two modes, the divergence by the whole Jacobian, and torchdiffeq's adaptive steps."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    path = PATHS[name]
    modes = torch.tensor([[-1.0, 0.5], [0.8, 1.0]], dtype=torch.float64)

    def denoise(x: Tensor, t: float | Tensor) -> Estimate:
        alpha, sigma = (1 - t, t) if isinstance(t, Tensor) else path.level(t)
        total = alpha**2 * 0.09 + sigma**2
        near = (-((x[:, None] - alpha * modes) ** 2).sum(-1) / (2 * total)).softmax(1)
        centre = near @ modes
        data = centre + alpha * 0.09 * (x - alpha * centre) / total
        return Estimate(data, (x - alpha * data) / sigma)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def velocity(x: Tensor) -> Tensor:
            estimate = denoise(x[None], t)
            return (estimate.noise - estimate.data)[0]

        whole = torch.stack([torch.autograd.functional.jacobian(velocity, row).trace() for row in state[0]])
        return torch.stack([velocity(row) for row in state[0]]), whole

    x = torch.tensor([[-1.1, 0.4], [0.5, 0.9], [0.0, 0.7]], dtype=torch.float64)
    ends, gained = torchdiffeq.odeint(
        field, (x, torch.zeros(3, dtype=torch.float64)), torch.tensor([0.001, 1.0]).double(), rtol=1e-7, atol=1e-7
    )
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(ends[-1]).sum(1) + gained[-1]
    times = [0.001, *(t for t in path.times(400)[::-1] if t > 0.001)]
    # the mean over both directions of two probes is the whole trace
    probes = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    ours = torch.stack([likelihood.log_likelihood(denoise, x, times, path, p.expand(3, 2)) for p in probes]).mean(0)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)


def test_a_likelihood_is_in_the_units_of_the_data(monkeypatch):
    """Normal data of one deviation a channel: all that the model adds is the change of variables."""
    model = made(on="latents", classes=0)
    model.initialise(torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 3.0]) + 1)

    def best(x: Tensor, t: Tensor, labels: Tensor, sweep: None) -> tuple[Tensor, None]:
        t = t.view(-1, 1, 1, 1)
        return (2 * t - 1) * x / ((1 - t) ** 2 + t**2), None

    monkeypatch.setattr(model, "forward", best)
    x = model.plain(torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(1)))
    deviation, mean = (each.view(-1, 1, 1) for each in (model.deviation, model.mean))
    exact = torch.distributions.Normal(mean, deviation).log_prob(x).sum((1, 2, 3)).double()
    ours = model.log_likelihood(x, steps=100)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, exact, atol=0.1, rtol=0)
    torch.testing.assert_close(model.log_likelihood(x[2:], steps=100, first=2), ours[2:], atol=1e-3, rtol=0)


def test_a_likelihood_of_a_network_is_finite():
    model = made(path="ddpm", predict="noise")
    assert model.log_likelihood(data_of(model, 2), torch.tensor([0, 1]), steps=10).isfinite().all()


def test_bits_of_a_density():
    """Even over 256 levels from -1 to 1, each 2 / 255 wide, is eight bits a number."""
    nats = torch.tensor([-10 * math.log(256 * 2 / 255)], dtype=torch.float64)
    assert likelihood.bits_per_dimension(nats, 10).item() == pytest.approx(8)


# --- what cannot be honoured -----------------------------------------------------------------------------------------

WRONG = {
    "too many steps": lambda m, x: m.sample(2, options=DiffusionOptions(steps=1001)),
    "known without a mask": lambda m, x: m.sample(2, None, x, options=FEW),
    "a mask without known": lambda m, x: m.sample(2, None, None, x > 0, options=FEW),
    "a mask of another size": lambda m, x: m.sample(2, None, x, x[:, :1] > 0, options=FEW),
    "known of another size": lambda m, x: m.sample(2, None, x[..., 1:], x > 0, options=FEW),
    "another number": lambda m, x: m.sample(3, None, x, x > 0, options=FEW),
    "known not finite": lambda m, x: m.sample(2, None, x / 0, x > 0, options=FEW),
    "an unknown label": lambda m, x: m.sample(2, torch.tensor([0, 3]), options=FEW),
    "a negative label": lambda m, x: m.sample(2, torch.tensor([0, -1]), options=FEW),
    "too many labels": lambda m, x: m.sample(2, torch.tensor([0, 1, 1]), options=FEW),
    "no noise": lambda m, x: m.vary(x, 0.0, options=FEW),
    "too much noise": lambda m, x: m.vary(x, 1.1, options=FEW),
    "a variation of another size": lambda m, x: m.vary(x[..., 1:], 0.5, options=FEW),
    "noise of another size": lambda m, x: m.from_noise(x[:, :1], options=FEW),
    "an inversion of another size": lambda m, x: m.noise_of(x[:, :1], options=FEW),
    "a likelihood of another size": lambda m, x: m.log_likelihood(x[:, :1]),
    "a likelihood in no steps": lambda m, x: m.log_likelihood(x, steps=0),
    "a likelihood of too many steps": lambda m, x: m.log_likelihood(x, steps=1001),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_honoured_is_refused_in_one_line(wrong):
    model = made(path="ddpm")
    with pytest.raises(UserError) as error:
        WRONG[wrong](model, data_of(model, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(broken):
    model = made()
    with torch.no_grad():
        model.patches.weight[0, 0] = broken
    with pytest.raises(UserError, match="finite"):
        model.sample(2, options=FEW)


@pytest.mark.parametrize("settings", [{"variance": "learned", "path": "flow"}, {"predict": "noise", "path": "flow"}])
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValidationError, match="path"):
        DiffusionConfig(**settings)


@pytest.mark.parametrize("steps", [0, -3, 10_001])
def test_no_steps_and_steps_without_end_are_refused(steps):
    with pytest.raises(ValidationError, match="steps"):
        DiffusionOptions(steps=steps)


def test_what_it_reads():
    pixels, latents = DiffusionConfig(), DiffusionConfig(on="latents", patch=1)
    examples = Examples(signal=SignalSpec(channels=3, shape=(8, 8)), latents=LatentSpec(channels=4, grid=(2, 3)))
    assert (pixels.reads, latents.reads) == ("signals", "latents")
    assert pixels.build(SMALL, examples, 10).shape == (3, 8, 8)
    assert latents.build(SMALL, examples, 10).shape == (4, 2, 3)
    with pytest.raises(UserError, match="latents"):
        latents.build(SMALL, Examples(signal=examples.signal), 10)
    with pytest.raises(UserError, match="patch"):
        DiffusionConfig(patch=3).build(SMALL, examples, 10)


# --- the time, and learning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_times_near_each_other_stay_apart_under_autocast(precision):
    """In bf16 the steps 999 and 1000 are one number; the network's answers to them must differ as they do in fp32."""
    model = made(path="ddpm", predict="noise")
    seen = []
    model.network.register_forward_pre_hook(lambda m, given, named: seen.append(named["condition"]), with_kwargs=True)
    x, labels = torch.zeros(2, 2, 4, 6), torch.tensor([0, 0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        model(x, torch.tensor([0.999, 1.0]), labels)
    with torch.no_grad():
        model(x, torch.tensor([0.999, 1.0]), labels)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], seen[1])
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-3


MODES = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]]) * 0.6


@pytest.mark.parametrize(
    ("layers", "steps", "settings"),
    [
        (1, 300, {"path": "flow", "predict": "velocity"}),
        (2, 500, {"path": "ddpm", "predict": "noise", "variance": "learned"}),
    ],
    ids=["flow", "ddpm"],
)
def test_two_modes_are_learnt(layers, steps, settings):
    """Sounds of four numbers near one of two: nearly all samples lie near one of them, and both are drawn."""
    torch.manual_seed(0)
    config = DiffusionConfig(patch=1, label_dropout=0.1, **settings)
    network = TransformerConfig(layers=layers, width=32, heads=2, dropout=0.0)
    model = Diffusion(config, network, 1, (4,), 2)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99))
    for step in range(steps):
        labels = torch.randint(0, 2, (64,), generator=generator)
        x = (MODES[labels] + 0.05 * torch.randn(64, 4, generator=generator))[:, None]
        if step == 0:
            model.initialise(model.first_latents(batch_of(x)))
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        totals = Totals()
        totals.add(model.train().loss("network", batch_of(x, labels, step), step).terms).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    drawn = model.sample(400, options=DiffusionOptions(steps=25))[:, 0]
    distance = torch.cdist(drawn, MODES)
    assert (distance.min(1).values < 0.3).float().mean() >= 0.95
    assert 0.3 < distance.argmin(1).float().mean() < 0.7
    labels = torch.arange(200) % 2
    drawn = model.sample(200, labels, options=DiffusionOptions(solver="ddpm", steps=50))[:, 0]
    near = torch.cdist(drawn, MODES)
    assert (near.gather(1, labels[:, None]) < 0.3).float().mean() >= 0.95
