# %% [markdown]
# # Words into vectors: vocabularies, embeddings, positions
#
# Before attention there are two tables. One has a vector for each token of a vocabulary, and somebody chose the
# vocabulary. The other, in some models, has a vector for each position. This notebook measures what the three do.

# %%
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from analyses import (
    analogies,
    embedding_pca,
    loss_by_position,
    loss_per_byte,
    nearest_tokens,
    position_geometry,
    vocabulary_statistics,
)
from analyses.fourier import shares_of_frequencies
from analyses.position_losses import LossByPosition
from interp import LabError
from interp.tasks.world import COUNTRIES
from models import GPT, TransformerConfig, load
from models.batches import Windows
from models.context import with_context
from models.tokenizers import characters_of, train_bpe
from models.training import TrainingConfig, train
from models.zoo.corpus import documents
from models.zoo.positions import KINDS, PositionStudy

text, unseen = ("\n".join(islice(documents(seed), n)) for seed, n in ((0, 3000), (1, 60)))
print(unseen[:200])

# %% [markdown]
# ## What a vocabulary does to a text
#
# Characters; and bytes that are merged into ever longer tokens (byte-pair encoding: Sennrich et al. 2016,
# arXiv:1508.07909; of bytes, as in GPT-2). `models.pretrained.load_tokenizer("gpt2")` would bring GPT-2's own.

# %%
vocabularies = {
    "characters": characters_of(text),
    "BPE of 400": train_bpe([text], 400),
    "BPE of 1200": train_bpe([text], 1200),
}
sentence = "Rose counted the years 1732 and 1745."
for name, tokenizer in vocabularies.items():
    print(f"{name:12s}", "|".join(tokenizer.strings(tokenizer.encode(sentence))))
counts = vocabulary_statistics(vocabularies, unseen)
counts.to_dataframe().pivot(index="vocabulary_label", columns="measure_label", values="values").round(2)

# %% [markdown]
# A vocabulary of characters lacks those that its text had not, and says which and where. Bytes spell anything.

# %%
try:
    vocabularies["characters"].encode("Rose went to the café.")
except LabError as problem:
    print(problem)
assert vocabularies["BPE of 400"].decode(vocabularies["BPE of 400"].encode("café")) == "café"

# %% [markdown]
# ## ... and to a model
#
# One small model with each vocabulary, trained on as many tokens. By the token the model of characters looks best, for
# its tokens are easy. By the byte, which is the same for all, it is the worst.

# %%
models = {}
for name, tokenizer in vocabularies.items():
    cfg = TransformerConfig(
        n_layers=1, n_heads=4, d_model=64, d_vocab=len(tokenizer), n_ctx=64, embed_scale=8.0, seed=0,
        positional_embedding_type="rotary", model_name=name,
    )  # fmt: skip
    models[name] = GPT(cfg, tokenizer=tokenizer)
    batches = Windows(torch.tensor(tokenizer.encode(text)), n_ctx=64, batch_size=8)
    train(models[name], batches, TrainingConfig(steps=200, lr=5e-3, warmup_steps=20), progress=False)
costs = loss_per_byte(models, unseen)
print(costs.to_dataframe().drop(columns="model").round(2).to_string(index=False))
assert costs.values[0] > costs.values[1] > costs.values[2]
costs.plot()

# %% [markdown]
# ## Where the tokens lie
#
# `town` has learned its 1,495 vectors from a generated corpus. By cosine, names are near names and capitals near
# capitals. By dot product " Paris" is nearest to pieces of words that the corpus never has.

# %%
town = load("town")
near = nearest_tokens(town, [" Mary", " Paris", " 17", " book"], k=8)
for i, token in enumerate(near.labels["token"]):
    for j, measure in enumerate(near.labels["measure"]):
        print(f"{token:7s} by {measure:12s}", " ".join(near.tokens[i, j]))
near.plot()

# %% [markdown]
# Why? The same matrix unembeds, and there whatever never comes is pushed down at every step: the vectors of tokens that
# never occur have become long, and all point one way.

# %%
W_E = town.W_E.detach()
occurs = torch.bincount(torch.tensor(town.tokenizer.encode(text)), minlength=len(W_E)) > 0
for name, rows in (("occur", W_E[occurs]), ("never occur", W_E[~occurs])):
    lengths, together = rows.norm(dim=1), torch.nn.functional.normalize(rows, dim=1).mean(0).square().sum()
    print(f"{len(rows):4d} tokens {name:12s} mean length {lengths.mean():.2f}, mean cosine of two {together:.2f}")
assert W_E[~occurs].norm(dim=1).mean() > 1.5 * W_E[occurs].norm(dim=1).mean()
assert together > 0.5

# %% [markdown]
# Differences carry relations: Paris - France + Japan = Tokyo. Of all 1,406 such questions, with any two countries, four
# in five are answered by the nearest vector. An untrained model of the same shape answers about one in a thousand.

# %%
capital = {f" {country}": f" {city}" for country, (city, _) in COUNTRIES.items()}
questions = [(capital[a], a, b, capital[b]) for a in capital for b in capital if a != b]
found = analogies(town, questions)
torch.manual_seed(0)
untrained = analogies(GPT(town.cfg, tokenizer=town.tokenizer), questions)
print(f"{len(questions)} questions: {found.accuracy:.1%} right, untrained {untrained.accuracy:.1%}")
for question, first in list(zip(found.labels["question"], found.tokens[:, 0], strict=True))[::300]:
    print(f"{question:35s} {first}")
assert found.accuracy > 0.75 > 0.02 > untrained.accuracy

# %% [markdown]
# `addition-1l` adds modulo 113, and its numbers lie on circles. The principal components come in pairs; the tokens go
# round each pair as many times as one of the key frequencies says (notebook 13 finds them in the logits).

# %%
numbers = embedding_pca(load("addition-1l"), range(113), k=8)
turns = shares_of_frequencies(torch.tensor(numbers.values)).numpy()
for i, explained in enumerate(numbers.explained):
    own = shares_of_frequencies(torch.tensor(numbers.values[:, [i]])).numpy()
    print(f"component {i + 1}: {explained:.1%} of the variance, {own.max():.0%} of it at frequency {own.argmax() + 1}")
key = sorted(int(k) + 1 for k in np.argsort(-turns)[:4])
print(f"frequencies {key} hold {turns[[k - 1 for k in key]].sum():.1%} of the eight components")
assert key == [15, 16, 33, 38]
numbers.plot(first=6)  # components 7 and 8, both of frequency 16

# %% [markdown]
# ## Where the positions lie
#
# The sinusoids of 2017 (arXiv:1706.03762, §3.5) can be read back from their vectors: coordinates 2i and 2i + 1 are
# waves of length 2π · 10000^(2i/d), and the similarity of two positions depends on their distance alone.

# %%
fixed = GPT(TransformerConfig(1, 1, d_model=32, d_vocab=5, n_ctx=200, positional_embedding_type="sinusoidal"))
waves = position_geometry(fixed)
for i in range(0, 12, 2):
    print(
        f"coordinate {i:2d}: wavelength {waves.wavelength[i]:6.1f}, by the formula {2 * np.pi * 10000 ** (i / 32):6.1f}"
    )
np.testing.assert_allclose(
    200 / waves.wavelength[:12], 200 / (2 * np.pi * 10000 ** (np.arange(12) // 2 * 2 / 32)), atol=0.02
)
waves.plot()

# %% [markdown]
# The town learned its 64. Neighbours are alike and distant ones are not; no wave stands out as in the sinusoids. Models
# with rotary positions, or without any, have no such vectors, and the analysis says so.

# %%
learned = position_geometry(town)
print("mean cosine by distance:", {d: round(float(np.diagonal(learned.values, d).mean()), 2) for d in (1, 4, 16, 32)})
print(f"largest share of one wave: {learned.spectrum.max():.0%}")
try:
    position_geometry(models["characters"])
except LabError as problem:
    print(problem)
learned.plot()

# %% [markdown]
# ## Beyond the length of training
#
# A sinusoid has a value at any position and a rotation an angle, so such a model runs in any window, and so does one
# without positions (arXiv:2203.16634: the causal mask tells it where it is). Learned vectors end.

# %%
wide = with_context(fixed, 1000)
print(wide(torch.zeros(1, 1000, dtype=torch.long)).shape)
try:
    with_context(town, 1000)
except LabError as problem:
    print(problem)

# %% [markdown]
# That it runs does not say that it works. The same model of two layers with each kind of position, on the town's text
# by the character, was trained on rows of 32 and tested on rows of 128, four times as long. The learned kind was given
# a window of 128 from the start, of which training never saw the last 96.
#
#     python -m tests.benchmarks.positions --runs runs/positions      # seeds 0, 1 and 2, 1500 steps each
#
# Three runs of each kind; the mean loss in nats, and the lowest and highest of the three:

# %%
long = LossByPosition.load(Path("../tests/benchmarks/results/positions.safetensors"))
headings, rows = long.table()
for row in (headings, *rows):
    print("".join(f"{cell:26s}" for cell in row))
long.plot()

# %%
kinds = {name: i for i, name in enumerate(long.labels["kind"])}
within, beyond, far = (long.between(start, stop) for start, stop in ((1, 33), (33, 65), (65, 128)))
just_beyond = long.between(33, 41)
for name in ("learned", "sinusoidal"):
    assert just_beyond[kinds[name]].min() > within[kinds[name]].max() + 1.5, "both fail within eight positions"
assert just_beyond[kinds["rotary"]].max() < 1, "through which rotary positions hold on"
assert far[kinds["rotary"]].min() > 3, "to fail later"
assert within[kinds["rotary"]].max() < within[kinds["learned"]].min(), "where all were trained rotary ones are best"
assert within[kinds["none"]].min() > within[kinds["learned"]].max(), "and none are worst"
for name in ("learned", "sinusoidal", "rotary"):
    assert beyond[kinds["none"]].max() < beyond[kinds[name]].min(), "beyond, none are best"
    assert far[kinds["none"]].max() < far[kinds[name]].min()

# %% [markdown]
# The order turns round. Where they were trained rotary positions are best (0.70 nats) and none are worst (1.29).
# Learned and sinusoidal ones fail within eight positions, rotary ones hold on for those and then fail too: at twice the
# length they cost 2.46, and the model without positions, at 1.78, is the best of all. So it is at four times the
# length, though its loss grows. "Works on any length" is true of the formula, not of the model: nothing in training
# told the layers what the sinusoids of position 40 mean (Press et al. 2021, arXiv:2108.12409, found the same of larger
# models).
#
# And now live, in small: 300 steps on rows of 16. How much more does a character cost just beyond that length?

# %%
study = PositionStudy(trained_on=16, longest=64, steps=300)
small = {kind: [study.trained(kind, seed=0)] for kind in KINDS}
short = loss_by_position(small, study.test_rows(256), study.trained_on)
rise = dict(zip(KINDS, (short.between(17, 33) - short.between(1, 17))[:, 0], strict=True))
for kind, nats in rise.items():
    print(f"{kind:12s} {nats:+.2f} nats")
assert rise["sinusoidal"] > 3 * rise["rotary"] > 0
short.plot()
