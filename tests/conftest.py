"""What every test stands on: eight CPU devices, checked shapes, compiled programs kept between runs.

Environment variables are set before anything imports JAX; a value that the caller has set stays. Programs that a test
starts inherit them.
"""

import gc
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
if version("jax").startswith("0.10."):
    # The last jax for Python 3.11. Its emitters of fused loops take two fifths of the time in which programs of this
    # size are compiled; jax 0.12 has no others, and does not know the flag. Not dividing a program among threads saves
    # a twentieth more, where each core has its worker.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# A folder for each worker: JAX does not write its cache atomically, so two workers must not share one.
_cache = Path(os.environ.setdefault("BLTJAX_TEST_CACHE", str(ROOT / ".pytest_cache" / "d" / "jax")))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache / os.environ.get("PYTEST_XDIST_WORKER", "main"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tiny programs take longer to optimise than to run. What XLA makes of a program before it is turned into machine code,
# its fusions, collectives and memory, is the same.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

# How long an example takes says more of what else the machine does, and of a first compilation, than of the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Checks every annotation of the package while it is called; users of the package pay nothing for this.
# The "tower" is what a static checker takes for granted: an int will do where a float is asked for.
# BLTJAX_TEST_CHECKED=0 leaves the package as users import it, in nine tenths of the time.
if os.environ.get("BLTJAX_TEST_CHECKED", "1") != "0":
    install_import_hook("bltjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches the checks of annotations off, as they are for users: for tests of what bad arguments raise."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def collected_between_modules() -> Iterator[None]:
    """Collects garbage after each module alone, among what that module made.

    Tracing makes so many objects that a tenth of the time went into looking at them again and again, and a sixth into
    looking at those of all modules before after each one.
    """
    gc.disable()
    yield
    gc.enable()
    gc.collect(1)  # what was there before is of generation 2


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forgets compiled programs before there are too many: each is some memory maps, of which a process has 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For compiling for TPUs where there are none."""
    import jax

    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A tenth of the time, and the same collectives, products and memory but for some MB: plans are of full effort.
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")


@pytest.fixture
def two_sources(tmp_path: Path) -> Path:
    """The folder of a corpus in several shards, of two sources: 60 short documents each of "code" and of "prose"."""
    from bltjax.data.prepare import prepare_shards
    from bltjax.data.slices import Given

    for name in ("code", "prose"):
        lines = (json.dumps({"text": f"{name} number {n} " * (n % 9 + 1)}) + "\n" for n in range(60))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    given = [Given(str(tmp_path / f"{name}.jsonl"), name) for name in ("code", "prose")]
    prepare_shards(given, tmp_path / "corpus", heldout_percent=20.0, shard_bytes=900)
    return tmp_path / "corpus"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--runthorough", action="store_true", help="run the tests marked thorough as well")
    parser.addoption(
        "--chinchilla-points",
        metavar="CSV",
        help="the digitised points of Chinchilla's Figure 4 (not ours to ship); runs the tests that fit them",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # These modules import torch and transformers, which only an environment made for them has.
    if collection_path == PEERS and config.option.markexpr != "peers":
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(PEERS):
            item.add_marker("peers")
    for mark in ("slow", "thorough"):
        if not config.getoption(f"--run{mark}"):
            marked = [item for item in items if item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
    if config.getoption("--chinchilla-points") is None:
        golden = [item for item in items if "chinchilla_points" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=golden)
        items[:] = [item for item in items if item not in golden]
