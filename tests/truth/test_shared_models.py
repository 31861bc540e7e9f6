"""Published small models give, loaded here, the numbers that their own code gave.

The numbers are those of `reference.json` and `reference_activations.safetensors` beside each model. Tolerances:
activations 1e-4 absolute (float32, another implementation); tables are rounded to 4 digits, and a mean over thousands
of float32 losses adds its own rounding, so 2e-4.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from analyses import head_scores, logit_lens
from models import GPT, load
from models.generation import generate

ACTIVATION = 1e-4
TABLE = 2e-4

Losses = Callable[[Tensor], Tensor]  # logits [batch pos d_vocab] -> the losses that count, in one row


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def reference(directory: Path) -> Any:
    return json.loads((directory / "reference.json").read_text())


def lens_losses(model: GPT, tokens: Tensor, losses: Losses) -> list[float]:
    """The mean loss of the embedding and of the stream after each block, read by the final norm and unembedding."""
    names = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return [losses(model.unembed(model.ln_final(stream))).mean().item() for stream in cache.values()]


def filled(head: int, value: Tensor | float) -> Callable[..., Tensor]:
    """A hook that gives the z of one head this value everywhere."""

    def edit(z: Tensor, hook: Any) -> Tensor:
        z[:, :, head] = value
        return z

    return edit


def ablation_table(model: GPT, tokens: Tensor, losses: Losses, kind: str, counted: Tensor | None = None) -> np.ndarray:
    """The rise of the mean loss, [layer head], when the z of one head is set to zero or to its mean.

    counted: Bool [batch pos], the positions over which the mean is taken.
    """
    z_names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(tokens, names_filter=[*z_names, "blocks.*.hook_resid_pre"])
    rows = []
    for layer, name in enumerate(z_names):
        z = rearrange(cache[name], "batch pos head d -> (batch pos) head d")
        mean = (z if counted is None else z[rearrange(counted, "batch pos -> (batch pos)")]).mean(0)
        filling = mean if kind == "mean" else torch.zeros_like(mean)
        for head in range(model.cfg.n_heads):
            edits = [(name, filled(head, filling[head]))]
            ablated = model.run_with_hooks(cache["resid_pre", layer], start_at_layer=layer, fwd_hooks=edits)
            rows.append(losses(ablated).mean().item())
    return np.array(rows).reshape(model.cfg.n_layers, model.cfg.n_heads) - losses(logits).mean().item()


def next_token_losses(tokens: Tensor) -> Losses:
    return lambda logits: F.cross_entropy(
        rearrange(logits[:, :-1], "batch pos vocab -> (batch pos) vocab"),
        rearrange(tokens[:, 1:], "batch pos -> (batch pos)"),
        reduction="none",
    )


@pytest.mark.parametrize("name", ["stories260k", "makemore-names"])
def test_activations_are_those_of_the_hugging_face_implementation(shared_data: Path, name: str) -> None:
    model = load(shared_data / name)
    expected = load_file(shared_data / name / "reference_activations.safetensors")
    tokens = expected.pop("input_ids")
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected.pop("logits"), atol=ACTIVATION, rtol=0.0)
    torch.testing.assert_close(model(tokens), logits, atol=ACTIVATION, rtol=0.0)
    assert len(expected) == 5 * model.cfg.n_layers
    for key, activation in expected.items():
        kind, layer = key.split(".")
        torch.testing.assert_close(cache[kind, int(layer)], activation, atol=ACTIVATION, rtol=0.0)


# stories260k: a Llama with grouped key/value heads, and a tokenizer with a start token and a leading space


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> GPT:
    return load(shared_data / "stories260k")


@pytest.fixture(scope="module")
def stories_reference(shared_data: Path) -> Any:
    return reference(shared_data / "stories260k")


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    return json.loads((shared_data / "texts" / "tinystories_1000.json").read_text())


@pytest.fixture(scope="module")
def windows(stories: GPT, texts: list[str]) -> Tensor:
    """The first 257 tokens of the first 64 stories that are as long."""
    rows = [stories.to_tokens(text)[0, :257] for text in texts[:200]]
    return torch.stack([row for row in rows if len(row) == 257][:64])


def test_a_story_gets_its_start_token_and_leading_space(stories: GPT, stories_reference: Any) -> None:
    tokens = stories.to_tokens(stories_reference["prompt"])
    assert tokens.tolist() == [stories_reference["prompt_ids"]]
    assert stories.to_str_tokens(tokens)[:3] == ["<s>", " Once", " upon"]


def test_the_likeliest_story_is_the_one_its_author_printed(stories: GPT, stories_reference: Any) -> None:
    prompt = torch.tensor(stories_reference["prompt_ids"])
    written = generate(stories, prompt, max_new_tokens=60, temperature=0.0, stop_tokens=())
    assert written[len(prompt) :].tolist() == stories_reference["greedy_60_ids"]
    assert str(stories.to_string(written[1:])).strip() == stories_reference["greedy_60_text"]


def test_the_next_token_after_the_prompt(stories: GPT, stories_reference: Any) -> None:
    logits = stories(stories_reference["prompt"])[0, -1]
    for entry in stories_reference["next_token_top5"]:
        assert logits[entry["id"]].item() == pytest.approx(entry["logit"], abs=TABLE)
        assert logits.softmax(-1)[entry["id"]].item() == pytest.approx(entry["prob"], abs=TABLE)
    assert logits.topk(5).indices.tolist() == [entry["id"] for entry in stories_reference["next_token_top5"]]


def story_losses(model: GPT, texts: list[str]) -> list[Tensor]:
    """The losses of every story, cut to the context window; stories of similar length share a batch."""
    rows = [model.to_tokens(text)[0] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    losses: dict[int, Tensor] = {}
    for part in torch.tensor(order).split(16):
        batch = pad_sequence([rows[i] for i in part], batch_first=True)  # a causal model does not see what follows
        of_part = model(batch, return_type="loss", loss_per_token=True)
        losses |= {int(i): row[: len(rows[i]) - 1] for i, row in zip(part, of_part, strict=True)}
    return [losses[i] for i in range(len(rows))]


def test_the_loss_on_the_first_stories(stories: GPT, texts: list[str], stories_reference: Any) -> None:
    losses = torch.cat(story_losses(stories, texts[:60]))
    expected = stories_reference["loss"]["first_60_stories"]
    assert len(losses) == expected["tokens"]
    assert losses.mean().item() == pytest.approx(expected["nats_per_token"], abs=TABLE)


@pytest.mark.slow
def test_the_loss_on_all_stories(stories: GPT, texts: list[str], stories_reference: Any) -> None:
    losses = story_losses(stories, texts)
    ascii_only = [loss for loss, text in zip(losses, texts, strict=True) if text.isascii()]
    for name, chosen in (("all_1000_stories", losses), ("ascii_only_stories", ascii_only)):
        kept = torch.cat(chosen)
        assert len(kept) == stories_reference["loss"][name]["tokens"]
        assert kept.mean().item() == pytest.approx(stories_reference["loss"][name]["nats_per_token"], abs=TABLE)


def test_the_loss_by_position(stories: GPT, windows: Tensor, stories_reference: Any) -> None:
    expected = stories_reference["windows"]
    logits = stories(windows)
    losses = rearrange(next_token_losses(windows)(logits), "(batch pos) -> batch pos", batch=64)
    right = logits[:, :-1].argmax(-1) == windows[:, 1:]
    assert losses.mean().item() == pytest.approx(expected["loss"], abs=TABLE)
    assert right.float().mean().item() == pytest.approx(expected["top1"], abs=TABLE)
    for span, value in expected["loss_by_position"].items():
        start, stop = map(int, span.split("-"))
        assert losses[:, start:stop].mean().item() == pytest.approx(value, abs=TABLE)


def test_the_logit_lens_on_stories(stories: GPT, windows: Tensor, stories_reference: Any) -> None:
    rows = [lens_losses(stories, part, next_token_losses(part)) for part in windows.split(16)]
    np.testing.assert_allclose(np.mean(rows, axis=0), stories_reference["windows"]["logit_lens_loss"], atol=TABLE)
    one = windows[:1]
    np.testing.assert_allclose(
        logit_lens(stories, one).loss(), lens_losses(stories, one, next_token_losses(one)), atol=1e-4
    )  # losses up to 23 in float32, summed in another order


@pytest.mark.slow
def test_previous_token_heads_stand_out_on_stories(stories: GPT, windows: Tensor, stories_reference: Any) -> None:
    scores = np.mean([head_scores(stories, part).previous for part in windows.split(8)], axis=0)
    expected = np.array(stories_reference["windows"]["previous_token_attention"])
    np.testing.assert_allclose(scores, expected, atol=TABLE)


def test_stories_have_previous_token_heads_and_no_induction_heads(
    stories: GPT, shared_data: Path, stories_reference: Any
) -> None:
    expected = stories_reference["repeated_sequences"]
    once = torch.tensor(json.loads((shared_data / "stories260k" / "random_ids_32x40.json").read_text()))
    tokens = torch.cat([torch.ones(32, 1, dtype=torch.long), once, once], 1)
    losses = stories(tokens, return_type="loss", loss_per_token=True)
    assert losses[:, :40].mean().item() == pytest.approx(expected["loss_first_copy"], abs=1e-3)
    assert losses[:, 40:].mean().item() == pytest.approx(expected["loss_second_copy"], abs=1e-3)
    scores = head_scores(stories, tokens)
    np.testing.assert_allclose(scores.previous, expected["previous_token_attention"], atol=TABLE)
    # The reference counts the step of 39 alone; a row repeats some ids by chance, and `head_scores` counts those too.
    _, cache = stories.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    induction = [pattern.diagonal(-39, dim1=-2, dim2=-1)[..., 2:].mean((0, -1)) for pattern in cache.values()]
    np.testing.assert_allclose(torch.stack(induction), expected["induction_attention"], atol=TABLE)
    assert scores.previous.max() > 0.7
    assert scores.induction.max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_what_each_head_is_worth_on_stories(stories: GPT, windows: Tensor, stories_reference: Any, kind: str) -> None:
    few = windows[:16]
    table = ablation_table(stories, few, next_token_losses(few), kind)
    np.testing.assert_allclose(table, stories_reference["head_ablation"][kind], atol=TABLE)


# makemore-names: a GPT-2 of letters


@pytest.fixture(scope="module")
def names_model(shared_data: Path) -> GPT:
    return load(shared_data / "makemore-names")


@pytest.fixture(scope="module")
def names_reference(shared_data: Path) -> Any:
    return reference(shared_data / "makemore-names")


@pytest.fixture(scope="module")
def names(shared_data: Path) -> tuple[Tensor, Tensor]:
    """The input of each name (start, letters, padding) and its targets (letters, stop, then -1: not counted)."""
    lines = (shared_data / "makemore-names" / "names.txt").read_text().split()
    inputs, targets = torch.zeros(len(lines), 16, dtype=torch.long), torch.full((len(lines), 16), -1)
    for row, line in enumerate(lines):
        letters = torch.tensor([ord(letter) - ord("a") + 1 for letter in line])
        inputs[row, 1 : len(letters) + 1] = targets[row, : len(letters)] = letters
        targets[row, len(letters)] = 0
    return inputs, targets


def letter_losses(targets: Tensor) -> Losses:
    def losses(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[targets >= 0], targets[targets >= 0], reduction="none")

    return losses


def test_the_tokenizer_of_names_agrees_with_the_alphabet(names_model: GPT, names: tuple[Tensor, Tensor]) -> None:
    assert names_model.to_tokens("emma").tolist() == [names[0][0, :5].tolist()]


@pytest.mark.slow
def test_the_loss_on_names(names_model: GPT, names: tuple[Tensor, Tensor], names_reference: Any) -> None:
    inputs, targets = names
    logits = torch.cat([names_model(part) for part in inputs.split(4096)])
    losses = F.cross_entropy(rearrange(logits, "b p v -> b v p"), targets, ignore_index=-1, reduction="none")
    counted = targets >= 0
    expected = names_reference["loss_all_names"]
    assert int(counted.sum()) == expected["predictions"]
    assert losses[counted].mean().item() == pytest.approx(expected["nats_per_character"], abs=TABLE)
    assert (logits.argmax(-1) == targets)[counted].float().mean().item() == pytest.approx(expected["top1"], abs=TABLE)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3407))
    expected = names_reference["loss_split"]
    assert order[-1000:][:10].tolist() == expected["test_indices_first_10"]
    for chosen, key in ((order[-1000:], "test_last_1000"), (order[:1000], "train_first_1000")):
        loss = losses[chosen][counted[chosen]].mean().item()
        assert loss == pytest.approx(expected[f"{key}_of_permutation"], abs=TABLE)


def test_the_logit_lens_on_names(names_model: GPT, names: tuple[Tensor, Tensor], names_reference: Any) -> None:
    inputs, targets = (each[:4096] for each in names)
    rows = lens_losses(names_model, inputs, letter_losses(targets))
    np.testing.assert_allclose(rows, names_reference["first_4096_names"]["logit_lens_loss"], atol=TABLE)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_what_each_head_is_worth_on_names(
    names_model: GPT, names: tuple[Tensor, Tensor], names_reference: Any, kind: str
) -> None:
    inputs, targets = (each[:1024] for each in names)
    table = ablation_table(names_model, inputs, letter_losses(targets), kind, counted=targets >= 0)
    np.testing.assert_allclose(table, names_reference["head_ablation"][kind], atol=TABLE)
    assert np.unravel_index(table.argmax(), table.shape) == (0, 3)


def test_the_likeliest_first_letters_and_name(names_model: GPT, names_reference: Any) -> None:
    start = torch.zeros(1, 1, dtype=torch.long)
    first = names_model(start)[0, 0].softmax(-1)
    for letter, probability in names_reference["first_letter_top5"]:
        assert first[names_model.to_single_token(letter)].item() == pytest.approx(probability, abs=TABLE)
    written = generate(names_model, start, max_new_tokens=15, temperature=0.0)[0].tolist()
    assert written[-1] == 0, "the name ends with the stop token"
    assert names_model.to_string(written[1:-1]) == names_reference["greedy_name"]


# gpt-nano-sort: a GPT-2 without special tokens


@pytest.fixture(scope="module")
def sorter(shared_data: Path) -> GPT:
    return load(shared_data / "gpt-nano-sort")


@pytest.fixture(scope="module")
def sort_reference(shared_data: Path) -> Any:
    return reference(shared_data / "gpt-nano-sort")


@pytest.fixture(scope="module")
def sorting() -> tuple[Tensor, Tensor]:
    """Every input of six letters with the first five of its sorted answer, and the answer."""
    letters = torch.tensor(list(itertools.product(range(3), repeat=6)))
    answers = letters.sort(-1).values
    return torch.cat([letters, answers[:, :-1]], 1), answers


def answer_losses(answers: Tensor) -> Losses:
    return lambda logits: F.cross_entropy(
        rearrange(logits[:, 5:], "batch pos vocab -> (batch pos) vocab"),
        rearrange(answers, "batch pos -> (batch pos)"),
        reduction="none",
    )


def test_the_sorter_takes_text_without_a_start_token(sorter: GPT) -> None:
    assert sorter.to_tokens("CAB").tolist() == [[2, 0, 1]]


def test_every_input_is_sorted(sorter: GPT, sorting: tuple[Tensor, Tensor], sort_reference: Any) -> None:
    inputs, answers = sorting
    written = generate(sorter, inputs[:, :6], max_new_tokens=6, temperature=0.0)[:, 6:]
    assert [int((written == answers).all(-1).sum()), len(inputs)] == sort_reference["sorted_exactly_greedy"]


def test_the_logit_lens_on_sorting(sorter: GPT, sorting: tuple[Tensor, Tensor], sort_reference: Any) -> None:
    inputs, answers = sorting
    rows = lens_losses(sorter, inputs, answer_losses(answers))
    np.testing.assert_allclose(rows, sort_reference["logit_lens_loss"], atol=2e-6)  # rounded to 6 digits
    assert rows[-1] == pytest.approx(sort_reference["teacher_forced_loss"], abs=1e-6)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_what_each_head_is_worth_in_sorting(
    sorter: GPT, sorting: tuple[Tensor, Tensor], sort_reference: Any, kind: str
) -> None:
    inputs, answers = sorting
    table = ablation_table(sorter, inputs, answer_losses(answers), kind)
    np.testing.assert_allclose(table, sort_reference["head_ablation"][kind], atol=TABLE)


def test_how_many_inputs_stay_sorted_without_each_head(
    sorter: GPT, sorting: tuple[Tensor, Tensor], sort_reference: Any
) -> None:
    inputs, answers = sorting
    expected = sort_reference["head_ablation"]["inputs_with_all_six_argmax_right_after_zero"]
    for layer, head in itertools.product(range(3), range(3)):
        logits = sorter.run_with_hooks(inputs, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", filled(head, 0.0))])
        assert int((logits[:, 5:].argmax(-1) == answers).all(-1).sum()) == expected[layer][head]


def test_every_hook_of_the_first_block_holds_what_the_authors_recorded(sorter: GPT, shared_data: Path) -> None:
    recorded = load_file(shared_data / "gpt-nano-sort" / "reference_activations.safetensors")
    logits, cache = sorter.run_with_cache(recorded["idx"])
    by_head = "batch head pos d -> batch pos head d"
    expected = {
        "hook_embed": recorded["tok_emb"],
        "hook_pos_embed": recorded["pos_emb"].expand_as(recorded["x"]),
        "blocks.0.hook_resid_pre": recorded["x"],
        "blocks.0.attn.hook_q": rearrange(recorded["q"], by_head),
        "blocks.0.attn.hook_k": rearrange(recorded["k"], by_head),
        "blocks.0.attn.hook_v": rearrange(recorded["v"], by_head),
        "blocks.0.attn.hook_pattern": recorded["attSm"],
        "blocks.0.attn.hook_z": rearrange(recorded["y"], "batch pos (head d) -> batch pos head d", head=3),
        "blocks.0.hook_attn_out": recorded["yProj"],
        "blocks.0.hook_resid_mid": recorded["attnResid"],
        "blocks.0.mlp.hook_pre": recorded["fc"],
        "blocks.0.mlp.hook_post": recorded["gelu"],
        "blocks.0.hook_mlp_out": recorded["mlp"],
        **{f"blocks.{layer}.hook_resid_post": recorded[f"block{layer}"] for layer in range(3)},
    }
    for name, value in expected.items():
        torch.testing.assert_close(cache[name], value, atol=1e-5, rtol=0.0)
    future = torch.ones(11, 11).triu(1).bool()
    scores = cache["attn_scores", 0].masked_fill(future, -math.inf)
    torch.testing.assert_close(scores, recorded["att"], atol=1e-5, rtol=0.0)
    torch.testing.assert_close(logits, recorded["lm_head"], atol=1e-5, rtol=0.0)
    norm = sorter.blocks[0].ln1
    torch.testing.assert_close(cache["ln1.normalized", 0] * norm.w + norm.b, recorded["ln1"], atol=1e-5, rtol=0.0)
