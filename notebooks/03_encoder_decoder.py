# %% [markdown]
# # Encoder, decoder, encoder-decoder
#
# Three transformers are made of the same block, and differ in what a position may look at:
#
# - an **encoder** (BERT) reads: every position sees the whole text;
# - a **decoder** (GPT) writes: every position sees what came before it;
# - an **encoder-decoder** (Vaswani et al. 2017, arXiv:1706.03762; T5, BART) translates: an encoder reads the source
#   and a decoder writes the target. Each of its blocks also looks across, at the source: **cross-attention**, whose
#   queries come from the target and whose keys and values come from the encoder's last states.

# %%
import numpy as np
import torch

from analyses import activation_patching, cross_attention_patterns, logit_lens
from interp import PromptPairs, pictures
from interp.pictures import SHARE, Axis
from models import GPT, TransformerConfig, load
from models.encoder_decoder import EncoderDecoder
from models.training import train
from models.zoo import recipes
from models.zoo.iso_dates import aligned, cross_pattern, held_out, looks_aligned

model = load("dates")  # an encoder of two blocks, a decoder of one, trained to write dates as ISO 8601 does
print(model.generate(["March 5, 1987", "31 Oct 2024", "7/12/1492"]))

# %% [markdown]
# ## Who sees whom
#
# Change one token, and see which outputs move. This needs no training: it is how the three are built.

# %%
sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_vocab": 20, "n_ctx": 8, "init_range": 0.5, "seed": 0}
encoder = GPT(TransformerConfig(**sizes, attention_dir="bidirectional"))
decoder = GPT(TransformerConfig(**sizes))
text = torch.tensor([[3, 1, 4, 1, 5, 9]])


def moved(run, length):
    """Which outputs (columns) move when each of the tokens (rows) is changed."""
    with torch.inference_mode():
        before, rows = run(text), []
        for place in range(text.shape[1]):
            changed = text.clone()
            changed[0, place] += 7
            rows.append((run(changed) - before).abs().amax(-1)[0] > 1e-6)
    return torch.stack(rows).numpy()[:, :length]


target = torch.tensor([[model.cfg.decoder_start_token_id, 2, 7, 1]])
sees = {
    "encoder": moved(encoder, 6),
    "decoder": moved(decoder, 6),
    "source to target": moved(lambda source: model(source, target), 4),
    "target to target": moved(lambda tokens: model(text, tokens[:, :4]), 4)[:4],
}
for name, matrix in sees.items():
    print(f"{name}: token (row) -> outputs (columns)\n{matrix.astype(int)}\n")

assert sees["encoder"].all()
assert (sees["decoder"] == np.triu(np.ones((6, 6), dtype=bool))).all()
assert sees["source to target"].all()
assert (sees["target to target"] == np.triu(np.ones((4, 4), dtype=bool))).all()

# %% [markdown]
# ## Where it looks while it writes
#
# The analyses see one side at a time. `decoder_given(source)` is the decoder as a model of target tokens. Its
# cross-attention, one picture a head: rows are what the decoder has just read, columns the source. To write the year it
# looks at the year's digits one after the other; the hyphen sends it on to the month, and then back to the day.

# %%
written = model.decoder_given("March 5, 1987")
cross_attention_patterns(written, "1987-03-0").plot()

# %% [markdown]
# ## The alignment, measured
#
# For dates it is known which characters of the source say each digit: of the year each digit says itself, the month is
# said by all of its name. In how many dates that the model was never trained on is attention (the mean of the heads)
# highest on such a character?

# %%
dates = held_out(200)
right = looks_aligned(cross_pattern(model, dates), dates)
by_chance = aligned(dates, max(len(each.source) for each in dates)).sum(-1).float()
by_chance = (by_chance[by_chance > 0].mean() / np.mean([len(each.source) for each in dates])).item()
print("by digit of YYYYMMDD:", right.numpy().round(2))
print(f"all digits: {right.mean():.2f}; a head that looked anywhere would be right in about {by_chance:.2f}")
assert right.mean() > 0.9 > 3 * by_chance

# %% [markdown]
# ## And it is learnt with the task
#
# The same recipe, made anew for a few steps. The alignment is not built in: fresh weights look anywhere, and the model
# comes to look at the right places while it comes to write the right digits.

# %%
changes = ["data.batch_size=32", "training.lr=2e-3"]
changes += ["training.steps=250", "training.warmup_steps=50", "training.eval_every=50"]
recipe = recipes.find("dates").changed(changes)
lesson = recipe.lesson()
fresh = EncoderDecoder(recipe.config(lesson), lesson.tokenizer)
log = [
    record
    for record in train(fresh, lesson.batches, recipe.training_config(), evaluate=lesson.measure, progress=False)
    if "exact" in record
]
for record in log:
    print(
        f"step {record['step']:3d}  whole dates right {record['exact']:.2f}  digits looked at {record['aligned']:.2f}"
    )
assert log[0]["aligned"] < 0.4
assert log[-1]["aligned"] > log[0]["aligned"] + 0.3
assert log[-1]["loss"] < log[0]["loss"] / 10

# %% [markdown]
# ## What the decoder knows before it looks
#
# After "1987-0" the next digit is the month's second. The lens reads the decoder's stream before its only block, where
# nothing has come from the source yet, and after it.

# %%
lens = logit_lens(written, "1987-0")
answer = model.to_single_token("3")
print("probability of '3' before and after the block:", lens.probability(answer)[:, -1].round(3))
assert lens.probability(answer)[0, -1] < 0.1 < 0.9 < lens.probability(answer)[1, -1]

# %% [markdown]
# ## Where the source crosses
#
# Attention is where it looks, not what moves. `encoder_given(target)` is the encoder as a model of source tokens, for
# a target so far. After "19" the two sources of each pair call for 8 and 4. Into the run on the corrupted source we
# put one state of the clean run, at one position and layer of the encoder; and then only one position's keys, or
# values, of the cross-attention. 1 is the clean run's answer, 0 the corrupted one's.

# %%
reader = model.encoder_given("19")
pairs = PromptPairs.from_text(
    reader,
    clean=["5 March 1987", "7 April 1982"],
    corrupted=["5 March 1947", "7 April 1942"],
    right=["8", "8"],
    wrong=["4", "4"],
)
states = activation_patching(reader, pairs, site="resid_pre")
keys = activation_patching(reader, pairs, site="cross_k", by=("layer", "pos"))
values = activation_patching(reader, pairs, site="cross_v", by=("layer", "pos"))
crossing = np.concatenate([states.values, keys.values, values.values])
pictures.heatmap(
    crossing,
    Axis("what is patched", 4, ("encoder 0", "encoder 1", "cross keys", "cross values")),
    Axis("position of '5 March 1987'", crossing.shape[1], tuple("5 March 1987")),
    title="share of the answer that one position carries",
    scale=SHARE,
)

# %% [markdown]
# One position carries it through the encoder, its own, and what crosses there is the value: the keys, which say where
# to look, are the same for any digit. So you have measured how this model moves a digit from one sequence to the
# other: it stays at its place while the source is read, is found there by a query that knows which digit comes next,
# and its value alone is brought over.

# %%
place = "5 March 1987".index("8")
assert (crossing[[0, 1, 3], place] > 0.95).all()
assert np.abs(np.delete(crossing, place, 1)).max() < 0.05
assert np.abs(keys.values).max() < 0.05
print("state, key and value of the digit's own place:", crossing[[0, 2, 3], place].round(2))
