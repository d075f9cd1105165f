"""From a recipe to a run folder: data, tokenizer, codes, training, report; and what runs there are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smalti import model as models
from smalti.checkpoint import TEXT_FILE, model_folder, read_config, saving, write_text
from smalti.config import Examples, LatentSpec, TextSpec
from smalti.data.arrays import Held, in_order, shuffled
from smalti.data.augment import augment
from smalti.data.batch import Batch
from smalti.data.image import to_signal
from smalti.data.loader import Loader, sweep_pixels
from smalti.data.sources import DataConfig, Source, open_source
from smalti.device import pick_device
from smalti.errors import UserError
from smalti.evaluation.evaluate import HeldOut, gathered, left_out
from smalti.evaluation.pages import write_report
from smalti.layers.transformer import TransformerConfig
from smalti.model import Tokenizer
from smalti.paradigms.base import Paradigm
from smalti.paradigms.interleaved import Interleaved, InterleavedConfig
from smalti.paradigms.llama import holds_text_model, read_llama
from smalti.paradigms.pretrained_text import is_hugging_face
from smalti.recipe import Recipe, override, read
from smalti.recipes import on_source
from smalti.recipes import recipe as named_recipe
from smalti.tokenizers.text import TextTokenizer
from smalti.training.log import ProgressLine, read_metrics, say
from smalti.training.loop import Progress, Run, fit
from smalti.training.ranks import Ranks

MINUTES, MINUTES_BEFORE = "minutes of training", "minutes of the stages before it"  # of a card
TEXTS = 20_000  # examples whose texts a text tokenizer learns from
AGAIN = 1_000_000  # the seed of how pictures are moved that are encoded again, apart from those of codings


@dataclass(frozen=True)
class Outcome:
    """Where a training's run lies, and whether it came to its end or was interrupted (and saved)."""

    folder: Path
    finished: bool


def train(
    recipe: str | Recipe,
    data: str | None = None,
    out: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    init: str | Path | None = None,
    device: str = "auto",
) -> Outcome:
    """Train a recipe, by name or as it is, into a new run folder (`runs/NAME` unless said otherwise).

    `changes` are dotted fields of the recipe. `init` is a run whose weights training starts from; a generator then
    keeps that run's tokenizer too. Raises UserError on unknown recipes and fields, on data that cannot be had, and
    when `out` already holds a run.
    """
    if isinstance(recipe, str):
        chosen = named_recipe(recipe, data)
    else:
        chosen = on_source(recipe, data) if data else recipe
    if changes:
        chosen = override(chosen, changes)
    if init is None and chosen.init and not Path(chosen.init).exists():
        raise UserError(
            f"{chosen.name} goes on from {chosen.init}, which is not there: train that first, or name --init"
        )
    init = init or chosen.init
    if init is not None:
        chosen = _starting_from(chosen, Path(init))
    chosen = models.listening_to(chosen, _wherever)
    folder = Path(out) if out is not None else Path("runs") / chosen.name
    ranks = Ranks.join()
    if (folder / "recipe.json").exists():
        raise UserError(f"{folder} already holds a run: continue it with --resume {folder}, or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    ranks.wait()  # nobody writes before everybody has looked
    try:
        return _Training(chosen, folder, device, ranks).run()
    except UserError:
        if ranks.writes:
            _undo_start(folder)
        raise


def resume(folder: str | Path, device: str = "auto") -> Outcome:
    """Continue an interrupted run exactly where its last saved state is. Raises UserError when there is no run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no run at {folder}; `smalti runs` lists what has been trained")
    if (folder / "report" / "index.html").exists():  # the last thing a training writes
        say(f"{folder} is complete: report {folder / 'report' / 'index.html'}")
        return Outcome(folder, True)
    return _Training(read(folder / "recipe.json"), folder, device, Ranks.join()).run()


class _Training:
    """One recipe on its way to a run folder; every stage picks up what an earlier attempt has finished."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, ranks: Ranks) -> None:
        if recipe.training.init_share and recipe.init is None:
            raise UserError(
                f"training.init_share {recipe.training.init_share:g} of {recipe.name} is a share of the weights that"
                " training goes on from: name those with --init, or leave it out"
            )
        self.recipe, self.folder, self.ranks = recipe, folder, ranks
        self.device_name, self.device = device, pick_device(device)
        self.stages: dict[str, float] = {}
        self.told: set[str] = set()

    def run(self) -> Outcome:
        try:
            finished = self._stages()
        except KeyboardInterrupt:
            finished = False
        self.ranks.leave()
        if not finished and self.ranks.writes:
            say(f"stopped and saved; continue with: smalti train --resume {self.folder}")
        return Outcome(self.folder, finished)

    def _stages(self) -> bool:
        recipe = self.recipe
        with self._timed("data"):
            source, validation = open_source(recipe.data, "train"), open_source(recipe.data, "validation")
            self._tell_broken(source.broken)
        if recipe.paradigm.whole_batch and self.ranks.count > 1:
            raise UserError(
                f"paradigm {recipe.paradigm.kind} compares all examples of a batch with each other, which several"
                " processes do not do yet: start it without torchrun"
            )
        cached = recipe.generates and recipe.paradigm.reads != "signals"
        if cached and source.made and recipe.data.most is None:
            raise UserError(
                f"{source.name} is made without end: say how many pictures are to be encoded, as in --data.most 100000"
            )
        # before a tokenizer is trained for nothing
        models.check_size(recipe, source.signal)
        recipe.paradigm.check()
        if recipe.paradigm.words and not source.has_text:
            raise UserError(
                f"{source.name} has no captions, which {recipe.name} learns from: give the folder a metadata.jsonl, a"
                " line a picture with file_name and text"
            )
        if self.ranks.writes:
            write_text(self.folder / "recipe.json", recipe.json_text())
        if cached:
            tokenizer_folder = self._tokenizer_folder()
            if tokenizer_folder is None:
                return False
            progress = self._train_on_cached(source, validation, tokenizer_folder)
        else:
            progress = self._train_on_signals(source, validation)
        if not progress.finished:
            return False
        self.stages["training"] = progress.seconds
        if self.ranks.writes:
            # an interrupted report is written again by --resume
            write_report(self.folder, recipe.data, self.stages, self.device_name)
            say(f"model {self.folder / 'model'}\nreport {self.folder / 'report' / 'index.html'}")
        self.ranks.wait()
        return True

    def _train_on_signals(self, source: Source, validation: Source) -> Progress:
        recipe, training = self.recipe, self.recipe.training
        text = self._text(source)
        examples = Examples(signal=source.signal, labels=source.labels, text=_spec(text))
        held = gathered(validation, recipe.data, training.validate_on)
        words = validation if recipe.paradigm.words else None

        def batches(start: int) -> Iterator[Batch]:
            share = (training.batch, training.seed, self.ranks.rank, self.ranks.count)
            loader = Loader(source, recipe.data, *share, augment=True, start=start)
            self._tell_broken(loader.broken)
            return iter(loader)

        def held_out() -> Iterator[Batch]:
            return _signals(held, words, self._rows_at_once(), self.ranks)

        return self._fit(examples, batches, held_out, {"the data": source.fingerprint}, {}, text)

    def _train_on_cached(self, source: Source, validation: Source, tokenizer_folder: Path) -> Progress:
        """A generator over what a tokenizer makes of the pictures, computed once."""
        training, reads = self.recipe.training, self.recipe.paradigm.reads
        tokenizer = models.load_tokenizer(tokenizer_folder, self.device_name)
        _check_fits(tokenizer, source, tokenizer_folder)
        with self._timed("encode"):
            learnt = self._cached(tokenizer, source, "train", training.variants)
            held = self._cached(tokenizer, validation, "validation", 1).some(training.validate_on)
        made: dict[str, Any] = {}
        if reads == "codes":
            made["codes"] = tokenizer.network.codes
        else:
            made["latents"] = LatentSpec(channels=learnt.values.shape[2], grid=tuple(learnt.values.shape[3:]))
        identity = {"the data": source.fingerprint, "the tokenizer": tokenizer.sha256}
        text = self._text(source)
        if self.recipe.paradigm.words:
            learnt, held = replace(learnt, words=source), replace(held, words=validation)
        examples = Examples(signal=source.signal, labels=source.labels, text=_spec(text), **made)

        def batches(start: int) -> Iterator[Batch]:
            return shuffled(learnt, training.batch, training.seed, self.ranks.rank, self.ranks.count, start)

        def held_out() -> Iterator[Batch]:
            return in_order(held, self._rows_at_once(), self.ranks.rank, self.ranks.count)

        vectors = tokenizer.network.code_vectors().cpu() if reads == "codes" else None
        tokenizers = {tokenizer.recipe.name: tokenizer_folder}
        return self._fit(examples, batches, held_out, identity, tokenizers, text, vectors)

    def _fit(
        self,
        examples: Examples,
        batches: Callable[[int], Iterator[Batch]],
        held_out: Callable[[], Iterator[Batch]],
        identity: Mapping[str, str],
        tokenizers: Mapping[str, Path],
        text: TextTokenizer | None = None,
        code_vectors: Tensor | None = None,
    ) -> Progress:
        recipe = self.recipe
        torch.manual_seed(recipe.training.seed)
        paradigm = models.build(recipe, examples, text)
        identity = {**identity, **paradigm.relies_on()}
        if text is not None:
            identity["the text tokenizer"] = text.sha256
        if not (self.folder / "state" / "latest").exists():
            if code_vectors is not None:
                paradigm.know_codes(code_vectors)
            if recipe.init:
                _start_from(paradigm, recipe.init)

        before = _minutes_before(recipe.init, self.folder)

        def keep(average: Paradigm, progress: Progress) -> None:
            figures = {
                "step": progress.step,
                "held-out loss": progress.best,
                MINUTES: progress.seconds / 60,
                **before,
            }
            models.write(self.folder / "model", recipe, examples, average, figures, tokenizers)

        run = Run(
            recipe.name, self.folder, recipe.training, batches, held_out, keep, identity, fresh=recipe.init is None
        )
        return fit(paradigm, run, self.device, self.ranks)

    def _tokenizer_folder(self) -> Path | None:
        """The tokenizer's model folder, trained first when the recipe holds one; None when that was interrupted."""
        tokenizer = self.recipe.tokenizer
        if isinstance(tokenizer, str):
            return models.tokenizer_folder(tokenizer)
        assert tokenizer is not None
        folder = self.folder / "tokenizer"
        with self._timed("tokenizer"):
            nested = _Training(tokenizer, folder, self.device_name, self.ranks)
            finished = nested._stages()
        return folder / "model" if finished else None

    def _text(self, source: Source) -> TextTokenizer | None:
        """The text tokenizer of a paradigm that is told texts and cuts them itself."""
        paradigm = self.recipe.paradigm
        if not paradigm.words or paradigm.pieces is None:
            return None
        with self._timed("text"):
            return self._text_tokenizer(source)

    def _text_tokenizer(self, source: Source) -> TextTokenizer:
        """Learnt from the texts and questions of the training examples, once, and kept in the run; or that of the model
        that training starts from."""
        folder = self.folder / "text"
        if self.ranks.writes and not (folder / "tokenizer.json").exists():
            text = None if self.recipe.init is None else _text_of(Path(self.recipe.init))
            if text is None:
                few = torch.arange(len(source))[:: -(-len(source) // TEXTS)].tolist()
                told = chain.from_iterable((*source.text(i), *chain.from_iterable(source.questions(i))) for i in few)
                text = TextTokenizer.trained(told, self.recipe.paradigm.pieces)
            text.save(folder)
        self.ranks.wait()
        return TextTokenizer.load(folder)

    def _cached(self, tokenizer: Tokenizer, source: Source, split: str, variants: int) -> Held:
        """All of a split's codes or latents (V, N, *shape), computed once and kept beside the run."""
        config, reads = self.recipe.data, self.recipe.paradigm.reads
        again = self.recipe.paradigm.again and split == "train"
        path = self.folder / reads / f"{split}.safetensors"
        key = f"{tokenizer.sha256}/{source.fingerprint}/{variants}/{config.flip}/{config.shift}{'/again' * again}"
        if self.ranks.writes and _stored(path, key) is None:
            encode = tokenizer.encode if reads == "codes" else tokenizer.latents
            kept = _encode_all(encode, source, config, variants, path, key, tokenizer.decode if again else None)
            self._tell_broken([*source.broken, *left_out(source, kept)])
        self.ranks.wait()
        stored = _stored(path, key)
        assert stored is not None
        return stored

    def _tell_broken(self, broken: Sequence[tuple[str, str]]) -> None:
        """Name what is left out, once, and count it."""
        fresh = [each for each in broken if each[0] not in self.told] if self.ranks.writes else []
        for name, reason in fresh[:20]:
            say(f"left out: {name}: {reason}")
        if fresh:
            say(f"left out: {len(fresh)} of the files, for they are broken")
        self.told.update(name for name, _ in fresh)

    def _rows_at_once(self) -> int:
        training = self.recipe.training
        return training.micro_batch or training.batch

    def _timed(self, stage: str) -> _Stopwatch:
        return _Stopwatch(self.stages, stage)


class _Stopwatch:
    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.stages[self.name] = time.monotonic() - self.began


def _spec(text: TextTokenizer | None) -> TextSpec | None:
    return None if text is None else TextSpec(pieces=text.size, sha256=text.sha256)


def _signals(held: HeldOut, words: Source | None, size: int, ranks: Ranks) -> Iterator[Batch]:
    """This rank's share of the held-out pictures, as signals; `words` is where their texts come from, if asked for."""
    kept = Held(held.pixels[None], held.labels, held.rows, words)
    for batch in in_order(kept, size, ranks.rank, ranks.count):
        yield replace(batch, x=to_signal(batch.x.to(torch.uint8)))


def _encode_all(
    encode: Callable[[Tensor], Tensor],
    source: Source,
    config: DataConfig,
    variants: int,
    path: Path,
    key: str,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Encode a source into a file, some pictures after the other: there may be more than memory holds.

    With `decode`, what each coding decodes to is encoded again, moved as the data's `shift` has it. Gives back the
    numbers of the pictures that could be read.
    """
    asked = torch.arange(len(source)).split(1000)
    codings, codings_again = [], []
    with ProgressLine("encode", variants * len(source)) as line:
        for variant in range(variants):
            parts, parts_again, taken = [], [], []
            for rows, pixels in sweep_pixels(source, config, asked):
                if variant:  # the first coding is of the pictures as they are
                    pixels = augment(pixels, variant, 0, rows, config.flip, config.shift)
                made = encode(to_signal(pixels))
                parts.append(made if made.is_floating_point() else made.to(torch.int32))
                if decode is not None:
                    moved = augment(decode(made), AGAIN + variant, 0, rows, False, config.shift)
                    parts_again.append(encode(moved).to(torch.int32))
                taken.append(rows)
                line.update(variant * len(source) + int(rows[-1]) + 1)
            codings.append(torch.cat(parts))
            codings_again += [torch.cat(parts_again)] if parts_again else []
    every = torch.cat(taken)
    tensors = {"values": torch.stack(codings).contiguous(), "rows": every}
    if codings_again:
        tensors["again"] = torch.stack(codings_again).contiguous()
    if source.label_ids is not None:
        tensors["labels"] = source.label_ids[every]
    fresh = path.with_suffix(".new")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, fresh, {"key": key})
        fresh.replace(path)
    return every


def _stored(path: Path, key: str) -> Held | None:
    """What is kept in a file, or None when there is nothing or that of something else."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Held(kept["values"], kept.get("labels"), kept["rows"], again=kept.get("again"))
    except (OSError, SafetensorError, KeyError):
        return None


def _starting_from(recipe: Recipe, init: Path) -> Recipe:
    """The recipe with an earlier run to start from; a generator knows only the codes of that run's tokenizer.

    Or with a folder that holds a model of text, whose shape and pieces it takes.
    """
    if holds_text_model(init):
        if not isinstance(recipe.paradigm, InterleavedConfig) or not isinstance(recipe.model, TransformerConfig):
            raise UserError(f"{init} is a model of text, which only paradigm interleaved goes on from")
        llama = read_llama(init, recipe.model.dropout)
        paradigm = recipe.paradigm.model_copy(update={"pieces": llama.text.size})
        update = {"model": llama.config, "paradigm": paradigm, "init": str(init.resolve())}
        return recipe.model_copy(update=update)
    own, carried = model_folder(init), models.tokenizer_folder(init)
    if carried != own and isinstance(recipe.tokenizer, Recipe):
        recipe = recipe.model_copy(update={"tokenizer": str(carried.resolve())})
    begun = init if init.exists() else own  # the run, or a model that comes with smalti
    return recipe.model_copy(update={"init": str(begun.resolve())})


def _wherever(encoder: str) -> str:
    """A run of ours by a path that holds in any working folder; a name, or a folder of others, as it is."""
    ours = Path(encoder).exists() and not is_hugging_face(encoder)
    return str(Path(encoder).resolve()) if ours else encoder


def _undo_start(folder: Path) -> None:
    """After a mistake before anything was saved: the command, put right, may be given again."""
    if not any(folder.glob("**/state/latest")):
        for path in (folder / "tokenizer" / "recipe.json", folder / "recipe.json"):
            path.unlink(missing_ok=True)


def _minutes_before(init: str | None, folder: Path) -> dict[str, float]:
    """For the figures of the run in `folder`: how long the training took of what it goes on from, as far as known.

    A run that is resumed no longer needs what it began with, which may be gone; its own model then still says it.
    """
    if init is None:
        return {}
    for path, counted in ((init, (MINUTES, MINUTES_BEFORE)), (folder, (MINUTES_BEFORE,))):
        try:
            figures = read_config(model_folder(path)).get("figures", {})
        except UserError:  # it is gone, was not trained here, or is not there yet
            continue
        if known := [figures[each] for each in counted if each in figures]:
            return {MINUTES_BEFORE: sum(known)}
    return {}


def _text_of(init: Path) -> TextTokenizer | None:
    """The text tokenizer of an earlier run or of a model of text; None where it has none."""
    if holds_text_model(init):
        return read_llama(init).text
    folder = (model_folder(init) / TEXT_FILE).parent
    return TextTokenizer.load(folder) if folder.is_dir() else None


def _start_from(paradigm: Paradigm, init: str) -> None:
    """Weights from an earlier model of the same shape, or a model of text. Raises UserError when they do not fit."""
    if isinstance(paradigm, Interleaved) and holds_text_model(Path(init)):
        paradigm.grow(read_llama(Path(init)))
        return
    earlier = models.load(init, "cpu")
    try:
        paradigm.load_model_state(earlier.paradigm.model_state())
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"--init {init} is a model of another shape: {reason}") from error


def _check_fits(tokenizer: Tokenizer, source: Source, folder: Path) -> None:
    ours, theirs = tokenizer.signal, source.signal
    if (ours.channels, ours.shape) != (theirs.channels, theirs.shape):
        raise UserError(
            f"the tokenizer {folder} reads {ours.channels} channels of {'×'.join(map(str, ours.shape))}, the data has"
            f" {theirs.channels} of {'×'.join(map(str, theirs.shape))}; set --data.shape and --data.channels alike"
        )


def listed(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """Every run below a folder: where it is, its recipe, how far it got, its held-out loss."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; `smalti train` writes runs into ./runs")
    found = sorted(path.parent for path in folder.rglob("recipe.json") if path.parent.name != "model")
    runs = []
    for path in found:
        try:
            runs.append(summary(path))
        except UserError as error:  # one damaged run does not hide the others
            say(f"left out: {error}")
    return runs


def summary(folder: Path) -> dict[str, Any]:
    """One run in a line of plain values."""
    recipe = read(folder / "recipe.json")
    rows = read_metrics(folder / "metrics.jsonl")
    held = [row for row in rows if row["split"] == "validation"]
    told: dict[str, Any] = {
        "run": str(folder),
        "recipe": recipe.name,
        "paradigm": recipe.paradigm.kind,
        "data": recipe.data.source,
        "step": rows[-1]["step"] if rows else 0,
        "steps": recipe.training.steps,
        "seconds": rows[-1]["time"] if rows else 0.0,
    }
    if held:
        told.update({f"held-out {name}": value for name, value in held[-1]["values"].items()})
    told.update(measured(folder))
    return told


def measured(folder: Path) -> dict[str, Any]:
    """What `smalti evaluate` found for this run, flat: {"samples.frechet": …}."""
    try:
        figures = json.loads((folder / "report" / "figures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _flat(figures)


def differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings in which runs differ: dotted field -> the value in each run, None where a run has no such field."""
    trees = [_flat(read(folder / "recipe.json").model_dump(mode="json")) for folder in folders]
    names = list(dict.fromkeys(name for tree in trees for name in tree))
    columns = {name: [tree.get(name) for tree in trees] for name in names if name not in ("name",)}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def keep_figures(run: Path, figures: Mapping[str, Any]) -> None:
    """Keep what `evaluate` measured beside the run's report, and in its model card."""
    if (run / "recipe.json").exists():
        write_text(run / "report" / "figures.json", json.dumps(figures, indent=2) + "\n")
    models.write_card(run, _flat(figures))


def quickstart(out: str | Path = "runs/quickstart", device: str = "auto") -> Outcome:
    """Train the quickstart's tokenizer and generator and write the report; picks up where an earlier call stopped.

    Where Fashion-MNIST cannot be had by any of its ways, the small set mnist-5k takes its place, and it is said.
    """
    folder = Path(out)
    if (folder / "recipe.json").exists():
        return resume(folder, device)
    recipe = named_recipe("quickstart")
    try:
        open_source(recipe.data, "train")
    except UserError as error:
        say(f"{error}\nquickstart goes on with mnist-5k instead")
        recipe = on_source(recipe, "mnist-5k")
    return train(recipe, out=folder, device=device)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
