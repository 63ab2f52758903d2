"""Prepares a corpus: documents from text files, folders, globs, JSONL and Parquet to a folder that training reads.

    python scripts/prepare_corpus.py --folder corpora/python
    python scripts/prepare_corpus.py 'docs/**/*.rst' notes.jsonl.gz web.parquet --folder corpora/mine

Without paths it takes the standard library of the running Python (about 30 MB, in a second).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from bltjax.data import sources
from bltjax.data.write import Corpus, prepare


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes a corpus folder from documents."""

    folder: Path
    """Where to write the corpus."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, folders or globs; none: the standard library of the running Python."""
    heldout_percent: float = 2.0
    """Share of documents held out for evaluation, chosen by their hash."""
    piece_bytes: int | None = None
    """Cut longer documents into pieces of this many bytes; for a corpus that is one long text."""
    overwrite: bool = False
    """Replace a corpus that stands in the folder."""


def summary(corpus: Corpus) -> str:
    """What was written and what was left out, for people."""
    manifest = corpus.manifest
    lines = [
        f"{corpus.folder}: corpus {corpus.fingerprint}",
        f"{'split':<9}{'documents':>12}{'bytes':>16}{'longest':>12}",
    ]
    for name, split in manifest["splits"].items():
        lines.append(f"{name:<9}{split['documents']:>12,}{split['bytes']:>16,}{split['longest_bytes']:>12,}")
    read = manifest["read"]
    left_out = {
        "empty documents": read["empty"],
        f"exact duplicates ({read['duplicate_bytes']:,} bytes)": read["duplicates"],
        **manifest["origin"].get("left_out", {}),
    }
    lines += [f"left out: {count:,} {what}" for what, count in left_out.items() if count]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    documents = sources.read(arguments.paths) if arguments.paths else sources.embedded()
    if arguments.piece_bytes is not None:
        documents = sources.pieces(documents, arguments.piece_bytes)
    corpus = prepare(documents, arguments.folder, arguments.heldout_percent, arguments.overwrite)
    print(summary(corpus))


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
