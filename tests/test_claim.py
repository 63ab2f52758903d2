"""One run, one configuration, one job at a time in a folder."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bltjax.claim import Claim, data_identity, locked, read_config
from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.views import ByteSource

ROOT = Path(__file__).resolve().parent.parent
ABOUT = {"steps": 10, "optim": {"peak_rate": 0.5, "beta1": 0.9}, "data": {"bytes": 7}, "mesh": {"data": 1}}

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+b")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(b"process 1 on elsewhere"); file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_has_one_run_at_a_time_and_none_when_its_process_is_dead(tmp_path):
    claim = Claim(tmp_path, ABOUT)
    with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on .* is training in this folder"):
        Claim(tmp_path, ABOUT)
    claim.release()
    Claim(tmp_path, ABOUT).release()
    (tmp_path / "lock").write_bytes(b"")
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other.stdout as said:
        assert said.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="process 1 on elsewhere is training"):
            Claim(tmp_path, ABOUT)
        other.send_signal(signal.SIGKILL)
        other.wait()
    Claim(tmp_path, ABOUT).release()


def test_a_refused_claim_lets_go(tmp_path):
    Claim(tmp_path, ABOUT).release()
    with pytest.raises(ValueError, match="steps: 10 before, 11 now"):
        Claim(tmp_path, {**ABOUT, "steps": 11})
    Claim(tmp_path, ABOUT).release()


def test_a_folder_that_cannot_be_written_to_is_a_clear_error_and_stays_as_it_is(tmp_path):
    folder = tmp_path / "run"
    Claim(folder, ABOUT).release()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o555)
    (folder / "lock").chmod(0o444)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(PermissionError, match=r"this run can't write to its folder.*run'"):
            Claim(folder, ABOUT)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_may_change_is_named_by_key_or_group(tmp_path):
    Claim(tmp_path, ABOUT).release()
    changed = {**ABOUT, "steps": 20, "optim": {"peak_rate": 0.25, "beta1": 0.8}}
    with pytest.raises(ValueError, match=r"optim/beta1: 0.9 before, 0.8 now\n.*--allow-change"):
        Claim(tmp_path, changed, ["steps", "optim.peak-rate"])
    claim = Claim(tmp_path, changed, ["steps", "optim"])
    claim.release()
    assert {"steps", "optim", "mesh"} <= set(claim.may_differ)
    stored = json.loads((tmp_path / "config.json").read_bytes())
    assert stored["steps"] == 20
    assert stored["changes"][0]["differences"][-1] == "steps: 10 before, 20 now"
    again = Claim(tmp_path, changed)
    again.release()
    assert set(again.may_differ) == set(claim.may_differ), "earlier checkpoints stay usable"


def test_an_unknown_key_lists_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"allow_change='optim.peak_rat': .* nearest are: optim/peak_rate"):
        Claim(tmp_path, ABOUT, ["optim.peak_rat"])
    assert not list(tmp_path.iterdir())


def test_parts_of_an_unknown_run_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"parts of a run, but no config\.json"):
        Claim(tmp_path, ABOUT)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_config(tmp_path)


def test_data_are_known_by_every_byte_and_by_how_rows_are_cut():
    rows = RowsConfig(bytes=8, batch=2)
    texts = [b"abcdefgh" * 5, b"ijklmnop" * 5]
    known = data_identity(ByteSource(Documents.of(texts), rows))
    assert known == data_identity(ByteSource(Documents.of(texts), rows))
    other = [data_identity(ByteSource(Documents.of(t), rows)) for t in ([*texts[:1], b"ijklmnoq" * 5], texts[::-1])]
    other.append(data_identity(ByteSource(Documents.of(texts), RowsConfig(bytes=9, batch=2))))
    assert known not in other


def test_who_waits_for_a_folder_has_it_when_its_holder_is_dead(tmp_path):
    (tmp_path / "lock").touch()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other.stdout as said:
        assert said.readline() == b"held\n"
        killer = threading.Timer(0.3, other.kill)
        killer.start()
        with locked(tmp_path, wait=True):
            assert other.wait(timeout=10) == -signal.SIGKILL
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
                locked(tmp_path)
