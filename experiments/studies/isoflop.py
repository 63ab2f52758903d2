"""The study of experiments/isoflop.py, for scripts/plan.py:

    python scripts/plan.py experiments/studies/isoflop.py --machine cpu --probe

Three families at three sizes and three budgets on the standard library of the running Python.
"""

from pathlib import Path

from bltjax.scaling.study import Study

study = Study(
    out=Path("runs/isoflop"),
    families=("blt", "byte", "token"),
    sizes=("cpu-0", "cpu-1", "cpu-2"),
    budgets=(8e10, 2e11, 5e11),
    patch_sizes=(4.5,),
    row_bytes=256,
    batch=2,
    peak_rates=(8e-3,),
    entropy_model="entropy-cpu",
    entropy_bytes=1e6,
    heldout_bytes=100_000,
)
