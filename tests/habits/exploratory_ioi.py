"""A first look at indirect objects, written as one writes for HookedTransformer. It imports nothing of the lab.

`lens` stands for what the script's import line names: `transformer_lens`, or `models.hooked_transformer`.
"""

from functools import partial

import einops
import torch

PLACES = ["store", "park"]
NAMES = [(" Mary", " John"), (" John", " Mary"), (" Tom", " Anna"), (" Anna", " Tom")]
SENTENCE = "When{} and{} went to the {},{} gave a drink to"


def prompts():
    """Sentences in which the second name comes again, and the same with the first name there instead."""
    clean, corrupted = [], []
    for number, (other, giver) in enumerate(NAMES):
        place = PLACES[number // 2]
        clean.append(SENTENCE.format(other, giver, place, giver))
        corrupted.append(SENTENCE.format(other, giver, place, other))
    return clean, corrupted


def logit_difference(logits, answers, per_prompt=False):
    last = logits[:, -1, :]
    right, wrong = last.gather(dim=-1, index=answers).unbind(dim=-1)
    return right - wrong if per_prompt else (right - wrong).mean()


def put_back(activation, hook, pos, cache):
    activation[:, pos, :] = cache[hook.name][:, pos, :]
    return activation


def put_back_head(activation, hook, head, cache):
    activation[:, :, head, :] = cache[hook.name][:, :, head, :]
    return activation


def explore(model, lens):
    """The numbers that one would plot, by name."""
    utils, found = lens.utils, {}
    torch.set_grad_enabled(False)
    clean, corrupted = prompts()
    tokens, other_tokens = model.to_tokens(clean, prepend_bos=True), model.to_tokens(corrupted, prepend_bos=True)
    answers = torch.tensor([[model.to_single_token(name) for name in pair] for pair in NAMES], device=model.cfg.device)
    assert model.to_str_tokens(clean[0])[2] == NAMES[0][0]

    logits, cache = model.run_with_cache(tokens)
    found["per prompt"] = logit_difference(logits, answers, per_prompt=True)
    clean_value = logit_difference(logits, answers)
    other_logits, _ = model.run_with_cache(other_tokens)
    other_value = logit_difference(other_logits, answers)
    found["values"] = torch.stack([clean_value, other_value])

    directions = model.tokens_to_residual_directions(answers)
    direction = directions[:, 0] - directions[:, 1]
    scaled = cache.apply_ln_to_stack(cache["resid_post", -1][:, -1, :], layer=-1, pos_slice=-1)
    found["from the stream"] = einops.einsum(scaled, direction, "batch d_model, batch d_model -> batch")

    def along(stack):
        normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        shares = einops.einsum(normed, direction, "... batch d_model, batch d_model -> ... batch")
        return shares.mean(dim=-1)

    stack, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    found["lens"] = along(stack)
    assert labels[0] == "0_pre"
    assert labels[-1] == "final_post"
    stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    found["layers"] = along(stack)
    assert labels[:2] == ["embed", "pos_embed"]
    stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    found["heads"] = einops.rearrange(along(stack), "(layer head) -> layer head", head=model.cfg.n_heads)
    assert labels == model.all_head_labels()
    found["attributed"] = cache.logit_attrs(stack, answers[:, 0], answers[:, 1], pos_slice=-1).mean(-1)

    best = int(found["heads"].flatten().argmax())
    layer, head = best // model.cfg.n_heads, best % model.cfg.n_heads
    found["pattern of the best"] = cache["pattern", layer, "attn"][:, head].mean(0)

    def recovered(patched_logits):
        return (logit_difference(patched_logits, answers) - other_value) / (clean_value - other_value)

    by_position = torch.zeros(model.cfg.n_layers, tokens.shape[1], dtype=logits.dtype)
    for layer in range(model.cfg.n_layers):
        for pos in range(tokens.shape[1]):
            hook = (utils.get_act_name("resid_pre", layer), partial(put_back, pos=pos, cache=cache))
            by_position[layer, pos] = recovered(model.run_with_hooks(other_tokens, fwd_hooks=[hook]))
    by_head = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=logits.dtype)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            hook = (utils.get_act_name("z", layer, "attn"), partial(put_back_head, head=head, cache=cache))
            by_head[layer, head] = recovered(model.run_with_hooks(other_tokens, fwd_hooks=[hook], return_type="logits"))
    found["patched streams"], found["patched heads"] = by_position, by_head
    torch.set_grad_enabled(True)
    return found
