"""What a report shows of a tokenizer's codes: their use, their pictures, and why they need a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.data.image import to_signal
from smalti.evaluation.charts import code_grid, rate_distortion, usage_bars
from smalti.evaluation.codes import CodeMeter, rate, rate_of_original
from smalti.evaluation.evaluate import HeldOut, data_of, held_out, shuffled
from smalti.evaluation.plots import picture_grid, picture_rows
from smalti.evaluation.report import Report
from smalti.evaluation.tokenizers import CodeFigures
from smalti.model import Tokenizer
from smalti.sampling.morph import morph

ENOUGH = 10  # tokens a code, below which usage and perplexity are those of the sample rather than of the codebook
CODES_SHOWN = 512  # pictures of codes in a page, over all codebooks
LEAST_SHOWN = 64  # of one codebook
BOOKS_SHOWN = 8  # codebooks whose codes have pictures
ASKED = 500  # pictures that say what stands before and beside a code
WORDS_SHOWN = 5  # grids of codes: with their picture, two rows of three
ACROSS = 32  # pictures of codes in a row
CODE_SIDE = 24  # screen pixels, about
WHY_A_PRIOR = (
    "Codes drawn without regard to each other make no picture: neither from the whole codebook, nor from the codes that"
    " real pictures use, nor as often as they use them. What makes a picture is which codes stand together. That is"
    " what the generator, the prior over codes, has to learn."
)


def analyse_codes(tokenizer: Tokenizer, source: str | None, run: Path) -> tuple[dict[str, Any], Path]:
    """The use of a tokenizer's codes over the whole test split, and a page that shows it: figures, path of the page.

    Raises UserError for a continuous tokenizer, which has no codes.
    """
    spec, signal = tokenizer.network.codes, tokenizer.signal
    config = data_of(tokenizer, source)
    test = held_out(config)
    figures = CodeFigures(tokenizer)
    for start in range(0, len(test), 500):
        figures.rebuild(to_signal(test.pixels[start : start + 500]))
    report = Report(f"Codes of {tokenizer.recipe.name}", f"{config.source}: {len(test):,} held-out pictures")
    some = shuffled(test)
    codebooks(report, tokenizer, figures, some)
    picture_as_words(report, tokenizer, some)
    random_codes(report, tokenizer, figures.meter)
    path = report.write(run / "report" / "codes.html")
    told = {"data": config.source, "split": "test", "pictures": len(test), **figures.meter.result()}
    told |= {**rate(spec, signal), **rate_of_original(signal)}
    return told | ({"first_codebooks": figures.by_codebooks()} if figures.first else {}), path


def codebooks(report: Report, tokenizer: Tokenizer, figures: CodeFigures, test: HeldOut) -> None:
    """How the codes are used, codebook by codebook, what the first few give back, and what each code looks like."""
    meter, found, signal = figures.meter, figures.meter.result(), tokenizer.signal
    spec = figures.spec
    several = spec.codebooks > 1
    each = found["tokens"] // spec.codebooks
    said = (
        f"Counted over the {found['tokens']:,} codes of {found['tokens'] // spec.length:,} held-out pictures."
        " Perplexity is the number of codes that, used evenly, would say as much."
    )
    if each < ENOUGH * spec.size:
        said += f" With {each:,} tokens for {spec.size:,} codes, both the share in use and the perplexity come out low."
    report.section("The codebooks in use" if several else "The codebook in use", said)
    bits, original = rate(spec, signal), rate_of_original(signal)
    report.facts(
        {
            "codes used": f"{found['used']:,} of {spec.codebooks * spec.size:,}",
            "share": found["usage"],
            "perplexity": found["perplexity"],
            "perplexity / codes": found["perplexity_share"],
            "bits a code": found["entropy"],
            "bits a picture": f"{bits['bits_a_picture']:,.0f} of {original['bits_a_picture_of_original']:,}",
            "bits a pixel": bits["bits_a_pixel"],
        }
    )
    if several:
        report.table(_by_codebook(figures))
    report.picture(usage_bars(meter.counts[:BOOKS_SHOWN]), _first_of(spec.codebooks, "codebooks"))
    if figures.first:
        _fewer_codebooks(report, tokenizer, figures, test)
    _pictures_of_codes(report, tokenizer, meter, test)


def picture_as_words(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    """One held-out picture beside its codes."""
    x = to_signal(test.pixels[:1])
    codes = tokenizer.encode(x)[0]
    size, books = tokenizer.network.bottleneck.size, len(codes)
    if books == 1:
        kept = "This grid is all that is kept."
    else:
        kept = f"These {books} grids, of {size:,} codes each, are all that is kept" + (
            f"; the first {WORDS_SHOWN} are shown." if books > WORDS_SHOWN else "."
        )
    report.section("A picture as words", f"Each number is a code, and each code has one colour. {kept}")
    report.picture(code_grid(codes[:WORDS_SHOWN] if books > 1 else codes[0], size, x[0]))


def morphs(report: Report, tokenizer: Tokenizer, test: HeldOut, steps: int = 10) -> None:
    """Two strips from one held-out picture to another, code by code."""
    x = to_signal(test.pixels[:4])
    strips = [morph(tokenizer, x[i], x[i + 1], steps, seed=0) for i in (0, 2)] if len(x) >= 4 else []
    report.section(
        "Morphs",
        "From one held-out picture to another: more and more positions take the other's code, each blend containing"
        " the one before.",
    )
    if strips:
        report.picture(picture_grid(torch.cat(strips), steps))


def random_codes(report: Report, tokenizer: Tokenizer, meter: CodeMeter, n: int = 10) -> None:
    """Pictures of codes drawn at random: from all, from those in use, and as often as they are used."""
    spec, generator = tokenizer.network.codes, torch.Generator().manual_seed(0)
    length = n * spec.length // spec.codebooks
    used, often = [], []
    for q, counts in enumerate(meter.counts):
        codes = meter.used(q)
        used.append(codes[torch.randint(len(codes), (length,), generator=generator)])
        often.append(codes[torch.multinomial(counts[codes].double(), length, replacement=True, generator=generator)])
    rows = {"all codes": torch.randint(spec.size, (n, spec.codebooks, *spec.grid), generator=generator)}
    for name, drawn in (("used codes", used), ("as often as used", often)):
        rows[name] = torch.stack([each.view(n, *spec.grid) for each in drawn], 1)
    report.section("Why a prior is needed", WHY_A_PRIOR)
    report.picture(picture_rows({name: tokenizer.decode(codes) for name, codes in rows.items()}))


def code_pictures(tokenizer: Tokenizer, ids: Tensor, among: Tensor, place: int) -> Tensor:
    """What codes `ids` (n,) look like: the middle of a small grid that holds nothing else.

    Each takes the `place` in the combination `among` (Q,), one code for each codebook, or for the first few of them.
    -> (n, C, *space), as large as one position of the grid.
    """
    codes = among.repeat(len(ids), 1)
    codes[:, place] = ids
    return _middle(tokenizer, tokenizer.decode(_spread(tokenizer, codes)))


@torch.no_grad()
def added_pictures(tokenizer: Tokenizer, ids: Tensor, before: Tensor) -> Tensor:
    """What codes `ids` (n,) of a later codebook of a residual tokenizer add to those before it.

    `before` are real codes (B, q, *grid) of the q codebooks before. Each code is added to the mean of what these give;
    that mean alone comes first. -> (1 + n, C, *space), as large as one position of the grid.
    """
    lookup, device = tokenizer.network.bottleneck.lookup, tokenizer.device
    vectors = lookup(before.flatten(2).movedim(1, -1).to(device))
    mean = vectors.flatten(0, 1).float().mean(0, keepdim=True)
    # residual codes add up, so what a code adds is the same whatever stands before it
    base = before.new_zeros(1, 1, before.shape[1]).to(device)
    codes = torch.cat([base.expand(1, len(ids), -1), ids.view(1, -1, 1).to(device)], -1)
    latents = torch.cat([mean, mean + (lookup(codes) - lookup(base))[0]]).cpu()
    return _middle(tokenizer, tokenizer.decode_latents(_spread(tokenizer, latents)))


def most_common(codes: Tensor) -> Tensor:
    """The combination of codes that stands at most positions of codes (B, Q, *grid): (Q,)."""
    combinations, counts = codes.movedim(1, -1).flatten(0, -2).unique(dim=0, return_counts=True)
    return combinations[counts.argmax()]


def _spread(tokenizer: Tokenizer, each: Tensor) -> Tensor:
    """(n, D) -> (n, D, 3, …): the same at every position of a small grid."""
    axes = len(tokenizer.signal.shape)
    return each.view(*each.shape, *[1] * axes).expand(*each.shape, *[3] * axes)


def _middle(tokenizer: Tokenizer, x: Tensor) -> Tensor:
    """The middle position of such a grid, laid: (n, C, 3 stride, …) -> (n, C, stride, …)."""
    stride = tokenizer.network.stride
    for axis in range(2, x.ndim):
        x = x.narrow(axis, stride, stride)
    return x


def _by_codebook(figures: CodeFigures) -> list[dict[str, Any]]:
    """The table of codebooks: the use of each, and what it and those before it give back."""
    first = figures.by_codebooks()
    rows = []
    for q, one in enumerate(figures.meter.result()["codebooks"], start=1):
        row = {"codebook": q, "used": one["used"], "unused": figures.spec.size - one["used"], "share": one["usage"]}
        row |= {"perplexity": one["perplexity"], "perplexity / codes": one["perplexity_share"]}
        row |= {"bits a code": one["entropy"]}
        if first:
            told = first[str(q)]
            row |= {"up to here: bits a picture": round(told["bits_a_picture"]), "MSE": told["mse"]}
            row |= {"PSNR, dB": told["psnr"], "SSIM": told.get("ssim")}
        rows.append(row)
    return rows


def _fewer_codebooks(report: Report, tokenizer: Tokenizer, figures: CodeFigures, test: HeldOut) -> None:
    """Rate and distortion, and the pictures behind them."""
    first = figures.by_codebooks()
    names = {"psnr": "PSNR, dB", "ssim": "SSIM"}
    values = {name: [one[key] for one in first.values()] for key, name in names.items() if key in first["1"]}
    x = to_signal(test.pixels[:10])
    codes = tokenizer.encode(x)
    rows = {"original": x}
    for q in _some_of(figures.spec.codebooks):
        rows[f"{q} codebook" + "s" * (q > 1)] = tokenizer.decode(codes[:, :q])
    report.section(
        "Codebook by codebook",
        "Each codebook codes what those before it left over, so the first few alone give a picture.",
    )
    report.picture(rate_distortion([one["bits_a_picture"] for one in first.values()], values))
    report.picture(picture_rows(rows))


def _pictures_of_codes(report: Report, tokenizer: Tokenizer, meter: CodeMeter, test: HeldOut) -> None:
    """The most used codes of each codebook; those of a later one added to the mean of what stands before it."""
    books, residual = len(meter.counts), bool(tokenizer.network.bottleneck.fewer)
    shown = max(LEAST_SHOWN, CODES_SHOWN // books // ACROSS * ACROSS)
    codes = tokenizer.encode(to_signal(test.pixels[:ASKED]))
    scale = max(1, round(CODE_SIDE / tokenizer.network.stride))
    report.section("What the codes look like", "The most used come first. Each stands in the middle of its own kind.")
    for q in range(min(books, BOOKS_SHOWN)):
        ids, used = meter.most_used(q, shown), len(meter.used(q))
        said = f"all {used:,} codes that were used" if len(ids) == used else f"the {len(ids):,} most used of {used:,}"
        if residual and q:
            tiles = added_pictures(tokenizer, ids, codes[:, :q])
            said += ", each added to the mean of what the codebooks before it give, which comes first"
        else:
            tiles = code_pictures(tokenizer, ids, most_common(codes[:, :1] if residual else codes), q)
        said = f"codebook {q + 1}: {said}" if books > 1 else said
        report.picture(picture_grid(tiles, ACROSS, scale=scale), said)
    if books > BOOKS_SHOWN:
        report.text(f"Only the {_first_of(books, 'codebooks')} are shown.")


def _some_of(count: int) -> list[int]:
    """1 … count where these are few, else 1, 2, 4, … and the last."""
    if count <= BOOKS_SHOWN:
        return list(range(1, count + 1))
    return sorted({*(1 << place for place in range(count.bit_length())), count})


def _first_of(count: int, things: str) -> str:
    return f"first {BOOKS_SHOWN} of {count} {things}" if count > BOOKS_SHOWN else ""
