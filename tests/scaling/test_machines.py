import dataclasses
import datetime
import re
from pathlib import Path

import pytest

from bltjax.chips import CHIPS
from bltjax.scaling.machines import Machine, named_machine, read_machines

SHIPPED = Path(__file__).resolve().parents[2] / "scripts" / "machines.toml"
NOTED = datetime.date(2026, 1, 31)
WHOLE = """
[box]
noted = 2026-01-31
device = "an accelerator"
platform = "gpu"
devices = 4
memory = 8e10
price = 2.5
currency = "EUR"
[box.peak]
bfloat16 = 1e15
[box.fraction]
"blt-400m-p4.5" = 0.5
blt-400m = 0.4
blt = 0.3
default = 0.2
"""


def machine(**changes: object) -> Machine:
    values: dict = {
        "name": "box", "noted": NOTED, "device": "an accelerator", "platform": "gpu", "devices": 4, "memory": 8e10,
        "peak": {"bfloat16": 1e15},
    }  # fmt: skip
    return Machine(**(values | changes))


def test_a_file_is_read_as_it_stands(tmp_path):
    (tmp_path / "machines.toml").write_text(WHOLE)
    found = named_machine(tmp_path / "machines.toml", "box")
    fractions = {"blt-400m-p4.5": 0.5, "blt-400m": 0.4, "blt": 0.3, "default": 0.2}
    assert found == machine(price=2.5, currency="EUR", fraction=fractions)


def test_money_is_price_times_device_hours_and_unknown_without_a_price():
    assert machine(price=2.5, currency="EUR").cost(2 * 3600) == 5.0
    assert machine(price=0, currency="EUR").cost(2 * 3600) == 0.0
    assert machine().cost(2 * 3600) is None


def test_the_nearest_name_has_the_fraction_and_no_name_has_none():
    found = machine(fraction={"blt-400m": 0.4, "blt": 0.3, "default": 0.2})
    assert found.fraction_of(["blt-400m-p4.5", "blt-400m", "blt"]) == 0.4
    assert found.fraction_of(["blt-1b", "blt"]) == 0.3
    assert found.fraction_of(["token-470m", "token"]) == 0.2
    assert machine(fraction={"blt": 0.3}).fraction_of(["token"]) is None


def test_a_dtype_without_a_peak_is_not_taken_for_another():
    assert machine().peak_of("bfloat16") == 1e15
    with pytest.raises(ValueError, match=re.escape("[box.peak] has no float32")):
        machine().peak_of("float32")


def test_figures_grow_old():
    assert machine().warnings(NOTED + datetime.timedelta(days=180)) == []
    assert "181 days ago" in machine().warnings(NOTED + datetime.timedelta(days=181))[0]
    assert "lies ahead" in machine().warnings(NOTED - datetime.timedelta(days=1))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pricee = 3.0", "unknown key 'pricee'; known is: price"),
        ("devices = 0", "devices=0"),
        ("devices = 2.5", "devices=2.5: must be int"),
        ("devices = true", "devices=True: must be int"),
        ("memory = -1", "memory=-1"),
        ('memory = "80 GB"', "memory='80 GB': must be float or int"),
        ("price = -1.0", "price=-1.0"),
        ("price = nan", "price=nan"),
        ('platform = "abacus"', "platform='abacus'"),
        ('noted = "yesterday"', "must be a date such as"),
        ("noted = 2026-01-31T10:00:00", "must be a date such as"),
        ("peak = {}", "peak={}"),
        ("peak = { int8 = 1e15 }", "peak='int8'"),
        ("peak = { bfloat16 = 0 }", "peak.bfloat16=0"),
        ('peak = { bfloat16 = "fast" }', "peak={'bfloat16': 'fast'}"),
        ("fraction = { blt = 40 }", "fraction.blt=40"),
        ("fraction = { blt = 0.0 }", "fraction.blt=0.0"),
        ('currency = ""', "currency"),
    ],
)
def test_what_can_not_be_is_refused_by_its_key(change, message, tmp_path, unchecked):
    key = change.partition(" ")[0]
    lines = WHOLE.partition("[box.peak]")[0].splitlines()
    kept = [line for line in lines if not line.startswith(f"{key} ")]
    if not key.startswith("peak"):
        kept.append("peak = { bfloat16 = 1e15 }")
    kept = [line for line in kept if key != "currency" or not line.startswith("price")]
    path = tmp_path / "machines.toml"
    path.write_text("\n".join([*kept, change]))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_machines(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[box", "is not TOML"),
        ("box = 3", "box=3 stands outside of a machine's table"),
        ('[box]\nplatform = "cpu"', "[box] needs noted, device, devices, memory, peak"),
        ("", "machine='box'"),
    ],
)
def test_a_file_that_is_none_is_refused(text, message, tmp_path):
    path = tmp_path / "machines.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        named_machine(path, "box")


def test_the_file_that_comes_along_has_the_figures_of_the_chips_and_no_price():
    found = read_machines(SHIPPED)
    assert set(found) >= {"cpu", "v5e", "v5p", "v6e", "h100"}
    for name, one in found.items():
        assert one.price is None and one.currency is None, name
        if one.topology is not None:
            chip = CHIPS[one.topology.partition(":")[0]]
            assert (one.peak["bfloat16"], one.memory) == (chip.peak, chip.memory), name
            sizes = [int(size) for size in one.topology.partition(":")[2].split("x")]
            product = 1
            for size in sizes:
                product *= size
            assert one.devices == product, name
    assert dataclasses.replace(found["h100"], price=1.0, currency="USD").cost(3600) == 1.0
