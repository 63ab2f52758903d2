"""A trained model on disk as something to generate from: a run's folder, or a Hugging Face checkpoint.

In goes a folder; out comes a `generate.Source`. What a run does not hold itself, its entropy model or its tokenizer,
is found where a study keeps it and known by its fingerprint, or is named by the caller. scripts/generate.py calls this.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bltjax import vocabulary
from bltjax.claim import read_config
from bltjax.config import BLTConfig, EntropyModelConfig, PatcherConfig, TokenTransformerConfig, TrainConfig, config_hash
from bltjax.data.tokenizer import Tokenizer
from bltjax.generate.source import Source
from bltjax.interop.huggingface import load_pretrained
from bltjax.scoring import params_hash
from bltjax.train import load_params


def load_source(
    folder: str | Path,
    *,
    entropy_run: Path | None = None,
    tokenizer: Path | None = None,
    patcher: PatcherConfig | None = None,
) -> Source:
    """The newest model of a run, or that of a checkpoint of `BltForCausalLM`.

    Args:
      folder: with the config.json of either.
      entropy_run: for a BLT with the entropy rule, the run of its entropy model; None: a study's own run is looked for
        in the study's folder, by the hash of its parameters.
      tokenizer: for a token model, its tokenizer.json; None: looked for in the study's folder, by its fingerprint.
      patcher: takes the place of the rule in the folder.

    Raises:
      FileNotFoundError: for a folder without a model, or where an entropy model or a tokenizer is not found.
      ValueError: for a model that can't be generated from, or a part that is not the model's own.
    """
    folder = Path(folder)
    if _is_pretrained(folder / "config.json"):
        for name, value in (("entropy_run", entropy_run), ("tokenizer", tokenizer)):
            if value is not None:
                raise ValueError(f"{name}={value}: {folder} is a Hugging Face checkpoint, which has its own or none.")
        return Source.of(load_pretrained(folder), patcher)
    config, params, _ = load_params(folder)
    model, inputs = config.model, _study_inputs(folder)
    patcher = config.patcher if patcher is None else patcher
    by_entropy = isinstance(model, BLTConfig) and patcher is not None and patcher.rule == "entropy"
    if entropy_run is not None and not by_entropy:
        raise ValueError(f"entropy_run={entropy_run}: {folder} holds no model that is patched by entropy.")
    if tokenizer is not None and not isinstance(model, TokenTransformerConfig):
        raise ValueError(f"tokenizer={tokenizer}: {folder} holds a {type(model).__name__}, which reads bytes.")
    entropy: tuple[Any, Any] = (None, None)
    if by_entropy:
        entropy = _entropy_model(folder, entropy_run, inputs.get("entropies"))
    found = _tokenizer(folder, model, tokenizer, inputs.get("tokenizer")) if _is_token(model) else None
    return Source(model, params, patcher, *entropy, found)


def _is_token(model: Any) -> bool:
    return isinstance(model, TokenTransformerConfig)


def _is_pretrained(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        return "model_type" in json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error


def _study_inputs(folder: Path) -> dict[str, Any]:
    """What the manifest of a study's run says that it was trained with; {} for a run of its own."""
    manifest = folder / "manifest.json"
    return json.loads(manifest.read_bytes()).get("inputs", {}) if manifest.is_file() else {}


def _entropy_model(
    folder: Path, named: Path | None, fingerprint: dict[str, Any] | None
) -> tuple[EntropyModelConfig, Any]:
    if named is None and fingerprint is None:
        raise FileNotFoundError(
            f"{folder} was patched by the entropies of a model that it does not name: give that model's run "
            "(entropy_run), the one that the BLT was trained with."
        )
    runs = [named] if named is not None else sorted(folder.parent.parent.glob("entropy-*"))
    for run in runs:
        config: TrainConfig = read_config(run)
        if not isinstance(config.model, EntropyModelConfig):
            raise ValueError(f"entropy_run={run}: holds a {type(config.model).__name__}, not an entropy model.")
        if fingerprint is not None and config_hash(config.model) != fingerprint["model"]:
            continue
        params = load_params(run)[1]
        if fingerprint is None or params_hash(params) == fingerprint["params"]:
            # Rows may hold several documents here, as they do where a corpus is scored.
            return dataclasses.replace(config.model, document_mask=True), params
    raise ValueError(
        f"{folder} was patched by the entropies of the model {fingerprint}, which "
        f"{', '.join(map(str, runs)) or 'its study'} is not: name the run of that model (entropy_run)."
    )


def _tokenizer(folder: Path, model: Any, named: Path | None, fingerprint: str | None) -> Tokenizer:
    name = f"tokenizer-{model.vocabulary_size - vocabulary.OFFSET}.json"
    if named is None and fingerprint is None:
        raise FileNotFoundError(
            f"{folder} holds a token model and does not name its tokenizer: give the {name} of its corpus (tokenizer)."
        )
    paths = [named] if named is not None else sorted(folder.parent.parent.glob(f"corpus-*/{name}"))
    for path in paths:
        found = Tokenizer.load(path)
        if fingerprint is None or found.fingerprint == fingerprint:
            return found
    raise ValueError(
        f"{folder} was trained with the tokenizer {fingerprint}, which {', '.join(map(str, paths)) or 'its study'} is "
        f"not: name the {name} of its corpus (tokenizer)."
    )
