"""Other people's edge attribution, on the weights and prompts of ours: EAP-IG's and auto-circuit's own code.

Nothing of them is part of the lab. Both run on HookedTransformer, so they need an environment of their own:

    python3 -m venv peers && source peers/bin/activate
    pip install "transformer-lens<4" einops jaxtyping click rich safetensors
    pip install git+https://github.com/hannamw/EAP-IG@795f5607b25638935aec89aee3c1cb4bd9ed72f1
    pip install --no-deps git+https://github.com/UFO-101/auto-circuit@98db58c430a6006dca58bb1751bcaea0c546d42f
    pip install attrs blobfile ordered-set plotly

Neither is edited. EAP-IG makes tensors on a device called "cuda", which its modules are told is the benchmark's, and
takes text, where it is given tokens. auto-circuit was written for TransformerLens 2, and finds a class by the name that
it had there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import transformer_lens
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from interp import PromptPairs
from interp.graph import Graph
from models import GPT

Scores = Float[np.ndarray, "edge"]


def hooked_transformer(model: GPT) -> HookedTransformer:
    """HookedTransformer with a GPT-2's weights, and with every hook point that edges need."""
    cfg = model.cfg
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "normalization_type")
    peer = HookedTransformer(
        HookedTransformerConfig(**{name: getattr(cfg, name) for name in same}, device=str(model.device))
    )
    weights = {name: reduce(getattr, name.split("."), cast(Any, model)) for name, _ in peer.named_parameters()}
    peer.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=False)
    peer.set_use_attn_result(True)
    peer.set_use_split_qkv_input(True)
    peer.set_use_hook_mlp_in(True)
    return peer


def logit_differences(logits: Float[Tensor, "prompt pos token"], pairs: PromptPairs) -> Float[Tensor, "prompt"]:
    """At the last position, of prompts with one right and one wrong answer each."""
    right, wrong = (logits[:, -1].gather(1, tokens)[:, 0] for tokens in (pairs.right, pairs.wrong))
    return right - wrong


@dataclass(frozen=True)
class EapIg:
    """Hanna et al. 2024 (arXiv:2403.17806). model: its weights are not changed. graph: ours."""

    model: HookedTransformer
    pairs: PromptPairs
    graph: Graph

    def __post_init__(self) -> None:
        from eap import attribute, evaluate, utils

        n_prompts, n_pos = self.pairs.clean.shape
        known = torch.ones_like(self.pairs.clean), torch.full((n_prompts,), n_pos), n_pos
        for module in (attribute, evaluate, utils):
            module.torch = _Torch(str(self.pairs.clean.device))
            module.tokenize_plus = lambda model, tokens, max_length=None: (tokens, *known)

    def eap(self) -> Scores:
        """The mean over prompts."""
        from eap.attribute import get_scores_eap

        return self._scores(get_scores_eap)

    def eap_ig(self, steps: int) -> Scores:
        from eap.attribute import get_scores_eap_ig

        return self._scores(get_scores_eap_ig, steps=steps)

    def exact(self, edges: Sequence[str]) -> Scores:
        """Each of these edges alone is corrupted."""
        from eap.attribute import get_scores_exact

        theirs = self._graph()
        theirs.edges = {name: theirs.edges[name] for name in edges}
        get_scores_exact(self.model, theirs, self._prompts, self._each, quiet=True)
        return np.array([float(edge.score) for edge in theirs.edges.values()])

    def _scores(self, method: Any, **settings: Any) -> Scores:
        theirs = self._graph()
        found = method(self.model, theirs, self._prompts, self._sum, quiet=True, **settings)
        self.model.zero_grad()
        return np.array([float(found[theirs.edges[name].matrix_index]) for name in self.graph.names])

    def _graph(self) -> Any:
        from eap.graph import Graph as TheirGraph

        return TheirGraph.from_model(self.model)

    @property
    def _prompts(self) -> list[tuple[Tensor, Tensor, None]]:
        return [(self.pairs.clean, self.pairs.corrupted, None)]

    def _each(self, logits: Tensor, *others: Any) -> Tensor:
        return logit_differences(logits, self.pairs)

    def _sum(self, logits: Tensor, *others: Any) -> Tensor:
        return self._each(logits).sum()


class _Torch(ModuleType):
    """torch, whose zeros are made on one device whatever they ask for."""

    def __init__(self, device: str) -> None:
        super().__init__("torch")
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *sizes: Any, device: Any = None, **settings: Any) -> Tensor:
        return torch.zeros(*sizes, device=device and self._device, **settings)


class AutoCircuit:
    """Miller et al. 2024 (arXiv:2407.08734). model: becomes part of it, and can be used for nothing else."""

    def __init__(self, model: HookedTransformer, pairs: PromptPairs, graph: Graph) -> None:
        _give_old_names()
        from auto_circuit.data import PromptDataLoader, PromptDataset
        from auto_circuit.utils.graph_utils import patchable_model

        self.model = patchable_model(
            model, factorized=True, slice_output="last_seq", separate_qkv=True, device=pairs.clean.device
        )
        self.pairs, self.graph = pairs, graph
        self.prompts = PromptDataLoader(
            PromptDataset(pairs.clean, pairs.corrupted, list(pairs.right), list(pairs.wrong)),
            seq_len=None,
            diverge_idx=0,
            batch_size=len(pairs),
        )
        self.edges = {_our_name(edge): edge for edge in self.model.edges}

    def eap(self) -> Scores:
        """Gradients at masks that are all 0: it says itself that this is edge attribution patching."""
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores

        found = mask_gradient_prune_scores(self.model, self.prompts, None, "logit", "avg_diff", mask_val=0.0)
        edges = (self.edges[name] for name in self.graph.names)
        return np.array([-float(edge.prune_score(found)) for edge in edges])  # of the loss, which is the negative

    def exact(self, edges: Sequence[str]) -> Scores:
        """Each of these edges alone is corrupted."""
        from auto_circuit.utils.ablation_activations import src_ablations
        from auto_circuit.utils.graph_utils import patch_mode

        found = []
        with torch.inference_mode():
            other, base = src_ablations(self.model, self.pairs.corrupted), self._score()
            for name in edges:
                with patch_mode(self.model, other, [self.edges[name]]):
                    found.append(self._score() - base)
        return np.array(found)

    def _score(self) -> float:
        return float(logit_differences(self.model(self.pairs.clean), self.pairs).mean())


def _give_old_names() -> None:
    name, past = "HookedTransformerKeyValueCache", "transformer_lens.past_key_value_caching"
    for module in (transformer_lens, sys.modules.setdefault(past, ModuleType(past))):
        setattr(module, name, TransformerLensKeyValueCache)


def _our_name(edge: Any) -> str:
    """`Resid Start->A3.1.K` is `input->a3.h1<k>`."""
    return "->".join(_component(node.name) for node in (edge.src, edge.dest))


def _component(name: str) -> str:
    if name in ("Resid Start", "Resid End"):
        return {"Resid Start": "input", "Resid End": "logits"}[name]
    if name.startswith("MLP "):
        return f"m{name.removeprefix('MLP ')}"
    layer, head, *kind = name.removeprefix("A").split(".")
    return f"a{layer}.h{head}" + "".join(f"<{letter.lower()}>" for letter in kind)
