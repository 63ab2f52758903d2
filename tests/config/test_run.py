import dataclasses

import pytest

from bltjax.config import MeshConfig, OptimConfig, PatcherConfig, RowsConfig, TrainConfig, TransferConfig
from tests.config.examples import MODELS, TRAIN


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatcherConfig(rule="spaces"), r"patcher\.rule='spaces'.*Did you mean 'space'"),
        (lambda: PatcherConfig(variant="rise"), r"patcher\.variant='rise'"),
        (lambda: PatcherConfig(variant="add", threshold=1.0), r"patcher\.threshold_add=None"),
        (lambda: PatcherConfig(threshold=float("nan")), r"patcher\.threshold=nan"),
        (lambda: PatcherConfig(size=0), r"patcher\.size=0"),
        (lambda: PatcherConfig(max_patch_length=0), r"patcher\.max_patch_length=0"),
        (lambda: PatcherConfig(mean_patch_bytes=1.0), r"patcher\.mean_patch_bytes=1\.0"),
        (lambda: RowsConfig(bytes=1), r"rows\.bytes=1"),
        (lambda: RowsConfig(slots=1), r"rows\.slots=1"),
        (lambda: RowsConfig(batch=0), r"rows\.batch=0"),
        (lambda: OptimConfig(schedule="linear"), r"optim\.schedule='linear'"),
        (lambda: OptimConfig(peak_rate=0.0), r"optim\.peak_rate=0\.0"),
        (lambda: OptimConfig(peak_rate=float("nan")), r"optim\.peak_rate=nan"),
        (lambda: OptimConfig(warmup_steps=-1), r"optim\.warmup_steps=-1"),
        (lambda: OptimConfig(final_fraction=1.5), r"optim\.final_fraction=1\.5"),
        (lambda: OptimConfig(decay_fraction=0.0), r"optim\.decay_fraction=0\.0"),
        (lambda: OptimConfig(beta1=1.0), r"optim\.beta1=1\.0"),
        (lambda: OptimConfig(beta2=-0.1), r"optim\.beta2=-0\.1"),
        (lambda: OptimConfig(epsilon=0.0), r"optim\.epsilon=0\.0"),
        (lambda: OptimConfig(weight_decay=-1.0), r"optim\.weight_decay=-1\.0"),
        (lambda: OptimConfig(clip_norm=0.0), r"optim\.clip_norm=0\.0"),
        (lambda: MeshConfig(data=0), r"mesh=\(1, 0, 1, 1\)"),
        (lambda: MeshConfig(model=-1), r"mesh=\(1, -1, -1, 1\): only one"),
        (lambda: dataclasses.replace(TRAIN, steps=0), "steps=0"),
        (lambda: dataclasses.replace(TRAIN, log_every=0), "log_every=0"),
        (lambda: dataclasses.replace(TRAIN, checkpoint_every=0), "checkpoint_every=0"),
        (lambda: dataclasses.replace(TRAIN, accumulation=4), r"accumulation=4: must divide rows\.batch, 6"),
        (lambda: dataclasses.replace(TRAIN, steps=4), r"optim\.warmup_steps=5: must not exceed steps, 4"),
        (lambda: dataclasses.replace(TRAIN, patcher=None), "patcher=None"),
        (lambda: TransferConfig("depth", MODELS["byte"]), r"optim\.transfer\.rule='depth'"),
        (
            lambda: dataclasses.replace(TRAIN, optim=OptimConfig(transfer=TransferConfig("width", MODELS["byte"]))),
            r"optim\.transfer\.base=ByteTransformerConfig.*: name a base of the model's own family",
        ),
        (lambda: TrainConfig(MODELS["byte"], 9, PatcherConfig()), "patcher=PatcherConfig"),
        (lambda: TrainConfig(MODELS["spacebyte"], 9), "patcher=None"),
        (lambda: TrainConfig(MODELS["megabyte"], 9), r"model\.inference='strided': is for scoring"),
    ],
)
def test_a_refused_value_is_named(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()
