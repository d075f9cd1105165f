from __future__ import annotations

import importlib
import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.paradigms.noise import PATHS, Estimate, NoisePath
from smalti.paradigms.solvers import ddim, ddpm, dpm_solver_2m, euler, heun, log_between, posterior_mean, variances

SCALE = 1e-5  # how far whole trajectories may be from another library's, as a share of their largest value
SHAPE = (5, 3, 4)


def scheduler(name: str, kind: str, times: int | list[float], **settings):
    """Another library's, set to its times; its own warnings are not ours.

    Its table is made anew in double precision: in fp32 the noise of the first steps is good to three digits only.
    """
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{name}"), kind)(**settings)
        if hasattr(made, "alphas_cumprod"):
            made.alphas_cumprod = torch.from_numpy((1 - np.linspace(1e-4, 0.02, 1000)).cumprod())
        made.set_timesteps(**({"num_inference_steps": times} if isinstance(times, int) else {"sigmas": times}))
    return made


def net(x: Tensor, t: float, channels: int = 3) -> Tensor:
    """Something that depends on every value and on the time, and lets trajectories stay bounded: (n, channels, 4)."""
    weight = torch.randn(3, channels, generator=torch.Generator().manual_seed(1)).to(x)
    sigma = PATHS["ddpm"].level(round(t * 1000) / 1000).sigma
    mixed = torch.einsum("nck,cd->ndk", x, weight)
    shown = torch.cat([x, x], 1)[:, :channels]
    return sigma * shown + 0.1 * torch.tanh(mixed + 3 * t)


def denoiser(path: NoisePath, predicts: str = "noise", learned: bool = False, asked: list | None = None):
    def denoise(x: Tensor, t: float) -> Estimate:
        if asked is not None:
            asked.append(t)
        said = net(x, t, 6 if learned else 3)
        spread = (said[:, 3:] + 1) / 2 if learned else None
        return Estimate(*path.estimate(predicts, x, said[:, :3], *path.level(t)), spread)

    return denoise


def noises(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(SHAPE, generator=generator) for _ in range(steps + 1)]


def recorded(solver, denoise, x, times, path, *rest, **settings) -> Tensor:
    """Every state on the way (steps, …)."""
    states: list[Tensor] = []

    def keep(x: Tensor, t: float) -> Tensor:
        states.append(x)
        return x

    end = solver(denoise, x, times, path, *rest, keep=keep, **settings)
    assert torch.equal(end, states[-1])
    return torch.stack(states)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference <= SCALE, f"largest difference {difference:.1e} of the scale"


# --- against another library's, the same noise, every state of the way ------------------------------------------------


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned"])
@pytest.mark.parametrize(
    ("predicts", "steps"), [*product(["noise", "velocity", "data"], [7, 50]), ("noise", 1000), ("velocity", 1000)]
)
def test_ancestral_sampling(variance, predicts, steps, monkeypatch):
    path, (start, *noise) = PATHS["ddpm"], noises(steps)
    theirs = scheduler(
        "ddpm",
        "DDPMScheduler",
        steps,
        variance_type={"learned": "learned_range"}.get(variance, variance.replace("-", "_")),
        prediction_type={"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}[predicts],
        clip_sample=False,
        timestep_spacing="trailing",
    )
    # theirs takes only step 0 for the last, and would end the shorter ways with noise
    drawn = iter([*noise[: steps - 1], torch.zeros(SHAPE)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn))
    learned = variance == "learned"
    x, expected = start, []
    for t in theirs.timesteps:
        said = net(x, (int(t) + 1) / 1000, 6 if learned else 3)
        x = theirs.step(said, t, x).prev_sample
        expected.append(x)
    denoise = denoiser(path, predicts, learned)
    close(recorded(ddpm, denoise, start, path.times(steps), path, noise.__getitem__, variance), torch.stack(expected))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("predicts", ["noise", "velocity", "data"])
@pytest.mark.parametrize("steps", [10, 50])
def test_implicit_sampling(eta, predicts, steps):
    path, (start, *noise) = PATHS["ddpm"], noises(steps)
    theirs = scheduler(
        "ddim",
        "DDIMScheduler",
        steps,
        prediction_type={"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}[predicts],
        clip_sample=False,
        timestep_spacing="trailing",
    )
    x, expected = start, []
    for k, t in enumerate(theirs.timesteps):
        x = theirs.step(net(x, (int(t) + 1) / 1000), t, x, eta=eta, variance_noise=noise[k]).prev_sample
        expected.append(x)
    ours = recorded(ddim, denoiser(path, predicts), start, path.times(steps), path, noise.__getitem__, eta)
    close(ours, torch.stack(expected))


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_straight_steps_of_the_flow(steps):
    path, (start, *_) = PATHS["flow"], noises(0)
    theirs = scheduler("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", path.times(steps)[:-1])
    x, expected = start, []
    for t in theirs.timesteps:
        x = theirs.step(net(x, float(t) / 1000), t, x).prev_sample
        expected.append(x)
    close(recorded(euler, denoiser(path, "velocity"), start, path.times(steps), path), torch.stack(expected))


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_heuns_steps_of_the_flow(steps):
    path, (start, *_) = PATHS["flow"], noises(0)
    theirs = scheduler("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler", steps)
    times = [*theirs.timesteps[:1].tolist(), *theirs.timesteps[1::2].tolist()]
    x, expected = start, []
    for t in theirs.timesteps:
        x = theirs.step(net(x, float(t) / 1000), t, x).prev_sample
        expected.append(x)
    expected = expected[1::2] + expected[-1:]  # their states between are only tried
    ours = recorded(heun, denoiser(path, "velocity"), start, [t / 1000 for t in times] + [0.0], path)
    close(ours, torch.stack(expected))


@pytest.mark.parametrize("predicts", ["noise", "velocity", "data"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_the_multistep_solver(predicts, steps):
    path, (start, *_) = PATHS["ddpm"], noises(0)
    theirs = scheduler(
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        steps,
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type={"noise": "epsilon", "velocity": "v_prediction", "data": "sample"}[predicts],
        timestep_spacing="trailing",
    )
    x, expected = start, []
    for t in theirs.timesteps:
        x = theirs.step(net(x, (int(t) + 1) / 1000), t, x).prev_sample
        expected.append(x)
    close(recorded(dpm_solver_2m, denoiser(path, predicts), start, path.times(steps), path), torch.stack(expected))


# --- what the solvers promise of themselves --------------------------------------------------------------------------

DETERMINISTIC = {"ddim": ddim, "euler": euler, "heun": heun, "dpm-solver-2m": dpm_solver_2m}


def gaussian(path: NoisePath, spread: float = 0.5, centre: float = 1.0):
    """The best estimate where data are normal, with this deviation and mean."""

    def denoise(x: Tensor, t: float) -> Estimate:
        alpha, sigma = path.level(t)
        noise = sigma * (x - alpha * centre) / ((alpha * spread) ** 2 + sigma**2)
        data = centre + alpha * spread**2 * (x - alpha * centre) / ((alpha * spread) ** 2 + sigma**2)
        return Estimate(data, noise)

    return denoise


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_normal_data_are_reached_as_the_exact_flow_does(name, solver):
    """Where data are normal the probability flow is known: x(0) = centre + spread * start / deviation at t = 1."""
    path, start = PATHS[name], torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = path.level(1.0)
    expected = 1 + 0.5 * (start - alpha) / math.sqrt((0.5 * alpha) ** 2 + sigma**2)
    errors = []
    for steps in (20, 200):
        x = DETERMINISTIC[solver](gaussian(path), start, path.times(steps), path)
        errors.append(float((x - expected).abs().max()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("name", PATHS)
def test_the_better_solvers_need_fewer_steps(name):
    path, start = PATHS[name], torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = path.level(1.0)
    expected = 1 + 0.5 * (start - alpha) / math.sqrt((0.5 * alpha) ** 2 + sigma**2)
    error = {
        key: float((solve(gaussian(path), start, path.times(25), path) - expected).abs().max())
        for key, solve in DETERMINISTIC.items()
    }
    assert error["dpm-solver-2m"] < error["ddim"] / 2
    assert error["euler"] == pytest.approx(error["ddim"])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_ancestral_sampling_reaches_the_spread_of_the_data(name, variance):
    if (name, variance) == ("flow", "fixed-large"):
        return  # the largest variance is that of data as spread as the noise on a path that keeps it
    path, generator = PATHS[name], torch.Generator().manual_seed(0)
    draw = lambda _: torch.randn(20_000, generator=generator, dtype=torch.float64)  # noqa: E731
    x = ddpm(gaussian(path), draw(0), path.times(500), path, draw, variance)
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", PATHS)
def test_the_posterior_is_bayes_rule(name):
    """Product of two normal densities in x(s): the path from the data to s, and the step from s to t."""
    path = PATHS[name]
    now, then = path.level(0.7), path.level(0.4)
    data, x = torch.tensor(0.8, dtype=torch.float64), torch.tensor(-0.3, dtype=torch.float64)
    shrunk = now.alpha / then.alpha
    step = now.sigma**2 - (shrunk * then.sigma) ** 2
    precision = 1 / then.sigma**2 + shrunk**2 / step
    mean = (then.alpha * data / then.sigma**2 + shrunk * x / step) / precision
    assert variances(now, then) == pytest.approx((1 / precision, step))
    torch.testing.assert_close(posterior_mean(x, data, now, then), mean)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", ["ddpm", *DETERMINISTIC])
def test_the_last_step_adds_no_noise_and_ends_at_the_predicted_data(name, solver):
    """Noise in the last step would stay in the sample."""
    path, start, drawn = PATHS[name], torch.ones(2, 3, dtype=torch.float64), []
    seen: list[Tensor] = []

    def noise(k: int) -> Tensor:
        drawn.append(k)
        return torch.full_like(start, 100.0)

    denoise = lambda x, t: Estimate(torch.full_like(x, 0.25), x)  # noqa: E731
    if solver == "ddpm":
        for variance in ("fixed-small", "fixed-large"):
            x = ddpm(denoise, start, path.times(5), path, noise, variance, watch=seen.append)
    elif solver == "ddim":
        x = ddim(denoise, start, path.times(5), path, noise, 1.0, watch=seen.append)
    else:
        x = DETERMINISTIC[solver](denoise, start, path.times(5), path, watch=seen.append)
    if solver in ("ddpm", "ddim", "dpm-solver-2m"):
        torch.testing.assert_close(x, seen[-1])
    assert set(drawn) == ({0, 1, 2, 3} if solver in ("ddpm", "ddim") else set())
    assert len(seen) == (10 if solver == "ddpm" else 5)


@pytest.mark.parametrize("name", ["ddpm", "cosine"])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_network_is_told_the_times_that_it_learnt(name, solver):
    """25 of 1000 steps are asked at 1000, 960, …, 40 thousandths, not at 25, 24, …, 1."""
    path, asked = PATHS[name], []
    DETERMINISTIC[solver](denoiser(path, "velocity", asked=asked), noises(0)[0], path.times(25), path)
    expected = [k / 1000 for k in range(1000, 0, -40)]
    if solver == "heun":
        expected = [expected[0], *(t for t in expected[1:] for _ in range(2))]
    assert asked == expected


def test_variances_between_the_bounds_are_geometric_means():
    spread = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(log_between(spread, 1e-4, 1e-2).exp(), torch.tensor([1e-4, 1e-3, 1e-2]))
    assert log_between(spread, 0.0, 1e-2).isfinite().all()


@pytest.mark.parametrize("solver", ["ddpm", *DETERMINISTIC])
def test_what_is_put_back_at_every_step_ends_there(solver):
    path, known = PATHS["flow"], torch.tensor([0.3, -0.2, 0.9])
    times: list[float] = []

    def keep(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return torch.cat([known.expand(2, 3), x[:, 3:]], 1)

    start, steps = torch.ones(2, 5), path.times(4)
    denoise = lambda x, t: Estimate(x.mean(1, keepdim=True).expand_as(x), x)  # noqa: E731
    rest = (lambda k: torch.ones(2, 5),) if solver == "ddpm" else ()
    x = {"ddpm": ddpm, **DETERMINISTIC}[solver](denoise, start, steps, path, *rest, keep=keep)
    assert torch.equal(x[:, :3], known.expand(2, 3))
    assert times == steps[1:]
