"""Which way of generating to choose: all paradigms on the same clothes, the same network, the same training minutes.

Every recipe `fashion…` trains as it is, but for its length: as many steps as fit into the minutes by the pace of some
steps, taken for all of them first; so every learning rate comes to its end, and what else the machine does later takes
nothing from anyone. All that read codes share one tokenizer; it and the VAE are trained before and do not count.

Judged by `smalti evaluate`. Then 100 pictures are drawn 64 at a time, and 20 one at a time, whose time counts five
times, with the options of each recipe. At the end the same two diffusion transformers draw in 10, 25 and 1,000 steps,
without guidance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from common import PACE, RESULTS, arguments, kept, median_seconds, pace, steps_in, table, write
from smalti.config import changed
from smalti.evaluation.evaluate import evaluate
from smalti.model import Generator, load
from smalti.recipe import Recipe, read
from smalti.recipes import recipe as named
from smalti.runs import resume, train

RECIPES = (
    "fashion",
    "fashion-masked",
    "fashion-uniform",
    "fashion-vq-diffusion",
    "fashion-simple-diffusion",
    "fashion-dit",
    "fashion-flow",
    "fashion-latent-dit",
)
# run -> ways of sampling it, without guidance: solver, steps, and how much noise is added on the way
WAYS = {
    "fashion-dit": [
        *[("ddpm", 1000, 0.0), ("ddim", 25, 0.0), ("ddim", 25, 0.75), ("ddim", 10, 0.0)],
        *[("dpm-solver-2m", 25, 0.0), ("dpm-solver-2m", 10, 0.0)],
    ],
    "fashion-flow": [
        *[("euler", 25, 0.0), ("ddim", 25, 0.5), ("heun", 25, 0.0), ("euler", 10, 0.0), ("heun", 10, 0.0)],
    ],
}
DRAWN = 100  # pictures that are timed
ONE_BY_ONE = 20  # of them where they are drawn singly, and the time taken times five


def chosen(name: str, steps: int, folder: Path) -> Recipe:
    """A recipe with its length, over the tokenizer that all of its kind share."""
    recipe = named(name).changed(**{"training.steps": steps, "training.validate_every": max(1, steps // 5)})
    if isinstance(recipe.tokenizer, Recipe):
        shared = folder / recipe.tokenizer.name
        if not train_or_go_on(recipe.tokenizer, shared):
            raise SystemExit("stopped; the same command goes on from there")
        recipe = recipe.model_copy(update={"tokenizer": str(shared.resolve())})
    return recipe


def paced(trial: Callable[[], Recipe], folder: Path) -> float:
    """Seconds a training step takes. The recipe is made only when asked for: its tokenizer may have to be trained."""
    return pace(trial(), folder)


def train_or_go_on(recipe: Recipe, run: Path) -> bool:
    """Train into a run folder, or on to the end of what is there. Exits where that was made by another recipe."""
    if (run / "recipe.json").exists() and read(run / "recipe.json") != recipe:
        raise SystemExit(f"{run} and its figures are of another recipe than {recipe.name} is now: move them away")
    done = resume(run) if (run / "recipe.json").exists() else train(recipe, out=run)
    return done.finished


def measured(name: str, steps: int, folder: Path, tokenizers: Path, samples: int) -> dict[str, Any]:
    """Train and judge."""
    if not train_or_go_on(chosen(name, steps, tokenizers), folder / name):
        raise SystemExit(f"stopped at {name}; the same command goes on from there")
    model = load(folder / name)
    assert isinstance(model, Generator)
    return evaluate(model, samples=samples)


def timed(folder: Path, name: str, quick: bool) -> dict[str, float]:
    """Seconds for 100 pictures, one at a time and 64 at a time."""
    model, labels = _loaded(folder / name)
    found = {}
    for batch, count in ((1, 1 if quick else ONE_BY_ONE), (64, DRAWN)):
        draw = partial(drawn, model, labels[:count], batch)
        found[str(batch)] = median_seconds(draw, 1 if quick else 3) * DRAWN / count
    return found


def drawn(model: Generator, labels: list[int], batch: int) -> Tensor:
    """Pictures of these labels, so many at a time."""
    return model.outwards(model.draw(len(labels), labels, seed=1, batch=batch))


def _loaded(run: Path) -> tuple[Generator, list[int]]:
    model = load(run)
    assert isinstance(model, Generator)
    return model, [i % len(model.labels) for i in range(DRAWN)]


def drawn_by(folder: Path, name: str, n: int, **way: object) -> dict[str, Any]:
    """The figures of one way of sampling."""
    model, _ = _loaded(folder / name)
    return evaluate(model, samples=n, options=changed(model.options, {"guidance": 1, **way}))


def row(name: str, figures: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """One line of the table."""
    drawn, codes = figures["samples"], figures.get("nats_a_code")
    return {
        "recipe": name,
        "label accuracy": drawn["label_accuracy"],
        "Fréchet": drawn["frechet"],
        "precision": drawn["precision"],
        "recall": drawn["recall"],
        "density": drawn["density"],
        "coverage": drawn["coverage"],
        "nats a code": codes,
        "bits a number": figures.get("bits_a_dimension"),
        "copying": figures["copying"]["nearer_than_1_percent"],
        "s for 100, singly": seconds["1"],
        "by 64": seconds["64"],
        "training steps": figures["steps"],
    }


def real(figures: dict[str, Any]) -> dict[str, Any]:
    """What other held-out pictures reach, and those that went through the tokenizer."""
    blank = {"nearer_than_1_percent": None}
    shown = {"steps": None, "copying": blank}
    return row("real pictures", {**shown, "samples": figures["real"]}, {"1": None, "64": None})  # type: ignore[dict-item]


def table_of_ways(folder: Path, names: Sequence[str], parts: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same networks by other solvers and in other numbers of steps."""
    ways, n = [], 100 if options.quick else 1000
    for name in [name for name in names if name in WAYS]:
        for solver, steps, eta in WAYS[name]:
            draw = partial(drawn_by, folder, name, n, solver=solver, steps=20 if options.quick else steps, eta=eta)
            figures = kept(parts / f"way-{folder.name}-{name}-{solver}-{steps}-{eta:g}.json", draw)
            ways.append({"recipe": name, "solver": solver, "steps": steps, "eta": eta, **figures["samples"]})
    if ways:
        table(f"without guidance, n = {n}, seed 0", ways)
    return ways


def main() -> None:
    """Train what was not trained yet, one after the other, judge and time it, and print the tables."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of training for each")
    parser.add_argument("--only", default="", help="some of them, with commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs/paradigms"), help="where the runs are kept")
    parser.add_argument("--until", choices=["paces", "figures", "times", "ways"], default="ways", help="stop after")
    options = parser.parse_args()
    seconds, samples = (6, 200) if options.quick else (60 * options.minutes, 2000)
    names = options.only.split(",") if options.only else RECIPES
    folder, parts = options.runs / f"{seconds:g}s", RESULTS / "paradigms-parts"
    found: dict[str, Any] = {}
    for name in names:
        trial = partial(chosen, name, PACE.stop, options.runs)
        found[name] = {"pace": kept(parts / f"pace-{name}.json", partial(paced, trial, options.runs / "pace"))}
        found[name]["steps"] = steps_in(seconds, found[name]["pace"])
    if options.until == "paces":
        table("paces", [{"recipe": name, **found[name]} for name in names])
        return
    for name in names:
        judge = partial(measured, name, found[name]["steps"], folder, options.runs, samples)
        found[name] |= kept(parts / f"{folder.name}-{name}.json", judge)
    if options.until == "figures":
        return
    for name in names:
        times = partial(timed, folder, name, options.quick)
        found[name]["seconds"] = kept(parts / f"times-{folder.name}-{name}.json", times)
    rows = [real(found[names[0]]), *(row(name, found[name], found[name]["seconds"]) for name in names)]
    table(f"fashion-mnist, {seconds / 60:g} minutes each, n = {samples}, seed 0", rows)
    ways = table_of_ways(folder, names, parts, options) if options.until == "ways" else []
    write("paradigms", __doc__ or "", options.quick, seconds=seconds, figures=found, ways=ways)


if __name__ == "__main__":
    main()
