"""The table of recipes: one function an experiment, whose docstring holds what it is, its time and its result."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from smalti.errors import UserError, nearest
from smalti.recipe import Recipe
from smalti.recipes.cifar import cifar_tokenizer
from smalti.recipes.emoji import (
    emoji_ar,
    emoji_dit,
    emoji_dvae,
    emoji_masked,
    emoji_tokenizer,
    emoji_tokenizer_16,
    emoji_vae,
    emoji_vqgan,
)
from smalti.recipes.emoji_words import (
    emoji,
    emoji_both,
    emoji_drawings,
    emoji_judge,
    emoji_mix_tokenizer,
    emoji_mix_vae,
    emoji_scenes,
    emoji_text_dit,
    emoji_things,
)
from smalti.recipes.fashion import (
    fashion,
    fashion_dit,
    fashion_flow,
    fashion_latent_dit,
    fashion_masked,
    fashion_simple_diffusion,
    fashion_tokenizer,
    fashion_tokenizer_512,
    fashion_uniform,
    fashion_vae,
    fashion_vq_diffusion,
    fashion_vq_latent_dit,
    quickstart,
)
from smalti.recipes.folder import folder, folder_tokenizer, folder_words, photo_tokenizer

RECIPES: dict[str, Callable[..., Recipe]] = {
    "quickstart": quickstart,
    "fashion-tokenizer": fashion_tokenizer,
    "fashion-tokenizer-512": fashion_tokenizer_512,
    "fashion-vae": fashion_vae,
    "fashion": fashion,
    "fashion-masked": fashion_masked,
    "fashion-uniform": fashion_uniform,
    "fashion-vq-diffusion": fashion_vq_diffusion,
    "fashion-simple-diffusion": fashion_simple_diffusion,
    "fashion-dit": fashion_dit,
    "fashion-flow": fashion_flow,
    "fashion-latent-dit": fashion_latent_dit,
    "fashion-vq-latent-dit": fashion_vq_latent_dit,
    "cifar-tokenizer": cifar_tokenizer,
    "emoji-tokenizer": emoji_tokenizer,
    "emoji-tokenizer-16": emoji_tokenizer_16,
    "emoji-vqgan": emoji_vqgan,
    "emoji-vae": emoji_vae,
    "emoji-dvae": emoji_dvae,
    "emoji-ar": emoji_ar,
    "emoji-masked": emoji_masked,
    "emoji-dit": emoji_dit,
    "emoji-mix-tokenizer": emoji_mix_tokenizer,
    "emoji-mix-vae": emoji_mix_vae,
    "emoji-things": emoji_things,
    "emoji-scenes": emoji_scenes,
    "emoji-drawings": emoji_drawings,
    "emoji-both": emoji_both,
    "emoji": emoji,
    "emoji-text-dit": emoji_text_dit,
    "emoji-judge": emoji_judge,
    "folder-tokenizer": folder_tokenizer,
    "photo-tokenizer": photo_tokenizer,
    "folder": folder,
    "folder-words": folder_words,
}


@dataclass(frozen=True)
class Entry:
    """A line of `smalti recipes`, read from the recipe's docstring."""

    name: str
    what: str
    data: str
    time: str
    result: str


def recipe(name: str, source: str | None = None) -> Recipe:
    """The recipe of that name, on its own data or on another source. Raises UserError, with the nearest names."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    function = RECIPES[name]
    if "source" in inspect.signature(function).parameters:
        if not source:
            raise UserError(f"recipe {name} needs a folder of pictures: smalti train {name} --data FOLDER")
        return function(source)
    made = function()
    return on_source(made, source) if source else made


def on_source(recipe: Recipe, source: str) -> Recipe:
    """A recipe, and its tokenizer's recipe, on other data."""
    changes: dict[str, str] = {"data.source": source}
    if isinstance(recipe.tokenizer, Recipe):
        changes["tokenizer.data.source"] = source
    return recipe.changed(**changes)


def listing() -> list[Entry]:
    """Every recipe as its docstring tells it."""
    entries = []
    for name, function in RECIPES.items():
        lines = inspect.getdoc(function).splitlines()  # type: ignore[union-attr]
        told = {line.split(":", 1)[0]: line.split(":", 1)[1].strip() for line in lines[1:] if ": " in line}
        entries.append(Entry(name, lines[0].rstrip("."), *(told.get(key, "") for key in ("data", "time", "result"))))
    return entries
