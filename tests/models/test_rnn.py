"""Recurrent encoder-decoders: torch's own numbers, padding that changes nothing, states that can be edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interp.errors import LabError, UnknownHookError
from models.rnn import RNNEncoderDecoder
from models.rnn_config import CELLS, RNNConfig
from tests.strategies import SEEDS, padding_masks, token_batches

D_VOCAB, D_MODEL, D_HIDDEN, D_ATTN = 11, 5, 6, 4
# float64 models: whole sequences, single steps and padding only change the order of summation.
EXACT: Any = {"atol": 1e-11, "rtol": 1e-11}


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def random_rnn(cell: str, attention: bool, seed: int = 0, dtype: torch.dtype = torch.float64) -> RNNEncoderDecoder:
    """Every weight random and of order one, so that gates are open and shut and attention is uneven."""
    model = RNNEncoderDecoder(RNNConfig(cell, D_VOCAB, D_MODEL, D_HIDDEN, D_ATTN if attention else None), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@st.composite
def rnns(draw: st.DrawFn, **fixed: Any) -> RNNEncoderDecoder:
    drawn = {"cell": draw(st.sampled_from(CELLS)), "attention": draw(st.booleans()), "seed": draw(SEEDS)}
    return random_rnn(**drawn | fixed)


def ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(D_VOCAB, shape, generator=torch.Generator().manual_seed(seed))


ANY = pytest.mark.parametrize(("cell", "attention"), [(c, a) for c in CELLS for a in (False, True)])


# -- parity with torch's own layers and cells -------------------------------------------------------------------------


def cell_of(layer: Any) -> Any:
    """The cell of torch that takes one step of a layer, with the same weights."""
    kind = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[type(layer)]
    cell = kind(layer.input_size, layer.hidden_size, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.named_parameters()})
    return cell


@ANY
@torch.no_grad()
def test_the_numbers_are_those_of_torchs_cells_and_of_bahdanaus_formula(cell: str, attention: bool) -> None:
    model, source, target = random_rnn(cell, attention), ids(1, 3, 5), ids(2, 3, 4)
    read, write = cell_of(model.encoder.rnn), cell_of(model.decoder.rnn)
    state: Any = None
    encoded, decoded, contexts, patterns = [], [], [], []
    for j in range(5):
        state = read(model.encoder.W_E[source[:, j]], state)
        encoded.append(state[0] if cell == "LSTM" else state)
    for i in range(4):
        hidden = state[0] if cell == "LSTM" else state
        x = model.decoder.W_E[target[:, i]]
        if attention:
            a = model.decoder.attention
            assert a is not None
            energies = torch.zeros(3, 5, dtype=torch.float64)
            for row in range(3):
                for j in range(5):
                    inner = a.W_a.weight @ hidden[row] + a.U_a.weight @ encoded[j][row]
                    energies[row, j] = (a.v_a * inner.tanh()).sum()
            alpha = energies.exp() / energies.exp().sum(1, keepdim=True)
            context = sum(alpha[:, j : j + 1] * encoded[j] for j in range(5))
            assert isinstance(context, Tensor)
            x = torch.cat([x, context], 1)
            patterns.append(alpha)
            contexts.append(context)
        state = write(x, state)
        decoded.append(state[0] if cell == "LSTM" else state)
    unembed = model.decoder.unembed
    expected = torch.stack([h @ unembed.weight.T + unembed.bias for h in decoded], 1)

    logits, cache = model.run_with_cache(source, target)
    close(logits, expected)
    close(model(source, target), expected)
    close(cache["encoder.hook_hidden"], torch.stack(encoded, 1))
    close(cache["decoder.hook_hidden"], torch.stack(decoded, 1))
    if attention:
        close(cache["decoder.hook_pattern"], torch.stack(patterns, 1))
        close(cache["decoder.hook_context"], torch.stack(contexts, 1))


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_without_attention_it_is_two_of_torchs_layers_one_after_the_other(cell: str) -> None:
    model, source, target = random_rnn(cell, False), ids(3, 4, 6), ids(4, 4, 3)
    layers = []
    for part in (model.encoder, model.decoder):
        layer = getattr(nn, cell)(D_MODEL, D_HIDDEN, batch_first=True, dtype=torch.float64)
        layer.load_state_dict(part.rnn.state_dict())
        layers.append(layer)
    _, last = layers[0](model.encoder.W_E[source])
    hidden, _ = layers[1](model.decoder.W_E[target], last)
    close(model(source, target), model.decoder.unembed(hidden))


# -- padding, causality, decoding -------------------------------------------------------------------------------------


@given(rnns(), token_batches(max_batch=4), token_batches(), st.data())
@torch.no_grad()
def test_source_padding_changes_nothing(model: RNNEncoderDecoder, source: Tensor, target: Tensor, data: Any) -> None:
    """Each row as it is alone, on whichever side it is padded; also what is decoded from it."""
    mask = data.draw(padding_masks(*source.shape))
    target = target[:1].expand(len(source), -1)
    together = model(source, target, attention_mask=mask)
    written = model.generate(source, 5, mask)
    for row, real in enumerate(mask):
        alone = source[row, real][None]
        close(together[row : row + 1], model(alone, target[:1]))
        single = model.generate(alone, 5)
        assert torch.equal(written[row : row + 1, : single.shape[1]], single)


@given(rnns(), st.data())
@torch.no_grad()
def test_edits_at_padding_do_nothing(model: RNNEncoderDecoder, data: Any) -> None:
    source, target = ids(5, 3, 6), ids(6, 3, 3)
    mask = data.draw(padding_masks(3, 6))
    at_padding = ("encoder.hook_hidden", lambda h, hook: torch.where(mask[..., None], h, h + 7.0))
    hooked = model.run_with_hooks(source, target, attention_mask=mask, fwd_hooks=[at_padding])
    close(hooked, model(source, target, attention_mask=mask))


@given(rnns(), st.integers(0, 4), SEEDS)
@torch.no_grad()
def test_changing_a_later_target_token_changes_no_earlier_logit(model: RNNEncoderDecoder, kept: int, seed: int) -> None:
    source, target = ids(seed, 2, 4), ids(seed + 1, 2, 5)
    other = torch.cat([target[:, :kept], (target[:, kept:] + 1) % D_VOCAB], 1)
    close(model(source, other)[:, :kept], model(source, target)[:, :kept])


@given(rnns(), SEEDS)
@torch.no_grad()
def test_greedy_decoding_writes_what_teacher_forcing_on_it_finds_most_likely(
    model: RNNEncoderDecoder, seed: int
) -> None:
    source = ids(seed, 3, 4)
    end, target = model.cfg.eos_token_id, model.generate(source, 7)
    assert (target[:, 0] == model.cfg.decoder_start_token_id).all()
    best, written = model(source, target[:, :-1]).argmax(-1), target[:, 1:]
    for row in range(3):
        ends = (written[row] == end).nonzero()
        length = int(ends[0]) + 1 if len(ends) else written.shape[1]
        assert torch.equal(written[row, :length], best[row, :length])
        assert (written[row, length:] == end).all()
    assert written.shape[1] == 7 or (written == end).any(1).all()


# -- hooks ------------------------------------------------------------------------------------------------------------


@given(rnns(), SEEDS)
@torch.no_grad()
def test_looking_at_every_point_changes_nothing(model: RNNEncoderDecoder, seed: int) -> None:
    """Nothing hooked runs torch's kernel over the sequence; a hook that may write, a step at a time."""
    source, target = ids(seed, 2, 5), ids(seed + 1, 2, 4)
    plain = model(source, target)
    logits, cache = model.run_with_cache(source, target)
    assert set(cache) == set(model.hook_dict)
    close(logits, plain)
    seen: dict[str, Tensor] = {}

    def same(tensor: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = tensor
        return tensor.clone()

    close(model.run_with_hooks(source, target, fwd_hooks=[(lambda name: True, same)]), plain)
    for name, tensor in seen.items():
        close(tensor, cache[name])


@ANY
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@torch.no_grad()
def test_an_edited_state_is_what_the_next_step_starts_from(cell: str, attention: bool, side: str) -> None:
    """States before the edit stay; the edited one is the new one; those after it are the cell's own from there."""
    model, source, target, step = random_rnn(cell, attention), ids(7, 2, 6), ids(8, 2, 6), 2
    new = torch.randn(2, D_HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    name = f"{side}.hook_hidden"

    def write(hidden: Tensor, hook: Any) -> None:
        hidden[:, step] = new  # in place: a hook may

    _, plain = model.run_with_cache(source, target)
    with model.hooks([(name, write)]):
        logits, edited = model.run_with_cache(source, target)
    close(edited[name][:, :step], plain[name][:, :step])
    close(edited[name][:, step], new)
    assert (edited[name][:, step + 1] - plain[name][:, step + 1]).abs().min() > 1e-9

    part = getattr(model, side)
    next_input = part.W_E[(source if side == "encoder" else target)[:, step + 1]]
    if attention and side == "decoder":
        next_input = torch.cat([next_input, edited["decoder.hook_context"][:, step + 1]], 1)
    state = (new, plain[f"{side}.hook_cell"][:, step]) if cell == "LSTM" else new
    expected = cell_of(part.rnn)(next_input, state)
    close(edited[name][:, step + 1], expected[0] if cell == "LSTM" else expected)
    close(logits, model.decoder.unembed(edited["decoder.hook_hidden"]))


@pytest.mark.parametrize("attention", [False, True])
@torch.no_grad()
def test_an_edited_cell_state_feeds_the_next_step_too(attention: bool) -> None:
    model, source, target = random_rnn("LSTM", attention), ids(7, 2, 6), ids(8, 2, 3)
    _, plain = model.run_with_cache(source, target)
    with model.hooks([("encoder.hook_cell", lambda cell, hook: cell.index_fill(1, torch.tensor([3]), 0.0))]):
        _, edited = model.run_with_cache(source, target)
    state = plain["encoder.hook_hidden"][:, 3], torch.zeros(2, D_HIDDEN, dtype=torch.float64)
    hidden, cell = cell_of(model.encoder.rnn)(model.encoder.W_E[source[:, 4]], state)
    close(edited["encoder.hook_hidden"][:, 4], hidden)
    close(edited["encoder.hook_cell"][:, 4], cell)
    close(edited["encoder.hook_hidden"][:, 3], plain["encoder.hook_hidden"][:, 3])


@torch.no_grad()
def test_an_edited_pattern_makes_the_context_that_the_decoder_reads() -> None:
    """All attention on position 1 at step 2: the context there is the encoder's state at position 1."""
    model, source, target = random_rnn("GRU", True), ids(7, 2, 5), ids(8, 2, 4)
    one_hot = torch.eye(5, dtype=torch.float64)[1]

    def look_at_one(pattern: Tensor, hook: Any) -> None:
        pattern[:, 2] = one_hot

    _, plain = model.run_with_cache(source, target)
    with model.hooks([("decoder.hook_pattern", look_at_one)]):
        _, edited = model.run_with_cache(source, target)
    close(edited["decoder.hook_context"][:, 2], plain["encoder.hook_hidden"][:, 1])
    close(edited["decoder.hook_hidden"][:, :2], plain["decoder.hook_hidden"][:, :2])
    assert (edited["decoder.hook_hidden"][:, 3] - plain["decoder.hook_hidden"][:, 3]).abs().min() > 1e-9


@given(rnns(), st.sampled_from(["encoder.hook_hidden", "decoder.hook_hidden", "decoder.hook_pattern"]), SEEDS)
def test_a_backward_hook_sees_the_gradient_of_every_step(model: RNNEncoderDecoder, name: str, seed: int) -> None:
    """The gradient of what is added to the states is the gradient of the states."""
    name = name if name in model.hook_dict else "decoder.hook_hidden"
    source, target = ids(seed, 2, 5), ids(seed + 1, 2, 4)
    _, cache = model.run_with_cache(source, target)
    added = torch.zeros_like(cache[name], requires_grad=True)
    with model.hooks([(name, lambda tensor, hook: tensor + added)]):
        model(source, target).sin().sum().backward()
    seen: dict[str, Tensor] = {}
    with model.hooks(bwd_hooks=[(name, lambda grad, hook: seen.update(grad=grad))]):
        loss = model(source, target).sin().sum()
        loss.backward(retain_graph=True)
        close(seen["grad"], added.grad)
        loss.backward()  # once more through the same run
    close(seen["grad"], added.grad)


@given(rnns(), st.integers(0, 4), SEEDS)
def test_a_gradient_stopped_at_a_step_is_that_of_a_detached_state(
    model: RNNEncoderDecoder, step: int, seed: int
) -> None:
    source, target, name = ids(seed, 2, 5), ids(seed + 1, 2, 4), "encoder.hook_hidden"

    def detach(hidden: Tensor, hook: Any) -> Tensor:
        return torch.cat([hidden[:, :step], hidden[:, step : step + 1].detach(), hidden[:, step + 1 :]], 1)

    def stop(grad: Tensor, hook: Any) -> Tensor:
        return grad.index_fill(1, torch.tensor([step]), 0.0)

    gradients = []
    for hooks in ({"fwd_hooks": [(name, detach)]}, {"bwd_hooks": [(name, stop)]}):
        model.zero_grad()
        with model.hooks(**hooks):
            model(source, target).sin().sum().backward()
        assert model.encoder.W_E.grad is not None
        gradients.append(model.encoder.W_E.grad.clone())
    close(gradients[1], gradients[0])


@given(rnns(), SEEDS)
def test_the_gradients_of_the_loss_are_cached_beside_the_activations(model: RNNEncoderDecoder, seed: int) -> None:
    """Of the decoder's states: what the unembedding sends back; and the loss is the targets' own cross-entropy."""
    source, target = ids(seed, 2, 5), ids(seed + 1, 2, 4)
    logits, loss = model(source, target, return_type="both")
    named = [-logits[row, pos].log_softmax(0)[target[row, pos + 1]] for row in range(2) for pos in range(3)]
    close(loss, torch.stack(named).mean())
    assert model(source, target, return_type=None) is None
    again, cache = model.run_with_cache(source, target, return_type="loss", incl_bwd=True)
    close(again, loss)
    last = torch.autograd.grad(loss, logits)[0] @ model.decoder.unembed.weight
    close(cache["decoder.hook_hidden_grad"][:, 3], last[:, 3])  # nothing comes after the last state
    assert set(cache) == {name + end for name in model.hook_dict for end in ("", "_grad")}


@pytest.mark.gpu
@ANY
def test_a_gpu_gives_the_same_numbers_and_gradients_in_evaluation_mode(cell: str, attention: bool) -> None:
    """cuDNN's sums are in another order: float64 to 1e-8."""
    model, source, target = random_rnn(cell, attention), ids(1, 3, 5), ids(2, 3, 4)
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        model.zero_grad()
        loss = model.to(device)(source, target, "loss")
        loss.backward()
        assert model.encoder.W_E.grad is not None
        losses.append(loss.detach().cpu())
        gradients.append(model.encoder.W_E.grad.cpu().clone())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-8, rtol=1e-8)


def test_a_misspelt_hook_is_answered_with_the_right_one() -> None:
    with pytest.raises(UnknownHookError, match=r"closest: 'encoder\.hook_hidden'"):
        random_rnn("GRU", False).run_with_cache(ids(0, 1, 3), ids(0, 1, 3), names_filter="encoder.hook_hiden")


# -- dtype, configuration, bad input ----------------------------------------------------------------------------------


@ANY
@torch.no_grad()
def test_half_precision_goes_through(cell: str, attention: bool) -> None:
    """bfloat16 keeps 8 bits: after ten steps of order-one numbers, a tenth or two."""
    exact, rounded = random_rnn(cell, attention), random_rnn(cell, attention, dtype=torch.bfloat16)
    source, target = ids(1, 2, 4), ids(2, 2, 3)
    logits = rounded(source, target, attention_mask=torch.ones(2, 4, dtype=torch.bool))
    assert logits.dtype == torch.bfloat16
    assert rounded.cfg.dtype == torch.bfloat16
    assert (logits.double() - exact(source, target)).abs().mean() < 0.1


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    one, same, other = (RNNEncoderDecoder(RNNConfig("GRU", 11, 5, 6, 4, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    matrices = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in matrices)


@given(st.sampled_from(CELLS), st.none() | st.integers(1, 9), st.none() | SEEDS)
def test_a_config_survives_its_dictionary(cell: str, d_attn: int | None, seed: int | None) -> None:
    cfg = RNNConfig(cell, 11, 5, 6, d_attn, seed=seed, dtype=torch.float64)
    assert RNNConfig.from_dict(cfg.to_dict()) == cfg


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"cell": "GRUU"}, "unknown cell 'GRUU'.*closest: 'GRU'"),
        ({"d_hidden": 0}, "d_hidden=0; expected a positive integer"),
        ({"d_attn": -1}, "d_attn=-1; expected a positive integer"),
        ({"d_model": True}, "d_model=True; expected a positive integer"),
        ({"decoder_start_token_id": 11}, r"decoder_start_token_id=11; expected a token id, 0 to 10"),
        ({"eos_token_id": -1}, "eos_token_id=-1; expected a token id"),
        ({"d_hiden": 3}, "unknown config entry 'd_hiden'.*closest: 'd_hidden'"),
        ({"dtype": "float31"}, "unknown dtype 'float31'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_config_that_cannot_be_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        RNNConfig.from_dict({"cell": "GRU", "d_vocab": 11, "d_model": 5, "d_hidden": 6} | entries)


def test_a_config_without_sizes_says_which_are_missing() -> None:
    with pytest.raises(LabError, match="the config lacks d_model, d_hidden"):
        RNNConfig.from_dict({"cell": "GRU", "d_vocab": 11})


SOURCE, TARGET = torch.tensor([[2, 3, 4], [5, 6, 7]]), torch.tensor([[0, 2], [0, 3]])
WIDE = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SOURCE[0], TARGET), r"the source has shape \(3,\).*expected token ids \[batch pos\]"),
        ((SOURCE[:, :0], TARGET), "the source has shape .*at least one"),
        ((SOURCE.float(), TARGET), "the source has shape .*float32; expected token ids"),
        ((SOURCE + 9, TARGET), "token ids run from 11 to 16; expected 0 to 10"),
        ((SOURCE, TARGET - 1), "token ids run from -1 to 2; expected 0 to 10"),
        ((SOURCE, TARGET[:1]), "2 sources and 1 targets; expected one target for each source"),
        ((SOURCE, TARGET, "los"), "return_type='los'; expected 'logits'"),
        ((SOURCE, TARGET[:, :1], "loss"), "a next-token loss needs at least 2 positions"),
        ((SOURCE,), r"the decoder has no target; expected decoder_input=.*start token \(0\)"),
        ((SOURCE, TARGET, "logits", WIDE), r"attention_mask has shape \(2, 4\), expected .*\(2, 3\)"),
        ((SOURCE, TARGET, "loss", torch.tensor([[1, 1, 0], [0, 0, 0]])), "attention_mask hides all tokens of row 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_input_that_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LabError, match=message):
        random_rnn("GRU", True)(*arguments)


def test_decoding_nothing_is_refused() -> None:
    with pytest.raises(LabError, match="max_new_tokens=0; expected at least 1"):
        random_rnn("GRU", True).generate(SOURCE, 0)
