# %% [markdown]
# # Attention, step by step
#
# Attention is how one token learns of another. It is built here in four steps, and then across two sequences, from
# pure functions of vectors and weights (`models/attention.py`), each written out once by hand and held to PyTorch's
# own. The vectors and weights are those of `town`, a small language model that ships with the lab.

# %%
import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from analyses import attention_patterns
from interp import pictures
from interp.pictures import SHARE, Axis
from models import GPT, load
from models.attention import (
    attention_scores,
    causal_mask,
    causal_self_attention,
    cross_attention,
    fused_attention,
    mix_values,
    multi_head_attention,
    self_attention,
    simple_self_attention,
)

torch.set_grad_enabled(False)
model = load("town", dtype="float64")
tokens = model.to_tokens("When Mary and John went to the store, John gave a drink to")
words = model.to_str_tokens(tokens)
n = len(words)
x = model.embed(tokens)  # one vector of 128 numbers for each token
print(words)
print("x is [batch pos d_model] =", list(x.shape))

# %% [markdown]
# ## Step 1: nothing is trained
#
# Two vectors are alike when their dot product is large. So let every token take the average of all vectors, weighted by
# how alike they are to its own: `softmax(x xᵀ) x`. The softmax makes the weights positive, with a sum of one.

# %%
scores = x @ x.mT  # [batch q_pos k_pos]: row q, column k is the dot product of the vectors of q and k
simple_pattern = scores.softmax(-1)
by_hand = simple_pattern @ x
torch.testing.assert_close(by_hand, simple_self_attention(x))
torch.testing.assert_close(by_hand, F.scaled_dot_product_attention(x, x, x, scale=1.0))

first, second = (i for i, word in enumerate(words) if word == " John")
print("the second John looks at the first with", f"{simple_pattern[0, second, first]:.2f},", end=" ")
print("at himself with", f"{simple_pattern[0, second, second]:.2f}")
torch.testing.assert_close(simple_pattern[0, second, first], simple_pattern[0, second, second])
torch.testing.assert_close(scores, scores.mT)

# %% [markdown]
# That is all it can do: a token looks at those that resemble it. *John* cannot look for the one who is **not** John,
# and as the scores are symmetric, a token is found by what it looks for.
#
# ## Step 2: queries, keys and values
#
# So what a token looks for, what it is found by and what it passes on are made different, by three trained matrices:
# `q = x W_Q`, `k = x W_K`, `v = x W_V`, and the output is `softmax(q kᵀ / √d_head) v` (Vaswani et al. 2017,
# arXiv:1706.03762). Here are those of one head of the model, which reads the stream after the first norm. A bias is the
# weight of an entry that is always 1.

# %%
block = model.blocks[0]
_, cache = model.run_with_cache(tokens)
read = block.ln1(cache["resid_pre", 0])
read = torch.cat([read, torch.ones_like(read[..., :1])], -1)  # the entry that is always 1
attn = block.attn
trained = ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
W_Q, W_K, W_V = (torch.cat([weight, rearrange(bias, "head d -> head 1 d")], 1) for weight, bias in trained)
head = 5
q, k, v = (read @ weight[head] for weight in (W_Q, W_K, W_V))  # [batch pos d_head]
d_head = q.shape[-1]
trained_scores = q @ k.mT / math.sqrt(d_head)
trained_pattern = trained_scores.softmax(-1)
by_hand = trained_pattern @ v
torch.testing.assert_close(by_hand, self_attention(read, W_Q[head], W_K[head], W_V[head]))
torch.testing.assert_close(by_hand, F.scaled_dot_product_attention(q, k, v))
print(f"asymmetry of the scores: {(trained_scores - trained_scores.mT).abs().max():.1f}")

# %% [markdown]
# Why divide by `√d_head`? The dot product of two random vectors of d numbers has a standard deviation of `√d`.
# Undivided, the scores of long vectors are so far apart that the softmax gives nearly all to one key, and where its
# largest weight p is 1, its slope p (1 - p) is 0: nothing can be learned.

# %%
generator = torch.Generator().manual_seed(0)
for d in (4, 64, 1024):
    queries, keys = torch.randn(2, 2000, 8, d, dtype=torch.float64, generator=generator)
    products = (queries[:, :1] * keys).sum(-1)  # each query with eight keys
    spread = float(products.std()) / math.sqrt(d)
    largest = products.softmax(-1).amax(-1), (products / math.sqrt(d)).softmax(-1).amax(-1)
    slopes = [float((p * (1 - p)).mean()) for p in largest]
    print(f"d = {d:4d}: spread {spread:.2f} √d, mean slope {slopes[0]:.3f}; divided by √d {slopes[1]:.3f}")
    assert abs(spread - 1) < 0.1  # more than six standard errors
assert slopes[0] < 0.05 < 0.15 < slopes[1]

# %% [markdown]
# ## Step 3: only looking back
#
# A model that predicts the next token must not see it. The scores of what comes later become minus infinity **before**
# the softmax: their weights are 0, and the others still sum to one. Masked after the softmax, they would not.

# %%
seen = causal_mask(n, n, x.device)[0, 0]
causal_pattern = trained_scores.masked_fill(~seen, -torch.inf).softmax(-1)
by_hand = causal_pattern @ v
torch.testing.assert_close(by_hand, causal_self_attention(read, W_Q[head], W_K[head], W_V[head]))
torch.testing.assert_close(by_hand, F.scaled_dot_product_attention(q, k, v, is_causal=True))
masked_after = (trained_pattern * seen).sum(-1)[0]
print("sums of the weights when masked after the softmax:", [round(float(total), 2) for total in masked_after])
torch.testing.assert_close(causal_pattern, cache["pattern", 0][:, head])

# %% [markdown]
# ## Step 4: several heads
#
# One head has one way of looking. A layer has several, each with its own weights in a narrower space; their outputs go
# through their parts of `W_O` and are added. PyTorch's module with the same weights says the same, and with the bias of
# the output it is what the model's first attention layer writes.

# %%
W_O = block.attn.W_O
heads = multi_head_attention(read, W_Q, W_K, W_V, W_O, causal_mask(n, n, x.device))
torch.testing.assert_close(heads + block.attn.b_O, cache["attn_out", 0])
one_by_one = sum(causal_self_attention(read, W_Q[h], W_K[h], W_V[h]) @ W_O[h] for h in range(model.cfg.n_heads))
torch.testing.assert_close(heads, one_by_one)


def in_torch(W_Q, W_K, W_V, W_O):
    """The same heads as torch's module; its q, k and v are as wide as its input."""
    n_heads, d_model, d = W_Q.shape
    module = torch.nn.MultiheadAttention(d_model, n_heads, bias=False, batch_first=True, dtype=W_Q.dtype)
    assert n_heads * d == d_model
    module.in_proj_weight.copy_(torch.cat([rearrange(W, "head model d -> (head d) model") for W in (W_Q, W_K, W_V)]))
    module.out_proj.weight.copy_(rearrange(W_O, "head d model -> model (head d)"))
    return module


bare = [W[:, :-1] for W in (W_Q, W_K, W_V)]  # without the biases
expected, _ = in_torch(*bare, W_O)(read[..., :-1], read[..., :-1], read[..., :-1], attn_mask=~seen)
torch.testing.assert_close(multi_head_attention(read[..., :-1], *bare, W_O, seen[None, None]), expected)

# %% [markdown]
# The four steps as pictures: rows look, columns are looked at.

# %%
steps = {
    "1 alike": simple_pattern[0],
    "2 trained": trained_pattern[0],
    "3 causal": causal_pattern[0],
    "4 another head": cache["pattern", 0][0, 2],
}
sides = (Axis("query", n, words), Axis("key", n, words))
pictures.facets(torch.stack(list(steps.values())).numpy(), Axis("step", len(steps), list(steps)), *sides, scale=SHARE)

# %% [markdown]
# Four heads of that layer, as the model runs them:

# %%
attention_patterns(model, tokens, heads=[(0, h) for h in range(4)]).plot()

# %% [markdown]
# ## Across two sequences
#
# In cross-attention one sequence asks and another answers: queries come from the first, keys and values from the
# second. That is how a translation looks at its original. Here weights are written down instead of trained. Vectors are
# a place and a letter; a query at place i looks for the key at place 5 - i, and the value is the letter. So the word is
# read backwards, and the pattern is the alignment.

# %%
letters = "abcdefghijklmnopqrstuvwxyz"
place, letter = torch.eye(6).double(), torch.eye(26).double()
source = torch.cat([place, letter[[letters.index(c) for c in "lamina"]]], -1)[None]  # [1 6 32]
asking = torch.cat([place[:4], torch.zeros(4, 26).double()], -1)[None]  # four places, no letters yet
to_place, to_letter = torch.eye(32).double().split([6, 26], 1)
written = [weight[None] for weight in (100 * to_place.flip(1), to_place, to_letter, letter)]  # one head
answer = cross_attention(asking, source, *written)
read_out = "".join(letters[i] for i in answer[0].argmax(-1))
print("lamina, asked at four places, answers", read_out)
assert read_out == "anim"
asks, answers = (rearrange(y, "batch pos d -> batch pos 1 d") for y in (asking @ written[0][0], source @ written[1][0]))
alignment = attention_scores(asks, answers, None).softmax(-1)[0, 0]
pictures.heatmap(alignment.numpy(), Axis("query", 4, list(read_out)), Axis("key", 6, list("lamina")), scale=SHARE)

# %% [markdown]
# With trained weights it is PyTorch's module with two inputs; of a sequence on itself it is self-attention.

# %%
longer = torch.randn(1, 40, model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
expected, _ = in_torch(*bare, W_O)(x, longer, longer)
torch.testing.assert_close(cross_attention(x, longer, *bare, W_O), expected)
torch.testing.assert_close(cross_attention(x, x, *bare, W_O), multi_head_attention(x, *bare, W_O))

# %% [markdown]
# ## What it costs
#
# The pattern has a number for every pair of positions: twice the text, four times the memory. Queries, keys, values and
# the output have as many as there are positions. Sizes of tensors are the same on every machine:

# %%
lengths, held, linear = (128, 256, 512, 1024), [], []
for length in lengths:
    q, k, v = torch.randn(3, 1, length, 8, 16, generator=torch.Generator().manual_seed(length))
    scores = attention_scores(q, k, causal_mask(length, length, q.device))
    explicit = mix_values(scores.softmax(-1), v)
    torch.testing.assert_close(fused_attention(q, k, v, None, causal=True), explicit, atol=1e-5, rtol=1e-4)
    held.append(scores.nbytes)
    linear.append(q.nbytes + k.nbytes + v.nbytes + explicit.nbytes)
    print(f"{length:5d} positions: pattern {held[-1] / 2**20:5.1f} MiB, all else {linear[-1] / 2**20:5.2f} MiB")
exponents = [float(np.polyfit(np.log(lengths), np.log(sizes), 1)[0]) for sizes in (held, linear)]
print("they grow as the length to the power of", [round(e, 3) for e in exponents])
np.testing.assert_allclose(exponents, [2, 1], atol=1e-6)

# %% [markdown]
# A fused kernel computes the same without ever holding the pattern (Dao et al. 2022, arXiv:2205.14135). What that
# saves, `python -m tests.benchmarks.attention_cost --rounds 5` measured on one core of a busy machine, for 8 heads of
# 64:
#
# | 2048 positions | time | grows as | most memory held | grows as |
# |---|---|---|---|---|
# | explicit | 1.29 s | n^2.00 | 260 MiB | n^2.00 |
# | fused | 0.27 s | n^1.64 | 4.6 MiB | n^1.00 |
#
# ## Measured: the future is irrelevant, and only the mask makes it so
#
# Change one token of a text, and see which outputs of the whole model change. With the causal mask none of the earlier
# ones does, in all four layers. The same weights without the mask: all of them do.

# %%
unmasked = GPT(replace(model.cfg, attention_dir="bidirectional"))
unmasked.load_state_dict(model.state_dict())
generator = torch.Generator().manual_seed(0)
changed = {"causal": [], "unmasked": []}
for _ in range(20):
    place = int(torch.randint(1, n, (), generator=generator))
    other = tokens.clone()
    step = int(torch.randint(1, model.cfg.d_vocab, (), generator=generator))
    other[0, place] = (tokens[0, place] + step) % model.cfg.d_vocab
    for name, each in (("causal", model), ("unmasked", unmasked)):
        moved = (each(other) - each(tokens)).abs().amax(-1)[0] > 1e-9  # beyond what float64 rounds
        changed[name].append((float(moved[:place].double().mean()), float(moved[place:].double().mean())))
shares = {name: np.mean(rows, 0) for name, rows in changed.items()}
for name, (earlier, later) in shares.items():
    print(f"{name:9s} of the outputs before the changed token {earlier:.0%} change, from it on {later:.0%}")
assert tuple(shares["causal"]) == (0, 1)
assert tuple(shares["unmasked"]) == (1, 1)
