"""What may follow in a sequence of a vocabulary, and where each token stands.

A small automaton: between parts, inside a text, or at one place of a grid. It steps once a token, so a sampler that
asks it never draws another kind's token, and a training asks it which tokens each logit competes with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.errors import UserError
from smalti.tokenizers.vocabulary import ALONE, PADDING, Vocabulary

BETWEEN, TEXT, ENDED = 0, 1, 2  # states; those of grids follow, one for each place and one for the end behind it


class Grammar:
    """The sequences of a vocabulary.

    `allowed`, bool (turns, V), says which tokens may come at each turn: between parts, inside a text, a codebook's
    turn, and so on; `turn_of` (states,) which turn it is in each state. `axes` is how many coordinates a position has:
    those of the largest grid, and one more where a signal has several codebooks.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        self.vocabulary, self.device = vocabulary, torch.device(device)
        shapes = {
            kind: (*spec.grid, spec.codebooks) if spec.codebooks > 1 or not spec.grid else spec.grid
            for kind, spec in vocabulary.codes.items()
        }
        self.axes = max(map(len, shapes.values()), default=1)

        kinds = {name: kind for kind, name in enumerate(vocabulary.kinds)}
        states = 3 + sum(spec.length + 1 for spec in vocabulary.codes.values())
        following = torch.full((states, len(kinds)), -1)  # the state after each kind of token, -1 for none
        owed = torch.zeros(states, dtype=torch.int64)  # how many tokens a part that was begun needs at least
        offset = torch.zeros(states, self.axes, dtype=torch.int64)  # of the token to come, in its grid
        advance = torch.ones(states, dtype=torch.int64)  # how far the text moves on behind it

        following[BETWEEN, [kinds[name] for name in ALONE]] = BETWEEN
        following[BETWEEN, kinds[PADDING]] = following[ENDED, kinds[PADDING]] = ENDED
        following[BETWEEN, kinds["begin_text"]] = following[TEXT, kinds["text"]] = TEXT
        following[TEXT, kinds["end_text"]] = BETWEEN
        owed[TEXT] = 1
        first = ENDED + 1
        for kind, shape in shapes.items():
            order = [kinds[name] for name in vocabulary.reading_order(kind)]
            end = first + len(order)
            following[BETWEEN, kinds[f"begin_{kind}"]] = first
            following[torch.arange(first, end), order] = torch.arange(first + 1, end + 1)
            following[end, kinds[f"end_{kind}"]] = BETWEEN
            owed[first : end + 1] = torch.arange(len(order) + 1, 0, -1)
            places = torch.unravel_index(torch.arange(len(order)), shape)
            offset[first:end, : len(shape)] = torch.stack(places, -1)
            advance[first:end] = 0
            advance[end - 1] = max(shape)  # what follows stands behind the whole grid, along every axis
            first = end + 1

        turns, turn_of = torch.unique(following >= 0, dim=0, return_inverse=True)
        self.kind_of_id = vocabulary.kind_of(torch.arange(vocabulary.size)).to(self.device)
        self.following, self.turn_of = following.to(self.device), turn_of.to(self.device)
        self.owed, self.offset, self.advance = (each.to(self.device) for each in (owed, offset, advance))
        self.allowed = turns.to(self.device)[:, self.kind_of_id]
        self.state_count = states

    def turns(self, tokens: Tensor) -> Tensor:
        """Which row of `allowed` each token was one of: sequences (B, T) -> int64 (B, T).

        Sequences may stand one behind the other in a row, as packed ones do. Raises UserError where a token is not
        allowed, with its row and position.
        """
        return self.turn_of[self.states(tokens)]

    def positions(self, tokens: Tensor) -> Tensor:
        """Where each token stands: sequences (B, T) -> int64 (B, T, axes), no two of a row at one place.

        Text moves on along all axes alike, one a token. A code stands at its row, column and so on, counted from where
        its grid begins, and text goes on behind the grid's longest side (as in Wang et al. 2024, arXiv 2409.12191,
        section 2.1, without their axis of time). Raises UserError as `turns` does.
        """
        return self.positions_at(self.states(tokens))

    def positions_at(self, states: Tensor) -> Tensor:
        """The same from the states before each token: (B, T) -> (B, T, axes)."""
        advance = self.advance[states]
        return (advance.cumsum(1) - advance).unsqueeze(-1) + self.offset[states]

    def states(self, tokens: Tensor) -> Tensor:
        """The state before each token: (B, T) -> (B, T), each in [0, number of states). Raises UserError as `turns`."""
        kinds = self.vocabulary.kind_of(tokens.to(self.device))
        state = torch.full((len(tokens),), BETWEEN, device=self.device)
        states = torch.empty_like(kinds)
        for place in range(tokens.shape[1]):
            states[:, place] = state
            state = self.following[state, kinds[:, place]]
        wrong = (self.following[states.clamp_min(0), kinds] < 0).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            name = self.vocabulary.kinds[int(kinds[row, place])]
            raise UserError(f"{name} may not stand at position {place} of sequence {row}")
        return states


class Walk:
    """Sequences of `length` tokens, `rows` of them at once, written one token a step by a sampler.

    Ask `allowed` and `positions`, then `take` what was chosen; `state` (rows,) is what the sequences stand in now. What
    is begun is always finished within the length.
    """

    def __init__(self, grammar: Grammar, rows: int, length: int) -> None:
        self.grammar, self.left = grammar, length
        self.state = torch.full((rows,), BETWEEN, device=grammar.device)
        self._at = torch.zeros(rows, dtype=torch.int64, device=grammar.device)

    def allowed(self) -> Tensor:
        """Which tokens may come next: bool (rows, V); none where the sequences are full."""
        return self._allowed_kinds()[:, self.grammar.kind_of_id]

    def positions(self) -> Tensor:
        """Where the next tokens stand: int64 (rows, axes), as `Grammar.positions` has it."""
        return self._at.unsqueeze(-1) + self.grammar.offset[self.state]

    def take(self, tokens: Tensor) -> None:
        """Go on by one token a row, int64 (rows,). Raises ValueError on one that is not allowed."""
        kinds = self.grammar.kind_of_id[tokens].unsqueeze(-1)
        if not bool(self._allowed_kinds().gather(1, kinds).all()):
            raise ValueError("a token that is not allowed here")
        self._at = self._at + self.grammar.advance[self.state]
        self.state = self.grammar.following[self.state].gather(1, kinds).squeeze(1)
        self.left -= 1

    def _allowed_kinds(self) -> Tensor:
        following = self.grammar.following[self.state]
        return (following >= 0) & (self.grammar.owed[following] < self.left)
