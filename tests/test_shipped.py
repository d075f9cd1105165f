"""The models that come with smalti."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from tests.tiny import smalti as smalti

from smalti.checkpoint import SHIPPED, shipped
from smalti.data.image import read_image, to_pixels, to_signal
from smalti.data.scene import GROUNDS
from smalti.evaluation.scenes import ground_of
from smalti.model import Reader, load
from smalti.recipe import Recipe, parse
from smalti.recipes import recipe

MOST_BYTES = 20_000_000
SOMEWHERE = re.compile(r"[\"'\s(]/\w+/")  # a path of the machine that it was trained on


@pytest.fixture(scope="module")
def emoji() -> Reader:
    model = load("emoji", "cpu")
    assert isinstance(model, Reader)
    return model


@pytest.mark.parametrize("name", shipped())
def test_it_is_small_and_knows_no_machine(name):
    files = [path for path in (SHIPPED / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    for path in files:
        if path.suffix in (".json", ".md"):
            assert not SOMEWHERE.search(path.read_text(encoding="utf-8")), path


def test_its_card_tells_how_it_was_trained_and_what_was_measured():
    card = (SHIPPED / "emoji" / "README.md").read_text(encoding="utf-8")
    for told in ("minutes of training", "scenes drawn", "drawings read", "## Recipe", "licence"):
        assert told in card


@pytest.mark.parametrize("name", shipped())
def test_the_recipes_that_made_it_are_those_of_today(name):
    """Or nobody could make it again."""
    config = SHIPPED / name / "config.json"
    made = parse(json.loads(config.read_text(encoding="utf-8"))["recipe"], str(config))
    assert isinstance(made.tokenizer, Recipe)
    for each in (made, made.tokenizer):
        today = recipe(each.name)
        for part in ("data", "model", "paradigm", "training"):
            assert getattr(each, part) == getattr(today, part), (each.name, part)


def test_a_prompt_becomes_a_picture(smalti, tmp_path):
    told = smalti("sample", "emoji", "red heart", "--n", "1", "--out", str(tmp_path / "out"))
    assert told.status == 0, told.err
    (picture,) = (tmp_path / "out").iterdir()
    red, green, blue = read_image(picture, 3)[:, 16:40, 24:40].reshape(3, -1).float().mean(1)
    assert red > 180 > 100 > max(green, blue)
    assert len(smalti("caption", "emoji", str(picture)).out.splitlines()) == 1


def test_the_ground_is_as_asked(emoji):
    grounds = list(GROUNDS) * 2
    x = emoji.sample(len(grounds), [f"a rocket, on {ground}" for ground in grounds], seed=0)
    drawn = [ground_of(picture) for picture in to_pixels(x)]
    assert sum(one == other for one, other in zip(drawn, grounds, strict=True)) >= 0.9 * len(grounds)


def test_a_plain_ground_is_seen(emoji):
    """Pictures that no model has drawn: nothing but a colour."""
    pixels = torch.tensor(list(GROUNDS.values()), dtype=torch.uint8)[:, :, None, None].expand(-1, 3, 64, 64)
    seen = emoji.ask(to_signal(pixels), "what colour is the ground?")
    assert sum(one == other for one, other in zip(seen, GROUNDS, strict=True)) >= 0.8 * len(GROUNDS), seen


def test_another_prompt_is_another_picture(emoji):
    hearts, apples = emoji.sample(4, "red heart", seed=0), emoji.sample(4, "green apple", seed=0)
    assert not torch.equal(hearts, apples)


def test_no_compiler_is_loaded_for_a_picture():
    """It takes torch a second, of the few that a newcomer waits."""
    draw = "import smalti, sys; smalti.load('emoji', 'cpu').sample(1, 'red heart')"
    code = f"{draw}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240, check=False).returncode == 0
