"""What a model of text and pictures, trained here, knows of a text: a text encoder for one that draws by diffusion.

To draw after a caption it had to find out which thing stands where, so what it knows of each piece tells that. To take
noise from pictures teaches it slowly, for most of the time a picture itself tells what stands where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.checkpoint import TEXT_FILE, read_config, read_weights
from smalti.checkpoint import model_folder as find
from smalti.config import Examples, checked
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.interleaved import Interleaved, InterleavedConfig
from smalti.tokenizers.text import TextTokenizer
from smalti.tokenizers.vocabulary import Text


class InterleavedText:
    """Pieces of text -> what the last layer of such a model reads of them, normalised; of a single layer, what it says.

    `folder` is a run, a model folder, or the name of a model that comes along; `found` is where the model lies. As
    `PretrainedText`, it is no `nn.Module`. Raises UserError where there is no model of text and pictures, or a damaged
    one.
    """

    def __init__(self, folder: str) -> None:
        self.found = found = find(folder)
        config = read_config(found)
        wanted = f"{folder} is no text encoder: it must have been trained with --paradigm.kind interleaved"
        try:
            settings, network, examples = config["recipe"]["paradigm"], config["recipe"]["model"], config["examples"]
            if settings["kind"] != "interleaved":
                raise UserError(wanted)
        except (KeyError, TypeError) as error:
            raise UserError(wanted) from error
        told = checked(Examples, examples, wanted)
        shape = checked(TransformerConfig, network, wanted)
        text, weights = TextTokenizer.load((found / TEXT_FILE).parent), read_weights(found, config)
        if told.text is None or text.sha256 != told.text.sha256:
            raise UserError(f"{found / TEXT_FILE} is not the text tokenizer that {folder} was trained with")
        try:
            model = checked(InterleavedConfig, settings, wanted).build(shape, told, steps=1)
            model.load_model_state(weights)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise UserError(f"{found} is damaged: its weights do not fit its config.json") from error
        model.text = text
        # what the last layer would make of a text that is given is never asked for
        model.network.blocks = model.network.blocks[: max(1, shape.layers - 1)]
        self._model: Interleaved = model.eval().requires_grad_(False)
        self.width, self.sha256 = shape.width, str(config["weights_sha256"])

    def __deepcopy__(self, memo: dict[int, object]) -> InterleavedText:
        return self  # nothing changes it

    def cut(self, text: str, longest: int) -> list[int]:
        """The ids of a text as it stands before a picture, with what begins and ends it; at most `longest`, or 3."""
        assert self._model.text is not None
        pieces = Text(self._model.text.encode(text, max(1, longest - 2)).ids)
        return self._model.vocabulary.interleave([pieces]).tolist()

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 (B, S) as `cut` makes them, those under mask (bool, same shape) -> fp32 (B, S, width), 0 elsewhere.

        A text is read as the model reads it: by pieces in order, or as a whole.
        """
        model = self._model.to(ids.device)
        grammar = model.grammar_on(ids.device)
        end = model.vocabulary.id_of("padding")
        every = F.pad(torch.where(mask, ids, end), (0, 1), value=end)
        states = grammar.states(every)
        positions = grammar.positions_at(states)[:, :-1]
        x = model.token(every[:, :-1]) + model.next(states[:, 1:])
        sees = mask[:, None]
        if model.config.given == "causal":
            sees = sees & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        sees = sees | torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)  # of a row without pieces, too
        read = model.network(x, positions, sees[:, None])
        return read.float().masked_fill(~mask.unsqueeze(-1), 0.0)
