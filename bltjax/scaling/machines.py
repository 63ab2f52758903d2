"""Machines that a study is costed on, read from a dated TOML file that its user keeps: nothing of it is built in.

    [h100]
    noted = 2026-11-22               # when the figures were looked up
    device = "NVIDIA H100 SXM 80 GB"
    platform = "gpu"                 # what JAX calls it: cpu, gpu or tpu
    devices = 8                      # of one booking
    memory = 80e9                    # bytes of one device
    topology = "h100:8"              # for --compile, see scripts/compile.py; may be left out
    price = 1.0                      # of one device for an hour, as you pay it; left out: money is unknown
    currency = "USD"

    [h100.peak]                      # dense FLOP/s of one device, by the dtype of products
    bfloat16 = 989e12

    [h100.fraction]                  # share of that peak as measured, by model, series, family, or "default"
    blt = 0.25

One table a machine. A key that is not known is an error, as is a price without its currency.
"""

import dataclasses
import datetime
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Platform = Literal["cpu", "gpu", "tpu"]
OLD_DAYS = 180  # figures noted longer ago are said to be old


@dataclasses.dataclass(frozen=True)
class Machine:
    """What may be booked; the fields are those of the file, see the top of this one."""

    name: str
    noted: datetime.date
    device: str
    platform: Platform
    devices: int
    memory: float
    peak: Mapping[str, float]
    fraction: Mapping[str, float] = dataclasses.field(default_factory=dict)
    price: float | None = None
    currency: str | None = None
    topology: str | None = None

    def __post_init__(self) -> None:
        def check(condition: bool, key: str, value: object, advice: str) -> None:
            if not condition:
                raise ValueError(f"[{self.name}] {key}={value!r}: {advice}")

        check(self.platform in ("cpu", "gpu", "tpu"), "platform", self.platform, 'is "cpu", "gpu" or "tpu".')
        check(self.devices >= 1, "devices", self.devices, "must be at least 1.")
        check(_positive(self.memory), "memory", self.memory, "must be a positive number of bytes.")
        check(bool(self.peak), "peak", dict(self.peak), "give the FLOP/s of at least one dtype.")
        for dtype, flops in self.peak.items():
            check(dtype in ("float32", "bfloat16"), "peak", dtype, "dtypes of products are float32 and bfloat16.")
            check(_positive(flops), f"peak.{dtype}", flops, "must be a positive number of FLOP/s.")
        for of, share in self.fraction.items():
            advice = "is a measured share of the peak: above 0, at most 1; leave it out until it is measured."
            check(0 < share <= 1, f"fraction.{of}", share, advice)
        if self.price is not None:
            check(math.isfinite(self.price) and self.price >= 0, "price", self.price, "must not be negative.")
        both = (self.price is None) == (self.currency is None)
        check(both, "currency", self.currency, "a price needs its currency, and a currency a price; give both.")

    def peak_of(self, dtype: str) -> float:
        """FLOP/s of one device in products of a dtype.

        Raises:
          ValueError: where the file has none.
        """
        if dtype not in self.peak:
            raise ValueError(
                f"[{self.name}.peak] has no {dtype}, in which this study multiplies; there is {', '.join(self.peak)}. "
                "Add the figure, or change dtype in the study."
            )
        return self.peak[dtype]

    def fraction_of(self, names: Sequence[str]) -> float | None:
        """The share of the peak under the first of these names that has one, or under "default"; None: not measured."""
        return next((self.fraction[name] for name in (*names, "default") if name in self.fraction), None)

    def cost(self, device_seconds: float) -> float | None:
        """Money for so many seconds of one device; None where the file has no price."""
        return None if self.price is None else self.price * device_seconds / 3600

    def warnings(self, today: datetime.date) -> list[str]:
        """What a reader of its figures should know."""
        days = (today - self.noted).days
        if days < 0:
            return [f"the figures of {self.name} are dated {self.noted}, which lies ahead"]
        return [f"the figures of {self.name} were noted {days} days ago: look them up again"] if days > OLD_DAYS else []


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


_KINDS: Mapping[str, tuple[type, ...]] = {
    "noted": (datetime.date,), "device": (str,), "platform": (str,), "devices": (int,), "currency": (str,),
    "topology": (str,), "peak": (dict,), "fraction": (dict,), "memory": (float, int), "price": (float, int),
}  # fmt: skip


def read_machines(path: Path) -> dict[str, Machine]:
    """The machines of a file, by name.

    Raises:
      ValueError: for a file that is no TOML, a key that is not known or missing, or a value that can't be.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"machines={path}: is not TOML ({error}).") from error
    return {name: _machine(path, name, table) for name, table in tables.items()}


def _machine(path: Path, name: str, table: Any) -> Machine:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name}={table!r} stands outside of a machine's table; begin one with [name].")
    for key, value in table.items():
        if key not in _KINDS:
            near = difflib.get_close_matches(key, _KINDS, n=1) or sorted(_KINDS)
            raise ValueError(f"{path}: [{name}] has an unknown key {key!r}; known is: {', '.join(near)}.")
        numbers = value.values() if key in ("peak", "fraction") and isinstance(value, dict) else ()
        wrong = not isinstance(value, _KINDS[key]) or isinstance(value, bool | datetime.datetime)
        if wrong or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
            kind = "a date such as 2026-11-22" if key == "noted" else " or ".join(k.__name__ for k in _KINDS[key])
            raise ValueError(f"{path}: [{name}] {key}={value!r}: must be {kind}.")
    fields = [field for field in dataclasses.fields(Machine) if field.name != "name"]
    optional = {"fraction", *(field.name for field in fields if field.default is not dataclasses.MISSING)}
    needed = [field.name for field in fields if field.name not in optional]
    missing = [key for key in needed if key not in table]
    if missing:
        raise ValueError(f"{path}: [{name}] needs {', '.join(missing)}.")
    return Machine(name=name, **table)


def named_machine(path: Path, name: str) -> Machine:
    """One machine of a file.

    Raises:
      ValueError: for a name that is not there, with those that are, besides those of `read_machines`.
    """
    machines = read_machines(path)
    if name not in machines:
        raise ValueError(f"machine={name!r}: {path} has {', '.join(machines) or 'no machine'}; add a table [{name}].")
    return machines[name]
