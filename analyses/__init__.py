"""What consumes the contract: one file per analysis, the command line and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import attributes

if TYPE_CHECKING:
    from analyses.attention_edges import attention_knockout
    from analyses.attribution import head_attribution, neuron_attribution, source_attribution
    from analyses.comparison import compare
    from analyses.gradients import attribution_patching
    from analyses.knockouts import ablation, cumulative_ablation
    from analyses.lens import component_lens, logit_lens
    from analyses.losses import compare_losses
    from analyses.matching import head_matching
    from analyses.patching import activation_patching
    from analyses.paths import path_patching
    from analyses.patterns import attention_patterns
    from analyses.predictions import compare_predictions
    from analyses.roles import head_scores
    from analyses.similarity import layer_similarity
    from analyses.training_checkpoints import training_course
    from analyses.trajectories import lens_trajectories

__all__ = [
    "ablation",
    "activation_patching",
    "attention_knockout",
    "attention_patterns",
    "attribution_patching",
    "compare",
    "compare_losses",
    "compare_predictions",
    "component_lens",
    "cumulative_ablation",
    "head_attribution",
    "head_matching",
    "head_scores",
    "layer_similarity",
    "lens_trajectories",
    "logit_lens",
    "neuron_attribution",
    "path_patching",
    "source_attribution",
    "training_course",
    "write_report",
]

__getattr__ = attributes(
    "analyses",
    {
        "ablation": "analyses.knockouts",
        "activation_patching": "analyses.patching",
        "attention_knockout": "analyses.attention_edges",
        "attention_patterns": "analyses.patterns",
        "attribution_patching": "analyses.gradients",
        "compare": "analyses.comparison",
        "compare_losses": "analyses.losses",
        "compare_predictions": "analyses.predictions",
        "component_lens": "analyses.lens",
        "cumulative_ablation": "analyses.knockouts",
        "head_attribution": "analyses.attribution",
        "head_matching": "analyses.matching",
        "head_scores": "analyses.roles",
        "layer_similarity": "analyses.similarity",
        "lens_trajectories": "analyses.trajectories",
        "logit_lens": "analyses.lens",
        "neuron_attribution": "analyses.attribution",
        "path_patching": "analyses.paths",
        "source_attribution": "analyses.attribution",
        "training_course": "analyses.training_checkpoints",
        "write_report": "analyses.report",
    },
)
