"""One process at a time, and none when it is dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bltjax.lock import Busy, Lock, holder

HOLDER = "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from bltjax.lock import Lock\n"
HOLDER += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_a_dead_process_keeps_no_lock(tmp_path):
    path = tmp_path / "folder" / "lock"
    root = str(Path(__file__).resolve().parent.parent)
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), root], stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other.stdout as said:
        assert said.readline() == b"held\n"
        assert holder(path) is not None and f"process {other.pid} on" in (holder(path) or "")
        with pytest.raises(Busy, match=rf"process {other.pid} on .* makes tea") as refused:
            Lock(path, doing="makes tea")
        assert str(other.pid) in refused.value.holder
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert holder(path) is None
    with Lock(path):
        assert f"process {os.getpid()} on" in (holder(path) or "")
    assert holder(path) is None


def test_one_that_waits_has_it_when_the_other_lets_go(tmp_path):
    order = []

    def wait():
        with Lock(tmp_path / "lock", wait=True):
            order.append("second")

    with Lock(tmp_path / "lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_nobody_holds_what_nobody_made_and_asking_makes_nothing(tmp_path):
    assert holder(tmp_path / "lock") is None
    assert not list(tmp_path.iterdir())


def test_whoever_only_asks_refuses_nobody(tmp_path):
    path, end = tmp_path / "lock", threading.Event()
    Lock(path).release()

    def ask():
        while not end.is_set():
            holder(path)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            Lock(path).release()
    finally:
        end.set()
        for thread in threads:
            thread.join()
