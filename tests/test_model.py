from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.paradigms.bert import bert
from tests.sampling.drawn import drawn_run
from tests.tiny import smalti as smalti

from smalti import device as devices
from smalti import model as models
from smalti.config import CodeSpec, Config, Examples, SignalSpec, TextSpec
from smalti.data.sources import DataConfig
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.model import Generator, Tokenizer, load, load_tokenizer
from smalti.model import folder as rebuilt
from smalti.model import generator as generators
from smalti.model import tokenizer as tokenizers
from smalti.paradigms.autoencode import AutoencodeConfig
from smalti.paradigms.autoregressive import AutoregressiveConfig, AutoregressiveOptions
from smalti.paradigms.base import Paradigm
from smalti.paradigms.diffusion import DiffusionConfig, DiffusionOptions
from smalti.paradigms.discrete_diffusion import DiscreteDiffusionConfig
from smalti.paradigms.text_encoder import TextEncoderConfig
from smalti.recipe import Recipe
from smalti.tokenizers import tiling
from smalti.tokenizers.autoencoder import AutoencoderConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig
from smalti.tokenizers.text import TextTokenizer

SIGNAL = SignalSpec(channels=1, shape=(8, 12))
LABELS = ("T-shirt/top", "Ankle boot", "Bag")
CUTTER = Recipe(
    name="small-tokenizer",
    data=DataConfig(source="small"),
    model=AutoencoderConfig(width=16, strides=(4,), blocks=1, bottleneck=VQConfig(codes=8, dim=4)),
    paradigm=AutoencodeConfig(),
)
LAYER = Recipe(
    name="small-generator",
    data=DataConfig(source="small"),
    model=TransformerConfig(layers=1, width=16, heads=2),
    paradigm=AutoregressiveConfig(sampling=AutoregressiveOptions(guidance=1.5)),
    tokenizer="elsewhere",
)


def drawn(recipe: Recipe, examples: Examples) -> Paradigm:
    """A paradigm with all of its weights and codes drawn: an untrained model prefers nothing."""
    paradigm, generator = models.build(recipe, examples), torch.Generator().manual_seed(1)
    for tensor in paradigm.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor, std=0.3, generator=generator)
    return paradigm


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The runs of a tokenizer and of a generator that carries it."""
    home = tmp_path_factory.mktemp("runs")
    examples = Examples(signal=SIGNAL, labels=LABELS)
    cutter = drawn(CUTTER, examples)
    models.write(home / "t" / "model", CUTTER, examples, cutter, {"step": 3, "held-out loss": 0.012345678})
    examples = examples.model_copy(update={"codes": cutter.tokenizer.codes})
    layer = drawn(LAYER, examples)
    models.write(home / "g" / "model", LAYER, examples, layer, {}, {"small-tokenizer": home / "t" / "model"})
    return home / "t", home / "g"


@pytest.fixture
def tokenizer(folders) -> Tokenizer:
    return load(folders[0], "cpu")


@pytest.fixture
def generator_model(folders) -> Generator:
    return load(folders[1], "cpu")


@pytest.fixture
def pictures(generator) -> torch.Tensor:
    return torch.rand(5, 1, 8, 12, generator=generator) * 2 - 1


# --- rebuilt from a folder -------------------------------------------------------------------------------------------


def test_a_tokenizer_comes_back_whole(tokenizer, folders):
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.recipe, tokenizer.signal, tokenizer.labels) == (CUTTER, SIGNAL, LABELS)
    assert tokenizer.figures == {"step": 3, "held-out loss": 0.012345678}
    written = drawn(CUTTER, Examples(signal=SIGNAL, labels=LABELS))
    for name, tensor in written.state_dict().items():
        assert torch.equal(tokenizer.paradigm.state_dict()[name], tensor), name
    assert not tokenizer.paradigm.training
    assert not any(parameter.requires_grad for parameter in tokenizer.paradigm.parameters())
    config = json.loads((folders[0] / "model" / "config.json").read_text())
    assert tokenizer.sha256 == config["weights_sha256"]
    assert config["smalti"]


def test_a_generator_needs_nothing_but_its_folder(folders, tmp_path, pictures):
    shutil.copytree(folders[1] / "model", tmp_path / "moved")
    model = load(tmp_path / "moved", "cpu")
    assert isinstance(model, Generator)
    assert torch.equal(model.tokenizer.encode(pictures), load(folders[0], "cpu").encode(pictures))
    assert torch.equal(model.sample(2, "bag"), load(folders[1], "cpu").sample(2, "bag"))
    assert model.options == LAYER.paradigm.sampling


def test_the_tokenizer_of_either(folders, tokenizer):
    assert load_tokenizer(folders[0], "cpu").sha256 == load_tokenizer(folders[1], "cpu").sha256 == tokenizer.sha256


def test_loading_draws_no_random_numbers_that_matter(folders, pictures):
    torch.manual_seed(1)
    one = load(folders[0], "cpu").encode(pictures)
    torch.manual_seed(2)
    assert torch.equal(load(folders[0], "cpu").encode(pictures), one)


def changed(folder: Path, target: Path, **changes) -> Path:
    """A copy of a run whose config.json says something else."""
    shutil.copytree(folder, target)
    path = target / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_a_byte_changed_anywhere_is_noticed(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "g")
    path = tmp_path / "g" / "model" / "tokenizers" / "small-tokenizer" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*checksum"):
        load(tmp_path / "g", "cpu")


def test_a_future_format_is_said_to_be(folders, tmp_path):
    with pytest.raises(UserError, match=r"format 99.*newer smalti"):
        load(changed(folders[0], tmp_path / "t", format=99), "cpu")


def test_a_config_that_describes_no_model(folders, tmp_path):
    with pytest.raises(UserError, match="does not describe a model"):
        load(changed(folders[0], tmp_path / "a", examples={"signal": 3}), "cpu")
    with pytest.raises(UserError, match="unknown field later"):
        load(changed(folders[0], tmp_path / "b", recipe=CUTTER.model_dump(mode="json") | {"later": 1}), "cpu")
    wider = CUTTER.changed(**{"model.width": 32}).model_dump(mode="json")
    with pytest.raises(UserError, match=r"weights do not fit its config\.json"):
        load(changed(folders[0], tmp_path / "c", recipe=wider), "cpu")


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(broken, folders, tmp_path):
    examples = Examples(signal=SIGNAL, labels=LABELS)
    paradigm = drawn(CUTTER, examples)
    with torch.no_grad():
        next(iter(paradigm.parameters())).view(-1)[0] = broken
    models.write(tmp_path / "model", CUTTER, examples, paradigm, {})
    with pytest.raises(UserError, match="its weights are not finite"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signal": {"shape": [8, 0]}}, r"signal\.shape\.1: .*greater than 0.*given 0"),
        ({"signal": {"shape": [-8, 8]}}, r"signal\.shape\.0: .*given -8"),
        ({"codes": {"grid": [0, 3]}}, r"codes\.grid\.0: .*given 0"),
    ],
)
def test_shapes_of_nothing(change, words, folders, tmp_path):
    examples = json.loads((folders[1] / "model" / "config.json").read_text())["examples"]
    spoilt = {name: {**examples[name], **change.get(name, {})} for name in ("signal", "codes")}
    with pytest.raises(UserError, match=f"config.json is damaged: it does not describe a model: {words}") as error:
        load(changed(folders[1], tmp_path / "g", examples={**examples, **spoilt}), "cpu")
    assert "\n" not in str(error.value)


def test_a_network_larger_than_the_machine_is_not_begun(monkeypatch):
    examples = Examples(signal=SIGNAL, codes=CodeSpec(codebooks=1, grid=(2, 3), size=8))
    for recipe in (LAYER.changed(**{"model.width": 1_000_000}), CUTTER.changed(**{"model.width": 1_000_000})):
        with pytest.raises(UserError, match=r"takes .* GiB, and this machine has .*--model\.width") as error:
            models.build(recipe, examples)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="larger than any machine"):
        models.build(LAYER.changed(**{"model.width": 10**12}), examples)
    weights = sum(4 * each.numel() for each in models.build(LAYER, examples).network.parameters())
    monkeypatch.setattr(rebuilt, "memory", lambda: weights / 2)
    with pytest.raises(UserError, match="this machine has"):
        models.build(LAYER, examples)
    monkeypatch.setattr(rebuilt, "memory", lambda: weights * 4)  # a condition's weights are counted too
    models.build(LAYER, examples)


def test_weighing_a_network_draws_no_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for recipe in (LAYER, CUTTER):
        models.check_size(recipe, SIGNAL)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_whose_tokenizer_is_gone(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "g")
    shutil.rmtree(tmp_path / "g" / "model" / "tokenizers")
    with pytest.raises(UserError, match="tokenizer is missing"):
        load(tmp_path / "g", "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizers": None}, "does not describe a model"),
        ({"tokenizers": [1]}, "does not describe a model"),
        ({"signal": {"shape": [64]}}, "of signals as its tokenizer reads"),
        ({"signal": {"shape": [16, 24]}}, "of signals as its tokenizer reads"),
        ({"codes": {"size": 10**12}}, "of codes as its tokenizer makes"),
    ],
)
def test_a_generator_that_does_not_fit_its_tokenizer(change, words, folders, tmp_path):
    if "tokenizers" not in change:
        examples = json.loads((folders[1] / "model" / "config.json").read_text())["examples"]
        change = {"examples": {**examples, **{name: {**examples[name], **each} for name, each in change.items()}}}
    with pytest.raises(UserError, match=f"config.json is damaged.*{words}"):
        load(changed(folders[1], tmp_path / "g", **change), "cpu")


def test_a_tokenizer_under_another_name_is_refused(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "g")
    (carried,) = (tmp_path / "g" / "model" / "tokenizers").iterdir()
    carried.rename(carried.with_name("another"))
    with pytest.raises(UserError, match="is not the tokenizer that"):
        load(tmp_path / "g", "cpu")


def test_a_config_of_brackets_alone(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "t")
    (tmp_path / "t" / "model" / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "t", "cpu")


def test_no_model(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        load(tmp_path / "nothing")


def test_no_such_device(folders):
    with pytest.raises(UserError, match="not on this machine"):
        load(folders[0], "cuda:99")


def test_the_card_says_what_it_is(folders):
    card = (folders[0] / "model" / "README.md").read_text()
    for told in ("small-tokenizer", "library_name: smalti", "8×12", "0.012346", "T-shirt/top", '"codes": 8'):
        assert told in card
    assert json.loads(card.split("```json")[1].split("```")[0]) == CUTTER.model_dump(mode="json")


def test_the_card_names_the_licence_of_named_data():
    named = models.card(CUTTER.changed(**{"data.source": "mnist"}), Examples(signal=SIGNAL), {})
    assert "licence: CC-BY-SA-3.0" in named
    assert "Yann LeCun" in named
    assert "licence:" not in models.card(CUTTER, Examples(signal=SIGNAL), {})


# --- a tokenizer in use ----------------------------------------------------------------------------------------------


def test_batches_change_nothing(tokenizer, pictures, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda _: False)  # whose rounding may depend on the batch
    codes = tokenizer.encode(pictures)
    y, z = tokenizer.decode(codes), tokenizer.latents(pictures)
    monkeypatch.setattr(tokenizers, "BATCH", 2)
    assert torch.equal(tokenizer.encode(pictures), codes)
    torch.testing.assert_close(tokenizer.decode(codes), y)
    torch.testing.assert_close(tokenizer.latents(pictures), z)
    assert tokenizer.encode(pictures[:0]).shape == (0, 1, 2, 3)
    assert tokenizer.decode(codes[:0]).shape == (0, 1, 8, 12)


def test_there_and_back(tokenizer, pictures):
    codes = tokenizer.encode(pictures)
    assert (codes.shape, codes.dtype) == ((5, 1, 2, 3), torch.int64)
    assert torch.equal(tokenizer.reconstruct(pictures), tokenizer.decode(codes))
    vectors = tokenizer.network.bottleneck.lookup(codes.flatten(2).movedim(1, -1)).movedim(-1, 1).unflatten(2, (2, 3))
    assert torch.equal(tokenizer.decode_latents(vectors), tokenizer.decode(codes))
    assert tokenizer.latents(pictures).dtype == torch.float32
    assert not tokenizer.decode(codes).requires_grad


def test_large_signals_go_through_in_tiles(tokenizer, generator, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda _: False)
    x = torch.rand(3, 1, 96, 132, generator=generator) * 2 - 1
    codes, z = tokenizer.encode(x), tokenizer.latents(x)
    y, laid = tokenizer.decode(codes), tokenizer.decode_latents(z)
    seen = []
    for name in ("encode", "decode", "latents", "decode_latents"):
        whole = getattr(tokenizer.network, name)
        spied = lambda part, whole=whole: seen.append(part.shape[2:].numel()) or whole(part)  # noqa: E731
        monkeypatch.setattr(tokenizer.network, name, spied)
    monkeypatch.setattr(tiling, "MOST", 32 * 32)
    assert (tokenizer.encode(x) != codes).float().mean() < 1e-2  # of two equally near codes either will do
    torch.testing.assert_close(tokenizer.latents(x), z, rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.decode(codes), y, rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.decode_latents(z), laid, rtol=0, atol=1e-4)
    assert len(seen) > 4 * 3 * 9
    assert max(seen) <= 40 * 40


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(bad, tokenizer, pictures):
    pictures[3, 0, 2, 5] = bad
    for verb in (tokenizer.encode, tokenizer.latents, tokenizer.reconstruct):
        with pytest.raises(UserError, match="not finite"):
            verb(pictures)
    z = tokenizer.latents(pictures[:1])
    z[0, 0, 0, 0] = bad
    with pytest.raises(UserError, match="not finite"):
        tokenizer.decode_latents(z)


@pytest.mark.parametrize("side", [8, 4096])
def test_shapes_that_do_not_fit(side, tokenizer):
    with pytest.raises(UserError, match=f"{side + 1}x{side} does not divide by the stride 4"):
        tokenizer.encode(torch.zeros(1, 1, side + 1, side))
    with pytest.raises(UserError, match="does not fit"):
        tokenizer.encode(torch.zeros(1, 3, side, side))
    for shape in [(1, side, side), (side,), (1, 1, 1, 8, side)]:
        with pytest.raises(UserError, match="does not fit"):
            tokenizer.encode(torch.zeros(shape))
    with pytest.raises(UserError, match="do not fit"):
        tokenizer.decode(torch.zeros(1, 2, side, side, dtype=torch.int64))


def test_numbers_of_double_precision(tokenizer, pictures):
    assert torch.equal(tokenizer.encode(pictures.double()), tokenizer.encode(pictures))


def test_codes_mean_nothing_in_part_unless_residual(tokenizer, pictures):
    for codebooks in (1, 2):
        with pytest.raises(UserError, match="not residual"):
            tokenizer.encode(pictures, codebooks)
    with pytest.raises(UserError, match="needs a generator over its codes"):
        tokenizer.sample(1)


# --- residual and continuous tokenizers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual(tmp_path_factory) -> Tokenizer:
    return load(drawn_run(tmp_path_factory.mktemp("rvq"), RVQConfig(codes=16, dim=4, stages=3), shape=(8, 12)), "cpu")


@pytest.fixture(scope="module")
def continuous(tmp_path_factory) -> Tokenizer:
    return load(drawn_run(tmp_path_factory.mktemp("kl"), KLConfig(dim=3), shape=(8, 12)), "cpu")


def test_the_first_codebooks(residual, pictures):
    codes = residual.encode(pictures)
    assert codes.shape == (5, 3, 2, 3)
    for count in (1, 2, 3):
        few = residual.encode(pictures, count)
        assert torch.equal(few, codes[:, :count])
        stages = residual.network.bottleneck.stages[:count]
        vectors = sum(stage.lookup(few.flatten(2).movedim(1, -1)[..., q : q + 1]) for q, stage in enumerate(stages))
        laid = residual.decode_latents(vectors.movedim(-1, 1).unflatten(2, (2, 3)))
        torch.testing.assert_close(residual.decode(few), laid, rtol=0, atol=2e-2)
        assert torch.equal(residual.reconstruct(pictures, count), residual.decode(few))
    assert torch.equal(residual.reconstruct(pictures), residual.decode(codes))
    for count in (0, -1, 4):
        with pytest.raises(UserError, match=rf"{count} codebooks: this tokenizer has 1 to 3"):
            residual.encode(pictures, count)


def test_a_continuous_tokenizer_has_latents_and_no_codes(continuous, pictures):
    z = continuous.latents(pictures)
    assert z.shape == (5, 3, 2, 3)
    assert torch.equal(continuous.reconstruct(pictures), continuous.decode_latents(z))
    for verb in (
        continuous.encode,
        lambda x: continuous.encode(x, 2),
        lambda x: continuous.reconstruct(x, 1),
        lambda _: continuous.decode(torch.zeros(1, 1, 2, 3, dtype=torch.int64)),
        lambda _: continuous.codebooks(),
    ):
        with pytest.raises(UserError, match="this tokenizer is continuous"):
            verb(pictures)


def test_draws_from_the_prior_do_not_depend_on_how_the_work_was_split(continuous, monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda _: False)
    seen = []
    lay = continuous.decode_latents
    monkeypatch.setattr(continuous, "decode_latents", lambda z: seen.append(z) or lay(z))
    x = continuous.sample(7, seed=5)
    assert (x.shape, x.dtype) == ((7, 1, 8, 12), torch.float32)
    assert x.abs().max() <= 1
    monkeypatch.setattr(tokenizers, "BATCH", 2)
    again = continuous.sample(7, seed=5)
    assert torch.equal(torch.cat(seen[1:]), seen[0])
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(continuous.sample(3, seed=5), x[:3])
    assert not torch.allclose(continuous.sample(3, seed=6), x[:3])
    assert continuous.sample(0).shape == (0, 1, 8, 12)
    with pytest.raises(UserError, match="cannot draw -1"):
        continuous.sample(-1)


def test_the_prior_is_a_standard_normal(continuous, monkeypatch):
    seen = []
    monkeypatch.setattr(continuous, "decode_latents", lambda z: seen.append(z) or z)
    continuous.sample(1000)
    z = torch.cat(seen).flatten(1)
    assert z.shape == (1000, 18)
    assert z.mean().abs() < 4 / z.numel() ** 0.5
    assert (z.var() - 1).abs() < 4 * (2 / z.numel()) ** 0.5
    assert (torch.corrcoef(z.t()) - torch.eye(18)).abs().max() < 0.15
    assert len(z.flatten().unique()) > 0.99 * z.numel()


# --- a generator in use ----------------------------------------------------------------------------------------------


def test_samples_are_laid_codes(generator_model):
    codes = generator_model.draw(3, "bag", seed=5)
    assert (codes.shape, codes.dtype) == ((3, 1, 2, 3), torch.int64)
    x = generator_model.sample(3, "bag", seed=5)
    assert (x.shape, x.dtype) == ((3, 1, 8, 12), torch.float32)
    assert torch.equal(x, generator_model.tokenizer.decode(codes))
    assert x.abs().max() <= 1


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_sample_does_not_depend_on_how_the_work_was_split(batch, generator_model):
    known = torch.randint(0, 8, (7, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.arange(7)[:, None]).view(7, 1, 2, 3)
    ids = torch.arange(7) % 3
    whole = generator_model.draw(7, ids, known, mask, seed=3)
    assert torch.equal(generator_model.draw(7, ids, known, mask, seed=3, batch=batch), whole)
    rest = generator_model.draw(5, ids[2:], known[2:], mask[2:], seed=3, batch=batch, first=2)
    assert torch.equal(rest, whole[2:])
    assert torch.equal(whole[mask], known[mask])


def test_labels_by_name_and_number(generator_model):
    ids = generator_model.label_ids
    assert ids(None, 3) is None
    for condition in ("Ankle boot", "ankle BOOT", 1, torch.tensor(1), [1, "ankle boot"], torch.tensor([1, 1])):
        assert ids(condition, 2).tolist() == [1, 1]
    assert ids(["Bag", 0], 2).tolist() == [2, 0]
    with pytest.raises(UserError, match=r"unknown label 'boot'.*T-shirt/top, Ankle boot, Bag"):
        ids("boot", 2)
    with pytest.raises(UserError, match="label 3 is out of range"):
        ids(3, 2)
    with pytest.raises(UserError, match="label -1 is out of range"):
        ids(-1, 2)
    with pytest.raises(UserError, match="2 labels for 3 samples"):
        ids(["Bag", "Bag"], 3)


def test_a_model_without_labels_says_so(tokenizer, folders, tmp_path):
    examples = Examples(signal=SIGNAL, codes=tokenizer.network.codes)
    layer = models.build(LAYER, examples)
    models.write(tmp_path / "model", LAYER, examples, layer, {}, {"t": folders[0] / "model"})
    model = load(tmp_path, "cpu")
    assert model.draw(2).shape == (2, 1, 2, 3)
    with pytest.raises(UserError, match="without labels"):
        model.draw(2, "Bag")


def test_no_samples_and_fewer(generator_model):
    assert generator_model.sample(0).shape == (0, 1, 8, 12)
    with pytest.raises(UserError, match="cannot draw -1"):
        generator_model.sample(-1)


def test_samples_come_some_at_a_time(generator_model, monkeypatch):
    whole, drawn = generator_model.sample(7, "bag", seed=3), []
    monkeypatch.setattr(generators, "BATCH", 3)
    sample = generator_model.paradigm.sample
    monkeypatch.setattr(
        generator_model.paradigm, "sample", lambda n, *rest, **by: drawn.append(n) or sample(n, *rest, **by)
    )
    parts = generator_model.samples(7, "bag", seed=3)
    assert drawn == []
    first = next(parts)
    assert drawn == [3]  # nothing is drawn before it is asked for
    torch.testing.assert_close(torch.cat([first, *parts]), whole)
    assert drawn == [3, 3, 1]
    with pytest.raises(UserError, match="cannot draw -1"):
        next(generator_model.samples(-1))


def test_progress_counts_the_steps_of_all_examples(generator_model):
    told: list[tuple[int, int]] = []
    generator_model.draw(7, batch=3, progress=lambda *step: told.append(step))
    assert [total for _, total in told] == [7 * 6] * 18
    done = [each for each, _ in told]
    assert done == [3 * k for k in range(1, 7)] + [18 + 3 * k for k in range(1, 7)] + [36 + k for k in range(1, 7)]


def test_the_likelihood_of_signals_is_that_of_their_codes(generator_model, pictures, monkeypatch):
    codes, ids = generator_model.tokenizer.encode(pictures), torch.tensor([0, 1, 2, 2, 1])
    ours = generator_model.log_likelihood(pictures, ids)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, generator_model.paradigm.log_likelihood(codes, ids))
    monkeypatch.setattr(generators, "WITH_GRADIENTS", 2)
    torch.testing.assert_close(generator_model.log_likelihood(pictures, ids), ours)
    assert generator_model.log_likelihood(pictures[:0]).shape == (0,)
    with pytest.raises(UserError, match="unknown label"):
        generator_model.log_likelihood(pictures, "hat")


def other_kind(paradigm: Config, labels: tuple[str, ...] = LABELS) -> Generator:
    """A generator of pixels, or over codes, with drawn weights; without the tokenizer that would lay them."""
    examples = Examples(signal=SIGNAL, codes=CodeSpec(codebooks=1, grid=(2, 3), size=8), labels=labels)
    recipe = LAYER.model_copy(update={"paradigm": paradigm})
    return Generator(recipe, examples, drawn(recipe, examples), torch.device("cpu"), None)


def test_a_density_does_not_depend_on_how_the_work_was_split(pictures, monkeypatch):
    model, ids = other_kind(DiffusionConfig(patch=4)), [0, 1, 2, 2, 1]
    whole = model.log_likelihood(pictures, ids, steps=3)
    monkeypatch.setattr(generators, "WITH_GRADIENTS", 2)
    torch.testing.assert_close(model.log_likelihood(pictures, ids, steps=3), whole)
    assert not torch.allclose(model.log_likelihood(pictures, ids, seed=1, steps=3), whole, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="all finite"):
        model.log_likelihood(pictures / 0, ids)


def test_a_likelihood_where_there_is_none(pictures):
    with pytest.raises(
        UserError, match=r"discrete-diffusion has no likelihood of single signals; `smalti evaluate`"
    ) as error:
        other_kind(DiscreteDiffusionConfig()).log_likelihood(pictures)
    assert "\n" not in str(error.value)


KINDS = {
    "autoregressive": AutoregressiveConfig(),
    "discrete-diffusion": DiscreteDiffusionConfig(),
    "diffusion": DiffusionConfig(patch=4),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_guidance_without_labels_is_refused_where_it_was_asked_for(kind):
    guided = KINDS[kind].sampling.model_copy(update={"guidance": 2.0})
    model = other_kind(KINDS[kind], labels=())
    with pytest.raises(UserError, match="guidance 2 on a model that was trained without labels"):
        model.draw(1, options=guided)
    if kind != "autoregressive":
        with pytest.raises(UserError, match="guidance 2 on a model"):
            model.vary(torch.zeros(1, *SIGNAL.shape)[None], 0.5, options=guided)
    # a recipe that guides goes on folders without labels too, and then nobody has asked
    recipe_guides = other_kind(KINDS[kind].model_copy(update={"sampling": guided}), labels=())
    assert len(recipe_guides.draw(1, options=recipe_guides.options)) == 1
    if kind == "discrete-diffusion":  # its guidance may be left to the scheme
        assert len(recipe_guides.draw(1, options=guided.model_copy(update={"guidance": None}))) == 1


@kinds
def test_known_examples_are_as_many_as_are_drawn(kind):
    model = other_kind(KINDS[kind])
    known = torch.zeros(3, *model.shape, dtype=torch.int64 if model.reads == "codes" else torch.float32)
    for n in (2, 4):
        with pytest.raises(UserError, match=f"for {n} samples; got 3"):
            model.draw(n, known=known, mask=known > 0)


def test_of_no_pictures_there_are_no_variations():
    none = torch.zeros(0, SIGNAL.channels, *SIGNAL.shape)
    assert other_kind(KINDS["diffusion"]).vary(none, 0.5).shape == none.shape


@kinds
def test_labels_out_of_range_are_refused(kind):
    model = other_kind(KINDS[kind])
    for label, words in ((3, "label 3 is out of range"), (-1, "out of range"), ("hat", "unknown label 'hat'")):
        with pytest.raises(UserError, match=words):
            model.draw(2, label)


def test_low_precision_leaves_the_weights_alone(generator_model, monkeypatch):
    before = {name: tensor.clone() for name, tensor in generator_model.paradigm.state_dict().items()}
    monkeypatch.setattr("smalti.paradigms.autoregressive.decoding_dtype", lambda *_: torch.bfloat16)
    codes = generator_model.draw(9, seed=2)
    assert 0 <= codes.min() <= codes.max() < 8
    assert all(torch.equal(before[name], each) for name, each in generator_model.paradigm.state_dict().items())


# --- models of text

WORDS = ("a red dog", "a blue cat", "nothing at all")
TEXT = TextTokenizer.trained(WORDS, 280)
PAINTER = Recipe(
    name="small-painter",
    data=DataConfig(source="small"),
    model=TransformerConfig(layers=1, width=16, heads=2),
    paradigm=DiffusionConfig(text=TextEncoderConfig(layers=1, heads=2), sampling=DiffusionOptions(steps=3)),
)


def told(recipe: Recipe, folder: Path, text: TextTokenizer | None) -> Generator:
    """A generator of pictures that was written to a folder and comes from there."""
    spec = None if text is None else TextSpec(pieces=text.size, sha256=text.sha256)
    examples = Examples(signal=SIGNAL, labels=LABELS, text=spec)
    paradigm = drawn(recipe, examples)
    paradigm.text = text
    models.write(folder, recipe, examples, paradigm, {})
    before = paradigm.eval().sample(2, list(WORDS[:2]))
    model = load(folder, "cpu")
    torch.testing.assert_close(model.draw(2, WORDS[:2]), before)
    return model


def test_a_model_of_text_comes_back_whole_and_takes_prompts(tmp_path):
    model = told(PAINTER, tmp_path / "model", TEXT)
    assert model.words
    assert model.labels == ()  # the data's labels mean nothing to it
    one, other = model.sample(3, WORDS[0]), model.sample(3, [WORDS[0], None, WORDS[1]])
    torch.testing.assert_close(other[0], one[0])
    torch.testing.assert_close(other[1], model.sample(2)[1])
    assert not torch.allclose(other[2], one[2])
    prompts = [WORDS[0], "", WORDS[1]]
    torch.testing.assert_close(model.draw(3, prompts, batch=2), model.draw(3, prompts))
    torch.testing.assert_close(torch.cat(list(model.samples(3, WORDS[0]))), one)
    strong = model.options.model_copy(update={"guidance": 3.0})
    assert not torch.allclose(model.sample(1, WORDS[0], options=strong), one[:1])
    assert model.vary(one, 0.5, WORDS[1]).shape == one.shape
    assert model.log_likelihood(one[:2], WORDS[:2], steps=3).isfinite().all()


@pytest.mark.parametrize("wrong", [3, [1, 2], torch.tensor([0, 1]), [WORDS[0]], list(WORDS), b"ab"])
def test_what_is_no_prompt_is_told_in_one_line(wrong, tmp_path):
    model = told(PAINTER, tmp_path / "model", TEXT)
    with pytest.raises(UserError, match="prompt") as error:
        model.sample(2, wrong)
    assert "\n" not in str(error.value)


def test_the_best_by_reading_needs_a_model_that_reads(smalti, tmp_path):
    told(PAINTER, tmp_path / "model", TEXT)
    answer = smalti("sample", tmp_path / "model", WORDS[0], "--best-of", 2, "--out", tmp_path / "out")
    assert (answer.status, len(answer.err.splitlines())) == (2, 1)
    assert "cannot read" in answer.err


def test_conditions_are_what_the_paradigm_takes(generator_model, tmp_path):
    assert generator_model.conditions("bag", 2).tolist() == [2, 2]
    assert generator_model.conditions(None, 2) is None
    painter = told(PAINTER, tmp_path / "model", TEXT)
    assert painter.conditions("bag", 2) == ["bag", "bag"]
    assert painter.conditions(("bag", None), 2) == ["bag", ""]
    assert painter.conditions(None, 2) is None


@pytest.mark.filterwarnings("ignore")  # those of transformers
def test_a_text_encoder_from_disk_stays_where_it_is(tmp_path):
    pytest.importorskip("transformers")
    folder = bert(tmp_path / "bert")
    recipe = PAINTER.changed(**{"paradigm.text.folder": str(folder)})
    model = told(recipe, tmp_path / "model", None)
    assert not any("pretrained" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert not torch.allclose(model.sample(1, "a"), model.sample(1, "b"))
    settings = folder / "config.json"
    settings.write_text(settings.read_text() + "\n")
    with pytest.raises(UserError, match="trained with"):
        load(tmp_path / "model", "cpu")
