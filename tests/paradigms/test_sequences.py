from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.paradigms.mixed import CODE_SPEC, batch_of, made

from smalti.data.batch import Batch
from smalti.paradigms.sequences import CODE, GIVEN, NOBODY, PIECE, SEEN
from smalti.tokenizers.vocabulary import Codes, Special, Text


def kinds(parts) -> list[str]:
    return [
        part.name if isinstance(part, Special) else "text" if isinstance(part, Text) else "picture" for part, _ in parts
    ]


def part_of(batch: Batch, rows: slice) -> Batch:
    return dataclasses.replace(batch, rows=batch.rows[rows], x=batch.x[rows], texts=batch.texts[rows])


def test_sequences_have_the_shares_that_are_asked_for():
    model, n = made(questions=2), 4000
    batch = batch_of(n)
    told = [kinds(parts) for parts in model.sequences.of(batch, True)]
    alone = sum(each == ["text"] for each in told) / n
    drawn = [each for each in told if each[:1] != ["picture"] and each != ["text"]]
    hidden = sum(each[0] == NOBODY.name for each in drawn) / len(drawn)
    assert alone == pytest.approx(0.1, abs=0.02)
    assert len(drawn) / n == pytest.approx(0.5, abs=0.03)
    assert hidden == pytest.approx(0.1, abs=0.02)
    assert all(each[1:3] == ["draw", "picture"] for each in drawn)
    read = [each for each in told if each[0] == "picture"]
    assert all(each.count("answer") <= 2 and len(each) > 1 for each in read)
    assert any("describe" in each and "answer" in each for each in read)
    assert {each.index("describe") < each.index("answer") for each in read if {"describe", "answer"} <= set(each)} == {
        True,
        False,
    }


def test_a_model_in_use_is_told_every_caption():
    told = [kinds(parts) for parts in made().sequences.of(batch_of(400), False)]
    assert not any(each[0] == NOBODY.name for each in told)


def test_an_example_without_words_is_drawn_for_nobody():
    assert {tuple(kinds(parts)) for parts in made().sequences.of(batch_of(50, texts=False), False)} == {
        (NOBODY.name, "draw", "picture")
    }


def test_what_is_asked_for_is_what_the_model_should_say():
    for parts in made().sequences.of(batch_of(200), True):
        for i, (part, asked) in enumerate(parts):
            before = parts[i - 1][0] if i else None
            wanted = isinstance(before, Special) and before.name in ("draw", "describe", "answer")
            assert asked == (wanted or len(parts) == 1), parts
            if isinstance(part, Special):
                assert not asked


def test_roles_are_those_of_what_is_asked_for():
    model = made()
    picture = Codes("image", torch.zeros(2, 2, 3, dtype=torch.int64))
    told = model.sequences.told([(Text((1, 2)), False), (Special("draw"), False), (picture, True)])
    assert told.roles.tolist() == [GIVEN] * 5 + [GIVEN] + [CODE] * 12 + [GIVEN] * 2
    assert len(told.tokens) == len(told.roles)
    assert not told.wholes.any()
    told = model.sequences.told([(picture, False), (Special("describe"), False), (Text((1, 2)), True)])
    assert told.roles.tolist() == [GIVEN, *([SEEN] * 12), GIVEN, GIVEN, GIVEN, PIECE, PIECE, PIECE, GIVEN]


def test_hidden_codes_are_out_of_sight_and_only_in_training():
    model = made(drawing=1.0, text_alone=0.0, code_dropout=1.0)
    batch, spec = batch_of(64, step=5), CODE_SPEC
    told = [model.sequences.told(parts) for parts in model.sequences.of(batch, True)]
    assert not any(each.any() for each in model.sequences.hidden(batch, told, False))
    hidden = model.sequences.hidden(batch, told, True)
    assert all(not (each & (one.roles != CODE)).any() for each, one in zip(hidden, told, strict=True))
    shares = torch.stack([each.sum() / spec.length for each in hidden])
    assert 0.65 < shares.mean() < 0.85
    assert shares.std() > 0.2  # a rate of each picture's own
    halves = [model.sequences.hidden(part_of(batch, rows), told[rows], True) for rows in (slice(0, 20), slice(20, 64))]
    assert all(torch.equal(one, other) for one, other in zip(hidden, halves[0] + halves[1], strict=True))
    first = dataclasses.replace(batch, step=0)
    assert not any(
        each.any() for each in model.sequences.hidden(first, told, True)
    )  # all are hidden from the fifth of ten steps on
    lost = [made(drawing=1.0, text_alone=0.0, code_dropout=share).train() for share in (0.0, 1.0)]
    said = [model.loss("network", batch, 5).terms[0].sum.item() for model in lost]
    assert said[0] != said[1]
    # another code where none is seen changes nothing that is said
    one = max(range(64), key=lambda i: int(hidden[i].sum()))
    said = model.eval()._read([told[one]], torch.device("cpu"), [hidden[one]])[0]
    at = int(hidden[one].nonzero()[0])
    told[one].tokens[at] = (
        model.vocabulary.ranges["image_0"].start
        + (told[one].tokens[at] - model.vocabulary.ranges["image_0"].start + 1) % spec.size
    )
    assert torch.equal(said, model._read([told[one]], torch.device("cpu"), [hidden[one]])[0])


def test_a_share_of_the_pictures_is_drawn_blind_from_the_first_step_on():
    model = made(drawing=1.0, text_alone=0.0, blind=0.3)
    batch = batch_of(1000, step=0)
    told = [model.sequences.told(parts) for parts in model.sequences.of(batch, True)]
    assert not any(each.any() for each in model.sequences.hidden(batch, told, False))
    hidden = [
        each[one.roles == CODE] for each, one in zip(model.sequences.hidden(batch, told, True), told, strict=True)
    ]
    assert all(each.all() or not each.any() for each in hidden)
    assert sum(bool(each.all()) for each in hidden) / 1000 == pytest.approx(0.3, abs=0.05)


def test_only_what_its_caption_tells_all_of_is_drawn_blind():
    model = made(drawing=1.0, text_alone=0.0, blind=1.0)
    batch = dataclasses.replace(batch_of(60, step=0), tell_all=torch.arange(60) % 3 == 0)
    for part in (batch, *batch.split(25)):
        told = [model.sequences.told(parts) for parts in model.sequences.of(part, True)]
        blind = [bool(each.any()) for each in model.sequences.hidden(part, told, True)]
        assert blind == part.tell_all.tolist()


def test_of_each_picture_that_is_read_a_share_of_its_own_is_hidden():
    model = made(drawing=0.5, text_alone=0.0, blind=1.0, seen_dropout=0.4)
    batch = batch_of(1000)
    told = [model.sequences.told(parts) for parts in model.sequences.of(batch, True)]
    hidden = model.sequences.hidden(batch, told, True)
    shares = torch.stack(
        [each[one.roles == SEEN].float().mean() for each, one in zip(hidden, told, strict=True) if SEEN in one.roles]
    )
    assert shares.mean() == pytest.approx(0.2, abs=0.03)
    assert shares.std() > 0.08
    assert not any(each.any() for each in model.sequences.hidden(batch, told, False))
    of_all = [each & (one.roles != SEEN) & (one.roles != CODE) for each, one in zip(hidden, told, strict=True)]
    assert not any(each.any() for each in of_all)


def test_a_share_of_what_is_read_comes_as_encoded_again():
    model, batch = made(drawing=0.4, seen_again=0.3), batch_of(2000)
    batch = dataclasses.replace(batch, again=(batch.x + 1) % CODE_SPEC.size)
    pictures = [
        (each[0][0] is part, bool((part.codes == x).all()), bool((part.codes == other).all()))
        for each, x, other in zip(model.sequences.of(batch, True), batch.x, batch.again, strict=True)
        for part, _ in each
        if isinstance(part, Codes)
    ]
    assert all(same != other for _, same, other in pictures)
    assert all(same for read, same, _ in pictures if not read)
    again = [other for read, _, other in pictures if read]
    assert sum(again) / len(again) == pytest.approx(0.3, abs=0.05)
    halves = [part for half in batch.split(1200) for part in model.sequences.of(half, True)]
    whole = model.sequences.of(batch, True)
    assert all(
        torch.equal(model.sequences.told(one).tokens, model.sequences.told(other).tokens)
        for one, other in zip(halves, whole, strict=True)
    )
