from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smalti.config import Examples, SignalSpec, TextSpec
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.contrastive import (
    LARGEST,
    Contrastive,
    ContrastiveConfig,
    duplicates,
    sigmoid_loss,
    softmax_loss,
)
from smalti.tokenizers.text import TextTokenizer
from smalti.training.totals import Totals

WORDS = ["a red dog", "a blue cat", "two green birds, on white", "nothing", "one", "a dog", "a cat", "seven red birds"]
TEXT = TextTokenizer.trained(WORDS * 3, 280)
EXAMPLES = Examples(signal=SignalSpec(channels=3, shape=(8, 12)), text=TextSpec(pieces=TEXT.size, sha256=TEXT.sha256))
NETWORK = TransformerConfig(layers=2, width=32, heads=2, dropout=0.0)
SMALL = {"width": 16, "picture_width": 32, "strides": (2, 2), "blocks": 1}


def made(**changes) -> Contrastive:
    torch.manual_seed(0)
    model = ContrastiveConfig(**SMALL | changes).build(NETWORK, EXAMPLES, steps=10)
    model.text = TEXT
    for weight in model.parameters():  # output products start at zero, and a network of zeros tells little
        torch.nn.init.normal_(weight, std=0.2) if weight.ndim > 1 else None
    return model.eval()


def batch_of(texts: list[str] | None, n: int | None = None, indices: Tensor | None = None) -> Batch:
    n = len(texts) if texts is not None else n
    x = torch.rand(n, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(3, torch.arange(n), torch.arange(n) if indices is None else indices, x, None, texts, seed=5)


def some_logits(n: int = 7) -> tuple[Tensor, Tensor]:
    """Logits, and duplicates as there may be: 0 and 3, and 1, 4 and 5."""
    logits = torch.randn(n, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    twice = torch.zeros(n, n, dtype=torch.bool)
    for i, j in ((0, 3), (1, 4), (1, 5), (4, 5)):
        twice[i, j] = twice[j, i] = True
    return logits, twice


# --- the losses


def test_the_softmax_loss_is_that_of_two_loops():
    logits, twice = some_logits()
    found = softmax_loss(logits, twice)
    for i in range(len(logits)):
        by_picture = sum(math.exp(logits[i, j]) for j in range(len(logits)) if not twice[i, j])
        by_text = sum(math.exp(logits[j, i]) for j in range(len(logits)) if not twice[i, j])
        own = float(logits[i, i])
        assert float(found[i]) == pytest.approx((math.log(by_picture) + math.log(by_text)) / 2 - own)


def test_the_sigmoid_loss_is_that_of_two_loops():
    logits, twice = some_logits()
    found = sigmoid_loss(logits, twice)
    for i in range(len(logits)):
        told = 0.0
        for j in range(len(logits)):
            z = 1 if i == j else -1
            told += 0.0 if twice[i, j] else math.log1p(math.exp(-z * float(logits[i, j])))
        assert float(found[i]) == pytest.approx(told)


def test_three_pairs_of_which_two_have_one_caption_by_hand():
    logits = torch.tensor([[2.0, 9.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    twice = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    e = math.exp
    told = [math.log(1 + e(-2.0)), math.log(1 + e(-1.0)), (math.log(1 + 2 * e(0.0)))]
    assert softmax_loss(logits, twice).tolist() == pytest.approx(told)
    own = [math.log(1 + e(-2.0)), math.log(1 + e(-1.0)), math.log(2.0)]
    others = [math.log(2.0), math.log(2.0), 2 * math.log(2.0)]
    assert sigmoid_loss(logits, twice).tolist() == pytest.approx([a + b for a, b in zip(own, others, strict=True)])


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_a_duplicate_has_no_gradient(loss):
    logits, twice = some_logits()
    logits.requires_grad_()
    loss(logits, twice).sum().backward()
    assert bool((logits.grad[twice] == 0).all())
    assert bool((logits.grad[~twice] != 0).all())


def test_duplicates_are_captions_pictures_and_examples_that_come_twice():
    x = batch_of(WORDS[:5]).x
    x[3] = x[1]
    found = duplicates(["One dog", "a", "ONE DOG", "b", "c"], x, torch.tensor([10, 11, 12, 13, 11]))
    pairs = {(i, j) for i, j in found.nonzero().tolist() if i < j}
    assert pairs == {(0, 2), (1, 3), (1, 4)}
    assert torch.equal(found, found.T)
    assert not bool(found.diagonal().any())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@torch.no_grad()
def test_the_whole_loss_is_that_of_the_vectors(loss):
    model = made(loss=loss)
    batch = batch_of(["a cat", "a dog", "A Cat", "nothing"])
    pictures, texts = model.pictures(batch.x), model.texts(batch.texts)
    scale, bias = (1 / 0.07, 0.0) if loss == "softmax" else (10.0, -10.0)
    logits = scale * pictures @ texts.T + bias
    twice = torch.zeros(4, 4, dtype=torch.bool)
    twice[0, 2] = twice[2, 0] = True
    expected = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}[loss](logits, twice).mean()
    totals = Totals()
    totals.add(model.loss("network", batch, 3).terms)
    assert totals.means()["loss"] == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_accuracy_is_the_share_whose_own_comes_first(monkeypatch):
    model = made()
    pictures = torch.eye(4, 16)
    texts = pictures[[0, 2, 1, 3]] + 0.1 * pictures  # the second and the third are rather the other's
    monkeypatch.setattr(model, "pictures", lambda x: pictures)
    monkeypatch.setattr(model, "texts", lambda told: texts)

    def accuracy(told: list[str]) -> list[float]:
        totals = Totals()
        totals.add(model.loss("network", batch_of(told), 3).terms)
        return [totals.means()[f"accuracy_{name}"] for name in ("text", "picture")]

    assert accuracy(["a", "b", "c", "d"]) == [0.5, 0.5]
    assert accuracy(["a", "b", "B", "d"]) == [1.0, 1.0]  # what has the same caption is no mistake


def test_examples_without_a_caption_are_left_out():
    model, batch = made(), batch_of(["a cat", "", "a dog", "  ", "nothing"])
    kept = [0, 2, 4]
    alone = Batch(3, batch.rows[kept], batch.indices[kept], batch.x[kept], None, [batch.texts[i] for i in kept])
    ours, theirs = (model.loss("network", each, 3).terms for each in (batch, alone))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.weight) == (other.name, other.weight)
        torch.testing.assert_close(one.sum, other.sum)
    assert model.loss("network", batch_of(["", " "]), 3).terms == []
    assert model.loss("network", batch_of(None, n=3), 3).terms == []


# --- the temperature


def test_the_scale_starts_where_the_papers_start_it():
    softmax, sigmoid = made(), made(loss="sigmoid")
    assert softmax.log_scale.exp().item() == pytest.approx(1 / 0.07)
    assert softmax.bias is None
    assert sigmoid.log_scale.exp().item() == pytest.approx(10)
    assert sigmoid.bias.item() == -10


def test_the_scale_of_the_softmax_has_an_end_and_can_come_back():
    model = made()
    torch.nn.init.constant_(model.log_scale, 7.0)
    assert model.after_step({}) == {"scale": pytest.approx(LARGEST)}
    assert model.log_scale.exp().item() == pytest.approx(LARGEST)
    Totals().add(model.loss("network", batch_of(WORDS), 3).terms).backward()
    assert model.log_scale.grad.item() != 0
    other = made(loss="sigmoid")
    torch.nn.init.constant_(other.log_scale, 7.0)
    assert other.after_step({})["scale"] == pytest.approx(math.exp(7.0))


# --- the encoders


@torch.no_grad()
def test_vectors_have_length_one():
    model = made()
    for vectors in (model.pictures(batch_of(WORDS).x), model.texts([*WORDS, ""])):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert model.pictures(batch_of(WORDS).x).shape == (8, 16)


@torch.no_grad()
def test_a_text_is_read_alike_beside_any_other():
    """Padding changes nothing: neither that of longer neighbours nor a place among them."""
    model = made()
    together = model.texts([*WORDS, "", "red " * 40])
    for i, text in enumerate([*WORDS, ""]):
        torch.testing.assert_close(model.texts([text])[0], together[i], atol=2e-6, rtol=1e-5)
    spread = together @ together.T
    assert float(spread.fill_diagonal_(-1).max()) < 1 - 1e-3  # and texts are told apart


def test_padding_has_no_gradient():
    model = made()
    seen = []
    model.piece.register_forward_hook(lambda module, given, out: (out.retain_grad(), seen.append(out))[1])
    model.texts(["a cat", "two green birds, on white"])[0].sum().backward()
    length = len(TEXT.encode("a cat").ids) + 1
    grad = seen[0].grad[0]
    assert bool((grad[:length].abs().sum(-1) > 0).all())
    assert float(grad[length:].abs().max()) == 0


@torch.no_grad()
def test_what_is_longer_than_the_longest_is_cut():
    model = made(longest=4)
    begun = TEXT.decode(TEXT.encode("two green birds, on white", 4).ids)
    torch.testing.assert_close(model.texts(["two green birds, on white"]), model.texts([begun]))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_pairs_are_learnt(loss):
    """Eight pictures of noise and their captions by heart, which chance knows one in eight of."""
    torch.manual_seed(0)
    model = ContrastiveConfig(**SMALL | {"loss": loss}).build(NETWORK, EXAMPLES, steps=60)
    model.text = TEXT
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=5e-3), batch_of(WORDS)
    for step in range(60):
        Totals().add(model.loss("network", batch, step).terms).div(len(WORDS)).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step({})
    totals = Totals()
    totals.add(model.eval().loss("network", batch, 0).terms)
    assert totals.means()["accuracy_text"] == totals.means()["accuracy_picture"] == 1.0


# --- what does not fit


def test_it_needs_captions():
    with pytest.raises(UserError, match="needs captions"):
        ContrastiveConfig(**SMALL).build(NETWORK, EXAMPLES.model_copy(update={"text": None}), 1)


def test_strides_that_do_not_divide_are_told():
    with pytest.raises(UserError, match="8×12 do not divide by 16") as caught:
        ContrastiveConfig().build(NETWORK, EXAMPLES, 1)
    assert "\n" not in str(caught.value)
