"""Signals end in a clean stop, and programs are compiled once for two processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from bltjax import runtime
from bltjax.runtime import StopRequest, agree, gather, is_first_process, keep_compiled, stop_on_signals, together

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        for _ in range(100):
            if stop.requested:
                break
            time.sleep(0.01)
        assert stop.requested
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once():
    with stop_on_signals(), pytest.raises(KeyboardInterrupt):
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_another_thread_gets_a_request_of_its_own():
    seen = []

    def work():
        with stop_on_signals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_first_reason_counts():
    stop = StopRequest()
    stop.request("SIGTERM")
    stop.request("SIGINT")
    assert stop.reason == "SIGTERM"


def test_what_is_not_saved_within_its_grace_is_given_up():
    code = """
import os, signal, time
from bltjax.runtime import stop_on_signals
with stop_on_signals(0.3):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "not saved within the 0.3 s after SIGTERM" in done.stderr


def test_what_ends_within_its_grace_is_left_alone():
    with stop_on_signals(0.2) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert stop.requested
    time.sleep(0.3)


def test_one_process_is_the_first_and_agrees_with_itself():
    assert is_first_process()
    assert gather("test", {"a": [1]}) == [{"a": [1]}]
    assert together("test", lambda: 3, first_only=True) == 3
    agree("test", None)
    with pytest.raises(KeyError, match="lost"):
        agree("test", KeyError("lost"))


class Store:
    """A coordinator's store of keys and values, and processes that ask it one after the other."""

    def __init__(self):
        self.values, self.asked = {}, []

    def key_value_set(self, key, value):
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        if key not in self.values:
            self.asked.append(milliseconds)
            raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
        return self.values[key]


def as_process(patch, store, index, count=3):
    patch.setattr(runtime.distributed.global_state, "client", store)
    patch.setattr(runtime.distributed.global_state, "process_id", index)
    patch.setattr(runtime.distributed.global_state, "num_processes", count)
    patch.setattr(runtime, "_calls", runtime.defaultdict(runtime.itertools.count))


def test_a_barrier_says_which_processes_did_not_come(monkeypatch):
    store = Store()
    as_process(monkeypatch, store, 1)
    with pytest.raises(TimeoutError, match="process 0 of 3"):
        runtime.barrier("start", 0.1)
    as_process(monkeypatch, store, 0)
    with pytest.raises(TimeoutError, match=r"start: waited 0.1 s for process 2 of 3: look at the log of that one"):
        runtime.barrier("start", 0.1)
    as_process(monkeypatch, store, 1)
    with pytest.raises(TimeoutError, match="process 2 of 3"):  # as process 0 has found out
        runtime.barrier("start", 0.1)


def test_an_error_of_one_process_is_one_of_all(monkeypatch):
    store = Store()
    for index in (2, 1):
        as_process(monkeypatch, store, index)
        with pytest.raises(TimeoutError):
            agree("claim", OSError("the disk is full") if index == 2 else None)
    as_process(monkeypatch, store, 0)
    with pytest.raises(ValueError, match="process 2: OSError: the disk is full"):
        agree("claim", None)
    as_process(monkeypatch, store, 2)
    with pytest.raises(OSError, match=r"^the disk is full"):
        agree("claim", OSError("the disk is full"))


def test_some_addresses_without_the_others_are_refused():
    with pytest.raises(ValueError, match=r"coordinator='a:1', num_processes=2, process_id=None: give all three"):
        runtime.start("a:1", 2)


@pytest.mark.parametrize(
    ("surroundings", "processes"),
    [
        ({}, 0),
        ({"SLURM_NTASKS": "4"}, 0),  # a batch script that starts one plain process
        ({"SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
    ],
)
def test_processes_that_were_started_together_are_found(surroundings, processes, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: joined.append(args))
    before = jax.config.jax_enable_preemption_service
    try:
        runtime.start()
    finally:
        jax.config.update("jax_enable_preemption_service", before)
    assert joined == [(None, None, None)] * (processes > 1)


def test_compiled_programs_are_kept_for_the_next_process(tmp_path):
    code = f"""
import jax, jax.monitoring
from bltjax.runtime import keep_compiled
keep_compiled({str(tmp_path / "new" / "cache")!r}, at_least_seconds=0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7))
print(sum("cache_hits" in event for event in hits))
"""
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    command = [sys.executable, "-W", "error", "-c", code]
    hits = [
        int(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, text=True).stdout)
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(OSError, match="file"):
        keep_compiled(tmp_path / "file" / "cache")
    assert jax.config.jax_compilation_cache_dir == before
