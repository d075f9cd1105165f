"""The verbs. Each imports what it needs when it is called, so that help answers at once."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from smalti.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.config import Config
    from smalti.model import Generator, Model, Reader, Tokenizer
    from smalti.paradigms.base import Progress

app = typer.Typer(
    help="Cut any signal into tokens, and train the transformers that lay them again.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


INTERRUPTED = 130  # the status of a verb that an interrupt ended


class WithFields(TyperCommand):
    """A verb that takes `--any.field VALUE` too, wherever it stands; the verb finds these in `context.obj`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        words: list[str] = []
        fields: dict[str, str] = {}
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":  # what follows are no options, whatever it begins with
                words += [word, *rest]
                break
            name, equals, value = word.partition("=")
            if not name.startswith("--") or name in own:
                words.append(word)
                continue
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UserError(f"{name} needs a value")
                value = rest.pop(0)
            fields[name.removeprefix("--")] = value
        ctx.obj = fields
        return super().parse_args(ctx, words)


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="sample i draws its noise from (seed, i)")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the output stream, and nothing else there")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, or a model folder")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="pictures, or folders of pictures")]
Data = Annotated[str | None, typer.Option(metavar="SOURCE", help="a folder of pictures, or a named set")]
Label = Annotated[str | None, typer.Option(metavar="NAME", help="a label the model was trained with")]
Prompt = Annotated[str | None, typer.Option(metavar="TEXT", help="what to draw, for models trained with text")]
Codebooks = Annotated[
    int | None, typer.Option(metavar="Q", min=1, help="keep the first Q codebooks of a residual tokenizer")
]
OutFolder = Annotated[Path, typer.Option(metavar="DIR", help="where the pictures go")]


@app.command()
def quickstart(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="the generator's run; the tokenizer's is DIR/tokenizer")
    ] = Path("runs/quickstart"),
    device: Device = "auto",
) -> None:
    """Real pictures in, new pictures out, report written: minutes on a laptop."""
    from smalti.runs import quickstart as begin

    begin(out, device)


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """The recipes to train: name, data, time, result."""
    from smalti.recipes import listing

    entries = listing()
    if as_json:
        _print_json([vars(entry) for entry in entries])
        return
    for entry in entries:
        print(f"{entry.name}\n    {entry.what}\n    data: {entry.data}")
        print(f"    time: {entry.time}\n    result: {entry.result}" if entry.result else "    not measured yet")


@app.command()
def data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a folder of pictures, or a named set")],
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="a sheet of 64 of the pictures to write")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch data, read all of it, and tell what is in there and what is broken."""
    from smalti.data.loader import broken_in
    from smalti.data.sources import DataConfig, describe, open_source
    from smalti.evaluation.pages import contact_sheet

    config = DataConfig(source=source)
    about = describe(config)
    splits = [open_source(config, split) for split in about["splits"]]
    about["broken"] = {name: reason for each in splits for name, reason in broken_in(each, config)}
    _print_json(about) if as_json else _print_tree({**about, "broken": about["broken"] or "nothing"})
    if out is not None:
        contact_sheet(open_source(config, "train"), out)
        _say(f"wrote {out}")


@app.command(cls=WithFields)
def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="a name from `smalti recipes`")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="where the run goes, else runs/RECIPE")] = None,
    steps: Annotated[int | None, typer.Option(help="how many steps, the same as --training.steps")] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="RUN", help="start from this run's weights, and its tokenizer")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="continue an interrupted run")] = None,
    device: Device = "auto",
) -> None:
    """Train a recipe. Any of its fields is an option: smalti train fashion --training.lr 5e-4 --model.layers 8."""
    from smalti import runs

    changes: dict[str, Any] = dict(context.obj)
    if steps is not None:
        changes["training.steps"] = steps
    if resume is not None:
        if recipe or changes or data or init or out:
            raise UserError("--resume continues a run exactly as it was; give it no recipe and no other option")
        done = runs.resume(resume, device)
    elif recipe is None:
        raise UserError("name a recipe (`smalti recipes` lists them), or --resume DIR")
    else:
        done = runs.train(recipe, data, out, changes, init, device)
    if not done.finished:
        raise typer.Exit(INTERRUPTED)


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where to look")] = Path("runs"), as_json: AsJson = False
) -> None:
    """What has been trained."""
    from smalti.runs import listed

    found = listed(folder)
    if as_json:
        _print_json(found)
    elif not found:
        print(f"no runs in {folder}")
    else:
        shown = ("run", "recipe", "step", "steps", "seconds")
        _print_table(shown, [[row.get(key) for key in shown] for row in found])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of runs")],
    as_json: AsJson = False,
) -> None:
    """Figures of several runs side by side, and the settings in which they differ."""
    from smalti.runs import differences, summary

    columns = [summary(path) for path in runs]
    if as_json:
        _print_json({"runs": columns, "differences": differences(runs)})
        return
    keys = list(dict.fromkeys(key for column in columns for key in column if key != "run"))
    rows = [[name, *[column.get(key) for column in columns]] for name, key in _outline(keys)]
    _print_table(["", *[column["run"] for column in columns]], rows)
    settings = differences(runs)
    if settings:
        print()
        _print_table(["differs", *map(str, runs)], [[key, *values] for key, values in settings.items()])


@app.command(cls=WithFields)
def evaluate(
    context: typer.Context,
    run: RunArgument,
    data: Data = None,
    samples: Annotated[int, typer.Option(min=16, help="pictures a generator draws")] = 2000,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Figures on held-out examples, beside those of real ones; kept in the run and its model card.

    With other data, or other options of sampling (--temperature, --top-k, --guidance …), they are only printed.
    """
    from smalti.evaluation.evaluate import evaluate as measure
    from smalti.model import Generator, load
    from smalti.runs import keep_figures

    model = load(run, device)
    options = _options(model, context.obj) if isinstance(model, Generator) and context.obj else None
    if context.obj and options is None:
        raise UserError(f"did not expect --{next(iter(context.obj))}: {run} is {model.kind}, which does not sample")
    figures = measure(model, data, samples, options)
    _print_json(figures) if as_json else _print_figures(figures)
    if data is None and options is None:
        keep_figures(run, figures)


@app.command()
def reconstruct(
    run: RunArgument, files: Files, out: OutFolder, codebooks: Codebooks = None, device: Device = "auto"
) -> None:
    """Pictures through a tokenizer and back, at their own size."""
    from smalti.sampling.codes import reconstruct_files

    for path, psnr in reconstruct_files(_tokenizer(run, device), files, out, codebooks):
        print(f"{path}  {psnr:.2f} dB")


@app.command()
def encode(
    run: RunArgument,
    files: Files,
    out: Annotated[Path, typer.Option(metavar="CODES.safetensors", help="the file of codes to write")],
    codebooks: Codebooks = None,
    shard_size: Annotated[
        float,
        typer.Option(metavar="MIB", min=1e-6, max=2**20, help="more codes than this go to several files and an index"),
    ] = 256,
    device: Device = "auto",
) -> None:
    """Cut pictures of any size into codes."""
    from smalti.sampling.codes import encode_files

    if shard_size != shard_size:  # no number is below it nor above it
        raise UserError("--shard-size nan is no number of MiB")
    done = encode_files(_tokenizer(run, device), files, out, codebooks, int(shard_size * 2**20))
    print(
        f"{done.place}: {done.pictures:,} pictures, {done.code_bits:,.0f} bits of codes"
        f" ({done.code_bits / done.pixels:.2g} a pixel) for {done.pixel_bits:,} bits of pixels"
        f" and {done.file_bytes:,} bytes of files"
    )


@app.command()
def decode(
    run: RunArgument,
    codes: Annotated[
        Path,
        typer.Argument(metavar="CODES.safetensors", help="written by `smalti encode`: a file, or an index of several"),
    ],
    out: OutFolder,
    device: Device = "auto",
) -> None:
    """Lay pictures from their codes, at their own size."""
    from smalti.sampling.codes import decode_files

    for path in decode_files(_tokenizer(run, device), codes, out):
        print(path)


@app.command()
def codes(run: RunArgument, data: Data = None, as_json: AsJson = False, device: Device = "auto") -> None:
    """How a tokenizer's codebook is used on held-out examples; a report with the codes' pictures."""
    from smalti.evaluation.code_pages import analyse_codes

    figures, report = analyse_codes(_tokenizer(run, device), data, run)
    if as_json:
        _print_json(figures)
    else:
        each = figures.pop("codebooks")
        if len(each) > 1:  # which codes they are, and how often each was used, is for --json
            plain = [{k: v for k, v in one.items() if not isinstance(v, list)} for one in each]
            figures["each_codebook"] = {str(q): one for q, one in enumerate(plain, start=1)}
        _print_figures(figures)
    _say(f"report {report}")


@app.command(cls=WithFields)
def sample(
    context: typer.Context,
    run: RunArgument,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="for models trained with text")] = None,
    label: Label = None,
    n: Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="how many")] = 16,
    seed: Seed = 0,
    best_of: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, max=10_000, help="of K drawn, keep what likeliest is the label or the prompt"),
    ] = None,
    out: OutFolder = Path("samples"),
    animate: Annotated[
        Path | None, typer.Option(metavar="FILE.gif", help="how the first 16 come about; FILE.png for strips")
    ] = None,
    device: Device = "auto",
) -> None:
    """New pictures, one file each, of anything or of what a prompt says.

    The paradigm's options are options here: --temperature, --top-k, --guidance … A continuous tokenizer draws from its
    prior, and takes --n and --seed only.
    """
    from smalti.config import changed
    from smalti.evaluation.best import bests
    from smalti.model import Reader, Tokenizer, load
    from smalti.sampling.animate import animate_samples, animation_kind
    from smalti.sampling.files import drawing, sample_path, spare, write_samples

    model = load(run, device)
    if isinstance(model, Tokenizer) and model.network.continuous:
        asked = {
            "a prompt": prompt,
            "--label": label,
            "--best-of": best_of,
            "--animate": animate,
            **{f"--{k}": v for k, v in context.obj.items()},
        }
        if words := [word for word, value in asked.items() if value is not None]:
            raise UserError(
                f"did not expect {words[0]}: {run} is a continuous tokenizer, which draws from its prior alone"
            )
        spare(sample_path(out, index) for index in range(n))
        first, last = _ends(write_samples(chain.from_iterable(model.samples(n, seed)), out, model, seed))
    else:
        generator = _generating(model, run)
        options = _picture_options(generator, context.obj)
        asked_for = _asked_for(generator, run, prompt, label)
        spare(sample_path(out, index, asked_for) for index in range(n))  # before anything is drawn for nothing
        if generator.words and best_of is not None:
            if not isinstance(generator, Reader):
                raise UserError("--best-of keeps what reads most like the prompt, and this model cannot read")
            if asked_for is None:
                raise UserError("--best-of keeps what reads most like the prompt; say what to draw")
            options, best_of = changed(options, {"best_of": best_of}), None
        told = {"smalti:options": options.model_dump_json()}
        if animate is not None:
            animation_kind(animate)  # before anything is drawn for nothing
            if best_of is not None:
                raise UserError("--animate shows how samples come about, not which are kept; leave --best-of out")
        with drawing(n * (best_of or 1)) as line:
            if best_of is None:
                drawn = generator.samples(n, asked_for, seed, options, line.told)
            else:
                drawn = bests(generator, n, asked_for, best_of, seed, options, progress=line.told)
                told["smalti:best-of"] = str(best_of)
            pictures = chain.from_iterable(drawn)
            first, last = _ends(write_samples(pictures, out, generator, seed, asked_for, told))
        if animate is not None:
            with drawing(min(n, 16)) as line:
                animate_samples(generator, min(n, 16), asked_for, seed, options, animate, line.told)
            _say(f"wrote {animate}")
    print(f"{n} pictures in {out}: {first.name} … {last.name}")


@app.command(cls=WithFields)
def caption(
    context: typer.Context,
    run: RunArgument,
    files: Files,
    seed: Seed = 0,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Pictures put into words.

    Options: --text-temperature, --text-top-k, --text-top-p, --most-text, and --text-best-of K, which keeps of K
    captions the one by which the model would most likely draw the picture.
    """
    from smalti.sampling.reading import caption_files

    reader = _reader(run, device)
    _print_told(caption_files(reader, files, seed, _text_options(reader, context.obj)), as_json)


@app.command(cls=WithFields)
def ask(
    context: typer.Context,
    run: RunArgument,
    words: Annotated[
        list[str], typer.Argument(metavar='FILE… "QUESTION"', help="pictures, then the question about each of them")
    ],
    seed: Seed = 0,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """A question about pictures: smalti ask RUN FILE "which group?"."""
    from smalti.sampling.reading import ask_files

    *files, question = words
    if not files:
        raise UserError('ask takes a picture, then the question: smalti ask RUN FILE "which group?"')
    if os.path.exists(question):  # which a question too long for a name does not trip
        raise UserError(f"{question} is a file, and the question is missing; it comes last, in quotes")
    reader = _reader(run, device)
    _tell_if_cut(reader, question, "question")
    _print_told(ask_files(reader, files, question, seed, _text_options(reader, context.obj)), as_json)


@app.command(cls=WithFields)
def complete(
    context: typer.Context,
    run: RunArgument,
    files: Files,
    out: OutFolder = Path("completions"),
    keep: Annotated[
        float | None, typer.Option(help="how much is kept from the top: a share (0.5), or a number of codes (1)")
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="PNG", help="white is kept, black drawn anew")] = None,
    label: Label = None,
    prompt: Prompt = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Keep part of real pictures and draw the rest anew."""
    from smalti.sampling.complete import complete as finish
    from smalti.sampling.complete import first_part, mask_from_file
    from smalti.sampling.files import remade

    if (keep is None) == (mask is None):
        raise UserError("say what to keep: either --keep 0.5 or --mask PNG")
    generator = _generator(run, device)
    options, asked_for = _picture_options(generator, context.obj), _asked_for(generator, run, prompt, label)
    if mask is not None:
        kept = mask_from_file(mask, generator.shape, generator.signal.shape, 1)
    else:
        kept = first_part(generator.shape, 1, keep or 0)

    def done(x: Tensor, progress: Progress) -> Tensor:
        return finish(generator, x, kept.expand(len(x), *kept.shape[1:]), asked_for, seed, options, progress)

    for path in remade(generator, files, out, done):
        print(path)


@app.command(cls=WithFields)
def vary(
    context: typer.Context,
    run: RunArgument,
    files: Files,
    level: Annotated[float, typer.Option(help="how much is noised, above 0 and up to 1, which leaves nothing")] = 0.5,
    out: OutFolder = Path("variations"),
    label: Label = None,
    prompt: Prompt = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Other pictures like these: noised in part, and the noise undone."""
    from smalti.sampling.files import remade

    generator = _generator(run, device)
    options, asked_for = _picture_options(generator, context.obj), _asked_for(generator, run, prompt, label)
    for path in remade(generator, files, out, lambda x, told: generator.vary(x, level, asked_for, seed, options, told)):
        print(path)


@app.command()
def morph(
    run: RunArgument,
    first: Annotated[Path, typer.Argument(metavar="FILE", help="the picture it starts from")],
    second: Annotated[Path, typer.Argument(metavar="FILE", help="the picture it ends at, of the same size")],
    steps: Annotated[int, typer.Option(min=2, help="pictures in the strip, both ends included")] = 8,
    out: Annotated[Path, typer.Option(metavar="STRIP.png", help="the strip to write")] = Path("morph.png"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="which positions change over first")] = 0,
    through: Annotated[
        str,
        typer.Option(metavar="codes|noise", help="noise: the way between the noises a diffusion model makes them of"),
    ] = "codes",
    label: Label = None,
    device: Device = "auto",
) -> None:
    """From one picture to another, as a strip: their codes cross-faded, or the noise between them walked."""
    from smalti.sampling.morph import morph_files, morph_files_in_noise

    if through not in ("codes", "noise"):
        raise UserError(f"--through {through}: a morph goes through codes or through noise")
    if through == "noise":
        morph_files_in_noise(_generator(run, device), first, second, steps, label, out)
    elif label is not None:
        raise UserError("--label goes with --through noise; codes need none")
    else:
        morph_files(_tokenizer(run, device), first, second, steps, seed, out)
    print(out)


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the model folder to write")],
    dtype: Annotated[str, typer.Option(metavar="bf16|fp32", help="what the weights are kept in")] = "bf16",
) -> None:
    """A model to hand on, without what only training needs: half the size in bf16."""
    import torch

    from smalti.checkpoint import export as write

    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in kinds:
        raise UserError(f"--dtype {dtype}: weights are kept in bf16 or fp32")
    print(f"{out}: {write(run, out, kinds[dtype]):,} bytes")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, device, precision chosen, speed measured, what is missing."""
    from smalti.doctor import examine

    found = examine()
    _print_json(found) if as_json else _print_tree(found)


def main() -> None:
    """Run the command line. A user's mistake is one line and status 2; a bug keeps its traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may be no text
    try:
        status = app(None if sys.argv[1:] else ["--help"], prog_name="smalti", standalone_mode=False)
        if status == INTERRUPTED:
            _say("smalti: interrupted; what was written stays")
    except UserError as error:
        _say(f"smalti: {error}")
        status = 2
    except typer.TyperException as error:  # what the parser of the command line did not understand
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        _say(f"smalti: {' '.join(error.format_message().split()).rstrip('.')}{hint}")
        status = 2
    except BrokenPipeError:  # whoever read our lines has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:  # a full disk, a folder that is not to be written to
        where = f"{error.filename}: " if error.filename else ""
        _say(f"smalti: {where}{error.strerror or error}")
        status = 2
    sys.exit(status)


def _tokenizer(run: Path, device: str) -> Tokenizer:
    from smalti.model import load_tokenizer

    return load_tokenizer(run, device)


def _generator(run: Path, device: str) -> Generator:
    from smalti.model import load

    return _generating(load(run, device), run)


def _reader(run: Path, device: str) -> Reader:
    from smalti.model import Reader, load

    model = load(run, device)
    if isinstance(model, Reader):
        return model
    raise UserError(f"{run} was trained without text, and says nothing about pictures; train one with captions")


def _asked_for(generator: Generator, run: Path, prompt: str | None, label: str | None) -> str | None:
    """The prompt, or the label as the model writes it, whichever the model knows; None where none is given."""
    if prompt is None:
        ids = generator.label_ids(label, 1)
        return None if ids is None else generator.labels[int(ids)]
    if not generator.words:
        raise UserError(f"{run} was trained without text; ask for one of its labels with --label")
    if label is not None:
        raise UserError("this model draws what a prompt says; leave --label out")
    if not prompt.strip():
        raise UserError("the prompt is empty: say what to draw, or leave it out for anything")
    _tell_if_cut(generator, prompt, "prompt")
    return prompt


def _tell_if_cut(generator: Generator, text: str, kind: str) -> None:
    if (read := generator.read_of(text)) != text:
        _say(f"the {kind} is longer than the model reads; left out is what follows …{read[-30:]!r}")


def _print_told(told: Iterable[tuple[Path, str]], as_json: bool) -> None:
    """What was said of each file: a line each, or one object."""
    if as_json:
        _print_json({str(path): text for path, text in told})
        return
    for path, text in told:
        print(_in_a_line(f"{path}  {text}"))


def _in_a_line(text: str) -> str:
    """Without control characters: a model may say any byte, and a file may have any name."""
    return "".join(" " if unicodedata.category(each) == "Cc" else each for each in text)


def _generating(model: Model, run: Path) -> Generator:
    from smalti.model import Generator, Tokenizer

    if isinstance(model, Generator):
        return model
    if isinstance(model, Tokenizer):
        model.codebooks()  # a continuous tokenizer says that it has none
        raise UserError(f"{run} holds a tokenizer, which draws nothing new; train a generator over it first")
    raise UserError(f"{run} holds {model.kind}, which draws nothing; choose a generator's run")


def _ends(paths: Iterator[Path]) -> tuple[Path, Path]:
    """The first and the last of what may be too many to hold."""
    first = last = next(paths)
    for path in paths:
        last = path
    return first, last


def _options(generator: Generator, fields: dict[str, str]) -> Config:
    """The paradigm's options, with those given on the command line changed."""
    from smalti.config import changed

    return changed(generator.options, fields)


def _picture_options(generator: Generator, fields: dict[str, str]) -> Config:
    """The same where pictures are drawn; those of text would do nothing. Raises UserError on them."""
    options = _options(generator, fields)
    for name in fields:
        if "text" in name:
            raise UserError(f"--{name.replace('_', '-')} is of writing, and here pictures are drawn: leave it out")
    return options


def _text_options(reader: Reader, fields: dict[str, str]) -> Config:
    """The same where text is written; those of pictures would do nothing. Raises UserError on them."""
    options = _options(reader, fields)
    for name in fields:
        if "text" not in name:
            asked = name.replace("_", "-")
            raise UserError(f"--{asked} is of drawing, and here text is written: try --text-temperature")
    return options


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _print_tree(value: dict[str, Any], indent: str = "") -> None:
    for key, each in value.items():
        if isinstance(each, dict):
            print(f"{indent}{key}")
            _print_tree(each, indent + "  ")
        else:
            print(f"{indent}{key}: {_shown(each)}")


def _print_figures(figures: dict[str, Any]) -> None:
    """Plain figures as lines; groups that share their names as one table, a column each."""
    groups = {key: value for key, value in figures.items() if isinstance(value, dict)}
    _print_tree({key: value for key, value in figures.items() if not isinstance(value, dict)})
    columns = {name: groups.pop(name) for name in ("samples", "real", "reconstructed") if name in groups}
    tables = {"": columns} if columns else {}
    tables |= {
        name: group for name, group in groups.items() if group and all(isinstance(v, dict) for v in group.values())
    }
    for name, table in tables.items():
        names = list(dict.fromkeys(key for column in table.values() for key in column))
        print()
        _print_table([name, *table], [[key, *[column.get(key) for column in table.values()]] for key in names])
    rest = {key: value for key, value in groups.items() if key not in tables}
    if rest:
        print()
        _print_tree(rest)


def _outline(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Dotted keys by groups: (what is shown, the key); a group's heading stands for no key, "".

    Keys of one group stand together, in the place of the first of them, and so do groups within one group.
    """
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rpartition(".")[0] or key, []).append(key)
    outer = list(dict.fromkeys(name.partition(".")[0] for name in groups))
    shown = []
    for name in sorted(groups, key=lambda name: outer.index(name.partition(".")[0])):
        if groups[name] == [name]:
            shown.append((name, name))
        else:
            shown.append((name.replace(".", " "), ""))
            shown += [(f"  {key.rpartition('.')[2]}", key) for key in groups[name]]
    return shown


def _print_table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> None:
    cells = [[_shown(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
