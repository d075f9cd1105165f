from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.evaluation import exact
from tests.evaluation.test_report import Reader
from tests.tiny import tokenizer_recipe
from torch import Tensor

from smalti import runs
from smalti.errors import UserError
from smalti.evaluation import code_pages
from smalti.evaluation.code_pages import added_pictures, analyse_codes, code_pictures, most_common, random_codes
from smalti.evaluation.codes import CodeMeter
from smalti.evaluation.report import Report
from smalti.model import Tokenizer, load_tokenizer
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig


def test_a_code_is_the_middle_of_its_own_kind() -> None:
    tokenizer = exact.tokenizer(VQConfig(codes=6, dim=3), (8, 8), (4,))
    tiles = code_pictures(tokenizer, torch.tensor([4, 1]), torch.tensor([0]), 0)
    for tile, code in zip(tiles, (4, 1), strict=True):
        whole = tokenizer.decode(torch.full((1, 1, 3, 3), code))
        torch.testing.assert_close(tile, whole[0, :, 4:8, 4:8])


def test_later_codes_are_added_to_the_mean_of_those_before() -> None:
    tokenizer = exact.bits(stages=3)
    # of four positions three have the high bit, and one of those the next: (3 - 1) / 4 / 2 + (1 - 3) / 4 / 4
    before = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]])[None]
    mean = 0.25 - 0.125
    found = added_pictures(tokenizer, torch.tensor([1, 0]), before).flatten()
    assert found.tolist() == pytest.approx([mean, mean + 0.125, mean - 0.125])


def test_the_most_common_combination_is_a_counters() -> None:
    codes = torch.randint(0, 3, (5, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    counted = Counter(map(tuple, codes.movedim(1, -1).flatten(0, -2).tolist()))
    assert counted[tuple(most_common(codes).tolist())] == max(counted.values())


def test_random_codes_are_drawn_from_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = exact.bits(stages=2)
    meter = CodeMeter(2, 2)
    meter.update(torch.tensor([[[0] * 9 + [1], [1] * 10]]))
    asked: list[Tensor] = []
    lay = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, codes: asked.append(codes) or lay(self, codes))
    report = Report("t")
    random_codes(report, tokenizer, meter, n=40)
    anything, used, often = asked
    assert {each.shape for each in asked} == {(40, 2, 4, 4)}
    assert anything.float().mean((0, 2, 3)).tolist() == pytest.approx([0.5, 0.5], abs=0.06)
    assert used.float().mean((0, 2, 3)).tolist() == [pytest.approx(0.5, abs=0.06), 1]
    assert often.float().mean((0, 2, 3)).tolist() == [pytest.approx(0.1, abs=0.04), 1]
    assert len(Reader(report.html()).pictures) == 1


def test_the_analysis_of_residual_codes(tiny, tmp_path: Path) -> None:
    changes = {"model.bottleneck.kind": "rvq", "model.bottleneck.codes": 8, "model.bottleneck.stages": 3}
    run = tmp_path / "run"
    runs.train(tokenizer_recipe(tiny.data, 2), out=run, changes=changes, device="cpu")
    figures, path = analyse_codes(load_tokenizer(run, "cpu"), None, run)
    told = json.loads(json.dumps(figures, allow_nan=False))
    assert (told["pictures"], told["size"], told["tokens"]) == (36, 8, 36 * 16 * 3)
    assert [len(one["used_codes"]) for one in told["codebooks"]] == [one["used"] for one in told["codebooks"]]
    assert [bits["bits_a_picture"] for bits in told["first_codebooks"].values()] == [48, 96, 144]
    read = Reader(path.read_text(encoding="utf-8"))
    assert "Codebook by codebook" in read.said("h2")
    captions = " ".join(read.said("figcaption"))
    assert "codebook 3: " in captions
    assert "added to the mean of what the codebooks before it give" in captions


def test_pages_of_big_codebooks_stay_small(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = exact.tokenizer(FSQConfig(levels=(8, 8, 8, 5, 5, 5)), (16, 16))
    scatter = 97 * torch.arange(1, 7).view(6, 1, 1)
    tokenizer.network.encoder = exact.Through(lambda x: torch.sin(x * scatter))
    tokenizer.network.decoder = exact.Through(lambda z: z[:, :1])
    monkeypatch.setattr(code_pages, "CODES_SHOWN", 64)
    figures, path = analyse_codes(tokenizer, str(tiny.data), tmp_path)
    assert figures["size"] == 64_000
    page = path.read_text(encoding="utf-8")
    assert len(page) < 600_000
    said = " ".join(Reader(page).said("figcaption"))
    assert f"the 64 most used of {figures['used']:,}" in said
    assert "both the share in use and the perplexity come out low" in page


def test_a_continuous_tokenizer_has_no_codes_to_analyse(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="continuous: it has latents and no codes"):
        analyse_codes(exact.gaussian(0.0), None, tmp_path)
    assert not list(tmp_path.iterdir())
