# %% [markdown]
# # Before transformers
#
# A recurrent network reads a sentence one token at a time and keeps what it has read in one vector, its hidden state.
# Two of them make an encoder-decoder: one reads the source, the other starts from the state that the first one ends
# with and writes the target (Sutskever et al. 2014, arXiv:1409.3215; Cho et al. 2014, arXiv:1406.1078). However long
# the source, all of it has to go through that one vector. Bahdanau, Cho and Bengio (2015, arXiv:1409.0473) let the
# decoder look back at every state of the encoder instead, and called it attention. This notebook measures what that
# was for.

# %%
from pathlib import Path

import numpy as np
import torch

from analyses import activation_patching
from analyses.bottleneck import AccuracyByLength, accuracy_by_length
from interp import PromptPairs, pictures
from interp.pictures import SHARE, Axis
from models.rnn import RNNEncoderDecoder
from models.rnn_config import RNNConfig
from models.training import TrainingConfig, mean_loss, train
from models.zoo.copies import START, Copies

data = Copies(max_length=12, symbols=8)  # random rows of up to 12 of 8 symbols, to be written once more
sizes = {"cell": "GRU", "d_vocab": data.d_vocab, "d_model": 16, "seed": 0}
plain = RNNEncoderDecoder(RNNConfig(**sizes, d_hidden=63))
attentive = RNNEncoderDecoder(RNNConfig(**sizes, d_hidden=48, d_attn=48))
for model in (plain, attentive):
    print(sum(p.numel() for p in model.parameters()), "parameters,", ", ".join(model.hook_dict))

# %% [markdown]
# ## One step
#
# A gated recurrent unit mixes the old state with a new proposal, each coordinate by a gate of its own. Every state is
# on a hook point, all positions in one tensor, so the third state can be computed by hand from the second.

# %%
batch = data.with_targets(data.rows(6, 4, seed=1))
_, cache = plain.run_with_cache(batch.source, batch.tokens)
hidden, gru = cache["encoder.hook_hidden"], plain.encoder.rnn
print("encoder.hook_hidden", tuple(hidden.shape), "= [batch pos d_hidden]")

h, x = hidden[:, 1], plain.encoder.W_E[batch.source[:, 2]]
from_x, from_h = x @ gru.weight_ih_l0.T + gru.bias_ih_l0, h @ gru.weight_hh_l0.T + gru.bias_hh_l0
(reset_x, update_x, new_x), (reset_h, update_h, new_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
update = torch.sigmoid(update_x + update_h)
proposal = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
by_hand = ((1 - update) * proposal + update * h).detach()
print("largest difference from the model's third state:", float((by_hand - hidden[:, 2]).abs().max()))
assert torch.allclose(by_hand, hidden[:, 2], atol=1e-6)  # a few roundings of float32


# %% [markdown]
# A hook that changes a state changes what the next step starts from, and nothing before.


# %%
def forget(hidden, hook):
    hidden[:, 3] = 0.0


with plain.hooks([("encoder.hook_hidden", forget)]):
    _, edited = plain.run_with_cache(batch.source, batch.tokens)
moved = (edited["encoder.hook_hidden"] - hidden).norm(dim=-1).mean(0)
print("how far each state moved:", moved.detach().numpy().round(2))
assert moved[:3].max() == 0
assert moved[3:].min() > 0

# %% [markdown]
# ## Two models of one size learn to copy
#
# Nothing in a random row can be guessed, so whatever comes out right must have come from the encoder. Both models see
# the same batches, with the right answer so far as the decoder's input (teacher forcing); afterwards each writes by
# itself.

# %%
training = TrainingConfig(steps=400, lr=5e-3, warmup_steps=30, betas=(0.9, 0.98), weight_decay=0.0)
rows = [data.rows(length, 128, seed=0) for length in (2, 4, 6, 8, 10, 12)]
for model in (plain, attentive):
    train(model, data, training, progress=False)
    print(f"loss on test rows: {mean_loss(model, [data.with_targets(row) for row in rows]):.2f} nats a symbol")

small = accuracy_by_length(
    {"GRU": plain, "GRU with attention": attentive}, [(row, data.copies_of(row)) for row in rows], 1 / data.symbols
)
print(small.values.round(2))
assert small.of("GRU with attention")[-1] > small.of("GRU")[-1] + 0.2
small.plot()

# %% [markdown]
# ## Where the source is when the decoder starts
#
# Two sources differ in their third symbol. Which hidden state of the first, put into the run on the second, brings
# back the answer to the first? The answer is the third symbol, which the decoder writes after the two before it.
#
# In the plain model any state after the difference will do, the last one as well as the third: it holds everything
# that the decoder will ever know. (That is no finding but how the model is built; the analysis shows it.) With
# attention the state beside the symbol is what counts: the decoder goes and fetches it.

# %%
start = torch.randint(2, data.d_vocab, (1, 2), generator=torch.Generator().manual_seed(0))  # all begin alike
clean = torch.cat([start.expand(64, 2), data.rows(8, 64, seed=2)[:, 2:]], 1)
corrupted = clean.clone()
corrupted[:, 2] = (clean[:, 2] - 1) % data.symbols + 2  # another symbol
pairs = PromptPairs.from_tokens(clean, corrupted, clean[:, 2], corrupted[:, 2])
target = torch.tensor([START, *start[0].tolist()])

effects = {}
for name, model in (("GRU", plain), ("GRU with attention", attentive)):
    found = activation_patching(model.encoder_given(target), pairs, site="encoder.hidden", progress=False)
    effects[name] = found.values
    print(f"{name:20s}", found.values.round(2))
assert np.allclose(effects["GRU"], [0, 0, 1, 1, 1, 1, 1, 1], atol=1e-3)
assert effects["GRU with attention"].argmax() in (2, 3)
assert effects["GRU with attention"][-1] < 0.5
pictures.lines(effects, Axis("encoder state", 8), title="One state patched", unit="0 corrupted, 1 clean")

# %% [markdown]
# The pattern is the alignment: which state of the encoder each step of the decoder reads. The words that Bahdanau's
# figure 3 aligns are here the copies of one row.

# %%
batch = data.with_targets(data.rows(12, 64, seed=3))
_, cache = attentive.run_with_cache(batch.source, batch.tokens)
pattern = cache["decoder.hook_pattern"]  # [batch target_pos source_pos]
aligned = pattern[:, :12].mean(0).numpy()
own = np.array([aligned[i, i : i + 2].sum() for i in range(12)])
print("attention to the symbol to copy and the state after it, at each step:", own.round(2))
assert own.mean() > 0.5
pictures.heatmap(aligned, Axis("decoder step", 12), Axis("encoder state", 12), title="Alignment", scale=SHARE)

# %% [markdown]
# ## The bottleneck
#
# The same with time to learn, and with a transformer beside them: 16 symbols, rows of up to 32, 60,000 parameters each
# (within 2 %), 3,000 steps on the same batches, from one seed. The runs were made once, by
#
#     python -m tests.benchmarks.bottleneck --seed 0 --runs runs/bottleneck

# %%
full = AccuracyByLength.load(Path("..", "tests/benchmarks/results/bottleneck.safetensors"))
print("length            ", *(f"{n:5d}" for n in full.labels["length"]))
for name, values in zip(full.labels["model"], full.values, strict=True):
    print(f"{name:18s}", *(f"{value:5.2f}" for value in values))
full.plot()

# %% [markdown]
# Of a row of 32 symbols the plain GRU writes a fifth right, and some of that is luck: one guess in sixteen hits. Take
# the guesses off, and what is left hardly depends on the length. About six symbols come through, 24 bits, whether six
# were asked for or 32. That is the bottleneck: not that long rows are hard, but that one vector, as this training
# fills it, holds so much and no more. With attention, and in the transformer, everything comes through.

# %%
for name, through in zip(full.labels["model"], full.through, strict=True):
    print(f"{name:18s}", *(f"{value:5.1f}" for value in through))
lengths = np.array(full.labels["length"])
gru, *others = full.through
assert gru[lengths >= 6].max() < 7.5
assert gru[lengths >= 6].min() > 4.5
for through in others:
    assert through[-1] > 0.9 * lengths[-1]
lines = dict(zip(full.labels["model"], full.through, strict=True))
pictures.lines(lines, Axis("length", len(lengths), list(lengths)), title="What comes through", unit="symbols")
