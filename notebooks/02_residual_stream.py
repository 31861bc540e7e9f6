# %% [markdown]
# # The residual stream, from tokens to logits, and on to text
#
# A GPT is a sum. Every token has a vector, the stream; each layer reads it, and adds what it has to say. At the end the
# stream is compared with the vector of every word there is. This walks one prompt through `town`, a small language
# model that ships with the lab, and takes the sum apart again. Then it lets the model write.

# %%
import math

import numpy as np
import torch
from einops import einsum

from analyses import context_losses, head_attribution, logit_lens, sampling_effects
from interp import PromptPairs, pictures
from interp.errors import LabError
from interp.kv_cache import KeyValueCache
from interp.pictures import Axis
from interp.sampling import distribution, entropy, next_token
from models import load

torch.set_grad_enabled(False)
model = load("town", dtype="float64")  # so that rounding is out of sight
cfg = model.cfg
text = "When Mary and John went to the store, John gave a drink to"

# %% [markdown]
# ## Text to tokens to vectors
#
# The tokenizer cuts the text into tokens of its vocabulary and puts one that says "here it begins" in front. Each token
# is a row of the embedding `W_E`, each position a row of `W_pos`. Their sum is the stream at the start.

# %%
tokens = model.to_tokens(text)
words = model.to_str_tokens(tokens)
print(words, tokens[0].tolist(), sep="\n")
logits, cache = model.run_with_cache(tokens)

stream = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]  # [batch pos d_model]
torch.testing.assert_close(stream, cache["resid_pre", 0])
print(f"{len(words)} tokens of {cfg.d_vocab}, each {cfg.d_model} numbers")

# %% [markdown]
# ## What the layers add
#
# Each block reads the stream (through a norm) and adds twice: what its attention brings from other positions, and what
# its MLP makes of that. Nothing is ever overwritten. So the last stream is the sum of all that was added:

# %%
for layer in range(cfg.n_layers):
    stream = stream + cache["attn_out", layer] + cache["mlp_out", layer]
    torch.testing.assert_close(stream, cache["resid_post", layer])
error = float((stream - cache["resid_post", cfg.n_layers - 1]).abs().max())
print(f"the sum and the last stream differ by {error:.1e} at most, and it is {stream.norm(dim=-1).max():.0f} long")

parts, names = cache.decompose_resid(return_labels=True)  # the same parts as one tensor [component batch pos d_model]
torch.testing.assert_close(parts.sum(0), stream)
pictures.bars(parts[:, 0, -1].norm(dim=-1).numpy(), names, unit="length of each part at the last position")

# %% [markdown]
# ## From the stream to logits
#
# The final norm takes the mean out and divides by the spread, so that only the direction counts. Then the dot product
# with the vector of every token, its column of `W_U`, is that token's logit. (In this model `W_U` is `W_E` again.)

# %%
centred = stream - stream.mean(-1, keepdim=True)
scale = (centred.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt()
normalised = centred / scale * model.ln_final.w + model.ln_final.b
by_hand = einsum(normalised, model.W_U, "batch pos model, model vocab -> batch pos vocab") + model.b_U
torch.testing.assert_close(by_hand, logits)

last = logits[0, -1]
probabilities = last.softmax(-1)
for token in last.topk(4).indices.tolist():
    print(f"{model.to_string([token]):8s} logit {last[token]:6.2f}   probability {probabilities[token]:.4f}")

# %% [markdown]
# ## Read on the way: the logit lens
#
# As the stream is a sum, it can be read before the end, as if the model stopped there (nostalgebraist 2020). The answer
# appears in block 2.

# %%
lens = logit_lens(model, tokens)
mary, john = (model.to_single_token(name) for name in (" Mary", " John"))
for row, probability in zip(lens.labels["layer"], lens.probability(mary)[:, -1], strict=True):
    print(f"after {row:5s}: Mary {probability:.4f}")
np.testing.assert_allclose(lens.logits[-1], logits[0].numpy(), atol=1e-9)
lens.plot()

# %% [markdown]
# ## Who wrote the answer?
#
# With the scale of the final norm held as it was, the logits are linear in the stream, so each part has a share of
# them: its direct contribution. Of *Mary* minus *John*, by layer:

# %%
shares = cache.logit_attrs(parts, mary, john)[:, 0, -1]  # of every component, at the last position
constant = cache.unembed_bias_attrs(mary, john)
difference = last[mary] - last[john]
for name, share in zip(names, shares.tolist(), strict=True):
    print(f"{name:12s} {share:+7.2f}")
print(f"biases       {float(constant):+7.2f}")
print(f"sum          {float(shares.sum() + constant):+7.2f}    logit difference {float(difference):+.2f}")
torch.testing.assert_close(shares.sum() + constant, difference)

# %% [markdown]
# The same by head, for this prompt and its counterpart in which Mary gives:

# %%
swapped = model.to_tokens("When Mary and John went to the store, Mary gave a drink to")
pairs = PromptPairs.from_tokens(tokens, swapped, [mary], [john])
heads = head_attribution(model, pairs)
for found in heads.top(4):
    print(found)
heads.plot()

# %% [markdown]
# ## From logits to a word: softmax, temperature, top-k, top-p
#
# The softmax makes probabilities of logits. A temperature divides the logits before: towards 0 the likeliest token
# takes all, towards infinity all are alike. The entropy says how free the choice is, from 0 to `ln d_vocab` nats. Top-k
# keeps the k likeliest, top-p the fewest that together have the probability p.

# %%
after = model(model.to_tokens("When Mary and John went to the"))[:, -1]  # a place: there are many
temperatures = [1e-6, 0.1, 0.25, 0.5, 1, 2, 4, 10, 1000]
freedom = [float(entropy(distribution(after, t))[0]) for t in temperatures]
for t, nats in zip(temperatures, freedom, strict=True):
    print(f"temperature {t:<7g} entropy {nats:.3f} nats, as free as {math.exp(nats):6.1f} equal choices")
assert freedom == sorted(freedom)
assert freedom[0] < 1e-9
assert abs(freedom[-1] - math.log(cfg.d_vocab)) < 1e-3
for k in (1, 5, 50, cfg.d_vocab):
    limited = float(entropy(distribution(after, top_k=k))[0])
    print(f"top-k {k:<5d} entropy {limited:.3f}, at most ln k = {math.log(k):.3f}")
    assert limited <= math.log(k) + 1e-12
for p in (0.1, 0.5, 0.9, 1.0):
    print(f"top-p {p:<5g} keeps {int((distribution(after, top_p=p) > 0).sum())} tokens")
pictures.lines({"entropy": np.array(freedom)}, Axis("temperature", len(temperatures), temperatures), unit="nats")

# %% [markdown]
# ## And on to text
#
# Writing is: draw a token, put it behind the text, read on. What was read before is not read again: its keys and values
# are kept, and only the new token runs.

# %%
draws, past, new, written = torch.Generator().manual_seed(0), KeyValueCache(), tokens, tokens
for _ in range(12):
    new = next_token(model(new, past_kv_cache=past)[:, -1], temperature=1.0, source=draws)[:, None]
    written = torch.cat([written, new], 1)
print(model.to_string(written[0, 1:]))
assert torch.equal(written, model.generate(tokens, 12, temperature=1.0, stop_tokens=(), seed=0))

# %% [markdown]
# How it is drawn changes what is written. Eight texts each way: how free the choices were, how likely the model holds
# what it wrote, and which share of its 3-grams the text had already. Greedy text goes round in circles, as Holtzman et
# al. 2020 (arXiv:1904.09751) found in large models; heat says what the model holds unlikely.

# %%
effects = sampling_effects(model, "When Mary and John went to the store,", n=8, max_new_tokens=40)
print(f"{'':16s} entropy  log probability  repeated 3-grams (spread over texts)")
for way, (free, likely, repeated), (_, _, spread), _ in effects.rows():
    print(f"{way:16s} {free:7.2f}  {likely:15.2f}  {repeated:8.2f} ({spread:.2f})")
print("greedy:", effects.text(0))
print("temperature 2:", effects.text(list(effects.labels["way"]).index("temperature 2")))
mean = {way: means for way, means, _, _ in effects.rows()}
assert mean["greedy"][2] > 0.4 > 0.1 > mean["temperature 1"][2]
assert mean["temperature 2"][1] < mean["temperature 1"][1] - 0.5
effects.plot()

# %% [markdown]
# ## What length costs
#
# The cache holds a key and a value for each position, head and layer, so it grows as the text. Without it, the n-th
# token would cost a run of all n: a text of n tokens n (n + 1) / 2 positions instead of n. In seconds, `python -m
# tests.benchmarks.attention_cost --rounds 5` found 2.4 for 256 tokens with the cache and 7.5 without (a model of four
# layers, one core of a busy machine), growing as n^1.08 and n^1.57 while the weights are most of the work. Counted by a
# hook:

# %%
positions = []
count = ("hook_embed", lambda embed, hook: positions.append(embed.shape[1]))
runs, kept = {}, []
for n in (8, 16, 32):
    row = model.generate(tokens[:, :1], n, temperature=0, stop_tokens=())
    positions.clear()
    with model.hooks([count]):
        past = KeyValueCache()
        for i in range(n):
            model(row[:, i : i + 1], past_kv_cache=past)
        cached = sum(positions)
        positions.clear()
        for i in range(n):
            model(row[:, : i + 1])
        runs[n] = cached, sum(positions)
    kept.append(sum(layer.k.nbytes + layer.v.nbytes for layer in past.layers.values()))
    print(f"{n:3d} tokens: with a cache of {kept[-1] >> 10} KiB {runs[n][0]} positions run, without {runs[n][1]}")
    assert runs[n] == (n, n * (n + 1) // 2)
    assert kept[-1] == 2 * cfg.n_layers * n * cfg.n_heads * cfg.d_head * 8  # keys and values, in float64

# %% [markdown]
# ## Where the text is longer than the window
#
# The model has vectors for `n_ctx` positions, and refuses more rather than make something up.

# %%
try:
    model.generate(text, max_new_tokens=60)
except LabError as error:
    print(error)
else:
    raise AssertionError("a text longer than the window was not refused")

# %% [markdown]
# (Where positions are computed, as rotary ones are, `models.context.with_context` widens the window; notebook 06
# measures what comes of it.) To go on here, only the last tokens can be kept: a window slides along the text. What that
# loses depends on how far back the model needs to look. Here it is known: `induction-2l` foresees random letters that
# repeat, so with blocks of 20 letters it needs the last 21: the letter to copy, and the one before it by which it is
# found. The text has 101 tokens, the model's window 65.

# %%
repeater = load("induction-2l")
draws = torch.Generator().manual_seed(0)
blocks = torch.stack([torch.randperm(64, generator=draws)[:20] for _ in range(8)])
start = torch.full((8, 1), repeater.tokenizer.bos_token_id)
rows = torch.cat([start, blocks.repeat(1, 5)], 1)
losses = context_losses(repeater, rows, windows=[4, 12, 18, 19, 20, 21, 22, 32, 48], sinks=1)
late = losses.mean_from(41)
for window, loss in zip(losses.labels["window"], late, strict=True):
    print(f"the last {window:2d} tokens: {loss:.3f} nats (guessing {math.log(64):.2f})")
losses.plot()

# %%
loss = dict(zip(losses.labels["window"], late.tolist(), strict=True))
assert min(loss[window] for window in (4, 12, 18)) > 4
assert max(loss[window] for window in (22, 32, 48)) < 0.1

# %% [markdown]
# ## Measured
#
# Two things are true of every GPT of this kind, and you have measured them: its last stream is the sum of what its
# parts wrote, so that a logit difference is the sum of their shares; and what it does not keep in its window, it does
# not know.

# %%
share_of = dict(zip(names, shares.tolist(), strict=True))
later = sum(share for name, share in share_of.items() if name.startswith(("2", "3")))
print(f"blocks 2 and 3 wrote {later / float(difference):.0%} of the answer; what came before wrote against it")
print(f"sum of all shares minus logit difference: {float(shares.sum() + constant - difference):.1e}")
assert abs(float(shares.sum() + constant - difference)) < 1e-9
assert later > float(difference) > 7
assert later > float(difference) > 7
