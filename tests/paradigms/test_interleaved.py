from __future__ import annotations

import copy

import pytest
import torch
from tests.paradigms.mixed import CODE_SPEC, EXAMPLES, NETWORK, TEXT, WORDS, batch_of, made
from torch.nn import functional as F

from smalti.config import CodeSpec, Examples
from smalti.data.batch import Batch
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.interleaved import Interleaved, InterleavedConfig, InterleavedOptions
from smalti.paradigms.sequences import CODE, GIVEN, NOBODY, PIECE, SEEN
from smalti.tokenizers.vocabulary import Codes, Special, Text
from smalti.training.totals import Totals

# --- the loss


def naive(model: Interleaved, batch: Batch) -> dict[str, float]:
    """The loss one sequence after the other, all logits masked by what the grammar allows."""
    config, sums = model.config, {"loss": 0.0, "code": 0.0, "piece": 0.0, "codes": 0, "pieces": 0}
    for parts in model.sequences.of(batch, model.training):
        told = model.sequences.told(parts)
        tokens, roles = told.tokens, told.roles
        allowed = model.grammar.allowed[model.grammar.turns(tokens[None])[0]]
        states = model.grammar.states(tokens[None])
        x = model.token(tokens[None, :-1]) + model.next(states[:, 1:])
        order = torch.arange(len(tokens) - 1)
        attend = order[:, None] >= order
        for number in told.wholes.unique().tolist():
            places = (told.wholes[:-1] == number).nonzero().flatten() if number else order[:0]
            attend[places[:, None], places] = True
        hidden = model.network(x, model.grammar.positions(tokens[None])[:, :-1], attend[None, None])
        logits = model.head(hidden)[0].masked_fill(~allowed[1:], -torch.inf)
        nats = F.cross_entropy(logits, tokens[1:], reduction="none").tolist()
        for cost, role in zip(nats, roles[1:].tolist(), strict=True):
            weight = {GIVEN: config.given_weight, CODE: 1, PIECE: config.text_weight, SEEN: config.seen_weight}[role]
            sums["loss"] += weight * cost / model.codes.length / len(batch.rows)
            if role in (CODE, PIECE):
                name = {CODE: "code", PIECE: "piece"}[role]
                sums[name], sums[f"{name}s"] = sums[name] + cost, sums[f"{name}s"] + 1
    return {
        "loss": sums["loss"],
        "nats_a_code": sums["code"] / sums["codes"],
        "nats_a_piece": sums["piece"] / sums["pieces"],
    }


FULL = {"given": "full", "given_weight": 0.0, "seen_weight": 0.0}


@pytest.mark.parametrize(
    "changes", [{"row": 8}, {"row": 64}, {"row": 300}, {"row": 64, "seen_weight": 0.0}, {"row": 8, **FULL}, FULL]
)
def test_the_loss_is_that_of_each_sequence_alone_with_other_kinds_masked(changes):
    """Packed in rows of any length: nothing leaks between examples, and no logit of another kind counts."""
    model, batch = made(**changes), batch_of(24)
    totals = Totals()
    with torch.no_grad():
        totals.add(model.loss("network", batch, 3).terms)
        expected = naive(model, batch)
    for name, value in expected.items():
        assert totals.means()[name] == pytest.approx(value, rel=1e-4), name


def test_the_likelihood_is_that_of_the_codes_after_their_prompt_and_of_nothing_else():
    model, batch = made(drawing=1.0, text_alone=0.0, text_dropout=0.0), batch_of(16)
    nats = -model.log_likelihood(batch.x, batch.texts)
    with torch.no_grad():
        assert nats.mean().item() / CODE_SPEC.length == pytest.approx(naive(model, batch)["nats_a_code"], rel=1e-4)
    alone = torch.cat([-model.log_likelihood(batch.x[i : i + 1], batch.texts[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(nats, alone, rtol=1e-5, atol=1e-5)
    assert (nats - -model.log_likelihood(batch.x)).abs().min() > 1e-3  # after no prompt it is another
    assert model.log_likelihood(batch.x[:0]).shape == (0,)
    with pytest.raises(UserError):
        model.log_likelihood(batch.x + CODE_SPEC.size, batch.texts)


def test_an_example_has_no_gradient_from_its_neighbours():
    model = made(row=256).train()
    batch = batch_of(8)
    told = sorted(
        (model.sequences.told(parts) for parts in model.sequences.of(batch, model.training)),
        key=lambda each: -len(each.tokens),
    )
    seen = []
    model.token.register_forward_hook(lambda module, given, out: (out.retain_grad(), seen.append((given[0], out)))[1])
    hidden, targets, *_ = model._read(told, torch.device("cpu"))
    # the states that say the tokens of the first sequence
    first = len(told[0].tokens) - 1
    assert targets[:first].tolist() == told[0].tokens[1:].tolist()
    (hidden[:first] * torch.randn_like(hidden[:first])).sum().backward()
    grad = seen[0][1].grad
    assert grad[0, :first].abs().sum(-1).min() > 0
    grad[0, :first] = 0
    assert grad.abs().max() == 0


def test_logits_of_other_kinds_have_no_gradient():
    model = made(drawing=1.0, text_alone=0.0, given_weight=0.0).train()
    Totals().add(model.loss("network", batch_of(8, texts=False), 3).terms).backward()
    ranges = model.vocabulary.ranges
    assert model.head.weight.grad[list(ranges["image_0"])].abs().sum() > 0
    assert model.head.weight.grad[list(ranges["text"])].abs().max() == 0


# --- sampling


def greedy(model: Interleaved, prompt: str) -> torch.Tensor:
    """A picture by the whole network at every step, likeliest code first."""
    sequence = model.vocabulary.interleave([model.cut(prompt) if prompt else NOBODY, Special("draw")])
    sequence = torch.cat([sequence, torch.tensor([model.vocabulary.id_of("begin_image")])])
    for name in model.vocabulary.reading_order("image"):
        ids = model.vocabulary.ranges[name]
        states = F.pad(model.grammar.states(sequence[None]), (0, 1))
        walked = model.grammar.states(torch.cat([sequence, torch.tensor([ids.start])])[None])
        assert torch.equal(walked[:, :-1], states[:, :-1])
        x = model.token(sequence[None]) + model.next(walked[:, 1:])
        hidden = model.network(x, model.grammar.positions(sequence[None]))
        said = model.head(hidden)[0, -1, ids.start : ids.stop]
        sequence = torch.cat([sequence, said.argmax()[None] + ids.start])
    return model.vocabulary.split(torch.cat([sequence, torch.tensor([model.vocabulary.id_of("end_image")])]))[-1].codes


@pytest.mark.parametrize("prompt", ["", "a red dog", "two green birds, on white"])
@torch.no_grad()
def test_drawing_step_by_step_is_drawing_with_the_whole_network(prompt):
    model = made()
    drawn = model.sample(1, [prompt], options=InterleavedOptions(temperature=0))
    assert torch.equal(drawn[0], greedy(model, prompt))


def test_a_row_hangs_on_its_own_prompt_and_number_alone():
    model = made()
    prompts = ["a red dog", "", "nothing", "a blue cat", "two green birds, on white"]
    together = model.sample(5, prompts, seed=7, options=InterleavedOptions(guidance=2, blind=0.5))
    for i, prompt in enumerate(prompts):
        alone = model.sample(1, [prompt], seed=7, first=i, options=InterleavedOptions(guidance=2, blind=0.5))
        assert torch.equal(alone[0], together[i])


def test_guidance_pulls_away_from_what_is_drawn_for_nobody():
    model = made()
    plain, nothing = model.sample(1, ["a red dog"], seed=1), model.sample(1, [""], seed=1)
    assert torch.equal(model.sample(1, ["a red dog"], seed=1, options=InterleavedOptions(guidance=0)), nothing)
    assert not torch.equal(plain, nothing)


def said_of_codes(model: Interleaved, prompt: str, blind: bool) -> list[torch.Tensor]:
    """What training reads before each code of a picture of zeros, its codes in sight or not: log probabilities."""
    codes = torch.zeros(CODE_SPEC.codebooks, *CODE_SPEC.grid, dtype=torch.int64)
    told = model.sequences.told([(model.cut(prompt), False), (Special("draw"), False), (Codes("image", codes), True)])
    hidden, _, _, roles, _ = model._read([told], torch.device("cpu"), [(told.roles == CODE) & blind])
    ids = [model.vocabulary.ranges[name] for name in model.vocabulary.reading_order("image")]
    return [
        logits[each.start : each.stop].log_softmax(-1)
        for logits, each in zip(model.head(hidden[roles == CODE]), ids, strict=True)
    ]


@pytest.mark.parametrize("changes", [{}, FULL])
@torch.no_grad()
def test_what_a_prompt_alone_says_counts_as_much_as_is_asked(changes):
    model, differ = made(**changes), []
    known, mask = torch.zeros(1, 2, 2, 3, dtype=torch.int64), torch.ones(1, 2, 2, 3, dtype=torch.bool)
    mask[0, 1, 1, 2] = False  # of all codes the last
    for prompt in WORDS:
        alone, after = said_of_codes(model, prompt, True), said_of_codes(model, prompt, False)
        whole = model.sample(1, [prompt], options=InterleavedOptions(temperature=0, blind=1000))[0]
        # codebook after codebook at each place
        assert whole.flatten(1).t().flatten().tolist() == [int(each.argmax()) for each in alone]
        for weight in (0, 0.3, 1, 3):
            options = InterleavedOptions(temperature=0, blind=weight)
            last = model.sample(1, [prompt], known, mask, options=options)[0, 1, 1, 2]
            assert int(last) == int((after[-1] + weight * alone[-1]).argmax())
        differ.append(int(after[-1].argmax()) != int(alone[-1].argmax()))
    assert any(differ)
    # where nothing is asked for, nothing is said by it
    assert torch.equal(model.sample(2, seed=3, options=InterleavedOptions(blind=1000)), model.sample(2, seed=3))


def test_known_codes_stay_and_must_come_first():
    model = made()
    known = torch.randint(0, 8, (2, 2, 2, 3), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    mask[:, :, 0] = True
    drawn = model.sample(2, ["a red dog", "nothing"], known, mask)
    assert torch.equal(drawn[mask], known[mask])
    assert not torch.equal(drawn, known)
    with pytest.raises(UserError, match="must come first"):
        model.sample(2, ["", ""], known, ~mask)


def test_a_trajectory_ends_at_the_sample():
    model, way = made(), []
    drawn = model.sample(3, ["nothing", "a red dog", "nothing"], seed=2, trajectory=way)
    assert len(way) == CODE_SPEC.length
    assert torch.equal(way[-1], drawn)
    assert [(state >= 0).flatten(1).sum(1).tolist() for state in way[:3]] == [[1] * 3, [2] * 3, [3] * 3]


@torch.no_grad()
def fit(model: Interleaved, codes: torch.Tensor, text: str) -> float:
    """The log probability of a text after a picture, by the whole network."""
    sequence = model.vocabulary.interleave([Codes("image", codes), Special("describe"), model.cut(text)])
    states = model.grammar.states(sequence[None])
    x = model.token(sequence[None]) + model.next(F.pad(states[:, 1:], (0, 1)))
    logits = model.head(model.network(x, model.grammar.positions(sequence[None])))[0, :-1]
    allowed = model.grammar.allowed[model.grammar.turn_of[states[0, 1:]]]
    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    begin = sequence.tolist().index(model.vocabulary.id_of("begin_text"))
    return sum(log_p[at, sequence[at + 1]].item() for at in range(begin, len(sequence) - 1))


def test_where_nothing_was_asked_for_one_is_drawn(monkeypatch):
    model, rows = made(), []
    drawn = model._drawn
    monkeypatch.setattr(model, "_drawn", lambda *given: (rows.extend(given[4].tolist()), drawn(*given))[1])
    prompts = ["", WORDS[0], ""]
    x = model.sample(3, prompts, seed=4, options=InterleavedOptions(best_of=5))
    assert sorted(rows) == [0, 5, 6, 7, 8, 9, 10]
    for i, prompt in enumerate(prompts):
        assert torch.equal(model.sample(1, [prompt], seed=4, options=InterleavedOptions(best_of=5), first=i)[0], x[i])


def test_the_best_of_several_is_what_reads_most_like_its_prompt():
    model, prompts = made(), ["a red dog", "two green birds, on white", "a blue cat"]
    each = model.sample(15, [prompt for prompt in prompts for _ in range(5)], seed=4).view(3, 5, 2, 2, 3)
    fits = torch.tensor([[fit(model, one, prompt) for one in five] for prompt, five in zip(prompts, each, strict=True)])
    chosen, way = fits.argmax(1), []
    assert chosen.unique().numel() > 1  # it is not always the first
    best = model.sample(3, prompts, seed=4, options=InterleavedOptions(best_of=5), trajectory=way)
    assert torch.equal(best, each[torch.arange(3), chosen])
    assert torch.equal(way[-1], best)
    assert len(way) == CODE_SPEC.length
    # sample i has its own candidates, however the work is split
    assert torch.equal(model.sample(1, prompts[2:], seed=4, options=InterleavedOptions(best_of=5), first=2)[0], best[2])
    # nothing tells which is best of what is drawn for nobody: the first is kept
    assert torch.equal(model.sample(2, seed=4, options=InterleavedOptions(best_of=3)), model.sample(6, seed=4)[[0, 3]])
    begun = [model.cut(prompts[0]), Special("draw")]
    assert torch.equal(model.draw_after(begun, 4, InterleavedOptions(best_of=5)), best[0])


@torch.no_grad()
def test_the_best_of_several_captions_is_that_by_which_the_picture_is_likeliest():
    model, seed, each = made(), 7, 4  # few, as many rows are written in bf16
    codes = torch.randint(0, 8, (3, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    begun = [[Codes("image", one), Special("describe")] for one in codes]
    question = [begun[0][0], model.cut("how many?"), Special("answer")]
    plain, hot = InterleavedOptions(most_text=4), InterleavedOptions(most_text=4, text_temperature=1)
    candidates = [
        [model.write([parts], seed, hot if k else plain, first=i * each + k)[0] for k in range(each)]
        for i, parts in enumerate(begun)
    ]
    fits = torch.stack(
        [model.log_likelihood(one.expand(each, -1, -1, -1), told) for one, told in zip(codes, candidates, strict=True)]
    )
    best = [told[at] for told, at in zip(candidates, fits.argmax(1).tolist(), strict=True)]
    assert best != [told[0] for told in candidates]
    options, steps = InterleavedOptions(most_text=4, text_best_of=each), []
    written = model.write([*begun[:2], question], seed, options, progress=lambda *done: steps.append(done))
    assert written[:2] == best[:2]
    assert steps[-1] == (3 + 2 * (each - 1),) * 2
    # each hangs on its own number alone, and an answer is no caption
    assert model.write(begun[2:], seed, options, first=2) == best[2:]
    assert written[2] == model.write([question], seed, plain)[0]


@torch.no_grad()
def test_writing_step_by_step_is_writing_with_the_whole_network():
    model = made()
    picture = Codes("image", torch.randint(0, 8, (2, 2, 3), generator=torch.Generator().manual_seed(3)))
    begun = [picture, Special("describe")]
    options = InterleavedOptions(most_text=6)
    sequence = torch.cat([model.vocabulary.interleave(begun), torch.tensor([model.vocabulary.id_of("begin_text")])])
    said: list[int] = []
    for _ in range(options.most_text):
        states = model.grammar.states(torch.cat([sequence, torch.tensor([0])])[None])
        x = model.token(sequence[None]) + model.next(states[:, 1:])
        logits = model.head(model.network(x, model.grammar.positions(sequence[None])))[0, -1]
        allowed = model.grammar.allowed[model.grammar.turn_of[states[0, -1]]]
        token = logits.masked_fill(~allowed, -torch.inf).argmax()
        if token == model.vocabulary.id_of("end_text"):
            break
        said.append(int(token))
        sequence = torch.cat([sequence, token[None]])
    assert model.write([begun, begun], options=options) == [TEXT.decode(said)] * 2


@pytest.mark.parametrize("temperature", [1.5, 5.0])
def test_whatever_the_weights_a_grid_is_whole_and_a_text_is_text(temperature):
    model = made(spread=1.0)
    options = InterleavedOptions(temperature=temperature, text_temperature=temperature, most_text=9)
    codes = model.sample(64, WORDS * 16, seed=1, options=options)
    assert codes.shape == (64, 2, 2, 3)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 8
    picture = Codes("image", codes[0])
    assert all(isinstance(each, str) for each in model.write([[picture, Special("describe")]] * 64, 1, options))


def test_broken_weights_are_told():
    model = made()
    model.head.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        model.sample(1, ["nothing"])
    with pytest.raises(UserError, match="not finite"):
        model.write([[Codes("image", torch.zeros(2, 2, 3, dtype=torch.int64)), Special("describe")]])


def test_a_copy_speaks_as_the_original():
    model = made()
    other = copy.deepcopy(model)
    assert other.text is model.text
    assert torch.equal(other.sample(1, ["a red dog"]), model.sample(1, ["a red dog"]))


def test_it_learns_to_draw_what_is_asked_and_to_say_what_it_sees():
    """Four captions, a picture each: both directions known by heart, which chance does 1 in 8 codes of."""
    torch.manual_seed(0)
    config = InterleavedConfig(text_dropout=0.0)
    model = config.build(TransformerConfig(layers=2, width=64, heads=2, dropout=0.0), EXAMPLES, steps=150)
    model.text = TEXT
    pictures = torch.randint(0, 8, (4, 2, 2, 3), generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        which = torch.arange(16) % 4
        batch = Batch(step, torch.arange(16), which, pictures[which], None, [WORDS[i] for i in which], None, seed=1)
        Totals().add(model.loss("network", batch, step).terms).div(16).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert torch.equal(model.sample(4, WORDS, options=InterleavedOptions(temperature=0)), pictures)
    assert model.write([[Codes("image", each), Special("describe")] for each in pictures]) == WORDS


# --- what does not fit


def test_it_needs_codes_and_text():
    with pytest.raises(UserError, match="need codes"):
        InterleavedConfig().build(NETWORK, EXAMPLES.model_copy(update={"codes": None}), 1)
    with pytest.raises(UserError, match="captions"):
        InterleavedConfig().build(NETWORK, EXAMPLES.model_copy(update={"text": None}), 1)


def test_shares_above_all_are_refused():
    with pytest.raises(ValueError, match="more than all"):
        InterleavedConfig(drawing=0.8, text_alone=0.3)


def test_what_is_written_hangs_on_its_own_beginning_and_number_alone():
    model = made(spread=0.6)
    pictures = torch.randint(0, 8, (4, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    begun = [[Codes("image", each), Special("describe")] for each in pictures]
    begun[2] = [Text((1, 2)), *begun[2]]  # of another length
    options = InterleavedOptions(text_temperature=2, most_text=6)
    together = model.write(begun, 7, options)
    assert together == [model.write([each], 7, options, first=i)[0] for i, each in enumerate(begun)]
    assert together[0] != model.write(begun[:1], 7, options, first=1)[0]


def test_codes_that_look_alike_begin_alike():
    """Products of random Fourier features are a Gaussian of the distance (Rahimi & Recht 2007)."""
    torch.manual_seed(0)
    spec = CodeSpec(codebooks=2, grid=(2, 3), size=512)
    network = TransformerConfig(layers=1, width=2048, heads=2, dropout=0.0)
    model = InterleavedConfig().build(network, Examples(signal=EXAMPLES.signal, codes=spec, text=EXAMPLES.text), 10)
    before = model.token.weight.detach().clone()
    books = torch.randn(2, 512, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5.0, 0.1, 0.0]) + 3
    model.know_codes(books)
    for number, book in enumerate(books):
        ids = model.vocabulary.ranges[f"image_{number}"]
        standard = (book - book.mean(0)) / book.std(0, correction=0).clamp_min(1e-6)
        wanted = torch.exp(-(torch.cdist(standard, standard) ** 2) / 4)
        for table in (model.token, model.head):
            rows = F.normalize(table.weight[ids.start : ids.stop].detach(), dim=1)
            assert (1.09 * rows @ rows.T - wanted).fill_diagonal_(0).abs().mean() < 0.03
            assert table.weight[ids.start : ids.stop].std().item() == pytest.approx(0.02, rel=0.01)
            assert torch.equal(model.token.weight[: ids.start], before[: ids.start]) or number
    text = model.vocabulary.ranges["text"]
    assert torch.equal(model.token.weight[text.start : text.stop], before[text.start : text.stop])


@pytest.mark.parametrize("changes", [{}, FULL])
def test_what_is_written_one_token_a_step_is_what_the_whole_sequence_says(changes):
    model = made(**changes, sampling=InterleavedOptions(temperature=0.0, most_text=5))
    drawn = model.sample(len(WORDS), WORDS)
    for word, x in zip(WORDS, drawn, strict=True):
        picture = Codes("image", x)
        begun = model._stacked([model.sequences.begun([picture, Special("describe")])])
        with torch.no_grad():
            (pieces,) = model._say(begun, 0, torch.zeros(1).long(), model.config.sampling)
        for parts, role in (
            ([(model.cut(word), False), (Special("draw"), False), (picture, True)], CODE),
            ([(picture, False), (Special("describe"), False), (Text(tuple(pieces)), True)], PIECE),
        ):
            hidden, targets, turns, roles, _ = model._read([model.sequences.told(parts)], torch.device("cpu"))
            for at in (roles == role).nonzero().flatten().tolist()[:4]:
                may = model.turns(torch.device("cpu"))[int(turns[at])]
                assert may.ids[model.says(hidden[at : at + 1], may).argmax()] == targets[at]


def test_a_given_part_is_read_as_a_whole_and_what_is_asked_for_in_order():
    model = made(**FULL)
    picture = Codes("image", torch.zeros(2, 2, 3, dtype=torch.int64))
    told = model.sequences.told([(Text((1, 2)), False), (Special("draw"), False), (picture, True), (Text((3,)), False)])
    assert told.wholes.tolist() == [1] * 4 + [2] + [0] * 14 + [4] * 3 + [0]
    begun = model.sequences.begun([Text((1, 2)), Special("draw"), picture, Text((3,)), Special("answer")])
    assert begun[1].tolist() == [1] * 4 + [2] + [0] * 14 + [4] * 3 + [5]
    assert begun[0].tolist()[:-1] == told.tokens.tolist()[:-1]
    with pytest.raises(ValueError, match="cannot be guessed"):
        InterleavedConfig(given="full")
