import dataclasses

import jax

from bltjax.config import CrossAttentionConfig
from bltjax.generate import state
from bltjax.generate.state import Latent
from tests.generate.models import CASES

CASE = CASES["released, global"]


def sizes(positions, patches, patcher=CASE.patcher):
    """Numbers kept for a row: by the global model, for the open patch, and for all else."""
    kept = jax.eval_shape(lambda: state.empty(Latent(CASE.config, patcher, CASE.entropy, positions, patches), 1))
    latents = sum(leaf.size for leaf in jax.tree.leaves(kept.latents))
    opened = sum(leaf.size for leaf in jax.tree.leaves(kept.open_kept))
    return latents, opened, sum(leaf.size for leaf in jax.tree.leaves(kept)) - latents - opened


def test_room_grows_with_patches_for_the_global_model_alone():
    short, middle, long = sizes(4096, 1024), sizes(8192, 2048), sizes(12288, 3072)
    assert long[0] - middle[0] == middle[0] - short[0] > 0 and long[2] == middle[2] == short[2]


def test_an_open_patch_has_the_room_of_the_longest_one():
    strided = CASES["strided by 4, at most 3"].patcher
    assert sizes(8192, 2048, strided)[1] == sizes(1024, 256, strided)[1] < sizes(1024, 256)[1]
    limited = dataclasses.replace(CASE.patcher, max_patch_length=16)
    assert sizes(8192, 2048, limited)[1] < sizes(8192, 2048)[1] / 100


def test_only_cross_attentions_that_matter_are_kept():
    def readers(encoder):
        config = dataclasses.replace(
            CASE.config,
            encoder=dataclasses.replace(CASE.config.encoder, layers=3),
            cross_attention=CrossAttentionConfig(encoder=encoder),
        )
        return Latent(config, CASE.patcher, CASE.entropy, 64, 64).readers

    assert readers("last") == [(0, 2)] and readers("all_repool") == [(2, 2)]
    assert readers("all") == [(0, 0), (1, 1), (2, 2)]
    assert readers("none") == []
