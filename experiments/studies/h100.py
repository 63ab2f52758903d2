"""The smaller inference class of the BLT paper (Table 2) on a node of H100, for scripts/plan.py:

    python scripts/plan.py experiments/studies/h100.py --machine h100

One size of each family is no grid: this asks which family is ahead at which budget, not which size is best. The corpus
is whatever lies in text/; nothing is said about epochs until it is prepared (--prepare).
"""

from pathlib import Path

from bltjax.scaling.study import Study

study = Study(
    out=Path("runs/h100"),
    corpus=("text/*.parquet",),
    preset=("blt-400m", "token-470m", "byte-450m"),
    budgets=(1e18, 3e18, 1e19),
    patch_sizes=(4.5, 6.0, 8.0),
    dtype="bfloat16",
    remat="full",
    row_bytes=8192,
    batch=64,
    peak_rates=(6e-3,),
    entropy_model="entropy-100m",
    entropy_bytes=1e9,
    entropy_rate=6e-3,
    heldout_bytes=10_000_000,
    stride_bytes=4096,
)
