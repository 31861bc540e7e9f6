"""The sweep: thousands of edited runs of the same prompts in a few passes.

A sweep has rows. Each is a set of edits, made in a run of every prompt, and gives one number per prompt:

    rows = [[edits.zero(Site("z", layer, head))] for layer in range(4) for head in range(8)]
    sweep.run(model, pairs, rows, "logit_diff").values[row, prompt]
    print(sweep.plan(model, pairs, rows, "logit_diff"))

All rows share one unedited run, the base run. A row recomputes only what its edits can change: a layer is run from
the first that they change on, at positions from the first that they change on, after the base run's keys and values; a
row whose edits change nothing is not run. Rows join one batch as it climbs the layers, so that weights are read a few
times in a sweep and not once for each row. Only the positions and the vocabulary entries that the metric reads are
finished and unembedded. The order of reading:

    survey.py    where each row first changes anything
    schedule.py  which rows climb together
    climb.py     the pass through the layers
    base.py      the base run that they resume from
    batched.py   the same numbers for a model that cannot resume: whole runs, batched, through hooks alone

Numbers do not depend on how the runs are batched, beyond rounding.
"""

from interp.sweep.base import observe
from interp.sweep.job import Job
from interp.sweep.plan import Plan, plan
from interp.sweep.running import SweepResult, run

__all__ = ["Job", "Plan", "SweepResult", "observe", "plan", "run"]
