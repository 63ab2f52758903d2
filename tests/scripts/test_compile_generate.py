import runpy
import sys
from pathlib import Path

import pytest

from bltjax.generate import lowered
from bltjax.generate.lowered import Needs
from scripts import compile_generate as script

SCRIPT = Path(script.__file__)
GIGA = 2**30
NEEDS = {"read": Needs(1 * GIGA, 2 * GIGA, 3 * GIGA, 4.0), "draw": Needs(1 * GIGA, 2 * GIGA, 15 * GIGA, 5.0)}


def run(monkeypatch, *arguments):
    asked = []
    monkeypatch.setattr(lowered, "compile_for", lambda *given, **named: asked.append((given, named)) or NEEDS)
    monkeypatch.setattr("bltjax.topology.devices", lambda name: [])
    monkeypatch.setattr("bltjax.sharding.make_mesh", lambda config, devices: Mesh())
    monkeypatch.setattr("bltjax.sharding.batch_ways", lambda mesh: 6)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return asked


class Mesh:
    size = 8


def test_what_fits_and_what_does_not_is_said_of_each_program(monkeypatch, capsys):
    ((given, named),) = run(monkeypatch, "--preset", "blt-1b", "--topology", "v5e:2x4", "--capacity", 1000)
    out = capsys.readouterr().out
    assert "read: memory of each of 8 devices: fits, 10.00 GiB left of 16.00" in out
    assert "draw: memory of each of 8 devices: 2.00 GiB short of 16.00" in out and "scratch     15.000 GiB" in out
    assert named["rows"] == 6 and named["patch_capacity"] == 500
    assert [model.compute.dtype for model in given[1:]] == ["bfloat16", "bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "blt-9b"), "preset='blt-9b': no such preset"),
        (("--preset", "byte-450m"), "'byte-450m': is a ByteTransformerConfig, where a BLTConfig is needed"),
        (("--preset", "blt-1b", "--entropy", "blt-1b"), "where a EntropyModelConfig is needed"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *arguments, "--topology", "v5e:2x4")
