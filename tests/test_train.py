"""A run ends the same however often it is stopped or killed; what does not fit is refused; scores are exact sums."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bltjax import train
from bltjax.checkpoint import Checkpoints
from bltjax.config import (
    ByteTransformerConfig,
    MeshConfig,
    OptimConfig,
    RowsConfig,
    TrainConfig,
    TransformerConfig,
    to_dict,
)
from bltjax.data.corpus import Documents
from bltjax.data.views import ByteSource
from bltjax.flops import flops_per_byte
from bltjax.metrics import read_journal
from bltjax.runtime import Stopped, StopRequest
from bltjax.train import fit, load_params

ROOT = Path(__file__).resolve().parent.parent
CONFIG = TrainConfig(
    model=ByteTransformerConfig(TransformerConfig(width=16, layers=1, heads=2, hidden=24)),
    steps=20,
    rows=RowsConfig(bytes=32, batch=4, seed=3),
    optim=OptimConfig(peak_rate=1e-2, warmup_steps=2),
    log_every=3,  # does not divide checkpoint_every: what was counted since the last row must be kept too
    checkpoint_every=5,
)
TEXTS = [b"the quick brown fox %d jumps over the lazy dog " % i * (1 + i % 5) for i in range(40)]


def source(texts=tuple(TEXTS), rows=CONFIG.rows):
    return ByteSource(Documents.of(list(texts)), rows)


def run(folder, config=CONFIG, **settings):
    settings = {"devices": jax.devices()[:1], **settings}
    return fit(config, settings.pop("source", None) or source(), folder, **settings)


def parameter_hash(params):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return hashlib.sha256(b"".join(str(path).encode() + leaf.tobytes() for path, leaf in leaves)).hexdigest()


def rows_of(folder):
    """All that a row says but for how long it took."""
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_journal(Path(folder) / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"))


def assert_same_run(result, unbroken):
    assert rows_of(result.folder) == rows_of(unbroken.folder)
    assert parameter_hash(result.params) == parameter_hash(unbroken.params)
    assert result.bytes_seen == unbroken.bytes_seen
    assert result.fill == unbroken.fill


def test_rows_of_metrics_add_up(unbroken):
    rows = rows_of(unbroken.folder)
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    assert sum(row["sums"]["bytes"] for row in rows) == rows[-1]["bytes_seen"] == unbroken.bytes_seen
    assert np.cumsum([row["sums"]["bytes"] for row in rows]).tolist() == [row["bytes_seen"] for row in rows]
    for row in rows:
        sums = row["sums"]
        assert row["bits_per_byte"] == pytest.approx(sums["byte_nats"] / sums["bytes"] / np.log(2), rel=1e-12)
        assert 0 < row["fill"]["positions"] <= 1
    timing = [row["timing"] for row in read_journal(unbroken.folder / "metrics.jsonl")]
    assert unbroken.device_seconds == pytest.approx(sum(t["seconds"] for t in timing), rel=1e-6)


def test_wall_time_is_booked_over_all_restarts(tmp_path):
    begun = time.monotonic()
    stop = StopRequest()
    with pytest.raises(Stopped):
        run(tmp_path, stop=stop, on_step=lambda row: row["step"] == 9 and stop.request("the test"))
    with open(tmp_path / "metrics.jsonl", "ab") as file:  # as a kill after step 12 would leave it
        file.write(b'{"step": 12, "timing": {"seconds": 1.5}}\n')
    result = run(tmp_path)
    taken = time.monotonic() - begun
    assert result.wall["lost to restarts"] == 1.5
    assert all(result.wall[name] > 0 for name in ("start", "compile", "data wait", "step", "checkpoint"))
    assert 0.5 * taken < sum(result.wall.values()) - 1.5 <= taken


def test_rows_have_the_speed_in_flops(unbroken):
    cost = flops_per_byte(CONFIG.model, 1, CONFIG.rows.bytes, "full").training
    for row in read_journal(unbroken.folder / "metrics.jsonl"):
        timing = row["timing"]
        assert timing["flops_per_second"] == pytest.approx(cost * timing["bytes_per_second"])
        assert "of_peak" not in timing, "nobody states the peak of this CPU"


def test_some_steps_are_traced_for_xprof(tmp_path, unbroken):
    result = run(tmp_path, profile=2)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    assert_same_run(result, unbroken)


def test_a_model_learns(unbroken):
    rows = rows_of(unbroken.folder)
    assert rows[0]["bits_per_byte"] > 6
    assert rows[-1]["bits_per_byte"] < 5


PROGRAM = """
import os, signal, sys, time
import jax
from bltjax.config import TrainConfig, from_dict
import json
from bltjax.data.corpus import Documents
from bltjax.data.views import ByteSource
from bltjax.train import fit

config = from_dict(TrainConfig, json.loads(sys.argv[2]))
texts = [text.encode() for text in json.loads(sys.argv[3])]

def die(row):
    time.sleep(0.2)  # so that the checkpoint of step 5 is finished before step 9, and perhaps not that of 15 before 18
    if row["step"] == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

fit(config, ByteSource(Documents.of(texts), config.rows), sys.argv[1], on_step=die, devices=jax.devices()[:1])
"""


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, unbroken):
    folder = tmp_path / "run"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), json.dumps(to_dict(CONFIG))]
    command += [json.dumps([text.decode() for text in TEXTS])]
    for step, checkpoints in ((9, {5}), (18, {10, 15})):
        killed = subprocess.run([*command, str(step)], cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert rows_of(folder)[-1]["step"] == step
        assert Checkpoints(folder / "checkpoints").steps()[0] in checkpoints
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 18, "byt')  # as a kill in the middle of a write would leave it
    assert_same_run(run(folder), unbroken)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, unbroken):
    def terminate(row):
        if row["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step \d+ of 20; .* run the same command again"):
        run(tmp_path, on_step=terminate)
    saved = Checkpoints(tmp_path / "checkpoints").steps()[0]
    assert 6 <= saved <= 8
    assert_same_run(run(tmp_path), unbroken)


class OneStep(StopRequest):
    """Asks for a stop when it is looked at for the second time."""

    reason = "the test"

    def __init__(self):
        self.looks = 0

    @property
    def requested(self):
        self.looks += 1
        return self.looks > 1


def test_a_stop_at_every_step_changes_nothing(tmp_path, unbroken):
    for step in range(1, CONFIG.steps):
        with pytest.raises(Stopped, match=f"by the test at step {step} of 20"):
            run(tmp_path, stop=OneStep())
    assert_same_run(run(tmp_path, stop=OneStep()), unbroken)


def test_a_stop_before_the_first_step_is_a_run_that_can_go_on(tmp_path, unbroken):
    stop = StopRequest()
    stop.request("the test")
    with pytest.raises(Stopped, match="at step 0 of 20"):
        run(tmp_path, stop=stop)
    assert_same_run(run(tmp_path), unbroken)


def test_a_finished_run_is_not_run_again(unbroken, monkeypatch):
    monkeypatch.setattr(train, "train_batches", None)
    again = run(unbroken.folder)
    assert_same_run(again, unbroken)
    assert again.device_seconds == unbroken.device_seconds


def test_the_parameters_of_a_run_can_be_loaded(unbroken, tmp_path):
    config, params, step = load_params(unbroken.folder)
    assert (config, step) == (unbroken.config, 20)
    assert parameter_hash(params) == parameter_hash(unbroken.params)
    _, spread, _ = load_params(unbroken.folder, train.make_mesh())
    assert parameter_hash(spread) == parameter_hash(unbroken.params)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_params(tmp_path)
    shutil.copy(unbroken.folder / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_params(tmp_path)


def test_on_other_devices_it_goes_on_with_the_same_batches_and_losses(tmp_path, unbroken):
    stop = StopRequest()
    with pytest.raises(Stopped):
        run(tmp_path, on_step=lambda row: row["step"] == 9 and stop.request("the test"), stop=stop)
    result = run(tmp_path, dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, model=2)), devices=jax.devices()[:4])
    for a, b in zip(rows_of(tmp_path), rows_of(unbroken.folder), strict=True):
        assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], rel=1e-5)
        assert a["sums"]["bytes"] == b["sums"]["bytes"]
    assert result.bytes_seen == unbroken.bytes_seen


def test_metrics_are_waited_for_when_the_next_step_is_on_its_way(tmp_path, monkeypatch):
    events = []
    step, get = train.TrainStep.__call__, jax.device_get
    monkeypatch.setattr(train.TrainStep, "__call__", lambda *args: events.append("step") or step(*args))
    monkeypatch.setattr(jax, "device_get", lambda x: events.append("get") or get(x))
    run(tmp_path, dataclasses.replace(CONFIG, steps=5, checkpoint_every=100))
    assert events == ["step", "step", "get", "step", "get", "step", "get", "step", "get", "get"]


def test_time_also_makes_checkpoints(tmp_path):
    config = dataclasses.replace(CONFIG, steps=4, checkpoint_every=1000)
    seen = []

    def look(row):
        seen.append(Checkpoints(tmp_path / "checkpoints").steps())

    run(tmp_path, dataclasses.replace(config, log_every=1), on_step=look, checkpoint_seconds=0.0)
    assert seen[-1]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 3]


def test_a_folder_of_another_run_is_refused_by_name(unbroken):
    before = (unbroken.folder / "metrics.jsonl").read_bytes()
    other = dataclasses.replace(CONFIG, seed=1, optim=OptimConfig(peak_rate=1e-2, warmup_steps=3))
    with pytest.raises(ValueError, match="another configuration") as caught:
        run(unbroken.folder, other)
    assert "optim/warmup_steps: 2 before, 3 now" in str(caught.value)
    assert "seed: 0 before, 1 now" in str(caught.value)
    with pytest.raises(ValueError, match="data/documents"):
        run(unbroken.folder, source=source((*TEXTS[:-1], b"another text of the same length or so")))
    with pytest.raises(ValueError, match=r"rows=.*the source was made for"):
        run(unbroken.folder, dataclasses.replace(CONFIG, rows=RowsConfig(bytes=16, batch=4)))
    run(unbroken.folder, dataclasses.replace(CONFIG, checkpoint_every=7))
    assert (unbroken.folder / "metrics.jsonl").read_bytes() == before


def test_parts_of_an_unknown_run_are_not_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"parts of a run, but no config\.json"):
        run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(data=3)}, "does not fit 1 devices"),
        ({"rows": RowsConfig(bytes=32, batch=512, seed=3)}, "less than one batch"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", dataclasses.replace(CONFIG, **changes))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


WILD = dataclasses.replace(
    CONFIG, optim=OptimConfig(peak_rate=1e36, schedule="constant"), checkpoint_every=1, log_every=1
)


def test_losses_that_are_not_finite_end_the_run_with_steps_and_rows(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step \d+: no update for 3 steps in a row.*Lower optim.peak_rate"
    ) as e:
        run(tmp_path, WILD)
    bad = json.loads((tmp_path / "bad_batches.json").read_bytes())
    order = source().order(CONFIG.rows.seed)
    assert [b["step"] for b in bad] == list(range(bad[0]["step"], bad[0]["step"] + 3))
    for b in bad:
        assert not np.isfinite(float(b["nats_per_byte"])) or not np.isfinite(float(b["gradient_norm"]))
        assert b["rows"] == [order.row(k) for k in range(4 * b["step"] - 4, 4 * b["step"])]
    assert ", ".join(map(str, bad[-1]["rows"])) in str(e.value)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, bad[-1]["step"]))
    assert [row["skipped"] for row in rows][-2:] == [1, 1]
    assert rows[-1]["bits_per_byte"] is None
    _, params, saved = load_params(tmp_path)
    assert saved == bad[-1]["step"] - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params))), "the state is not poisoned"


def test_the_same_steps_end_a_run_that_is_gone_on_with(tmp_path):
    """How many were skipped in a row is kept in checkpoints, so a stop between them changes nothing."""
    with pytest.raises(FloatingPointError) as unbroken:
        run(tmp_path / "a", WILD)
    for _ in range(20):
        try:
            run(tmp_path / "b", WILD, stop=OneStep())
        except Stopped:
            continue
        except FloatingPointError as error:
            assert str(error) == str(unbroken.value).replace(str(tmp_path / "a"), str(tmp_path / "b"))
            break
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert (tmp_path / "b" / "bad_batches.json").read_bytes() == (tmp_path / "a" / "bad_batches.json").read_bytes()


SPIKY = dataclasses.replace(
    CONFIG, optim=OptimConfig(peak_rate=1e-2, spike_deviations=0.5, spike_steps=4), log_every=1, max_skips=20
)


@pytest.mark.slow
def test_a_run_that_skips_spikes_ends_the_same_however_often_it_is_stopped(tmp_path):
    unbroken = run(tmp_path / "unbroken", SPIKY)
    skipped = [row["step"] for row in rows_of(tmp_path / "unbroken") if row["skipped"]]
    assert skipped and min(skipped) > 4
    for _ in range(1, CONFIG.steps):
        with pytest.raises(Stopped):
            run(tmp_path / "run", SPIKY, stop=OneStep())
    assert_same_run(run(tmp_path / "run", SPIKY), unbroken)


def test_checkpoints_of_every_m_steps_are_kept_for_good(tmp_path):
    run(tmp_path, dataclasses.replace(CONFIG, checkpoint_every=3, keep_every=7))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [20, 18, 14, 7]


def test_a_change_that_is_allowed_by_name_is_made_and_noted(tmp_path, unbroken):
    first = dataclasses.replace(CONFIG, steps=10)
    run(tmp_path, first)
    with pytest.raises(ValueError, match="steps: 10 before, 20 now"):
        run(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"optim/warmup_steps: 2 before, 3 now"):
        run(
            tmp_path,
            dataclasses.replace(CONFIG, optim=OptimConfig(peak_rate=1e-2, warmup_steps=3)),
            allow_change=["steps"],
        )
    stop = StopRequest()
    stop.request("the test")
    with pytest.raises(Stopped, match="at step 10 of 20"):
        run(tmp_path, CONFIG, allow_change=["steps"], stop=stop)
    result = run(tmp_path, CONFIG)  # it has been allowed, and its checkpoint is of before the change
    assert result.bytes_seen == unbroken.bytes_seen
    changes = json.loads((tmp_path / "config.json").read_bytes())["changes"]
    assert changes == [{"allowed": ["steps"], "differences": ["steps: 10 before, 20 now"]}]
    assert load_params(tmp_path)[0].steps == 20
