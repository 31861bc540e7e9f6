"""Text in and out, written as one writes for HookedTransformer. It imports nothing of the lab.

`lens` stands for what the script's import line names: `transformer_lens`, or `models.hooked_transformer`.
"""

import itertools

import torch

TEXTS = ["Mary gave", "When Mary and John went to the store, John gave a drink to", "The war lasted"]


def spelled(text):
    """A text as a tensor, to be saved with the others."""
    return torch.tensor(list(text.encode()))


def read_and_write(model, lens):
    """What the text methods give, by name."""
    torch.set_grad_enabled(False)
    found = {}
    sides = itertools.product((None, True, False), (None, "left", "right"), (TEXTS, TEXTS[0], "<|endoftext|>Mary"))
    for number, (bos, side, text) in enumerate(sides):
        found[f"tokens {number}"] = model.to_tokens(text, prepend_bos=bos, padding_side=side)
    found["cut"], found["whole"] = model.to_tokens("Mary " * 90), model.to_tokens("Mary " * 90, truncate=False)
    found["strings"] = spelled("|".join(model.to_str_tokens(TEXTS[1])))
    found["some strings"] = spelled("|".join(model.to_str_tokens(TEXTS, prepend_bos=False)[2]))
    found["of ids"] = spelled("|".join(model.to_str_tokens(model.to_tokens(TEXTS[0]))))
    found["text"] = spelled(model.to_string(model.to_tokens(TEXTS[1])[0]))
    found["texts"] = spelled("".join(model.to_string(model.to_tokens(TEXTS))))
    found["one"] = spelled(model.to_single_str_token(model.to_single_token(" Mary")))
    places = [model.get_token_position(" John", TEXTS[1], mode=mode) for mode in ("first", "last")]
    places.append(model.get_token_position(" John", model.to_tokens(TEXTS[1])[0], prepend_bos=False))
    found["places"] = torch.tensor(places)

    found["one direction"] = model.tokens_to_residual_directions(" Mary")
    found["two directions"] = model.tokens_to_residual_directions(model.to_tokens(" Mary", prepend_bos=True))
    found["alone"] = model(TEXTS[0])[0, -1]
    logits, loss = model(TEXTS[1], return_type="both")
    found["loss"], found["both"] = loss, logits[0, -1]
    found["losses"] = model(TEXTS[1], return_type="loss", loss_per_token=True)

    model.tokenizer.padding_side = "left"
    tokens = model.to_tokens(TEXTS)
    found["left tokens"] = tokens
    found["left"] = model(tokens)[:, -1]
    found["left of texts"] = model(TEXTS)[:, -1]
    resid, tokens, _, mask = model.input_to_embed(TEXTS)
    found["left of streams"] = model(resid, start_at_layer=0, tokens=tokens, attention_mask=mask)[:, -1]
    model.tokenizer.padding_side = "right"

    greedy = {"max_new_tokens": 6, "do_sample": False, "verbose": False}
    found["written"] = spelled(model.generate(TEXTS[1], **greedy))
    found["all written"] = spelled("|".join(model.generate(TEXTS, **greedy)))
    found["written ids"] = model.generate(model.to_tokens(TEXTS[1]), use_past_kv_cache=False, **greedy)
    stop = int(found["written ids"][0, -3])
    found["stopped"] = model.generate(model.to_tokens(TEXTS[1]), eos_token_id=stop, **greedy)
    found["on and on"] = model.generate(TEXTS[1], stop_at_eos=False, return_type="tokens", **greedy)
    found["penalised"] = model.generate(
        model.to_tokens(TEXTS[1]), max_new_tokens=5, freq_penalty=1e6, top_k=1, temperature=0.5, verbose=False
    )
    model.cfg.default_prepend_bos = False
    found["without a start"] = model.to_tokens(TEXTS[0])
    torch.set_grad_enabled(True)
    return found
