"""Next-token prediction over text and pictures in one sequence and one vocabulary.

The model writes what it has read others write: a picture after its caption (DALL·E, Ramesh et al. 2021, arXiv
2102.12092), a caption or an answer after a picture, and turns of both (Chameleon, arXiv 2405.09818). A special token
says what is asked:

    text, draw, picture     picture, describe, text     picture, text (a question), answer, text

Captions of a share of the pictures are replaced by the token `no_condition`, so that the same network also gives the
prediction that guidance needs (Ho & Salimans 2022, arXiv 2207.12598). The first codes of a thing give away the rest, so
that a caption is soon not looked at; of a share of the pictures, a random part of the codes is therefore hidden from
those that follow (Bowman et al. 2016, arXiv 1511.06349, word dropout), or all of them. A token only ever competes with
those that the grammar of the vocabulary allows in its place, in training as in sampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from smalti.config import CodeSpec, Examples, Reads
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.data.packing import pack, whole
from smalti.device import decoding_dtype, full_precision
from smalti.errors import UserError
from smalti.layers.kept import Kept
from smalti.layers.stepper import Folded
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.base import Loss, Paradigm, ParadigmConfig, Progress, untold
from smalti.paradigms.choose import ChoiceConfig, choose
from smalti.paradigms.codes import as_grid, check_finite, known_codes, only_first
from smalti.paradigms.guidance import GuidanceConfig, guide
from smalti.paradigms.llama import Llama
from smalti.paradigms.pen import Pen
from smalti.paradigms.sequences import CODE, NOBODY, PIECE, Asked, Begun, Sequences, Told
from smalti.term import Term
from smalti.tokenizers.grammar import Grammar
from smalti.tokenizers.vocabulary import Codes, Part, Special, Text, Vocabulary, VocabularyConfig

TOKEN_STREAM = 2  # of random numbers: what is drawn
# products are prepared anew for every size that they have not met: so training keeps to few sizes
EVEN_ROWS, EVEN_TOKENS = 4, 256
AT_ONCE = 250  # sequences that are written together


class InterleavedOptions(ChoiceConfig, GuidanceConfig):
    """How to sample. `temperature`, `top_k`, `top_p`, guidance and `best_of` are for pictures, those of text have its
    name.

    Of several pictures drawn after a prompt, the one is kept that the same network would most likely describe by it, as
    DALL·E kept those that CLIP found to fit (Ramesh et al. 2021, section 2.6). Of several captions of a picture, the
    one is kept by which the same network would most likely draw it: a noisy channel (Yu et al. 2017, arXiv 1611.02554).
    The first is written as the other options say, those beside it at a temperature of at least 1.

    What the codes before it say of a code may be multiplied by what the prompt alone says of it, to the power `blind`:
    a product of experts (Hinton 2002). It helps where the network was trained with `blind`.
    """

    blind: float = Field(
        0.0, ge=0, le=1000, description="how much counts what a prompt says of each code where no other code is seen"
    )
    best_of: int = Field(1, ge=1, le=10_000, description="of so many drawn, keep what reads most like its prompt")
    text_temperature: float = Field(0.0, ge=0, description="0 takes the likeliest piece")
    text_top_k: int | None = Field(None, ge=1)
    text_top_p: float | None = Field(None, gt=0, le=1)
    text_best_of: int = Field(1, ge=1, le=10_000, description="of so many captions, keep what the picture fits best")
    most_text: int = Field(64, ge=1, le=4096, description="pieces of a text that is written")

    @property
    def of_text(self) -> ChoiceConfig:
        return ChoiceConfig(temperature=self.text_temperature, top_k=self.text_top_k, top_p=self.text_top_p)


class InterleavedConfig(ParadigmConfig):
    """What sequences are made of in training, and what their tokens count in the loss.

    Of all examples, a share `drawing` is text, then picture; `text_alone` is text without a picture; the rest begins
    with the picture, which is then described, asked about, or both. `sampling` are the options used when none are
    given.
    """

    kind: Literal["interleaved"] = "interleaved"
    trains: ClassVar[str] = "transformer"
    reads: ClassVar[Reads] = "codes"
    pieces: int = Field(1024, ge=256, le=1_000_000, description="most pieces of text in the vocabulary")
    longest: int = Field(256, ge=1, le=4096, description="pieces of a text that are read; what is longer is cut")
    row: int = Field(
        256, ge=8, le=8192, description="tokens of a row that sequences are packed in; longer if one needs it"
    )
    drawing: float = Field(0.5, ge=0, le=1)
    text_alone: float = Field(0.1, ge=0, le=1)
    questions: int = Field(3, ge=0, description="most that are asked about one picture")
    seen_again: float = Field(
        0.0, ge=0, le=1, description="share of the pictures read that come as encoded again, from what they decode to"
    )
    text_dropout: float = Field(0.1, ge=0, le=1, description="share of the pictures drawn without their caption")
    # it grows, for where codes are hidden from the start, what follows from what is learnt late
    code_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the pictures drawn with codes of theirs hidden, from halfway through; before, it grows",
    )
    blind: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the pictures drawn, of those whose caption tells all, with all their codes hidden",
    )
    seen_dropout: float = Field(
        0.0, ge=0, le=1, description="most of the codes that are hidden of a picture that is read: a share up to it"
    )
    given: Literal["causal", "full"] = Field(
        "causal", description="how what is given is read: each token with those before it, or with the whole part"
    )
    text_weight: float = Field(4.0, gt=0, description="what a piece counts in the loss, beside 1 for a code")
    given_weight: float = Field(0.1, ge=0, description="the same for text and specials that are given, not asked for")
    seen_weight: float = Field(0.5, ge=0, description="the same for the codes of a picture that is given")
    sampling: InterleavedOptions = InterleavedOptions()

    @property
    def words(self) -> bool:
        return True

    @property
    def again(self) -> bool:
        return self.seen_again > 0

    @model_validator(mode="after")
    def _shares_fit(self) -> InterleavedConfig:
        if self.drawing + self.text_alone > 1:
            raise ValueError(f"drawing {self.drawing:g} and text_alone {self.text_alone:g} are more than all")
        if self.given == "full" and (self.given_weight or self.seen_weight):
            raise ValueError(
                "what is read as a whole cannot be guessed: with given full, given_weight and seen_weight are 0"
            )
        return self

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Interleaved:
        if examples.codes is None:
            raise UserError("pictures in a sequence of text need codes, and this tokenizer has none: choose another")
        if examples.text is None:
            raise UserError("a model of text and pictures needs captions, and this data has none")
        return Interleaved(self, model, examples.codes, examples.text.pieces, steps)


@dataclass(frozen=True)
class Turn:
    """What may stand at one kind of place: `ids` (n,), in order; they begin at `start` if none is left out."""

    ids: Tensor
    start: int | None


class Interleaved(Paradigm):
    """Sequences of a vocabulary; `text` cuts texts into its pieces."""

    sequential = True

    def __init__(
        self, config: InterleavedConfig, network: TransformerConfig, codes: CodeSpec, pieces: int, steps: int
    ) -> None:
        super().__init__()
        self.config, self.codes = config, codes
        self.vocabulary = Vocabulary(VocabularyConfig(text=pieces, image=codes))
        self.grammar = Grammar(self.vocabulary)
        self.sequences = Sequences(config, self.vocabulary, self.cut, steps)
        width = network.width
        self.token = nn.Embedding(self.vocabulary.size, width)
        # what a token is asked for: text, or a place in a grid
        self.next = nn.Embedding(self.grammar.state_count, width)
        self.network = Transformer(network)
        self.head = nn.Linear(width, self.vocabulary.size, bias=False)
        for table in (self.token, self.next, self.head):
            nn.init.normal_(table.weight, std=0.02)
        self.folded = Kept[Folded]()  # for pens
        self._turns: list[Turn] | None = None
        self._grammar: Grammar | None = None

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    @torch.no_grad()
    def know_codes(self, vectors: Tensor) -> None:
        """Let codes begin as alike as their vectors are, (codebooks, size, width); else each is learnt by itself.

        An edge of a thing is another code on every ground, and what is learnt of one then serves the others. The
        embeddings are random Fourier features (Rahimi & Recht 2007), whose products fall like a Gaussian of the
        distance, and some noise that tells equal vectors apart.
        """
        for number, book in enumerate(vectors):
            ids, width = self.vocabulary.ranges[f"image_{number}"], self.token.embedding_dim
            standard = (book - book.mean(0)) / book.std(0, correction=0).clamp_min(1e-6)
            waves = torch.randn(book.shape[1], width) * (2 / book.shape[1]) ** 0.5
            features = 2**0.5 * torch.cos(standard @ waves + 2 * math.pi * torch.rand(width))
            features = features + 0.3 * torch.randn_like(features)
            for table in (self.token, self.head):
                table.weight[ids.start : ids.stop] = 0.02 * features / features.std()

    @torch.no_grad()
    def grow(self, llama: Llama) -> None:
        """Take over a model of text: what it says of a text stays the same, for its pieces keep their ids.

        New tokens begin near the mean of the pieces, with a tenth of their spread (Hewitt 2021, "Initializing new word
        embeddings for pretrained language models"); what begins and ends a text is what it was there. Raises UserError
        where the weights do not fit.
        """
        weights = llama.weights()
        begin, end = (self.vocabulary.id_of(f"{each}_text") for each in ("begin", "end"))
        for table, theirs in ((self.token, weights.pop("token")), (self.head, weights.pop("head"))):
            near = torch.randn(table.weight.shape) * (0.1 * theirs.std(0)) + theirs.mean(0)
            near[: len(theirs)] = theirs
            for ours, their in ((begin, llama.begin), (end, llama.end)):
                if their is not None:
                    near[ours] = theirs[their]
            table.weight.copy_(near)
        nn.init.zeros_(self.next.weight)
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the weights of {llama.folder} do not fit its config.json: {reason}") from error

    # --- training

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        config, device = self.config, self.head.weight.device
        told = [self.sequences.told(parts) for parts in self.sequences.of(batch, self.training)]
        hides = self.sequences.hidden(batch, told, self.training)
        order = sorted(range(len(told)), key=lambda i: -len(told[i].tokens))  # so they fill rows best
        hidden, targets, turns, roles, _ = self._read([told[i] for i in order], device, [hides[i] for i in order])
        of_role = [config.given_weight, 1.0, config.text_weight, config.seen_weight]
        weight = hidden.new_tensor(of_role, dtype=torch.float32)[roles]
        whole, nats, hits = weight.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(weight)
        # what counts nothing is left out, or choosing among all codes would be computed in vain
        for here, logits, place in self._choices(hidden, targets, turns, weight > 0):
            with full_precision(device):
                cost = F.cross_entropy(logits, place, reduction="none")
                whole = whole + (cost * weight[here]).sum()
            nats[here], hits[here] = cost.detach(), (logits.detach().argmax(-1) == place).float()
        terms = [Term("loss", whole / self.codes.length, len(batch.rows))]
        for role, name in ((CODE, "code"), (PIECE, "piece")):
            asked = roles == role
            terms.append(Term(f"nats_a_{name}", nats[asked].sum(), int(asked.sum()), 0.0))
            terms.append(Term(f"accuracy_{name}", hits[asked].sum(), int(asked.sum()), 0.0))
        return Loss(terms)

    def _choices(
        self, hidden: Tensor, targets: Tensor, turns: Tensor, wanted: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of the tokens `wanted`, bool (n,), those of each turn that leaves a choice: which they are, bool (n,), the
        logits of what may stand there, and the place of the token among them."""
        for turn, may in enumerate(self.turns(hidden.device)):
            here = (turns == turn) & wanted
            if len(may.ids) > 1 and bool(here.any()):
                place = torch.searchsorted(may.ids, targets[here])
                yield here, self.says(_even(hidden[here]), may)[: len(place)], place

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, condition: Sequence[str] | None = None, seed: int = 0, steps: int | None = None, first: int = 0
    ) -> Tensor:
        """The log probability of codes (n, Q, *grid) after a prompt each ("" for none), in nats: float64 (n,), exact.

        Nothing is drawn here, and there are no steps. Raises UserError on codes that do not exist.
        """
        known_codes(self.codes, x, torch.ones_like(x, dtype=torch.bool), len(x), self.head.weight.device)
        told = []
        for codes, prompt in zip(x.cpu(), condition or [""] * len(x), strict=True):
            told.append(self.sequences.told(self._drawing(prompt, Codes("image", codes))))
        return self._log_p(told, CODE)

    def _drawing(self, prompt: str, picture: Part) -> list[Asked]:
        return [(self._prompt(prompt), False), (Special("draw"), False), (picture, True)]

    def _prompt(self, text: str | None) -> Part:
        return self.cut(text) if text else NOBODY

    def _log_p(self, told: Sequence[Told], of: int) -> Tensor:
        """The log probability of the tokens of this role in each sequence, in nats: float64 (n,)."""
        device = self.head.weight.device
        nats = torch.zeros(len(told), dtype=torch.float64, device=device)
        if not told:
            return nats
        order = sorted(range(len(told)), key=lambda i: -len(told[i].tokens))
        hidden, targets, turns, role, example = self._read([told[i] for i in order], device)
        for here, logits, place in self._choices(hidden, targets, turns, role == of):
            check_finite(logits)
            log_p = logits.double().log_softmax(-1).gather(1, place[:, None])[:, 0]
            nats.index_add_(0, example[here], log_p)
        return nats[torch.tensor(order, device=device).argsort()]

    def cut(self, text: str) -> Text:
        """A text's pieces, the first `longest` of them."""
        assert self.text is not None, "a model of text needs its tokenizer"
        return Text(self.text.encode(text, self.config.longest).ids)

    def _read(
        self, told: Sequence[Told], device: torch.device, hidden: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sequences packed in rows and read, but for what is `hidden`: for every token but the first of each, what the
        network says before it (n, width), the token (n,), its turn (n,), its role (n,) and which sequence it is of
        (n,)."""
        end, tokens = self.vocabulary.id_of("padding"), [each.tokens for each in told]
        every = pad_sequence(tokens, batch_first=True, padding_value=end)
        states = self.grammar.states(every)
        positions = self.grammar.positions_at(states)
        row = max(self.config.row, len(tokens[0]))
        packed = pack(tokens, row, end, EVEN_ROWS)
        at = (packed.examples.clamp_min(0), packed.positions)
        after = F.pad(states, (0, 1))[:, 1:]  # the state that a token leads to
        seen = self.token(packed.tokens.to(device))
        if hidden is not None:
            seen = seen * ~packed.lay(hidden, True).to(device).unsqueeze(-1)
        attend = packed.attend_with(packed.lay([each.wholes for each in told]))
        x = seen + self.next(after[at].to(device))
        read = self.network(x, positions[at].to(device), attend.to(device))
        # what is followed by a token of the same sequence says that one
        says = (packed.examples[:, 1:] == packed.examples[:, :-1]) & (packed.examples[:, 1:] >= 0)
        rows, places = says.nonzero(as_tuple=True)
        example, place = packed.examples[rows, places], packed.positions[rows, places] + 1
        role = pad_sequence([each.roles for each in told], batch_first=True)
        flat = (rows * row + places).to(device)
        turns = self.grammar.turn_of[states[example, place]]
        of_each = (every[example, place], turns, role[example, place], example)
        return read.flatten(0, 1).index_select(0, flat), *(each.to(device) for each in of_each)

    def grammar_on(self, device: torch.device) -> Grammar:
        """The grammar where sequences are written; in training it reads on the processor."""
        if self._grammar is None or self._grammar.device != device:
            self._grammar = self.grammar if device == self.grammar.device else Grammar(self.vocabulary, device)
        return self._grammar

    def turns(self, device: torch.device) -> list[Turn]:
        """The turns of the grammar, with their ids on a device."""
        if self._turns is None or self._turns[0].ids.device != device:
            found = [allowed.nonzero().flatten() for allowed in self.grammar.allowed]
            row = [len(ids) > 0 and int(ids[-1] - ids[0]) == len(ids) - 1 for ids in found]
            self._turns = [
                Turn(ids.to(device), int(ids[0]) if whole else None) for ids, whole in zip(found, row, strict=True)
            ]
        return self._turns

    def says(self, hidden: Tensor, turn: Turn) -> Tensor:
        """What the network says (n, width) -> logits fp32 (n, ids of the turn)."""
        if turn.start is not None:
            weight = self.head.weight[turn.start : turn.start + len(turn.ids)]
        else:
            weight = self.head.weight.index_select(0, turn.ids)
        return F.linear(hidden, weight).float()

    # --- sampling

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Sequence[str] | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        options: InterleavedOptions | None = None,
        first: int = 0,
        trajectory: list[Tensor] | None = None,
        progress: Progress = untold,
    ) -> Tensor:
        """Draw codes (n, Q, *grid).

        condition: a prompt for each; None or "" leaves what is drawn open. known: codes (n, Q, *grid) of which those
        under `mask` (bool, same shape) are kept: they must come first in raster order. Row i draws its noise from
        (seed, first + i); with `best_of` K, its candidates are the rows (first + i) * K to (first + i + 1) * K - 1, or
        the first of them alone where there is no prompt to tell them apart by.
        `trajectory` is given the grid after every code, -1 where none has been chosen yet. Raises UserError on a mask
        that it cannot honour and on weights that are not finite.
        """
        options = options or self.config.sampling
        device = self.head.weight.device
        codes, keep = known_codes(self.codes, known, mask, n, device)
        if not only_first(keep):
            raise UserError(
                "a next-token model completes only what follows in reading order: the kept part must come first"
            )
        prompts = [self._prompt(text) for text in condition or [""] * n]
        length, each = self.codes.length, options.best_of
        drawn = [(i, k) for i, prompt in enumerate(prompts) for k in range(1 if prompt is NOBODY else each)]
        of = [i for i, _ in drawn]
        noise = first * each + torch.tensor([i * each + k for i, k in drawn], dtype=torch.int64)
        asked = [prompts[i] for i in of]
        codes, keep = codes[of], keep[of]
        begun = [self.sequences.begun([prompt, Special("draw")]) for prompt in asked]
        ways = [torch.full((len(begun), length), -1) for _ in range(0 if trajectory is None else length)]
        done = 0
        for rows in _alike(begun):
            where = torch.tensor(rows)
            prefix = self._stacked([begun[row] for row in rows])
            drawing = self._drawn(prefix, codes[where], keep[where], seed, noise[where], options)
            for place, chosen in enumerate(drawing):
                codes[where, : place + 1] = chosen
                if ways:
                    ways[place][where, : place + 1] = chosen.cpu()
                progress((done * length + (place + 1) * len(rows)) // len(begun), length)
            done += len(rows)
        best = self._best_drawn(asked, codes, of)
        if trajectory is not None:
            trajectory += [as_grid(way[best.cpu()], self.codes) for way in ways]
        return as_grid(codes[best], self.codes)

    def _best_drawn(self, asked: Sequence[Part], codes: Tensor, of: Sequence[int]) -> Tensor:
        """Of codes (N, T), which to keep: of those `of` one sample, the one that reads most like what was asked for."""
        grids = as_grid(codes.cpu(), self.codes)

        def described(at: int) -> list[Asked]:
            return [(Codes("image", grids[at]), False), (Special("describe"), False), (asked[at], True)]

        return self._best(described, of, PIECE).to(codes.device)

    def _best(self, candidate: Callable[[int], Sequence[Asked]], of: Sequence[int], role: int) -> Tensor:
        """Of N candidates, which to keep: of those `of` one sample, beside each other, that whose tokens of this role
        are the likeliest."""
        rivals, fits = Counter(of), torch.zeros(len(of), dtype=torch.float64)
        scored = [at for at, i in enumerate(of) if rivals[i] > 1]
        for start in range(0, len(scored), AT_ONCE):
            some = scored[start : start + AT_ONCE]
            fits[some] = self._log_p([self.sequences.told(candidate(at)) for at in some], role).cpu()
        stops = torch.tensor(list(rivals.values()), dtype=torch.int64).cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        best = [start + int(fits[start:stop].argmax()) for start, stop in zip(starts, stops, strict=True)]
        return torch.tensor(best, dtype=torch.int64)

    @torch.no_grad()
    def draw_after(self, parts: Sequence[Part], seed: int = 0, options: InterleavedOptions | None = None) -> Tensor:
        """The codes (Q, *grid) of the picture that follows; the last of the parts says `draw`."""
        options = options or self.config.sampling
        each = options.best_of
        codes, keep = known_codes(self.codes, None, None, each, self.head.weight.device)
        prefix = self._stacked([self.sequences.begun(parts)] * each)
        *_, codes = self._drawn(prefix, codes, keep, seed, torch.arange(each), options)
        best = self._best_drawn([parts[-2]] * each, codes, [0] * each)
        return as_grid(codes[best], self.codes)[0].cpu()

    def _drawn(
        self,
        prefix: Begun,
        codes: Tensor,
        keep: Tensor,
        seed: int,
        rows: Tensor,
        options: InterleavedOptions,
    ) -> Iterator[Tensor]:
        """After beginnings of one length, the codes so far (n, 1), (n, 2), … up to (n, T); what is kept stays."""
        n, length = codes.shape
        begun, asked = [prefix], int(prefix[0][0, 0]) != self.vocabulary.id_of(NOBODY.name)
        if options.guidance != 1 and asked:
            begun.append(self._stacked([self.sequences.begun([NOBODY, Special("draw")])] * n))
        pens = [Pen(self, n, each[0].shape[1] + 1 + length) for each in begun]
        blind = self._blind(prefix) if options.blind and asked else None
        token = torch.full((n,), self.vocabulary.id_of("begin_image"), device=codes.device)
        for pen, each in zip(pens, begun, strict=True):
            pen.read_all(*each)
        for place, name in enumerate(self.vocabulary.reading_order("image")):
            ids = self.vocabulary.ranges[name]
            said = [pen.logits(pen.read(token), ids) for pen in pens]
            logits = said[0]
            if len(said) > 1:
                with_text, without = (each.log_softmax(-1) for each in said)
                logits = guide(with_text, without, options.scale(place / max(1, length - 1)))
            if blind is not None:
                logits = logits + options.blind * pens[0].logits(blind[:, place], ids).log_softmax(-1)
            drawn = choose(logits, uniform(seed, place, rows, TOKEN_STREAM).to(logits.device), options)
            codes[:, place] = torch.where(keep[:, place], codes[:, place], drawn)
            token = codes[:, place] + ids.start
            yield codes[:, : place + 1]
        check_finite(logits)  # what is broken at one code stays in the cache, and breaks the last one too

    def _blind(self, prefix: Begun) -> Tensor:
        """After beginnings of one length, what the network says of each code where it sees none: (n, T, width)."""
        (tokens, wholes), device = prefix, prefix[0].device
        begin, order = self.vocabulary.id_of("begin_image"), self.vocabulary.reading_order("image")
        # which code stands where none is seen does not matter
        picture = torch.tensor([begin, *(self.vocabulary.ranges[name].start for name in order)], device=device)
        sequence = torch.cat([tokens, picture.expand(len(tokens), -1)], 1)
        states, length = self.grammar_on(device).states(sequence), tokens.shape[1] + 1  # of what is seen
        x = self.token(sequence[:, :-1])
        x[:, length:] = 0
        attend = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=device).tril()
        attend = attend | whole(F.pad(wholes, (0, len(order))))
        positions = self.grammar_on(device).positions_at(states[:, :-1])
        said: Tensor = self.network(x + self.next(states[:, 1:]), positions, attend.unsqueeze(1))
        return said[:, length - 1 :].to(decoding_dtype(device, len(tokens)))

    @torch.no_grad()
    def write(
        self,
        begun: Sequence[Sequence[Part]],
        seed: int = 0,
        options: InterleavedOptions | None = None,
        first: int = 0,
        progress: Progress = untold,
    ) -> list[str]:
        """The text that follows each of several beginnings, at most `most_text` pieces.

        Row i draws its noise from (seed, first + i); with `text_best_of` K, the candidates of a caption are the rows
        (first + i) * K to (first + i + 1) * K - 1, and what is no caption is the first of them. Raises UserError on
        weights that are not finite.
        """
        options = options or self.config.sampling
        each, noise = options.text_best_of, (first + torch.arange(len(begun))) * options.text_best_of
        captions = [i for i, parts in enumerate(begun) if each > 1 and _is_caption(parts)]
        of = [i for i in captions for _ in range(each - 1)]
        total = len(begun) + len(of)
        texts = self._written(begun, seed, noise, options, lambda done, _: progress(done, total))
        if not captions:
            return texts
        hot = options.model_copy(update={"text_temperature": max(1.0, options.text_temperature)})
        rows = noise[of] + torch.arange(1, each).repeat(len(captions))
        others = self._written(
            [begun[i] for i in of], seed, rows, hot, lambda done, _: progress(len(begun) + done, total)
        )
        # each caption, and those beside it
        candidates = [
            (i, text) for k, i in enumerate(captions) for text in (texts[i], *others[k * (each - 1) :][: each - 1])
        ]

        def drawn(at: int) -> list[Asked]:
            i, text = candidates[at]
            return self._drawing(text, begun[i][-2])

        for at in self._best(drawn, [i for i, _ in candidates], CODE).tolist():
            i, texts[i] = candidates[at]
        return texts

    def _written(
        self, begun: Sequence[Sequence[Part]], seed: int, noise: Tensor, options: InterleavedOptions, progress: Progress
    ) -> list[str]:
        """A text after each beginning; row i draws its noise from (seed, noise[i])."""
        sequences = [self.sequences.begun(parts) for parts in begun]
        texts, done = [""] * len(begun), 0
        for rows in _alike(sequences):
            prefix = self._stacked([sequences[row] for row in rows])
            pieces = self._say(prefix, seed, noise[rows], options)
            for row, said in zip(rows, pieces, strict=True):
                assert self.text is not None
                texts[row] = self.text.decode(said)
            done += len(rows)
            progress(done, len(begun))
        return texts

    def _stacked(self, begun: Sequence[Begun]) -> Begun:
        """Beginnings of one length, together: (n, t) each, where they are read."""
        tokens, wholes = zip(*begun, strict=True)
        return torch.stack(tokens).to(self.head.weight.device), torch.stack(wholes).to(self.head.weight.device)

    def _say(self, prefix: Begun, seed: int, rows: Tensor, options: InterleavedOptions) -> list[list[int]]:
        """The pieces that follow beginnings of one length."""
        (n, length), device = prefix[0].shape, prefix[0].device
        begin, end = (self.vocabulary.id_of(f"{each}_text") for each in ("begin", "end"))
        pen = Pen(self, n, length + options.most_text + 2)
        pen.read_all(*prefix)
        hidden = pen.read(torch.full((n,), begin, device=device))
        ids = torch.cat([torch.arange(self.vocabulary.config.text), torch.tensor([end])]).to(device)
        said: list[Tensor] = []
        over = torch.zeros(n, dtype=torch.bool, device=device)
        while len(said) < options.most_text and not bool(over.all()):
            logits = pen.logits(hidden, ids)
            drawn = ids[choose(logits, uniform(seed, len(said), rows, TOKEN_STREAM).to(ids.device), options.of_text)]
            over = over | (drawn == end)
            said.append(drawn.masked_fill(over, end))
            if len(said) < options.most_text:
                hidden = pen.read(drawn.masked_fill(over, 0))  # what is over says on, and nobody listens
        check_finite(logits)
        every = torch.stack(said, 1).tolist()
        return [each[: each.index(end)] if end in each else each for each in every]


def _is_caption(parts: Sequence[Part]) -> bool:
    """Whether what follows describes the picture before it."""
    return len(parts) > 1 and parts[-1] == Special("describe") and isinstance(parts[-2], Codes)


def _even(rows: Tensor) -> Tensor:
    """Rows (n, width) and zeros behind them, up to a multiple of EVEN_TOKENS."""
    return F.pad(rows, (0, 0, 0, -len(rows) % EVEN_TOKENS))


def _alike(sequences: Sequence[Begun]) -> list[list[int]]:
    """The places of sequences of one length together, which can be read at once, not too many."""
    alike: dict[int, list[int]] = {}
    for place, each in enumerate(sequences):
        alike.setdefault(len(each[0]), []).append(place)
    return [rows[at : at + AT_ONCE] for rows in alike.values() for at in range(0, len(rows), AT_ONCE)]
