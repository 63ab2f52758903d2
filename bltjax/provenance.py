"""What a run was made with: its corpus, and the entropy model or the tokenizer that its rows depend on.

In go fingerprints and where things lie; out comes provenance.json in the run's folder, and from that, or from the
manifest of a study's run, the same again. scripts/train.py says what a run is made with, `claim` writes it down once
the folder is the run's own, and `trained` reads it to find the parts that a model can't be used without.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bltjax.metrics import replace_file

FILE = "provenance.json"
SCORER = "entropy_run.json"  # beside a corpus: which run its entropies come from


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run was made with; None: nothing of the kind, or it is not known.

    Fingerprints say what each part is, paths only where it lay: what is found there is compared.
    """

    corpus: str | None = None  # fingerprint
    corpus_folder: Path | None = None
    entropies: dict[str, Any] | None = None  # hashes of the entropy model's configuration and of its params
    entropy_run: Path | None = None
    tokenizer: str | None = None  # fingerprint
    tokenizer_file: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> "Provenance":
        """What a run's folder says; of a study's run what its manifest says, which names no places.

        Raises:
          ValueError: for a file that can't be read.
        """
        for name in (FILE, "manifest.json"):
            path = folder / name
            if not path.is_file():
                continue
            try:
                values = json.loads(path.read_bytes())
                values = values if name == FILE else values.get("inputs", {})
                known = {key: values[key] for key in (field.name for field in dataclasses.fields(cls)) if key in values}
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{path} does not say what the run was made with ({error!r}): restore it.") from error
            found: dict[str, Any] = {
                key: _path(value, folder) if _is_path(key) else value for key, value in known.items()
            }
            return cls(**found)
        return cls()

    def write(self, folder: Path) -> None:
        """Writes provenance.json into a run's folder."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        values = {key: place(value, folder) if _is_path(key) else value for key, value in values.items()}
        replace_file(folder / FILE, json.dumps(values, indent=2).encode())


def _is_path(key: str) -> bool:
    return key in ("corpus_folder", "entropy_run", "tokenizer_file")


def place(path: Path, folder: Path) -> str:
    """How a file in a folder names a path: from that folder on, so that both can be moved together, unless they have
    nothing but the root in common."""
    path, folder = path.resolve(), folder.resolve()
    together = os.path.commonpath([path, folder])
    return str(path) if together == path.anchor else os.path.relpath(path, folder)


def _path(named: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder.resolve() / named))


def beside(folder: Path, pattern: str) -> Iterator[Path]:
    """What lies where a study keeps what its runs share, seen from one of its runs."""
    runs = folder.resolve().parent
    for top in (runs, runs.parent):
        yield from sorted(top.glob(pattern))


def note_scorer(corpus_folder: Path, run: Path, fingerprint: dict[str, Any]) -> None:
    """Notes beside a corpus which run its stored entropies come from."""
    values = {"entropy_run": place(run, corpus_folder), "entropies": fingerprint}
    replace_file(corpus_folder / SCORER, json.dumps(values, indent=2).encode())


def scorer_of(corpus_folder: Path, fingerprint: dict[str, Any]) -> Path | None:
    """The run that the entropies with this fingerprint come from; None where that was not noted."""
    path = corpus_folder / SCORER
    if not path.is_file():
        return None
    noted = json.loads(path.read_bytes())
    return _path(noted["entropy_run"], corpus_folder) if noted["entropies"] == fingerprint else None
