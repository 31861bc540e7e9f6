"""The encoder: hook points, resuming, texts, masked words, and what is refused of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from analyses import activation_patching, compare, head_attribution, head_scores, logit_lens, path_patching
from interp import LabError, PromptPairs, metrics, sweep
from interp.contract import HookedModel, ResumableModel
from models import BERT, BertConfig, HookedTransformer, load
from models.batches import UNCOUNTED, Batch
from models.masking import MaskedBatches, Masking
from models.tokenizers import Tokenizer
from models.zoo.tellings import Tellings, vocabulary
from tests.interp.test_sweep import assert_same
from tests.pairs import pairs
from tests.strategies import SEEDS, padding_masks, random_model, token_batches
from tests.sweeps import Dice, naive

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_mlp": 16, "d_vocab": 11, "n_ctx": 10}
EXACT: Any = {"atol": 1e-10, "rtol": 1e-10}


def encoder(seed: int = 0, **own: Any) -> BERT:
    """Every parameter random, as `tests.strategies.random_model` draws them."""
    return random_model(BertConfig(**SIZES | own), seed, kind=BERT)


def worded(seed: int = 0) -> BERT:
    """A random encoder with a tokenizer."""
    tokenizer = vocabulary()
    cfg = BertConfig(**SIZES | {"d_vocab": len(tokenizer), "n_ctx": 32, "seed": seed})
    return BERT(cfg, tokenizer)


class TestForward:
    def test_it_satisfies_the_contract(self) -> None:
        assert isinstance(encoder(), HookedModel)
        assert isinstance(encoder(), ResumableModel)

    @given(SEEDS, token_batches(), st.data())
    def test_stopping_at_a_layer_and_starting_there_is_the_whole_run(
        self, seed: int, tokens: Tensor, data: Any
    ) -> None:
        model, mask = encoder(seed), data.draw(padding_masks(*tokens.shape))
        whole = model(tokens, attention_mask=mask)
        middle = data.draw(st.integers(0, 2))
        resid = model(tokens, attention_mask=mask, stop_at_layer=middle)
        torch.testing.assert_close(model(resid, attention_mask=mask, start_at_layer=middle), whole, **EXACT)
        finish = torch.zeros(len(tokens), 1, dtype=torch.long)
        only = model(tokens, attention_mask=mask, finish=finish)
        torch.testing.assert_close(only[:, 0], whole[:, 0], **EXACT)

    @given(SEEDS, token_batches(min_pos=3))
    def test_every_position_sees_all_of_them(self, seed: int, tokens: Tensor) -> None:
        model, other = encoder(seed), tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % 11
        assert (model(tokens)[:, 0] != model(other)[:, 0]).any()

    @pytest.mark.parametrize("own", [{"n_segments": None}, {"mlm_head": False}, {"positional_embedding_type": "none"}])
    def test_parts_may_be_left_out(self, own: dict[str, Any]) -> None:
        model = encoder(**own)
        assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 11)
        assert len(logit_lens(model, torch.tensor([1, 2, 3])).logits) == 3

    @given(SEEDS, pairs(max_prompts=2))
    def test_a_sweep_is_the_naive_loop_at_embeddings_and_head_too(self, seed: int, prompts: PromptPairs) -> None:
        model = encoder(seed)
        rows = Dice(model, prompts, seed).rows(3)
        found = sweep.run(model, prompts, rows, "logit_diff")
        assert found.way == "resumed"
        assert_same(found.values, naive(model, prompts, rows, metrics.get("logit_diff")))

    def test_the_last_lens_row_is_the_logits(self) -> None:
        model, tokens = encoder(3), torch.tensor([[1, 5, 2, 7]])
        lens = logit_lens(model, tokens)
        torch.testing.assert_close(torch.from_numpy(lens.logits[-1]), model(tokens)[0].detach(), **EXACT)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"return_type": "loss"}, "an encoder predicts no next token"),
            ({"token_type_ids": torch.tensor([[0, 2, 1]])}, r"token_type_ids run from 0 to 2; expected 0 to 1"),
            ({"token_type_ids": torch.tensor([[0, 1]])}, r"token_type_ids has shape \(1, 2\), expected .*\(1, 3\)"),
            ({"attention_mask": torch.tensor([[0, 0, 0]])}, "hides all tokens of row 0"),
            ({"input": torch.tensor([[1, 11]])}, "token ids run from 1 to 11"),
            ({"input": torch.ones(1, 11, dtype=torch.long)}, "do not fit the context window of 10"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_what_it_cannot_run_is_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(LabError, match=message):
            encoder()(**({"input": torch.tensor([[1, 2, 3]])} | arguments))

    def test_an_encoder_that_is_asked_to_write_says_that_it_does_not(self) -> None:
        with pytest.raises(LabError, match="is an encoder, which sees all positions at once and does not write"):
            encoder().generate(torch.tensor([[1, 2]]))

    @given(pairs(max_prompts=2))
    def test_what_needs_a_stream_that_is_a_sum_or_a_next_token_says_so(self, prompts: PromptPairs) -> None:
        model = encoder(1)
        for ask in (lambda: head_attribution(model, prompts), lambda: path_patching(model, prompts)):
            with pytest.raises(LabError, match="a norm stands on the stream"):
                ask()

    def test_two_encoders_are_compared_but_for_their_losses_on_a_next_token(self) -> None:
        one, other = worded(0), worded(1)
        found = compare(one, other, "mary has the red ball . tom has the blue cup . the blue cup is tom 's .")
        assert "encoder" in found.left_out["losses"]
        assert found.left_out.keys() <= {"losses", "lens"}
        assert found.first_difference() == "hook_embed"

    def test_a_config_of_other_attention_is_refused(self) -> None:
        with pytest.raises(LabError, match="expected 'bidirectional'"):
            BertConfig(**SIZES, attention_dir="causal")


class TestText:
    def test_special_tokens_stand_round_a_text_unless_they_are_not_wanted(self) -> None:
        model = worded()
        assert model.to_str_tokens("mary has the red ball .")[0].strip() == "[CLS]"
        assert model.to_str_tokens("mary has the [MASK] ball .")[4].strip() == "[MASK]"
        assert (
            "".join(model.to_str_tokens("mary has the red ball .", prepend_bos=False)).strip()
            == "mary has the red ball ."
        )
        tokens, real = model.to_tokens_and_mask(["mary has", "mary has the red ball ."])
        assert tokens[0].tolist()[4:] == [model.tokenizer.pad_token_id] * 4  # type: ignore[union-attr]
        assert real.sum(1).tolist() == [4, 8]

    @pytest.mark.parametrize("lower", [True, False])
    def test_a_vocabulary_of_word_pieces_splits_as_the_tokenizers_library_has_it(
        self, lower: bool, tmp_path: Path
    ) -> None:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = ["play", "##ing", "##ed", "Mary", "mary", "the", "un", "##play", ",", "e", "##t", "##é", "##e"]
        (tmp_path / "vocab.txt").write_text("\n".join([*special, *pieces]) + "\n", encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lower).lower()}}}')
        ours = Tokenizer.from_dir(tmp_path)
        theirs = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lower)
        for text in ("Mary unplayed the été, playing", "the [MASK] zebra"):
            assert ours.encode(text, add_special_tokens=True) == theirs.encode(text).ids
        assert ours.mask_token_id == 4
        ours.save(tmp_path / "again")
        assert Tokenizer.from_dir(tmp_path / "again").mask_token_id == 4

    def test_a_saved_encoder_keeps_its_texts_and_its_mask(self, tmp_path: Path) -> None:
        model = worded()
        model.save(tmp_path)
        again = load(tmp_path)
        text = "mary has the [MASK] ball ."
        assert torch.equal(again(text), model(text))
        assert again.tokenizer.mask_token == "[MASK]"


class TestAnswersAtTheMask:
    clean = ("the red ball is [MASK] 's .", "mary has the [MASK] cup . the red cup")
    corrupted = ("the blue ball is [MASK] 's .", "mary has the [MASK] cup . the pink cup")

    def test_pairs_read_where_the_mask_is_and_patching_there_restores_the_answer(self) -> None:
        model = worded()
        prompts = PromptPairs.from_text(model, self.clean, self.corrupted, ["mary", "red"], ["tom", "blue"])
        assert prompts.clean[torch.arange(2), prompts.answered].tolist() == [model.tokenizer.mask_token_id] * 2
        logits = model(prompts.clean, attention_mask=prompts.mask)
        rows = torch.arange(2)
        expected = (
            logits[rows, prompts.answered, prompts.right[:, 0]] - logits[rows, prompts.answered, prompts.wrong[:, 0]]
        )
        torch.testing.assert_close(metrics.logit_diff(logits, prompts), expected)
        found = activation_patching(model, prompts[:1], site="resid_pre", normalize=False)
        assert found.values.shape == (2, prompts[:1].clean.shape[1])
        scores = head_scores(model, prompts.clean)
        assert scores.previous.shape == (2, 2)

    def test_the_position_goes_with_its_prompt(self) -> None:
        model = worded()
        prompts = PromptPairs.from_text(model, self.clean, self.corrupted, ["mary", "red"], ["tom", "blue"])
        assert int(prompts[1].answered[0]) == int(prompts.answered[1])
        assert int(prompts.take(torch.tensor([1])).answered[0]) == int(prompts.answered[1])
        assert torch.equal(prompts.swapped().answered, prompts.answered)

    @pytest.mark.parametrize("clean", ["the red ball is mary 's .", "the [MASK] ball is [MASK] 's ."])
    def test_a_prompt_without_one_mask_is_refused(self, clean: str) -> None:
        with pytest.raises(LabError, match=r"prompt 0 has [02] mask tokens '\[MASK\]'; expected one"):
            PromptPairs.from_text(worded(), clean, clean, "mary", "tom")

    def test_an_answer_is_read_at_a_real_token(self) -> None:
        rows = torch.tensor([[1, 2, 3]])
        with pytest.raises(LabError, match="to be read at 3, where it has no token"):
            PromptPairs.from_tokens(rows, rows, [4], [5], at=torch.tensor([3]))


class TestMasking:
    tokenizer = vocabulary()

    @given(SEEDS)
    def test_the_stated_share_of_ordinary_tokens_is_to_be_guessed(self, seed: int) -> None:
        whole = Tellings(self.tokenizer, batch_size=8, seed=seed).batch(0)
        mask = torch.ones_like(whole.tokens).bool()
        mask[0, 20:] = False
        hidden = Masking.of(self.tokenizer).hide(Batch(whole.tokens, None, mask), torch.Generator().manual_seed(seed))
        assert hidden.targets is not None
        counted = hidden.targets != UNCOUNTED
        assert torch.equal(hidden.targets[counted], whole.tokens[counted])
        assert torch.equal(hidden.tokens[~counted], whole.tokens[~counted])
        assert not (counted & ~mask).any()
        special = torch.tensor(self.tokenizer.all_special_ids)
        assert not torch.isin(whole.tokens[counted], special).any()
        ordinary = (~torch.isin(whole.tokens, special) & mask).sum(1)
        assert counted.sum(1).tolist() == (0.15 * ordinary).round().clamp(min=1).int().tolist()

    def test_of_these_most_are_hidden_some_are_others_and_some_stay(self) -> None:
        batches = MaskedBatches(Tellings(self.tokenizer, batch_size=512), Masking.of(self.tokenizer, share=1.0))
        batch, whole = batches.batch(0), Tellings(self.tokenizer, batch_size=512).batch(0).tokens
        assert batch.targets is not None
        counted = batch.targets != UNCOUNTED
        hidden = batch.tokens[counted] == self.tokenizer.mask_token_id
        same = batch.tokens[counted] == whole[counted]
        # About 21,000 draws: shares are known to 0.003; a random token is the right one in a fortieth of its cases.
        assert float(hidden.double().mean()) == pytest.approx(0.8, abs=0.015)
        assert float(same.double().mean()) == pytest.approx(0.1 + 0.1 / 40, abs=0.012)

    def test_a_batch_is_a_function_of_the_step(self) -> None:
        batches = MaskedBatches(Tellings(self.tokenizer), Masking.of(self.tokenizer), seed=3)
        one, again, other = batches.batch(7), batches.batch(7), batches.batch(8)
        assert torch.equal(one.tokens, again.tokens)
        assert not torch.equal(one.tokens, other.tokens)

    def test_what_cannot_be_hidden_is_refused(self) -> None:
        with pytest.raises(LabError, match=r"share=0"):
            Masking.of(self.tokenizer, share=0.0)
        masking, special = Masking.of(self.tokenizer), torch.tensor([[2, 3]])
        with pytest.raises(LabError, match="row 0 of a batch has no token that can be hidden"):
            masking.hide(Batch(special), torch.Generator())


def test_it_is_no_hooked_transformer() -> None:
    with pytest.raises(LabError, match="'twice-told' is a BERT, expected a decoder alone"):
        HookedTransformer.from_pretrained("twice-told")
