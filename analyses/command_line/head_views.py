"""What `interp heads` shows."""

from __future__ import annotations

import numpy as np
from rich.console import RenderableType

from analyses.command_line.tables import table
from analyses.role_evidence import COLUMNS, HeadRoles
from analyses.roles import ROLES, HeadScores

View = list[RenderableType]


def scores_view(found: HeadScores, k: int) -> View:
    """The heads with the highest score in each role."""
    shown: View = [found.shows]
    for role, name in enumerate(ROLES):
        scores = found.values[role]
        order = [i for i in np.argsort(-scores, axis=None, kind="stable")[:k] if not np.isnan(scores.flat[i])]
        heads = [divmod(int(i), scores.shape[1]) for i in order]
        shown.append(
            table([name, "score"], [(f"L{layer}H{head}", f"{scores[layer, head]:.3f}") for layer, head in heads])
        )
    return shown


def roles_view(found: HeadRoles) -> View:
    """Every head that has a role, with its evidence."""
    rows = found.table()
    none = [] if rows else ["no head has the evidence for a role; --json gives all numbers"]
    return [found.shows, table(COLUMNS, rows), *none]
