import numpy as np
import pytest

from bltjax.config import RowsConfig, TrainConfig
from bltjax.presets import preset
from bltjax.scaling import throughput as room
from bltjax.scaling.throughput import FIRST_STEPS, random_batch, step_seconds

TRAIN = TrainConfig(preset("byte-tiny"), 5, rows=RowsConfig(32, None, 8))


def test_the_median_step_counts_and_the_first_ones_do_not(monkeypatch):
    class Step:
        def initial_state(self, seed):
            return 0

        def __call__(self, state, batch, rate):
            return state + 1, np.float32(state)

    durations = [100.0] * FIRST_STEPS + [1.0, 2.0, 3.0, 50.0, 4.0]
    times = iter(np.cumsum([[0.0, duration] for duration in durations]).ravel().tolist())
    monkeypatch.setattr(room, "compile_step", lambda *given: Step())
    assert step_seconds(TRAIN, 32, 1, 5, lambda: next(times)) == 3.0
    assert next(times, None) is None


@pytest.mark.parametrize("name", ["byte-tiny", "token-tiny", "blt-tiny"])
def test_random_rows_have_the_shape_of_real_ones(name):
    model = preset(name)
    rows = RowsConfig(64, 18 if name != "byte-tiny" else None, 3)
    positions = 18 if name == "token-tiny" else 64
    batch = random_batch(model, rows, positions)
    assert batch.ids.shape == batch.targets.shape == batch.target_bytes.shape == (3, positions)
    assert (batch.ids[:, 1:] == batch.targets[:, :-1]).all() and batch.ids.min() >= 4
    assert batch.ids.max() < (300 if name == "token-tiny" else 260)
    assert batch.ids.dtype == (np.int32 if name == "token-tiny" else np.int16)
    if name == "blt-tiny":
        counts = batch.starts[:, :-1].sum(axis=1)
        assert batch.starts.shape == (3, 65) and batch.starts[:, :2].all()
        assert (counts == 18).all()
    else:
        assert batch.starts is None
