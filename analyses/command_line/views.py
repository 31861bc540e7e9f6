"""What each command shows of its result: a few lines and tables, and the plain data for --json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from analyses.attribution import AttributionResult
from analyses.command_line.tables import grid, table, token, top, unsigned
from analyses.effects import Effects
from analyses.knockouts import AblationResult, CumulativeAblation
from analyses.lens import ComponentLensResult, LensResult
from analyses.lens_picture import token_texts
from analyses.patching import PatchingResult
from analyses.roles import ROLES, HeadScores
from interp import text
from interp.results import Extreme, Result
from interp.sites import axes_of

if TYPE_CHECKING:
    from analyses.comparison import ComparisonResult
    from analyses.report import Findings
    from analyses.tracing import CausalTrace

View = list[RenderableType]
SPREAD = "interquartile range"


def lens_view(model: Any, found: LensResult, layer: int | None, answer: int | None, k: int) -> View:
    """The likeliest tokens after each layer at the last position (an encoder's: the mask), or at each after one."""
    rows, axis = (found.logits.shape[0], "layer") if layer is None else (found.logits.shape[1], "pos")
    last = _read_at(model, found)
    where: Any = (slice(None), last) if layer is None else layer + 1
    ids = found.top_tokens(min(k, found.logits.shape[-1]))[where]
    names, probs = token_texts(model, ids), np.take_along_axis(found.probabilities()[where], ids, -1)
    columns = [axis, *(f"top {i + 1}" for i in range(ids.shape[-1])), "entropy", "kl to final"]
    cells: list[list[object]] = [
        [str(found.labels[axis][i]) if axis == "layer" else f"{i} {token(found.labels[axis][i])}"]
        + [f"{token(name)} {p:.3f}" for name, p in zip(names[i], probs[i], strict=True)]
        + [unsigned(float(values[where][i])) for values in (found.entropy, found.kl)]
        for i in range(rows)
    ]
    if answer is not None:
        columns += ["rank of answer", "its probability"]
        for i, (rank, p) in enumerate(zip(found.rank(answer)[where], found.probability(answer)[where], strict=True)):
            cells[i] += [int(rank), f"{p:.4f}"]
    place = f"position {last} ({token(found.labels['pos'][last])!r})" if layer is None else f"layer {layer}"
    return [f"logit lens at {place}: {found.shows}", table(columns, cells)]


def _read_at(model: Any, found: LensResult) -> int:
    """The position of interest: an encoder's only mask token, or else the last."""
    masked = np.flatnonzero(found.tokens == getattr(model.tokenizer, "mask_token_id", None))
    return int(masked[0]) if len(masked) == 1 else found.logits.shape[1] - 1


def lens_document(model: Any, found: LensResult, answer: int | None, k: int) -> dict[str, Any]:
    """The lens without its logits: the k likeliest tokens of each layer and position in their place."""
    ids = found.top_tokens(min(k, found.logits.shape[-1]))
    document = found.to_dict(["tokens", "entropy", "kl"])
    document["top"] = {
        "ids": ids.tolist(),
        "tokens": token_texts(model, ids).tolist(),
        "probabilities": np.take_along_axis(found.probabilities(), ids, -1).tolist(),
    }
    if answer is not None:
        ranks, probabilities = found.rank(answer).tolist(), found.probability(answer).tolist()
        document["answer"] = {"id": answer, "ranks": ranks, "probabilities": probabilities}
    return document


def component_view(model: Any, found: ComponentLensResult, k: int) -> View:
    """The tokens that each component raises most at the last position."""
    ids = found.top_tokens(min(k, found.logits.shape[-1]))[:, -1]
    names, values = token_texts(model, ids), np.take_along_axis(found.logits[:, -1], ids, -1)
    rows = [
        [str(found.labels["component"][i])]
        + [f"{token(name)} {text.number(float(v))}" for name, v in zip(names[i], values[i], strict=True)]
        for i in range(len(ids))
    ]
    return [f"at the last position: {found.shows}", table(["component", *_ordinals(ids.shape[-1])], rows)]


def component_document(model: Any, found: ComponentLensResult, k: int) -> dict[str, Any]:
    """The component lens without its logits: the k tokens that each component raises most, by position."""
    ids = found.top_tokens(min(k, found.logits.shape[-1]))
    values = np.take_along_axis(found.logits, ids, -1)
    names = token_texts(model, ids)
    return found.to_dict([]) | {
        "top": {"ids": ids.tolist(), "tokens": names.tolist(), "logits": values.tolist()},
    }


def patching_view(found: PatchingResult, k: int) -> View:
    """The two baselines, the effects, and the strongest of them."""
    return [
        f"{found.metric}: clean {text.number(float(found.clean.mean()))}, "
        f"corrupted {text.number(float(found.corrupted.mean()))} ({_mean_of(len(found.clean))})",
        f"{found.direction}: {found.shows}",
        *grid(found),
        top(_strongest(found, k), "furthest from the unpatched run", "effect"),
    ]


def _strongest(found: PatchingResult, k: int) -> Sequence[Extreme]:
    """The entries furthest from what the run gives without a patch."""
    if found.normalized:
        unpatched = 0.0 if found.direction == "denoise" else 1.0
    else:
        unpatched = float((found.corrupted if found.direction == "denoise" else found.clean).mean())
    entries = found.top(found.values.size)
    return sorted(entries, key=lambda entry: -abs(entry.value - unpatched))[:k]


def ablation_view(found: AblationResult, k: int) -> View:
    """The base run, what each component's absence changes, and the strongest changes with their spread."""
    rows = [(entry.place, entry.value, unsigned(float(found.spread[entry.index]))) for entry in found.top(k)]
    return [_base(found), found.shows, *grid(found), table(["furthest from zero", found.unit, SPREAD], rows)]


def cumulative_view(found: CumulativeAblation) -> View:
    """The change after each further component."""
    names = found.labels["up_to"]
    rows = [(k + 1, names[k], found.values[k], unsigned(float(found.spread[k]))) for k in range(len(names))]
    return [_base(found), found.shows, table(["removed", "up to", found.unit, SPREAD], rows)]


def _base(found: Effects) -> str:
    return f"{found.metric} of the unedited run: {text.number(float(found.base.mean()))} ({_mean_of(len(found.base))})"


def attribution_view(found: AttributionResult, k: int) -> View:
    """The largest parts, and that all of them add up."""
    parts = _parts(found)
    measured = float(found.logit_diff.mean())
    return [
        f"logit difference {text.number(measured)} ({_mean_of(len(found.logit_diff))}); "
        f"its {len(parts)} parts sum to {text.number(found.total())}",
        table(["part", "share"], parts[:k]),
    ]


def _parts(found: AttributionResult) -> list[tuple[str, float]]:
    """Every part with its share, the largest first."""
    parts = [(f"L{layer}H{head}", float(v)) for (layer, head), v in np.ndenumerate(found.values)]
    parts += [(f"MLP {layer}", float(v)) for layer, v in enumerate(found.mlp)]
    parts += [(str(name), float(v)) for name, v in zip(found.labels["part"], found.other, strict=True)]
    return sorted(parts, key=lambda part: -abs(part[1]))


def result_view(found: Result, k: int) -> View:
    """Any result: what it shows, its numbers, the strongest."""
    return [found.shows, *grid(found), top(found.top(k), "furthest from zero", found.unit or "value")]


def trace_view(found: CausalTrace, k: int) -> View:
    """The two baselines, how far each place brings the answer back, and the places that do so most."""
    subject = ", ".join(f"{pos} {token(found.labels['pos'][pos])}" for pos in found.subject)
    noise = "" if found.noise is None else f" (standard deviation {text.number(found.noise, signed=False)})"
    return [
        f"{found.metric}: clean {text.number(float(found.clean.mean()))}, "
        f"corrupted {text.number(float(found.corrupted.mean()))} ({_mean_of(len(found.clean))})",
        f"subject at {subject}; {found.corruption}{noise}",
        found.shows,
        *grid(found),
        top(found.top(k), "furthest from the corrupted run", "effect"),
    ]


def findings_view(found: Findings) -> View:
    """What the report says, in a few lines."""
    z, lens = found.patching["z"], found.lens
    on_top = np.flatnonzero(lens.rank(found.target)[:, -1] == 0)
    decided = f"first on top after layer {lens.labels['layer'][on_top[0]]}" if len(on_top) else "never on top"
    lines = [
        f"{found.provenance.model}, {len(found.pairs)} pairs: {z.metric} {text.number(float(z.clean.mean()))} "
        f"on clean, {text.number(float(z.corrupted.mean()))} on corrupted prompts",
        f"answer:      {decided} in the first prompt (logit lens)",
        f"patching:    {_named(z.top(3))}  (share of {z.metric} that one head restores)",
    ]
    if found.attribution is not None:
        written = ", ".join(f"{name} {text.number(share)}" for name, share in _parts(found.attribution)[:3])
        lines.append(f"attribution: {written}  (logits that a part itself writes towards the answer)")
    if found.scores is not None:
        best = [_best(found.scores, role) for role in range(len(ROLES))]
        lines.append(f"roles:       {', '.join(f'{name} {place}' for name, place in zip(ROLES, best, strict=True))}")
    if found.comparison is not None:
        lines.append(f"beside:      {_beside(found.comparison)}")
    return list(lines)


def _beside(found: ComparisonResult) -> str:
    """The second model in a few words."""
    parted = "of another architecture"
    if "hooks" not in found.left_out:
        first = found.first_difference()
        parted = "no hook point differs" if first is None else f"first differs at {first}"
    same = "" if found.predictions is None else f", same likeliest token at {found.agreement:.1%} of positions"
    return f"{found.models[1]}: {parted}{same}"


def findings_document(found: Findings) -> dict[str, Any]:
    """The report's numbers as plain data."""
    shares = found.attribution
    return {
        "patching": {site: result.to_dict(["values", "clean", "corrupted"]) for site, result in found.patching.items()},
        "attribution": None if shares is None else shares.to_dict(["values", "mlp", "other", "logit_diff"]),
        "scores": None if found.scores is None else found.scores.to_dict(),
        "heads": [list(head) for head in found.heads],
        "comparison": None if found.comparison is None else found.comparison.to_dict(),
    }


def hook_rows(model: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each hook point with its axes, its shape, and whether it is computed only when something is attached."""
    rows = []
    for name in names:
        axes = axes_of(name)
        shape = None if axes is None else [_size(model.cfg, axis) for axis in axes]
        on_demand = bool(getattr(model.hook_dict[name], "on_demand", False))
        rows.append({"name": name, "axes": axes and list(axes), "shape": shape, "on_demand": on_demand})
    return rows


def hooks_view(rows: Sequence[dict[str, Any]]) -> View:
    """Hook points as a table."""

    def listed(values: Sequence[object] | None) -> str:
        return "?" if values is None else " ".join(map(str, values))

    cells = [(r["name"], listed(r["axes"]), listed(r["shape"]), "on demand" if r["on_demand"] else "") for r in rows]
    note = "on demand: computed only while a hook is attached" if any(row["on_demand"] for row in rows) else ""
    return [table(["hook point", "axes", "shape", ""], cells), *([note] if note else [])]


def _size(cfg: Any, axis: str) -> int | str:
    """The size of an axis, or its name where it depends on the input."""
    heads = getattr(cfg, "n_heads", None)
    sizes = {name: getattr(cfg, name, None) for name in ("d_model", "d_head", "d_mlp", "d_hidden")} | {
        "d_vocab": getattr(cfg, "d_vocab_out", None) or cfg.d_vocab,
        "head": heads,
        "kv_head": getattr(cfg, "n_key_value_heads", None) or heads,
        "one": 1,
    }
    size = sizes.get(axis)
    return axis if size is None else size


def _mean_of(n: int) -> str:
    return "one prompt" if n == 1 else f"mean of {n} prompts"


def _named(entries: Sequence[Any]) -> str:
    return ", ".join(f"{entry.place} {text.number(entry.value)}" for entry in entries)


def _best(scores: HeadScores, role: int) -> str:
    values = scores.values[role]
    if np.isnan(values).all():
        return "none"
    layer, head = np.unravel_index(np.nanargmax(values), values.shape)
    return f"L{layer}H{head} ({values[layer, head]:.2f})"


def _ordinals(n: int) -> list[str]:
    return [f"top {i + 1}" for i in range(n)]


def zoo_view(entries: Sequence[dict[str, Any]]) -> View:
    """The zoo, and what else can be loaded."""
    sizes = ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx", "parameters")
    rows = [[e["name"], *(e[size] for size in sizes), f"{e['megabytes']:.1f} MB", len(e["revisions"])] for e in entries]
    summaries = [f"{e['name']}: {e['summary']}" for e in entries if e["summary"]]
    return [
        table(["model", *sizes, "on disk", "checkpoints"], rows),
        "",
        *summaries,
        "",
        "--model also takes a directory that model.save wrote or that Hugging Face transformers reads (GPT-2,",
        "GPT-NeoX, GPT-J, OPT, Llama, Mistral, Qwen, Gemma, Phi-3, OLMo 2, StarCoder 2, StableLM; BERT, RoBERTa,",
        "DistilBERT; T5, BART), or the id of one on the Hugging Face hub, such as gpt2. Other architectures load",
        "through TransformerLens, and a warning says so; --backend transformer-lens loads any model that way.",
    ]


def training_view(folder: Any, records: Sequence[dict[str, Any]]) -> View:
    """Where the model is, and what was measured last."""
    plain = {"step", "seconds", "loss", "lr", "grad_norm"}
    measured: dict[str, Any] = next((dict(r) for r in reversed(records) if set(r) - plain), {})
    steps = max((r["step"] for r in records), default=0)
    lines: View = [f"trained for {steps} steps; use it with --model {folder}"]
    if measured:
        lines.append(table(["measured", "value"], [(n, float(v)) for n, v in measured.items() if n not in plain]))
    return lines
