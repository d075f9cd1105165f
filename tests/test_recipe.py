from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data.sources import DataConfig
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig
from smalti.recipe import Recipe, TrainingConfig, override, parse, read
from smalti.recipes import RECIPES
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

TOKENIZER = Recipe(
    name="small",
    data=DataConfig(source="pictures", shape=(8, 12)),
    model=AutoencoderConfig(strides=(2, 2)),
    paradigm=AutoencodeConfig(),
)
GENERATOR = Recipe(
    name="small-generator",
    data=DataConfig(source="pictures"),
    model=TransformerConfig(width=32),
    paradigm=AutoregressiveConfig(),
    tokenizer=TOKENIZER,
)


def every_recipe() -> list[Recipe]:
    """All of the table that need no folder to look at first, and ours."""
    made = [make() for make in RECIPES.values() if "source" not in inspect.signature(make).parameters]
    return [*made, TOKENIZER, GENERATOR]


@pytest.mark.parametrize("recipe", every_recipe(), ids=lambda recipe: recipe.name)
def test_json_both_ways(recipe, tmp_path):
    assert parse(json.loads(recipe.json_text()), "here") == recipe
    (tmp_path / "recipe.json").write_text(recipe.json_text())
    assert read(tmp_path / "recipe.json") == recipe
    assert read(tmp_path / "recipe.json").json_text() == recipe.json_text()


def test_every_default_is_spelled_out():
    tree = json.loads(TOKENIZER.json_text())
    assert tree["training"].keys() == TrainingConfig.model_fields.keys()
    assert tree["model"]["bottleneck"] == {"kind": "vq", **VQConfig().model_dump(mode="json")}
    assert tree["init"] is None


# --- changing a field ------------------------------------------------------------------------------------------------

CHANGES = {
    "a number": ({"training.steps": "10"}, lambda r: r.training.steps == 10),
    "a fraction": ({"training.lr": "2e-3"}, lambda r: r.training.lr == 2e-3),
    "as itself": ({"training.steps": 10}, lambda r: r.training.steps == 10),
    "a word": ({"training.precision": "fp32"}, lambda r: r.training.precision == "fp32"),
    "with a hyphen": ({"training.micro-batch": "32"}, lambda r: r.training.micro_batch == 32),
    "true": ({"data.flip": "true"}, lambda r: r.data.flip is True),
    "True": ({"data.flip": "True"}, lambda r: r.data.flip is True),
    "none": ({"data.shape": "none"}, lambda r: r.data.shape is None),
    "several with commas": ({"model.strides": "2,3"}, lambda r: r.model.strides == (2, 3)),
    "several as JSON": ({"model.strides": "[2, 3]"}, lambda r: r.model.strides == (2, 3)),
    "one where several may stand": ({"model.strides": "4"}, lambda r: r.model.strides == (4,)),
    "deep": ({"model.bottleneck.codes": "64"}, lambda r: r.model.bottleneck.codes == 64),
    "a path": ({"init": "runs/earlier"}, lambda r: r.init == "runs/earlier"),
    "a folder named like a number": ({"data.source": "2024"}, lambda r: r.data.source == "2024"),
    "a folder named with a comma": ({"data.source": "me, 2024"}, lambda r: r.data.source == "me, 2024"),
    "a name that means nothing": ({"name": "none"}, lambda r: r.name == "none"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_reaches_its_field(case):
    changes, holds = CHANGES[case]
    changed = override(TOKENIZER, changes)
    assert holds(changed)
    assert not holds(TOKENIZER)
    assert changed == TOKENIZER.changed(**changes)


def test_a_change_of_the_tokenizers_recipe():
    changed = override(GENERATOR, {"tokenizer.model.width": "8", "tokenizer.data.source": "others"})
    assert isinstance(changed.tokenizer, Recipe)
    assert (changed.tokenizer.model.width, changed.tokenizer.data.source) == (8, "others")
    assert changed.data.source == "pictures"
    assert override(GENERATOR, {"tokenizer": "runs/t"}).tokenizer == "runs/t"


@given(st.integers(1, 10**6), st.floats(1e-6, 1), st.booleans())
@settings(max_examples=20)
def test_no_other_field_moves(steps, lr, flip):
    changes = {"training.steps": str(steps), "training.lr": repr(lr), "data.flip": str(flip)}
    changed = override(TOKENIZER, changes)
    expected = TOKENIZER.model_copy(
        update={
            "training": TOKENIZER.training.model_copy(update={"steps": steps, "lr": lr}),
            "data": TOKENIZER.data.model_copy(update={"flip": flip}),
        }
    )
    assert changed == expected


def test_another_kind_starts_from_its_own_defaults():
    both = {
        "paradigm.kind": "autoregressive",
        "model.kind": "transformer",
        "model.width": "64",
        "tokenizer": "runs/t",
    }
    changed = override(TOKENIZER, both)
    assert changed.model == TransformerConfig(width=64)
    assert changed.paradigm == AutoregressiveConfig()
    again = override(TOKENIZER, dict(reversed(both.items())))  # the order of the command line does not matter
    assert again == changed


def test_the_same_kind_changes_nothing():
    assert override(TOKENIZER, {"model.kind": "autoencoder"}) == TOKENIZER


# --- what is wrong is named ------------------------------------------------------------------------------------------

WRONG = {
    "training.step": r"unknown field --training\.step; nearest: training\.steps",
    "trainin.steps": r"unknown field --trainin\.steps; nearest: training",
    "model.botleneck.codes": r"nearest: model\.bottleneck",
    "model.bottleneck.code": r"nearest: model\.bottleneck\.codes",
    "training.steps.more": r"unknown field --training\.steps\.more",
    "nothing_alike": "unknown field --nothing_alike",
    "tokenizer.model.width": "unknown field",  # a tokenizer has none
}


@pytest.mark.parametrize("name", WRONG)
def test_an_unknown_field_lists_the_nearest(name):
    with pytest.raises(UserError, match=WRONG[name]):
        override(TOKENIZER, {name: "1"})


FSQ = {"model.bottleneck.kind": "fsq"}
VALUES = {
    "out of range": ({"training.steps": "0"}, r": training\.steps: .*greater than or equal to 1.*given 0"),
    "not a number": ({"training.steps": "many"}, r"training\.steps: .*given 'many'"),
    "of a union": ({"model.width": "0"}, r": model\.width: .*given 0"),
    "deep in a union": ({"model.bottleneck.codes": "1"}, r": model\.bottleneck\.codes: "),
    "not finite": ({"training.lr": "NaN"}, r"training\.lr"),
    "not one of the words": ({"training.precision": "fp8"}, r"training\.precision: .*'fp32'"),
    "an unknown kind": ({"model.kind": "transformr"}, "no such kind; nearest: transformer"),
    "a kind of another table": ({"model.kind": "vq"}, r"model\.kind is not one of"),
    "a kind alone": ({"model.kind": "transformer"}, "paradigm autoencode trains model.kind autoencoder"),
    "a paradigm alone": ({"paradigm.kind": "autoregressive"}, "trains model.kind transformer, not autoencoder"),
    "micro-batches": ({"training.micro_batch": "100"}, r"training\.batch 128 is not a multiple"),
    "steps of no length": ({"model.strides": "[]"}, r"model\.strides"),
    "a stride of nothing": ({"model.strides": "2,0"}, r"model\.strides.*given 0"),
    "a level that is none": (
        {"model.bottleneck.kind": "fsq", "model.bottleneck.levels": "8,0"},
        r"model\.bottleneck\.levels.*given 0",
    ),
    "more codes than can be counted": (
        {"model.bottleneck.kind": "fsq", "model.bottleneck.levels": "8,8,8,8,8,8,8,8,8"},
        r"model\.bottleneck: levels make 134,217,728 codes, more than 16,777,216",
    ),
    "levels below one": ({**FSQ, "model.bottleneck.levels": "-3,5"}, r"model\.bottleneck\.levels\.0: "),
    "means that keep all": ({"training.betas": "0.9,1"}, r"training\.betas\.1: .*given 1"),
    "a seed too large": ({"training.seed": str(1 << 32)}, r"training\.seed: "),
    "a start before the first step": ({"paradigm.kind": "adversarial", "paradigm.start": "-5"}, r"paradigm\.start"),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_wrong_value_is_named_with_its_field(case):
    changes, words = VALUES[case]
    with pytest.raises(UserError, match=words) as caught:
        override(TOKENIZER, changes)
    assert "\n" not in str(caught.value)


def test_a_wrong_value_deep_in_a_generator():
    with pytest.raises(UserError, match=r": tokenizer\.model\.bottleneck\.codes: "):
        override(GENERATOR, {"tokenizer.model.bottleneck.codes": "1"})
    with pytest.raises(UserError, match=r": model: .*width 30 over 4 heads"):
        override(GENERATOR, {"model.width": "30"})


def test_wrong_pairs_are_refused():
    with pytest.raises(ValueError, match=r"trains model.kind transformer, not autoencoder"):
        Recipe(name="x", data=DataConfig(), model=AutoencoderConfig(), paradigm=AutoregressiveConfig(), tokenizer="t")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        Recipe(name="x", data=DataConfig(), model=TransformerConfig(), paradigm=AutoregressiveConfig())


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        TOKENIZER.training.steps = 3  # type: ignore[misc]


def test_a_recipe_file_that_is_not_one(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(UserError, match="no recipe at"):
        read(path)
    for text in ("", "{", "[]", "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"recipe\.json"):
            read(path)
    tree = json.loads(TOKENIZER.json_text())
    tree["training"]["stepps"] = 3
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"recipe\.json: unknown field training\.stepps"):
        read(path)
    del tree["training"]["stepps"], tree["data"]
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="data: Field required"):
        read(path)
