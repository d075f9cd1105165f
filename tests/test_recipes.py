from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from PIL import Image
from tests.tiny import pictures

from smalti import model as models
from smalti.config import Examples, LatentSpec, SignalSpec, TextSpec
from smalti.data.named import NAMED_SETS
from smalti.errors import UserError
from smalti.recipe import Recipe, parse
from smalti.recipes import RECIPES, listing, on_source, recipe
from smalti.recipes.folder import STRIDES, choose, expectation

SIGNALS = {
    "fashion-mnist": SignalSpec(channels=1, shape=(28, 28)),
    "cifar10": SignalSpec(channels=3, shape=(32, 32)),
    **{name: SignalSpec(channels=3, shape=(64, 64)) for name in NAMED_SETS if name.startswith("emoji")},
}
TEXT = TextSpec(pieces=300, sha256="")


def made(name: str, tmp_path) -> Recipe:
    needs_folder = "source" in inspect.signature(RECIPES[name]).parameters
    return recipe(name, str(pictures(tmp_path / "data", each=30)) if needs_folder else None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name, tmp_path):
    one = made(name, tmp_path)
    assert one.name == name
    for each in (one.tokenizer, one) if isinstance(one.tokenizer, Recipe) else (one,):
        signal = SIGNALS.get(each.data.source) or SignalSpec(channels=each.data.channels, shape=each.data.shape)
        if each.paradigm.makes == "tokenizer":
            paradigm = models.build(each, Examples(signal=signal, labels=("a", "b")))
            network = paradigm.tokenizer
            grid, made_of = tuple(side // network.stride for side in signal.shape), {}
            made_of["latents"] = LatentSpec(channels=network.bottleneck.out_width, grid=grid)
            if not network.continuous:
                made_of["codes"] = network.codes
                assert network.codes.grid == grid
        else:
            if each.tokenizer is None:
                made_of = {}
            paradigm = models.build(each, Examples(signal=signal, labels=("a", "b"), text=TEXT, **made_of))
        assert sum(p.numel() for p in paradigm.parameters()) > 10_000


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back_through_json(name, tmp_path):
    one = made(name, tmp_path)
    assert parse(json.loads(one.json_text()), name) == one


def test_the_list_is_read_from_the_docstrings():
    entries = {entry.name: entry for entry in listing()}
    assert list(entries) == list(RECIPES)
    for name, entry in entries.items():
        text = inspect.getdoc(RECIPES[name])
        assert entry.what
        assert entry.what in text
        assert entry.data, f"{name} says no data"
        assert f"data: {entry.data}" in text
        assert f"smalti train {name}" in text or f"smalti {name}" in text
        assert bool(entry.time) == bool(entry.result), f"{name}: a result without the time it took"


def test_the_table_row_of_the_issue():
    one = recipe("fashion-tokenizer")
    assert (one.model.bottleneck.kind, one.model.bottleneck.codes, one.model.strides) == ("vq", 128, (4,))
    assert recipe("cifar-tokenizer").model.bottleneck.codes == 512


def test_other_data():
    one = recipe("quickstart", "mnist-5k")
    assert (one.data.source, one.tokenizer.data.source) == ("mnist-5k", "mnist-5k")
    assert on_source(one, "fashion-mnist") == recipe("quickstart")


def test_what_is_not_there():
    with pytest.raises(UserError, match=r"unknown recipe 'fasion'; nearest: fashion"):
        recipe("fasion")
    with pytest.raises(UserError, match="needs a folder of pictures: smalti train folder --data FOLDER"):
        recipe("folder")


# --- a folder of one's own -------------------------------------------------------------------------------------------


def folder_of(path, count: int, size: tuple[int, int], colour: bool, text: bool = False):
    path.mkdir()
    for i in range(count):
        shade = np.full((*size, 3) if colour else size, i % 200, np.uint8)
        shade[0, 0] = i // 200
        if colour:
            shade[1, 1] = (250, 3, 40)
        Image.fromarray(shade).save(path / f"{i}.png")
    if text:
        lines = [json.dumps({"file_name": f"{i}.png", "text": "left of it"}) for i in range(count)]
        (path / "metadata.jsonl").write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("count", "size", "side"),
    [(40, (16, 16), 16), (40, (20, 31), 16), (40, (40, 32), 32), (40, (100, 70), 64), (3, (200, 300), 128)],
)
def test_the_side_is_the_largest_that_the_pictures_fill(count, size, side, tmp_path):
    choice = choose(folder_of(tmp_path / "data", count, size, colour=False))
    assert (choice.side, choice.channels, choice.labels) == (side, 1, 0)
    assert choice.side in STRIDES


def test_codes_and_network_grow_with_the_number_of_pictures(tmp_path):
    few = choose(folder_of(tmp_path / "few", 30, (16, 16), colour=True))
    more = choose(folder_of(tmp_path / "more", 900, (16, 16), colour=True))
    assert few.channels == more.channels == 3
    assert few.codes < more.codes
    for choice in (few, more):
        # a hundred training tokens a code, as it says, unless there are too few for even the smallest codebook
        assert choice.codes == 64 or 100 * choice.codes <= 64 * choice.pictures
    assert few.dropout >= more.dropout


def test_captions_are_not_mirrored(tmp_path):
    assert choose(folder_of(tmp_path / "a", 30, (16, 16), colour=False)).flip
    told = choose(folder_of(tmp_path / "b", 30, (16, 16), colour=False, text=True))
    assert not told.flip
    assert "not mirrored" in told.why


@pytest.mark.parametrize("name", ["folder", "folder-words", "folder-tokenizer"])
def test_it_says_what_it_chose_and_why(name, tmp_path, capsys):
    source = str(pictures(tmp_path / "data", each=30))
    one = recipe(name, source)
    told = capsys.readouterr().err
    cutter = one.tokenizer or one
    side, codes = cutter.data.shape[0], cutter.model.bottleneck.codes
    for word in (source, "57 training pictures", "2 labels", f"{side}×{side}", f"{codes} codes", "transformer"):
        assert word in told


def test_it_says_what_to_expect_of_so_many_captions(tmp_path, capsys):
    one = recipe("folder-words", folder_of(tmp_path / "data", 200, (16, 16), colour=False, text=True))
    assert "190 captioned pictures are few" in capsys.readouterr().err
    assert one.paradigm.words
    assert not one.data.flip
    assert len({expectation(count) for count in (200, 2_000, 20_000)}) == 3


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        recipe("folder", str(tmp_path / "none"))


def test_every_recipe_names_data_that_there_is():
    for entry in listing():
        assert entry.data.split(",")[0] in NAMED_SETS or "folder" in entry.data


def test_from_next_token_to_simple_diffusion_is_at_most_three_lines():
    """What differs between the two recipes, line by line of what somebody would write."""
    source = inspect.getsource(RECIPES["fashion-simple-diffusion"])
    assert "return fashion().changed(" in source
    assert len([line for line in source.splitlines() if line.strip().startswith('"') and '":' in line]) <= 3
    one, other = recipe("fashion"), recipe("fashion-simple-diffusion")
    assert (one.data, one.model, one.training, one.tokenizer) == (
        other.data,
        other.model,
        other.training,
        other.tokenizer,
    )
    assert other.paradigm.kind == "discrete-diffusion"
    assert other.paradigm.scheme == "simple"
