from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from smalti.errors import UserError
from smalti.paradigms.noise import LEAST, PATHS, Estimate, cosine_betas, linear_betas

every = pytest.mark.parametrize("name", PATHS)
TIMES = torch.tensor([0.001, 0.01, 0.2, 0.5, 0.77, 0.99], dtype=torch.float64)


def points(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and noise (6, 3), one row for each of TIMES."""
    return tuple(torch.randn(2, len(TIMES), 3, generator=generator, dtype=torch.float64))


@every
@pytest.mark.parametrize("predicts", ["noise", "velocity", "data"])
def test_what_a_network_says_gives_back_data_and_noise(name, predicts, generator):
    path, (data, noise) = PATHS[name], points(generator)
    alpha, sigma = (each[:, None] for each in path.levels(TIMES))
    said = path.target(predicts, data, noise, alpha, sigma)
    back = path.estimate(predicts, alpha * data + sigma * noise, said, alpha, sigma)
    torch.testing.assert_close(back, (data, noise))


@every
def test_velocity_can_be_read_at_either_end(name, generator):
    path, (data, noise) = PATHS[name], points(generator)
    for t in (0.0, 1.0):
        alpha, sigma = path.level(t)
        said = path.target("velocity", data, noise, alpha, sigma)
        back = path.estimate("velocity", alpha * data + sigma * noise, said, alpha, sigma)
        torch.testing.assert_close(back, (data, noise))


def test_velocity_is_what_its_papers_say(generator):
    data, noise = points(generator)
    torch.testing.assert_close(PATHS["flow"].target("velocity", data, noise, 0.3, 0.7), noise - data)
    torch.testing.assert_close(PATHS["ddpm"].target("velocity", data, noise, 0.6, 0.8), 0.6 * noise - 0.8 * data)


@every
def test_a_path_leads_from_data_to_noise(name):
    path = PATHS[name]
    alpha, sigma = path.levels(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[-1] < 0.01
    assert sigma[-1] > 0.9999
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    if name != "flow":
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))


@every
def test_the_slope_is_the_paths_own_derivative(name, generator):
    """With data and noise held fixed, x / scale moves by slope * dclock."""
    path, (data, noise) = PATHS[name], points(generator)
    now, then = path.level(0.6), path.level(0.599)
    there, here = ((each.alpha * data + each.sigma * noise) / path.scale(each) for each in (then, now))
    slope = path.slope(Estimate(data, noise))
    torch.testing.assert_close(there - here, slope * (path.clock(then) - path.clock(now)))


def test_log_ratios():
    flow = PATHS["flow"]
    assert (flow.level(0.0).log_ratio, flow.level(1.0).log_ratio) == (math.inf, -math.inf)
    assert flow.level(0.25).log_ratio == pytest.approx(math.log(3))


@pytest.mark.parametrize(("name", "schedule"), [("ddpm", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_steps_of_noise_against_another_library(name, schedule):
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = schedulers.DDPMScheduler(beta_schedule=schedule)
    ours = {"ddpm": linear_betas, "cosine": cosine_betas}[name]()
    torch.testing.assert_close(ours.float(), theirs.betas, atol=1e-7, rtol=1e-5)
    alpha, _ = PATHS[name].levels((torch.arange(1000) + 1) / 1000)
    torch.testing.assert_close(alpha.square().float(), theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 25, 30, 1000])
def test_times_begin_in_pure_noise_and_are_the_steps_that_were_learnt(steps):
    """`Leading` spacing would begin at 1 - 1 / steps; other times than whole steps were never learnt."""
    times = PATHS["ddpm"].times(steps)
    assert (times[0], times[-1], len(times)) == (1.0, 0.0, steps + 1)
    learnt = {float(t) for t in PATHS["ddpm"].learnt(torch.arange(1000, dtype=torch.float64) / 1000)}
    assert set(times[:-1]) <= learnt
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("steps", [1, 7, 25, 30, 1000])
def test_times_against_another_library(steps):
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = schedulers.DDPMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert [round(t * 1000) - 1 for t in PATHS["ddpm"].times(steps)[:-1]] == theirs.timesteps.tolist()


@every
def test_times_may_begin_on_the_way(name):
    times = PATHS[name].times(10, 0.4)
    assert (times[0], times[-1], len(times)) == (0.4, 0.0, 11)
    assert times == pytest.approx([0.04 * k for k in range(10, -1, -1)])


@every
@pytest.mark.parametrize(("steps", "start"), [(0, 1.0), (-1, 1.0), (1001, 1.0), (500, 0.3)])
def test_steps_that_do_not_fit_are_refused(name, steps, start):
    if name == "flow" and steps > 0:
        assert len(PATHS[name].times(steps, start)) == steps + 1
        return
    with pytest.raises(UserError, match="steps"):
        PATHS[name].times(steps, start)


@every
def test_every_time_that_is_learnt_has_noise(name):
    uniform = torch.cat([torch.rand(5000, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)])
    t = PATHS[name].learnt(uniform)
    assert t.min() >= LEAST
    assert t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.03)


@every
@pytest.mark.parametrize("shift", [0.25, 1.0, 4.0])
def test_a_shift_multiplies_the_odds_of_each_time(name, shift):
    uniform = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    plain, moved = PATHS[name].learnt(uniform), PATHS[name].learnt(uniform, shift)
    odds = shift * plain / (1 - plain)
    torch.testing.assert_close(moved, odds / (1 + odds), rtol=0, atol=1e-12 if name == "flow" else 5 / 1000)
