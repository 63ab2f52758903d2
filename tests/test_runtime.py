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

from bltjax.runtime import StopRequest, is_first_process, keep_compiled, stop_on_signals

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


def test_one_process_is_the_first():
    assert is_first_process()


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
