"""The journal of a run survives its crashes; trackers and the progress line show what is in it."""

import io
import json

import pytest

from bltjax.flops import PEAKS
from bltjax.metrics import (
    Journal,
    Progress,
    duration,
    flat,
    peak_of,
    read_journal,
    readable,
    replace_file,
    trackers,
)


def row(step, value=0.5):
    timing = {"seconds": 2.0, "seconds_per_step": 2.0, "bytes_per_second": 1e6}
    return {"step": step, "bytes_seen": 1000 * step, "bits_per_byte": value, "timing": timing}


def test_rows_come_back_as_they_were_written(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", 0)
    rows = [row(1, 0.1 + 0.2), row(2, 1e-300)]
    for r in rows:
        journal.write(r)
        assert read_journal(journal.path)[-1] == r, "a row is in the file when write returns"
    journal.close()
    assert read_journal(journal.path) == rows


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    journal = Journal(tmp_path / "metrics.jsonl", 0)
    for step in (10, 20):
        journal.write(row(step))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    assert [r["step"] for r in read_journal(journal.path)] == [10]
    journal = Journal(journal.path, 10)
    journal.write(row(20))
    assert journal.path.read_bytes() == whole


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", 0)
    for step in (10, 20, 30):
        journal.write(row(step))
    Journal(journal.path, 20).write(row(30, 0.25))
    assert [(r["step"], r["bits_per_byte"]) for r in read_journal(journal.path)] == [(10, 0.5), (20, 0.5), (30, 0.25)]
    Journal(journal.path, 5)
    assert read_journal(journal.path) == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "1"}'])
def test_a_line_in_the_middle_that_is_no_row_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(row(1))}\n{line}\n{json.dumps(row(2))}\n")
    for read in (read_journal, lambda path: Journal(path, 2)):
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not a row"):
            read(path)
    assert len(path.read_text().splitlines()) == 3, "what can't be read is left as it is"


def test_no_row_holds_what_is_not_json(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write(row(1, float("nan")))
    assert read_journal(journal.path) == []


def test_absent_metrics_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no metrics here"):
        read_journal(tmp_path / "metrics.jsonl")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "config.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_nested_rows_become_flat_names():
    assert flat({"step": 1, "sums": {"bytes": 2, "of": {"x": 3}}}) == {"step": 1, "sums/bytes": 2, "sums/of/x": 3}


def test_an_unknown_tracker_is_refused_before_any_other_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"track='tensorbord': choose from tensorboard, wandb"):
        trackers(["tensorboard", "tensorbord"], tmp_path, {}, "id")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed: pip install 'bltjax\[tracking\]'"):
        trackers([name], tmp_path, {}, "id")


def test_trackers_get_numbers_under_flat_names(tmp_path, monkeypatch):
    """Through stand-ins with the calls that tensorboardX and wandb have."""
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(("folder", folder))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    class Run:
        log = staticmethod(lambda values, step: calls.append((values, step)))
        finish = staticmethod(lambda: calls.append("finished"))

    board = type("module", (), {"SummaryWriter": Writer})
    biases = type("module", (), {"init": staticmethod(lambda **settings: calls.append(settings) or Run())})
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", board)
    monkeypatch.setitem(__import__("sys").modules, "wandb", biases)
    made = trackers(["tensorboard", "wandb"], tmp_path / "run", {"steps": 3}, "abc")
    for tracker in made:
        tracker.write({"step": 7, "sums": {"bytes": 2}})
        tracker.close()
    assert ("sums/bytes", 2, 7) in calls
    assert ({"sums/bytes": 2}, 7) in calls
    assert {"closed", "finished"} <= {c for c in calls if isinstance(c, str)}
    settings = next(c for c in calls if isinstance(c, dict))
    assert (settings["id"], settings["resume"], settings["config"]) == ("abc", "allow", {"steps": 3})


@pytest.mark.tracking
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_the_packages_themselves_write_what_they_get_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for tracker in trackers(["tensorboard", "wandb"], tmp_path / "run", {"steps": 3}, "abc"):
        tracker.write({"step": 7, "sums": {"bytes": 2}})
        tracker.close()
    for pattern in ("*tfevents*", "*.wandb"):
        [written] = (path for path in tmp_path.rglob(pattern) if path.is_file())
        assert b"sums/bytes" in written.read_bytes(), written


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_is_rewritten():
    stream = Terminal()
    progress = Progress("byte 64x3", stream)
    for step in (1, 2, 3):
        progress.show(row(step, 2.5), 3)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.count("\r") == 3
    assert "byte 64x3: step 2/3  2 kB  2.5000 bits/byte  1 MB/s  2 s left" in text


def test_a_message_does_not_overwrite_the_line():
    stream = Terminal()
    progress = Progress("", stream)
    progress.show(row(1), 3)
    progress.say("checkpoint 2 is damaged")
    assert stream.getvalue().endswith("left\ncheckpoint 2 is damaged\n")


def test_a_log_file_gets_few_plain_lines_and_the_last_step():
    stream = io.StringIO()
    progress = Progress("", stream, every_seconds=1e6)
    for step in range(1, 101):
        progress.show(row(step), 100)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]
    assert "\r" not in stream.getvalue()


def test_numbers_for_people():
    assert readable(12_345_678, "B") == "12.3 MB"
    assert readable(0, "B/s") == "0 B/s"
    assert readable(999.6, "B") == "1 kB"
    assert [duration(s) for s in (45.2, 200, 7500, 59.7)] == ["45 s", "3 min 20 s", "2 h 05 min", "1 min 00 s"]


def test_the_line_has_the_speed_and_its_share_of_the_peak():
    stream = io.StringIO()
    timed = {**row(5), "timing": {**row(5)["timing"], "flops_per_second": 2.5e14, "of_peak": 0.4567}}
    Progress(stream=stream).show(timed, 10)
    assert "250 TFLOP/s (45.7% of peak)  10 s left" in stream.getvalue()


def test_a_row_whose_steps_were_all_skipped_has_a_line():
    stream = io.StringIO()
    Progress(stream=stream).show({**row(5), "bits_per_byte": None}, 10)
    assert "  - bits/byte" in stream.getvalue()


def test_a_silent_one_says_nothing(capsys):
    silent = Progress(silent=True)
    silent.show(row(5), 5)
    silent.say("hello")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v4", "tpu-v4"), ("TPU v5 lite", "tpu-v5e"), ("TPU v5", "tpu-v5p"), ("TPU v5p", "tpu-v5p"),
        ("TPU v6 lite", "tpu-v6e"), ("NVIDIA H100 80GB HBM3", "nvidia-h100"), ("NVIDIA A100-SXM4-80GB", "nvidia-a100"),
    ],
)  # fmt: skip
def test_peaks_by_the_names_that_jax_has(kind, chip):
    assert peak_of(kind) == PEAKS[chip]
    assert peak_of("cpu") is None


def test_rows_that_are_dropped_are_known(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", 0)
    for step in (10, 20, 30):
        journal.write(row(step))
    assert [r["step"] for r in Journal(tmp_path / "metrics.jsonl", 10).dropped] == [20, 30]
