"""A trained model on disk, ready for use: from a run's folder, or a Hugging Face checkpoint.

In goes a folder; out comes a `generate.Source`, and what belongs to it: the length of its rows, its corpus. What a run
does not hold itself, its entropy model or its tokenizer, is where its `provenance` says, or where a study keeps it, or
is named by the caller; it is known by its fingerprint. scripts/generate.py and scripts/evaluate.py call this.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bltjax import vocabulary
from bltjax.claim import read_config
from bltjax.config import EntropyModelConfig, PatcherConfig, TokenTransformerConfig, TrainConfig, config_hash
from bltjax.data.corpus import Corpus
from bltjax.data.tokenizer import Tokenizer
from bltjax.generate.source import Source
from bltjax.interop.huggingface import load_pretrained
from bltjax.provenance import Provenance, beside
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
      entropy_run: for a model with the entropy rule, the run of its entropy model; None: the one that the run names, or
        the one in its study's folder that has the hash of its parameters.
      tokenizer: for a token model, its tokenizer.json; None: the one that the run names, or the one in its study's
        folder that has its fingerprint.
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
    model, made = config.model, Provenance.of(folder)
    patcher = config.patcher if patcher is None else patcher
    by_entropy = model.reads_patches and patcher is not None and patcher.rule == "entropy"
    if entropy_run is not None and not by_entropy:
        raise ValueError(f"entropy_run={entropy_run}: {folder} holds no model that is patched by entropy.")
    if tokenizer is not None and not isinstance(model, TokenTransformerConfig):
        raise ValueError(f"tokenizer={tokenizer}: {folder} holds a {type(model).__name__}, which reads bytes.")
    entropy: tuple[Any, Any] = (None, None)
    if by_entropy:
        entropy = _entropy_model(folder, entropy_run, made)
    found = _tokenizer(folder, model, tokenizer, made) if isinstance(model, TokenTransformerConfig) else None
    return Source(model, params, patcher, *entropy, found)


def row_bytes(folder: str | Path) -> int | None:
    """Positions of the rows that a model was trained on, BOS and EOS included; None where a checkpoint does not say.

    Raises:
      FileNotFoundError, ValueError: for a folder without a model, or a configuration that can't be read.
    """
    path = Path(folder) / "config.json"
    if _is_pretrained(path):
        return json.loads(path.read_bytes()).get("encoder_config", {}).get("max_position_embeddings")
    return read_config(Path(folder)).rows.bytes


def own_corpus(folder: str | Path) -> Corpus:
    """The corpus that a run was trained on, whose held-out split it has not seen.

    Raises:
      FileNotFoundError: where the folder does not name it, or it is no longer there.
      ValueError: where what lies there is another one.
    """
    folder = Path(folder)
    made = Provenance.of(folder)
    if made.corpus is None:
        raise FileNotFoundError(f"{folder} does not name its corpus: name the one that it was trained on, or files.")
    files = _files(folder, "corpus", None, _in(made.corpus_folder, "manifest.json"), "corpus-*/manifest.json")
    for file in files:
        found = Corpus.open(file.parent)
        if found.fingerprint == made.corpus:
            return found
    raise ValueError(
        f"{folder} was trained on the corpus {made.corpus}, which {_listed(files)} is not: name one (corpus), or files."
    )


def _is_pretrained(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        return "model_type" in json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error


def _in(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _files(folder: Path, argument: str, named: Path | None, recorded: Path | None, pattern: str) -> Sequence[Path]:
    """The files of a part of a run, of which one should be its own.

    Args:
      named: by the caller; recorded: by the run.
      pattern: of what a study keeps beside its runs.
    """
    if named is not None:
        return [named]
    if recorded is None:
        return list(beside(folder, pattern))
    if not recorded.is_file():
        raise FileNotFoundError(
            f"{folder} was made with {recorded}, which is no longer there: say where it is now ({argument})."
        )
    return [recorded]


def _listed(places: Sequence[Path]) -> str:
    return ", ".join(map(str, places)) or "nothing that lies beside it"


def _entropy_model(folder: Path, named: Path | None, made: Provenance) -> tuple[EntropyModelConfig, Any]:
    fingerprint, name = made.entropies, "config.json"
    if named is None and fingerprint is None:
        raise FileNotFoundError(
            f"{folder} was patched by the entropies of a model that it does not name: give that model's run "
            "(entropy_run), the one that the BLT was trained with."
        )
    files = _files(folder, "entropy_run", _in(named, name), _in(made.entropy_run, name), f"entropy-*/{name}")
    for run in (file.parent for file in files):
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
        f"{_listed([file.parent for file in files])} is not: name the run of that model (entropy_run)."
    )


def _tokenizer(folder: Path, model: TokenTransformerConfig, named: Path | None, made: Provenance) -> Tokenizer:
    fingerprint, name = made.tokenizer, f"tokenizer-{model.vocabulary_size - vocabulary.OFFSET}.json"
    if named is None and fingerprint is None:
        raise FileNotFoundError(
            f"{folder} holds a token model and does not name its tokenizer: give the {name} of its corpus (tokenizer)."
        )
    files = _files(folder, "tokenizer", named, made.tokenizer_file, f"corpus-*/{name}")
    for file in files:
        found = Tokenizer.load(file)
        if fingerprint is None or found.fingerprint == fingerprint:
            return found
    raise ValueError(
        f"{folder} was trained with the tokenizer {fingerprint}, which {_listed(files)} is not: name the {name} of its "
        "corpus (tokenizer)."
    )
