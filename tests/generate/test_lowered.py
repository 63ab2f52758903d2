import dataclasses
import math

import jax
import pytest

from bltjax import topology
from bltjax.chips import chip
from bltjax.config import MeshConfig
from bltjax.families import abstract_params
from bltjax.generate.lowered import compile_for
from bltjax.presets import preset
from bltjax.sharding import make_mesh
from tests.generate.models import CASES, ENTROPY

CASE = CASES["released, global"]
ROOM = {"capacity": 512, "patch_capacity": 256, "part": 16}


def size(config, itemsize=2):
    return itemsize * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


@pytest.mark.thorough
def test_each_device_holds_its_part_of_weights_and_rows():
    def needs(devices, **axes):
        return compile_for(
            make_mesh(MeshConfig(**axes), jax.devices()[:devices]), CASE.config, ENTROPY, rows=4, ahead=2, **ROOM
        )  # fmt: skip

    one, four = needs(1), needs(4, data=2, model=2)
    assert one.keys() == {"read", "draw"}
    whole = size(CASE.config) + size(ENTROPY)
    for name, each in one.items():
        assert each.params == whole
        assert whole / 4 <= four[name].params < whole / 2  # norms are not split
        assert four[name].session < each.session / 2  # rows over data, heads over model
        assert each.memory == each.params + each.session + each.scratch


def test_rows_must_divide():
    with pytest.raises(ValueError, match="rows=3: do not divide over replica x data = 2 devices"):
        compile_for(make_mesh(MeshConfig(data=2), jax.devices()[:2]), CASE.config, ENTROPY, rows=3, **ROOM)


@pytest.mark.pods
@pytest.mark.usefixtures("nobody_to_ask")
# What was compiled without a chip can be stored but not read again; it is compiled anew then.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry:UserWarning")
def test_the_8b_model_generates_on_eight_small_chips():
    models = [preset(name) for name in ("blt-8b", "entropy-100m")]
    models = [dataclasses.replace(m, compute=dataclasses.replace(m.compute, dtype="bfloat16")) for m in models]
    mesh = make_mesh(MeshConfig(data=2, model=4), topology.devices("v5e:2x4"))
    needs = compile_for(mesh, *models, rows=2, capacity=4096, patch_capacity=2048)
    for name, each in needs.items():
        print(f"{name}: {each.memory / 2**30:.2f} GiB of each device")
        assert sum(map(size, models)) / 8 <= each.params < each.memory < chip("v5e:2x4").memory
    # Besides a few gathered weights: padded, or copied, the caches alone would be some GiB.
    assert needs["draw"].scratch < 4 * needs["draw"].session
