"""A model folder that rebuilds itself: written after training, read on any device."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from smalti import checkpoint
from smalti.config import Examples, SignalSpec, checked
from smalti.device import memory, pick_device
from smalti.errors import UserError
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.model.aligner import Aligner
from smalti.model.card import card
from smalti.model.generator import Generator
from smalti.model.reader import Reader
from smalti.model.tokenizer import Tokenizer
from smalti.paradigms.base import Paradigm
from smalti.paradigms.diffusion import DiffusionConfig
from smalti.paradigms.text_encoder import CARRIED
from smalti.recipe import Recipe, parse
from smalti.tokenizers.autoencoder import Autoencoder
from smalti.tokenizers.text import TextTokenizer


class _Unfilled(TorchFunctionMode):
    """Leaves weights as they are made: to fill those without memory, torch would load its compiler, for a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build(recipe: Recipe, examples: Examples, text: TextTokenizer | None = None) -> Paradigm:
    """The untrained paradigm that a recipe describes, with what cuts its texts. Raises UserError as `check_size`."""
    check_size(recipe, examples.signal)
    paradigm = recipe.paradigm.build(recipe.model, examples, recipe.training.steps)
    paradigm.text = text
    return paradigm


def check_size(recipe: Recipe, signal: SignalSpec) -> None:
    """Raises UserError where the weights of a recipe's network are more than this machine has memory for."""
    try:
        with torch.device("meta"), _Unfilled():  # shapes, and no memory
            if isinstance(recipe.model, TransformerConfig):
                context_width = recipe.model.width if recipe.paradigm.words else None
                network: nn.Module = Transformer(recipe.model, conditioned=True, context_width=context_width)
            else:
                network = Autoencoder(recipe.model, signal)
    except RuntimeError as error:  # more than can be counted
        raise UserError(
            f"the network of {recipe.name} is larger than any machine: make --model.width smaller"
        ) from error
    needed = sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))
    if needed > memory():
        raise UserError(
            f"the network of {recipe.name} takes {needed / 2**30:,.0f} GiB, and this machine has"
            f" {memory() / 2**30:,.0f}: a smaller --model.width would do"
        )


def write(
    folder: Path,
    recipe: Recipe,
    examples: Examples,
    paradigm: Paradigm,
    figures: Mapping[str, Any],
    tokenizers: Mapping[str, Path] | None = None,
) -> None:
    """Write a model folder that `load` rebuilds with no other input.

    Where the recipe names the run of its tokenizer, which may be anywhere, the folder has that tokenizer's recipe; of
    the run it goes on from it has the name.
    """
    recipe, cutters, models = _anywhere(recipe), {}, paradigm.carries()
    if CARRIED in models:
        recipe = listening_to(recipe, lambda encoder: Path(encoder).name)
    for name, carried in (tokenizers or {}).items():
        told = checkpoint.read_config(carried)
        cutters[name], settings = told["weights_sha256"], told["recipe"]
        recipe = recipe.model_copy(update={"tokenizer": parse(settings, str(carried / "config.json"))})
    config = {
        "smalti": checkpoint.VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "examples": examples.model_dump(mode="json"),
        "figures": dict(figures),
        "relies_on": paradigm.relies_on(),
        "tokenizers": cutters,  # whose codes it was trained with
    }
    files = {} if paradigm.text is None else {checkpoint.TEXT_FILE: paradigm.text.json_text()}
    page = card(recipe, examples, figures)
    checkpoint.write_model(folder, config, paradigm.model_state(), page, tokenizers, files, models)


def write_card(path: Path, figures: Mapping[str, Any]) -> None:
    """Put measured figures into a model folder's card and config; the weights stay as they are."""
    folder = checkpoint.model_folder(path)
    config = checkpoint.read_config(folder)
    config["figures"] = {**config.get("figures", {}), **figures}
    recipe = _anywhere(parse(config["recipe"], str(folder / "config.json")))
    config["recipe"] = recipe.model_dump(mode="json")
    checkpoint.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    text = card(recipe, Examples.model_validate(config["examples"]), config["figures"])
    checkpoint.write_text(folder / "README.md", text)


def _anywhere(recipe: Recipe) -> Recipe:
    """A recipe as it may leave the machine: of a run that it goes on from, the name alone."""
    return recipe.model_copy(update={"init": Path(recipe.init).name}) if recipe.init else recipe


def listening_to(recipe: Recipe, renamed: Callable[[str], str]) -> Recipe:
    """A recipe that names the model that reads its captions otherwise; any other as it is."""
    paradigm = recipe.paradigm
    if not isinstance(paradigm, DiffusionConfig) or paradigm.text is None or paradigm.text.folder is None:
        return recipe
    text = paradigm.text.model_copy(update={"folder": renamed(paradigm.text.folder)})
    return recipe.model_copy(update={"paradigm": paradigm.model_copy(update={"text": text})})


def load(path: str | Path, device: str = "auto") -> Tokenizer | Generator | Aligner:
    """Rebuild the model of a run, or of a model folder. Raises UserError when it is missing, damaged or too new."""
    folder = checkpoint.model_folder(path)
    config = checkpoint.read_config(folder)
    place, damaged = pick_device(device), f"{folder / 'config.json'} is damaged: it does not describe a model"
    try:
        recipe = parse(config["recipe"], str(folder / "config.json"))
        examples = checked(Examples, config["examples"], damaged)
    except KeyError as error:
        raise UserError(damaged) from error
    tokenizer = None
    if recipe.generates and recipe.paradigm.reads != "signals":
        tokenizer = _carried_tokenizer(folder, device, config.get("tokenizers", {}), damaged)
        _check_fits(tokenizer, examples, damaged)  # before anything is built as large as it says
    text = _carried_text(folder, examples)
    try:
        carried = folder / CARRIED
        whole = listening_to(recipe, lambda encoder: str(carried) if carried.is_dir() else encoder)
        paradigm = build(whole, examples, text)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UserError(f"{damaged} that can be built") from error
    _check_relied_on(paradigm, config.get("relies_on", {}), folder)
    weights = checkpoint.read_weights(folder, config)
    if broken := [name for name, each in weights.items() if not bool(each.isfinite().all())]:
        raise UserError(f"{folder} is damaged: its weights are not finite, {broken[0]} among them; train it anew")
    try:
        paradigm.load_model_state(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} is damaged: its weights do not fit its config.json") from error
    model: Tokenizer | Generator | Aligner
    if recipe.paradigm.makes == "aligner":
        model = Aligner(recipe, examples, paradigm, place)
    elif recipe.generates:
        kind = Reader if recipe.paradigm.kind == "interleaved" else Generator
        model = kind(recipe, examples, paradigm, place, tokenizer)
    else:
        model = Tokenizer(recipe, examples, paradigm, place)
    model.figures = config.get("figures", {})
    model.sha256 = config["weights_sha256"]
    return model


def tokenizer_folder(path: str | Path) -> Path:
    """The model folder of a run's tokenizer: its own, or the one that a generator carries.

    Raises UserError where there is none.
    """
    folder = checkpoint.model_folder(path)
    carried = sorted((folder / "tokenizers").glob("*/config.json"))
    return carried[0].parent if carried else folder


def _carried_tokenizer(folder: Path, device: str, trained_with: object, damaged: str) -> Tokenizer:
    """The tokenizer that a generator carries. Raises UserError where it is not the one it was trained with."""
    if not isinstance(trained_with, dict):
        raise UserError(damaged)
    carried = tokenizer_folder(folder)
    tokenizer = None if carried == folder else load(carried, device)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{folder} is not whole: the generator's tokenizer is missing from {folder / 'tokenizers'}")
    if trained_with and trained_with.get(carried.name) != tokenizer.sha256:
        raise UserError(
            f"{carried} is not the tokenizer that {folder} was trained with: its codes mean other things; copy the"
            " folder again"
        )
    return tokenizer


def _check_fits(tokenizer: Tokenizer, examples: Examples, damaged: str) -> None:
    """Raises UserError where a generator's examples are not what its tokenizer makes and reads."""
    ours, theirs = examples.signal, tokenizer.signal
    if (ours.channels, ours.shape) != (theirs.channels, theirs.shape):
        raise UserError(f"{damaged} of signals as its tokenizer reads")
    if examples.codes is not None and examples.codes != tokenizer.network.codes:
        raise UserError(f"{damaged} of codes as its tokenizer makes")


def _carried_text(folder: Path, examples: Examples) -> TextTokenizer | None:
    """The text tokenizer of a model that has one. Raises UserError where it is not the one of its vocabulary."""
    if examples.text is None:
        return None
    text = TextTokenizer.load((folder / checkpoint.TEXT_FILE).parent)
    if text.sha256 != examples.text.sha256:
        raise UserError(
            f"{folder / checkpoint.TEXT_FILE} is not the text tokenizer that this model was trained with: it would read"
            " every text as another; copy the folder again"
        )
    return text


def _check_relied_on(paradigm: Paradigm, trained_with: Mapping[str, str], folder: Path) -> None:
    """Raises UserError where a model from the user's disk is not the one that this model was trained with."""
    for path, sha in paradigm.relies_on().items():
        if trained_with.get(path) != sha:
            raise UserError(f"{path} is not the model that {folder} was trained with: put that one back")


def load_tokenizer(path: str | Path, device: str = "auto") -> Tokenizer:
    """The tokenizer of a run: itself, or the one a generator carries. Raises UserError where there is none."""
    model = load(path, device)
    if isinstance(model, Aligner):
        raise UserError(f"{path} holds {model.kind}, which cuts nothing into codes; choose a tokenizer's run")
    return model.tokenizer if isinstance(model, Generator) else model
