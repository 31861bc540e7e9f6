"""The contract: what a hooked model is, how it is edited, how many edits are run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import attributes

if TYPE_CHECKING:
    from interp import edits, metrics, sweep, tasks
    from interp.cache import ActivationCache
    from interp.contract import HookedModel, ResumableModel
    from interp.edits import Edit
    from interp.errors import LabError, UnknownHookError
    from interp.hook_point import HookPoint
    from interp.hooks import HookedModule
    from interp.prompts import PromptPairs
    from interp.results import Result
    from interp.sites import Site

__all__ = [
    "ActivationCache",
    "Edit",
    "HookPoint",
    "HookedModel",
    "HookedModule",
    "LabError",
    "PromptPairs",
    "Result",
    "ResumableModel",
    "Site",
    "UnknownHookError",
    "edits",
    "metrics",
    "sweep",
    "tasks",
]

__getattr__ = attributes(
    "interp",
    {
        "ActivationCache": "interp.cache",
        "Edit": "interp.edits",
        "HookPoint": "interp.hook_point",
        "HookedModel": "interp.contract",
        "HookedModule": "interp.hooks",
        "LabError": "interp.errors",
        "PromptPairs": "interp.prompts",
        "ResumableModel": "interp.contract",
        "Result": "interp.results",
        "Site": "interp.sites",
        "UnknownHookError": "interp.errors",
        "edits": "interp.edits",
        "metrics": "interp.metrics",
        "sweep": "interp.sweep",
        "tasks": "interp.tasks",
    },
)
