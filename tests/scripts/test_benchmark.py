"""The benchmark's arithmetic, and one real measurement on a tiny task; never how fast anything is."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("num_bytes", [1, 4, 5, 1024, 24_576])
def test_patches_cover_the_row_and_the_byte_after_it(benchmark, num_bytes):
    lengths = benchmark.patch_lengths(num_bytes)
    assert lengths[0] == 1 and sum(lengths) == num_bytes + 1
    assert set(lengths[1:-1]) <= {4} and 1 <= lengths[-1] <= 4


def test_a_ratio_is_the_peers_median_over_ours(benchmark, monkeypatch, capsys, tmp_path):
    seconds = {"ours": [1.0, 2.0, 9.0], "peer": [6.0]}

    def measured(python, side, task):
        return {"seconds": seconds[side], "peak_gb": 1.0, "version": side}

    monkeypatch.setattr(benchmark, "measure_apart", measured)
    out = tmp_path / "table.md"
    benchmark.main(benchmark.Arguments(peer_python="other", only="train, 8,192", out=out))
    row, half = json.loads(out.with_suffix(".json").read_text())
    assert row["ratio"] == "3.00" and row["at least"] == 1.3 and row["bltjax"] == "4.10 kB/s"
    assert half["dtype"] == "bfloat16" and half["ratio"] == ""
    assert "| train, 8,192 bytes | float32 |" in capsys.readouterr().out


def test_a_name_that_fits_no_row_is_an_error_that_lists_them(benchmark):
    with pytest.raises(SystemExit, match=r"only='walk'.*forward, 1,024 bytes"):
        benchmark.main(benchmark.Arguments(only="walk"))


def test_a_worker_that_fails_says_why(benchmark):
    with pytest.raises(RuntimeError, match=r"(?s)peer, matrix product.*No module named"):
        benchmark.measure_apart(sys.executable, "peer", benchmark.Task("matmul", 8))


def test_a_worker_measures_a_real_product(benchmark):
    result = benchmark.measure_apart(sys.executable, "ours", benchmark.Task("matmul", 64, calls=2))
    assert len(result["seconds"]) == 2 and min(result["seconds"]) > 0 and result["version"].startswith("jax ")
