import io
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from bltjax.generate import Continuation
from scripts import generate as script
from tests.studies import write_run, write_study

SCRIPT = Path(script.__file__)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder / "runs"


def run(capsysbinary, monkeypatch, *arguments, stdin=b""):
    """What the script writes to its standard output and error."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsysbinary.readouterr()


def test_a_prompt_from_the_command_line_a_file_or_the_standard_input(runs, tmp_path, capsysbinary, monkeypatch):
    model = (runs / "blt", "--max-new-bytes", 12, "--ignore-eos", "--raw")
    (tmp_path / "prompt").write_bytes(b"one two")
    given, error = run(capsysbinary, monkeypatch, *model, "one two")
    assert len(given) == 12
    assert re.search(
        rb"12 bytes in [\d.]+ s, compiling included, ended by bytes; [\d.]+ bits per byte; \d+ patches began", error
    )
    assert run(capsysbinary, monkeypatch, *model, "--prompt-file", tmp_path / "prompt").out == given
    assert run(capsysbinary, monkeypatch, *model, stdin=b"one two").out == given
    several = run(capsysbinary, monkeypatch, *model, "--interactive", stdin=b"one two\none two\n")
    assert several.out == given * 2
    assert several.err.count(b"12 bytes in ") == 2 and several.err.count(b"compiling included") == 1


def test_guessing_ahead_writes_the_same_and_says_how_far_it_held(runs, capsysbinary, monkeypatch):
    model = (runs / "blt", "one two", "--max-new-bytes", 12, "--ignore-eos", "--raw")
    plain = run(capsysbinary, monkeypatch, *model).out
    found, error = run(capsysbinary, monkeypatch, *model, "--ahead", 3)
    assert found == plain
    assert re.search(rb"; [1-4]\.\d\d bytes a round, the global model ran \d+ times instead of \d+", error)


@pytest.mark.thorough
def test_a_run_of_megabyte_writes_too(tmp_path, capsysbinary, monkeypatch):
    write_run(tmp_path / "run", "megabyte-tiny")
    model = (tmp_path / "run", "one two", "--max-new-bytes", 12, "--ignore-eos", "--raw")
    given, error = run(capsysbinary, monkeypatch, *model)
    assert len(given) == 12
    assert b"; 3 patches began" in error  # at positions 9, 13 and 17, of patches of 4 after BOS
    with pytest.raises(SystemExit, match=r"show_patches: .* holds a model that is given none"):
        run(capsysbinary, monkeypatch, *model, "--show-patches")


def test_patches_are_shown_and_written(runs, tmp_path, capsysbinary, monkeypatch):
    page = tmp_path / "page.html"
    out = run(
        capsysbinary, monkeypatch, runs / "blt", "one two", "--max-new-bytes", 12, "--ignore-eos",
        "--show-patches", "--view", page,
    ).out  # fmt: skip
    assert b"\x1b[48;5;254m" in out and b"\x1b[48;5;153m" in out
    text = page.read_text()
    assert "entropy &gt; 1.5 nats" in text and "The first 8 positions are the prompt" in text


def test_colours_turn_where_patches_start_and_bytes_are_escaped():
    ids = np.array([1, *(np.frombuffer(b"ab\x1b[2Jc", np.uint8) + 4)], np.int32)
    starts = np.array([True, True, False, False, False, False, False, True])
    shown = script.coloured(Continuation(b"", ids[4:], np.zeros(4, np.float32), "bytes", ids[:4], starts, None))
    first, second = script.COLOURS
    end = script.PLAIN
    assert shown == f"{first}|{end}{second}ab\\x1b[2J{end}{first}c{end}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{runs}/blt", "a", "--temperature", "-1"), "temperature=-1"),
        (("{runs}/blt", "a", "--interactive"), "prompt and interactive: give one source of prompts"),
        (("{runs}/absent", "a"), "absent holds no run"),
        (("{runs}/../entropy-a", "a", "--show-patches"), "holds a model that is given none"),
        (("{runs}/blt", "a", "--show-patches", "--view", "/absent/x.html"), "name a file in a folder that exists"),
        (("{runs}/blt", "a", "--capacity", "4"), "do not fit in capacity=4"),
        (("{runs}/blt", "a", "--ahead", "-1"), "ahead=-1: must be at least 0"),
        (("{runs}/blt", "--prompt-file", "absent.txt"), "absent.txt"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, runs, capsysbinary, monkeypatch):
    arguments = [a.replace("{runs}", str(runs)) for a in arguments]
    with pytest.raises((SystemExit, ValueError), match=re.escape(message)) as caught:
        run(capsysbinary, monkeypatch, *arguments)
    assert "\n" not in str(caught.value)
