"""What consumes the contract: one file per analysis, the command line and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import attributes

if TYPE_CHECKING:
    from analyses.acdc_search import acdc
    from analyses.attention_edges import attention_knockout
    from analyses.attribution import head_attribution, neuron_attribution, source_attribution
    from analyses.bottleneck import accuracy_by_length
    from analyses.circuit_checks import completeness, minimality
    from analyses.circuit_curve import faithfulness_curve
    from analyses.circuit_finding import find_circuit
    from analyses.circuit_selection import greedy_edges, strongest_edges, strongest_nodes
    from analyses.circuits import evaluate_circuits
    from analyses.comparison import compare
    from analyses.composition import head_composition
    from analyses.context import context_losses
    from analyses.copying import copying_scores
    from analyses.directions import ablate_direction, add_direction, generate_with, steering_vectors
    from analyses.edge_estimates import edge_attribution
    from analyses.edges import edge_patching
    from analyses.eigenvalues import circuit_eigenvalues
    from analyses.embeddings import analogies, nearest_tokens
    from analyses.fourier import modular_spectrum
    from analyses.gradients import attribution_patching
    from analyses.knockouts import ablation, cumulative_ablation
    from analyses.known_circuits import auroc
    from analyses.lens import component_lens, logit_lens
    from analyses.losses import compare_losses
    from analyses.mask_training import edge_pruning
    from analyses.matching import head_matching
    from analyses.patching import activation_patching
    from analyses.paths import path_patching
    from analyses.patterns import attention_patterns, cross_attention_patterns
    from analyses.position_losses import loss_by_position
    from analyses.position_vectors import position_geometry
    from analyses.predictions import compare_predictions
    from analyses.principal import embedding_pca
    from analyses.role_evidence import head_roles
    from analyses.roles import head_scores
    from analyses.sampling import sampling_effects
    from analyses.scaling import scaling_law
    from analyses.similarity import layer_similarity
    from analyses.singular import singular_directions
    from analyses.stability import ranking_stability
    from analyses.steering import direction_ablation, steering_effect
    from analyses.tracing import causal_trace
    from analyses.training_checkpoints import training_course
    from analyses.trajectories import lens_trajectories
    from analyses.vocabularies import loss_per_byte, vocabulary_statistics
    from analyses.weights import full_ov_circuit, full_qk_circuit, ov_circuit, qk_circuit, virtual_weights

__all__ = [
    "ablate_direction",
    "ablation",
    "accuracy_by_length",
    "acdc",
    "activation_patching",
    "add_direction",
    "analogies",
    "attention_knockout",
    "attention_patterns",
    "attribution_patching",
    "auroc",
    "causal_trace",
    "circuit_eigenvalues",
    "compare",
    "compare_losses",
    "compare_predictions",
    "completeness",
    "component_lens",
    "context_losses",
    "copying_scores",
    "cross_attention_patterns",
    "cumulative_ablation",
    "direction_ablation",
    "edge_attribution",
    "edge_patching",
    "edge_pruning",
    "embedding_pca",
    "evaluate_circuits",
    "faithfulness_curve",
    "find_circuit",
    "full_ov_circuit",
    "full_qk_circuit",
    "generate_with",
    "greedy_edges",
    "head_attribution",
    "head_composition",
    "head_matching",
    "head_roles",
    "head_scores",
    "layer_similarity",
    "lens_trajectories",
    "logit_lens",
    "loss_by_position",
    "loss_per_byte",
    "minimality",
    "modular_spectrum",
    "nearest_tokens",
    "neuron_attribution",
    "ov_circuit",
    "path_patching",
    "position_geometry",
    "qk_circuit",
    "ranking_stability",
    "sampling_effects",
    "scaling_law",
    "singular_directions",
    "source_attribution",
    "steering_effect",
    "steering_vectors",
    "strongest_edges",
    "strongest_nodes",
    "training_course",
    "virtual_weights",
    "vocabulary_statistics",
    "write_report",
]

__getattr__ = attributes(
    "analyses",
    {
        "ablate_direction": "analyses.directions",
        "ablation": "analyses.knockouts",
        "accuracy_by_length": "analyses.bottleneck",
        "acdc": "analyses.acdc_search",
        "activation_patching": "analyses.patching",
        "add_direction": "analyses.directions",
        "analogies": "analyses.embeddings",
        "attention_knockout": "analyses.attention_edges",
        "attention_patterns": "analyses.patterns",
        "cross_attention_patterns": "analyses.patterns",
        "attribution_patching": "analyses.gradients",
        "auroc": "analyses.known_circuits",
        "causal_trace": "analyses.tracing",
        "circuit_eigenvalues": "analyses.eigenvalues",
        "compare": "analyses.comparison",
        "compare_losses": "analyses.losses",
        "compare_predictions": "analyses.predictions",
        "completeness": "analyses.circuit_checks",
        "component_lens": "analyses.lens",
        "context_losses": "analyses.context",
        "copying_scores": "analyses.copying",
        "cumulative_ablation": "analyses.knockouts",
        "direction_ablation": "analyses.steering",
        "edge_attribution": "analyses.edge_estimates",
        "edge_patching": "analyses.edges",
        "edge_pruning": "analyses.mask_training",
        "embedding_pca": "analyses.principal",
        "evaluate_circuits": "analyses.circuits",
        "faithfulness_curve": "analyses.circuit_curve",
        "find_circuit": "analyses.circuit_finding",
        "full_ov_circuit": "analyses.weights",
        "full_qk_circuit": "analyses.weights",
        "generate_with": "analyses.directions",
        "greedy_edges": "analyses.circuit_selection",
        "head_attribution": "analyses.attribution",
        "head_composition": "analyses.composition",
        "head_matching": "analyses.matching",
        "head_roles": "analyses.role_evidence",
        "head_scores": "analyses.roles",
        "layer_similarity": "analyses.similarity",
        "lens_trajectories": "analyses.trajectories",
        "logit_lens": "analyses.lens",
        "loss_by_position": "analyses.position_losses",
        "loss_per_byte": "analyses.vocabularies",
        "minimality": "analyses.circuit_checks",
        "modular_spectrum": "analyses.fourier",
        "nearest_tokens": "analyses.embeddings",
        "neuron_attribution": "analyses.attribution",
        "ov_circuit": "analyses.weights",
        "path_patching": "analyses.paths",
        "position_geometry": "analyses.position_vectors",
        "qk_circuit": "analyses.weights",
        "ranking_stability": "analyses.stability",
        "sampling_effects": "analyses.sampling",
        "scaling_law": "analyses.scaling",
        "singular_directions": "analyses.singular",
        "source_attribution": "analyses.attribution",
        "steering_effect": "analyses.steering",
        "steering_vectors": "analyses.directions",
        "strongest_edges": "analyses.circuit_selection",
        "strongest_nodes": "analyses.circuit_selection",
        "training_course": "analyses.training_checkpoints",
        "virtual_weights": "analyses.weights",
        "vocabulary_statistics": "analyses.vocabularies",
        "write_report": "analyses.report",
    },
)
