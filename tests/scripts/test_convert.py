import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bltjax.families import abstract_params
from bltjax.interop.huggingface import Pretrained, load_pretrained, save_pretrained
from bltjax.presets import preset

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = [preset("blt-tiny"), preset("entropy-tiny")]
    params = [jax.tree.map(lambda s: np.full(s.shape, 0.5, np.float32), abstract_params(model)) for model in models]
    pretrained = Pretrained(models[0], params[0], models[1], params[1], 1.5)  # pyright: ignore[reportArgumentType]
    save_pretrained(tmp_path / "model", pretrained, one_document_rows=True)
    return tmp_path / "model"


def test_looking_reads_no_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(np, "fromfile", None)
    run(monkeypatch, folder)
    values, groups = capsys.readouterr().out.split("\n\n")
    assert json.loads(values)["threshold"] == 1.5
    assert json.loads(values)["entropy"]["tower"]["width"] == 16
    total = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(preset("blt-tiny"))))
    assert f"{total:,}  blt" in groups


def test_rewriting_into_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(monkeypatch, folder, "--output", tmp_path / "new", "--max-shard-gigabytes", "1e-5", "--no-windows")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 2
    found = load_pretrained(tmp_path / "new")
    assert found.config.encoder.window is None
    jax.tree.map(np.testing.assert_array_equal, found.params, load_pretrained(folder).params)


def test_a_damaged_checkpoint_ends_in_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for more in ([], ["--output", tmp_path / "new"]):
        with pytest.raises(SystemExit, match=r"^error: .*model\.safetensors is not a whole safetensors file"):
            run(monkeypatch, folder, *more)
    assert not (tmp_path / "new").exists()
