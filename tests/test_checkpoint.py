"""What was saved comes back exactly, or is passed over; what does not fit is named."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.checkpoint import Checkpoints, check_same, checksums, differences
from bltjax.config import MeshConfig
from bltjax.sharding import batch_sharding, make_mesh, replicated


def state(seed):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(8, 64)).astype(np.float32)),
        "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        "step": jnp.int32(seed),
    }


def abstract(tree, mesh=None):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def saved(folder, steps, keep=2):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step), {"about": "test", "value": step / 3})
    checkpoints.close()


def restored(folder, like=None, check=lambda record: None):
    messages = []
    checkpoints = Checkpoints(folder)
    try:
        found = checkpoints.restore(abstract(state(0)) if like is None else like, check, messages.append)
    finally:
        checkpoints.close()
    return found, messages


def assert_is_state(found, seed):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, state(seed))


def test_the_newest_comes_back_exactly(tmp_path):
    saved(tmp_path / "run", [3, 6, 9])
    (found, record), messages = restored(tmp_path / "run")
    assert_is_state(found, 9)
    assert record["value"] == 3.0
    assert not messages
    assert Checkpoints(tmp_path / "run").steps() == [9, 6], "older ones are removed"


def test_nothing_there_is_no_error_and_leaves_no_trace(tmp_path):
    assert restored(tmp_path / "run") == (None, [])
    assert not (tmp_path / "run").exists()


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    tree = {"x": jnp.arange(200_000, dtype=jnp.float32)}
    checkpoints.save(1, tree, {})
    for _ in range(5):
        tree = double(tree)
    jax.block_until_ready(tree)
    checkpoints.close()
    (found, _), _ = restored(tmp_path, abstract(tree))
    np.testing.assert_array_equal(found["x"], np.arange(200_000))


def test_a_record_may_be_changed_as_soon_as_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    record = {"tally": {"steps": 1}}
    checkpoints.save(1, {"x": jnp.arange(3)}, record)
    record["tally"]["steps"] = 2
    checkpoints.close()
    assert Checkpoints(tmp_path).record(1)["tally"] == {"steps": 1}


def test_restores_onto_another_mesh(tmp_path):
    mesh = make_mesh(MeshConfig(data=4, replica=2))
    x = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), batch_sharding(mesh))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": x}, {})
    checkpoints.close()
    other = make_mesh(devices=jax.devices()[:2])
    like = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=batch_sharding(other))}
    (found, _), _ = restored(tmp_path, like)
    assert found["x"].sharding == batch_sharding(other)
    np.testing.assert_array_equal(found["x"], x)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def array_data(folder):
    return max((p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"), key=lambda p: p.stat().st_size)


DAMAGE = {
    "a flipped bit in an array": lambda folder: flip_a_bit(array_data(folder)),
    "a flipped bit in the record": lambda folder: flip_a_bit(folder / "record" / "metadata"),
    "a record cut short": lambda folder: (folder / "record" / "metadata").write_text('{"record"'),
    "no record": lambda folder: (folder / "record" / "metadata").unlink(),
    "no arrays": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, damage):
    saved(tmp_path, [3, 6])
    DAMAGE[damage](tmp_path / "6")
    (found, record), messages = restored(tmp_path)
    assert_is_state(found, 3)
    assert record["value"] == 1.0
    assert len(messages) == 1
    assert f"checkpoint {tmp_path / '6'} is damaged and is passed over" in messages[0]
    assert Checkpoints(tmp_path).steps() == [3], "it must not be in the way of the next one of step 6"


def test_a_checksum_changes_with_every_bit_and_place_and_not_with_the_layout():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4, 6)).astype(np.float32)
    tree = {"x": jnp.asarray(x), "half": jnp.asarray(x[0], jnp.bfloat16), "count": jnp.int32(7), "flag": jnp.uint8(3)}
    known = checksums(tree)
    for axes in (MeshConfig(data=4, replica=2), MeshConfig(data=2, model=4), MeshConfig(data=8)):
        spread = {**tree, "x": jax.device_put(x, batch_sharding(make_mesh(axes)))}
        assert checksums(spread) == known
    for _ in range(40):
        bits = x.copy().view(np.uint32)
        bits[tuple(rng.integers(0, n) for n in x.shape)] ^= np.uint32(1) << np.uint32(rng.integers(0, 32))
        assert checksums({"x": jnp.asarray(bits.view(np.float32))})["x"] != known["x"]
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert checksums({"x": jnp.asarray(swapped)})["x"] != known["x"]
    assert checksums({"x": jnp.asarray(x.reshape(4, 8, 6))})["x"] == known["x"], "shapes are compared elsewhere"


def test_a_flipped_bit_of_an_array_on_many_devices_is_found(tmp_path):
    mesh = make_mesh(MeshConfig(data=4, replica=2))
    x = jax.device_put(np.random.default_rng(0).normal(size=(8, 4096)).astype(np.float32), batch_sharding(mesh))
    like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": x}, {})
    checkpoints.save(2, {"x": x + 1}, {})
    checkpoints.close()
    flip_a_bit(array_data(tmp_path / "2"))
    (found, _), messages = restored(tmp_path, like)
    np.testing.assert_array_equal(found["x"], x)
    assert len(messages) == 1


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(tmp_path):
    """No file may grow beyond a few kilobytes: as on a full disk, the array can't be written."""
    large = {"x": jnp.asarray(np.random.default_rng(0).normal(size=50_000).astype(np.float32))}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, large, {})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a checkpoint can't be written to .*free space.*which is intact"):
            checkpoints.save(2, jax.tree.map(lambda x: x + 1, large), {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (found, _), messages = restored(tmp_path, abstract(large))
    np.testing.assert_array_equal(found["x"], large["x"])
    assert not messages
    saving = Checkpoints(tmp_path)
    saving.save(2, large, {})
    saving.close()
    assert Checkpoints(tmp_path).steps() == [2, 1], "with space again, the same one can be saved"


def test_multiples_are_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=4)
    for step in range(1, 11):
        checkpoints.save(step, {"x": jnp.arange(3)}, {})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [10, 8, 4]


def test_when_all_are_damaged_it_says_so(tmp_path):
    saved(tmp_path, [3, 6])
    for step in (3, 6):
        DAMAGE["a record cut short"](tmp_path / str(step))
    with pytest.raises(ValueError, match="none of its checkpoints can be read"):
        restored(tmp_path)


def test_an_unfinished_checkpoint_is_not_seen(tmp_path):
    saved(tmp_path, [3])
    torn = tmp_path / "6.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "state").write_text("half")
    (found, _), messages = restored(tmp_path)
    assert_is_state(found, 3)
    assert not messages


def test_shapes_that_do_not_fit_are_named_and_nothing_is_removed(tmp_path):
    saved(tmp_path, [3])
    like = abstract(state(0))
    like["kernel"] = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=like["kernel"].sharding)
    like["bias"] = like.pop("half")
    with pytest.raises(ValueError, match="holds other arrays than this model has") as caught:
        restored(tmp_path, like)
    for line in (
        "kernel: 'float32[8, 64]' before, 'float32[8, 32]' now",
        "half: 'bfloat16[3]' before, absent now",
        "bias: absent before, 'bfloat16[3]' now",
    ):
        assert line in str(caught.value)
    assert Checkpoints(tmp_path).steps() == [3]


def test_a_record_that_does_not_belong_is_refused(tmp_path):
    saved(tmp_path, [3])

    def check(record):
        check_same({"about": record["about"]}, {"about": "another"}, "here")

    with pytest.raises(ValueError, match="about: 'test' before, 'another' now"):
        restored(tmp_path, check=check)


def test_configurations_are_compared_key_by_key():
    stored = {"steps": 10, "model": {"family": "byte", "width": 8}, "mesh": {"data": 1}, "patcher": None}
    wanted = {"steps": 20, "model": {"family": "byte", "hidden": 3}, "mesh": {"data": 8}, "patcher": {"rule": "space"}}
    assert differences(stored, wanted, ("mesh",)) == [
        "model/hidden: absent before, 3 now",
        "model/width: 8 before, absent now",
        "patcher: None before, absent now",
        "patcher/rule: absent before, 'space' now",
        "steps: 10 before, 20 now",
    ]
    assert differences(stored, stored) == []
    with pytest.raises(ValueError, match=r"run with another configuration:\n  .*\n.*Go on with the configuration"):
        check_same({"a": 1}, {"a": 2}, "folder")
