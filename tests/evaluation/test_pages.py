from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.evaluation.test_report import Reader
from tests.tiny import Tiny, tokenizer_recipe

from smalti import runs
from smalti.evaluation.pages import grouped
from smalti.tokenizers.bottlenecks import BOTTLENECKS

SMALL = {"vq": {"codes": 16, "dim": 4}, "rvq": {"codes": 8, "stages": 3, "dim": 4}, "fsq": {"levels": [4, 4]},
         "lfq": {"bits": 4}, "gumbel": {"codes": 16, "dim": 4}, "kl": {"dim": 3}}  # fmt: skip


def trained(tiny: Tiny, out: Path, bottleneck: dict, data: Path | None = None, **changes: object) -> Path:
    fields = {f"model.bottleneck.{name}": value for name, value in bottleneck.items()}
    recipe = tokenizer_recipe(data or tiny.data, 2)
    assert runs.train(recipe, out=out, changes={**fields, **changes}, device="cpu").finished
    return out / "report" / "index.html"


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_bottleneck_has_its_report(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    page = trained(tiny, tmp_path / "run", {"kind": kind, **SMALL.get(kind, {})}).read_text(encoding="utf-8")
    read = Reader(page)  # strict: one whole page, its pictures inside
    shown = read.said("h2")
    continuous = kind == "kl"
    for title in ("Originals and reconstructions", "Training", "How long it took"):
        assert title in shown
    for title in ("A picture as words", "What the codes look like", "Morphs", "Why a prior is needed"):
        assert (title in shown) != continuous
    for title in ("The latent", "Drawn from the prior", "From one picture to another"):
        assert (title in shown) == continuous
    assert ("Codebook by codebook" in shown) == (kind == "rvq")
    assert len(page) < 1_500_000


def test_a_latent_of_two_numbers_is_shown_as_a_plane(tiny: Tiny, tmp_path: Path) -> None:
    flat = tmp_path / "flat"  # no class folders, so no labels
    flat.mkdir()
    for label in ("Standing", "Lying flat"):
        for path in (tiny.data / label).iterdir():
            shutil.copy(path, flat / f"{label} {path.name}")
    strides = {"model.strides": [4, 4]}
    for place, data in (("with", tiny.data), ("without", flat)):
        page = trained(tiny, tmp_path / place, {"kind": "kl", "dim": 2}, data, **strides).read_text(encoding="utf-8")
        assert "The latent plane" in Reader(page).said("h2")


def test_an_adversarial_run_has_its_report(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"paradigm.kind": "adversarial", "paradigm.start": 0, "paradigm.critic_first": 0}
    page = trained(tiny, tmp_path / "run", {"codes": 16, "dim": 4}, **changes).read_text(encoding="utf-8")
    assert "tiny-tokenizer: adversary" in Reader(page).said("figcaption")


def test_what_was_logged_is_grouped_by_what_it_is_about() -> None:
    names = ["lr", "grad_norm", "grad_norm_critic", "reconstruction", "mse", "perceptual", "commitment", "entropy"]
    names += ["kl", "codes_used_1", "codes_used_2", "spread_perplexity", "generator", "critic", "real", "fake", "mse"]
    names += ["critic_made", "verdict_real", "heard", "features", "lecam", "r1", "critic_balance"]
    assert list(grouped(names).values()) == [
        ["reconstruction", "mse", "perceptual"],
        ["commitment", "entropy", "kl"],
        ["codes_used_1", "codes_used_2", "spread_perplexity"],
        [
            *["generator", "critic", "real", "fake", "critic_made", "verdict_real", "heard", "features", "lecam", "r1"],
            "critic_balance",
        ],
        ["lr", "grad_norm", "grad_norm_critic"],
    ]
    assert list(grouped(["lr"]).values()) == [["lr"]]
    assert grouped([]) == {}
