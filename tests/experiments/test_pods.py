import importlib.util
import json
from pathlib import Path

import pytest

from bltjax.flops import parameters
from bltjax.presets import PRESETS, preset

ROOT = Path(__file__).resolve().parent.parent.parent
_spec = importlib.util.spec_from_file_location("pods", ROOT / "experiments" / "pods.py")
assert _spec and _spec.loader
pods = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pods)

COMMITTED = {path.stem: json.loads(path.read_text()) for path in pods.RESULTS.glob("*.json")}
FITTING = [name for name, one in COMMITTED.items() if "found" in one and one["found"]["free"] > 0]
TABLE_10 = ("blt-400m", "blt-1b", "blt-2b", "blt-4b", "blt-8b")


def test_every_preset_of_table_10_has_a_plan_and_every_plan_its_result():
    assert {booking.preset for booking in pods.BOOKINGS} == set(TABLE_10) <= set(PRESETS)
    asked = {booking.name: pods.asked(booking) for booking in pods.BOOKINGS}
    assert {name: one["asked"] for name, one in COMMITTED.items()} == json.loads(json.dumps(asked))


def test_every_preset_fits_somewhere_and_only_what_keeps_all_activations_does_not():
    assert {COMMITTED[name]["asked"]["preset"] for name in FITTING} == set(TABLE_10)
    assert all(COMMITTED[name]["asked"]["remat"] == "none" for name in COMMITTED.keys() - FITTING)


@pytest.mark.parametrize("name", FITTING)
def test_a_plan_fits_sends_little_and_computes_little_in_vain(name):
    asked, found = COMMITTED[name]["asked"], COMMITTED[name]["found"]
    assert found["free"] > 0
    assert 15e6 < asked["rows"] * pods.BYTES < 19e6  # as near to 16M as whole micro-batches of all devices come
    held = found["parameters"] + found["optimizer"]
    assert held * found["devices"] >= 12 * sum(parameters(preset(asked["preset"])).values())
    again = 4 / 3 if asked["remat"] == "full" else 1
    assert found["compiled_flops"] / found["model_flops"] <= 1.15 * again
    sent: dict[str, float] = {}
    for part in found["traffic"]:
        axes = "+".join(part["axes"])
        sent[axes] = sent.get(axes, 0.0) + part["sent"]
    for axes, least in found["least"].items():
        assert sent[axes] < 1.1 * least, axes
    # A gather of the tables in each micro-batch would be far more than what is sent beyond the least.
    tables = 2 * parameters(preset(asked["preset"]))["hash_embedding"]
    assert sent["data"] - found["least"]["data"] < asked["accumulation"] * tables / 2


def test_the_page_repeats_the_table():
    records = [COMMITTED[booking.name] for booking in pods.BOOKINGS]
    table = pods.table(records)
    assert (pods.RESULTS / "table.md").read_text() == table
    assert table in (ROOT / "docs" / "pods.md").read_text()


def test_a_plan_that_does_not_fit_is_a_row_in_the_words_of_the_compiler(monkeypatch, tmp_path):
    def refuse(plan):
        raise RuntimeError("RESOURCE_EXHAUSTED: E1000: Ran out of memory: 20G exceed 15G. HLO module: jit_step.\nSee")

    monkeypatch.setattr(pods, "compile_ahead", refuse)
    pods.main(pods.Arguments(("blt-1b-v6e-4x4-none",), tmp_path))
    last = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert last == "| blt-1b | v6e:4x4 | data 16 | 16.1 | does not fit: 20G exceed 15G | none | | | | |"

    def fail(plan):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(pods, "compile_ahead", fail)
    with pytest.raises(RuntimeError, match="something else"):
        pods.main(pods.Arguments(("blt-1b-v6e-4x4-none",), tmp_path))


def test_an_unknown_plan_is_named():
    with pytest.raises(ValueError, match=r"'blt-1b': no such plan; there are blt-400m-v5e-4x4, "):
        pods.main(pods.Arguments(("blt-1b",)))
