"""Prepares a corpus: documents from files, folders, globs and URLs to a folder that training reads.

    python scripts/prepare_corpus.py --folder corpora/python
    python scripts/prepare_corpus.py 'docs/**/*.rst' notes.jsonl.gz web.parquet --folder corpora/mine

Text, JSON lines (.gz, .zst), Parquet, Arrow, ArrayRecord, and folders that Hugging Face `datasets` has saved. Without
paths it takes the standard library of the running Python (about 30 MB, in a second).

What is too large for one go is prepared in shards, by several processes, each shard apart. Killed, the same command
goes on; the result is the same, byte for byte, for any number of workers. NAME=PATH names a source, so that sources
can be weighted in training; input and folder may be URLs (gs://, s3://: extras [gs] and [s3]). Training reads a
local folder: copy it there, or mount the bucket. On many machines, as an Apache Beam pipeline (extra [beam]), the
same bytes again: --beam takes its options.

    python scripts/prepare_corpus.py wiki=gs://mine/wiki/*.parquet web=crawl/*.jsonl.zst --folder corpora/large \
        --licenses wiki CC-BY-SA-4.0 --workers 16
    python scripts/prepare_corpus.py gs://mine/crawl --folder gs://mine/corpus \
        --beam='--runner=DataflowRunner --project=mine --temp_location=gs://mine/temp'
"""

import dataclasses
import shlex
import sys
from typing import Annotated, Any

import tyro

from bltjax.data import sources
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import SHARD_BYTES, Given, make_plan
from bltjax.data.write import prepare


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Writes a corpus folder from documents."""

    folder: str
    """Where to write the corpus; a URL for one in shards."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, folders, globs or URLs, NAME=PATH to name a source; none: the standard library of the running Python."""
    heldout_percent: float = 2.0
    """Share of documents held out for evaluation, chosen by their hash."""
    piece_bytes: int | None = None
    """Cut longer documents into pieces of this many bytes; for a corpus that is one long text."""
    overwrite: bool = False
    """Replace a corpus that stands in the folder."""
    workers: int | None = None
    """Processes that prepare shards; None: no shards, the corpus in one piece, by one process."""
    beam: str | None = None
    """Options of a Beam pipeline that prepares the shards; '' runs it on this machine."""
    shard_bytes: int = SHARD_BYTES
    """About how many bytes a shard holds."""
    licenses: dict[str, str] = dataclasses.field(default_factory=dict)
    """Licence of each source, by its name; for corpora in shards."""


def summary(folder: str, manifest: dict[str, Any]) -> str:
    """What was written and what was left out, for people."""
    lines = [
        f"{folder}: corpus {manifest['fingerprint']}",
        f"{'split':<9}{'documents':>12}{'bytes':>16}{'longest':>12}",
    ]
    for name, split in manifest["splits"].items():
        lines.append(f"{name:<9}{split['documents']:>12,}{split['bytes']:>16,}{split['longest_bytes']:>12,}")
    for name, source in manifest.get("sources", {}).items():
        size = sum(source[split]["bytes"] for split in manifest["splits"])
        lines.append(f"source {name}: {size:,} bytes, licence {source['license'] or 'not stated'}")
    read = manifest["read"]
    left_out = {
        "empty documents": read["empty"],
        f"exact duplicates ({read['duplicate_bytes']:,} bytes)": read["duplicates"],
        **manifest["origin"].get("left_out", {}),
    }
    lines += [f"left out: {count:,} {what}" for what, count in left_out.items() if count]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    if arguments.workers is not None or arguments.beam is not None:
        manifest = in_shards(arguments)
    else:
        if arguments.licenses:
            raise ValueError(f"licenses={arguments.licenses}: are noted for corpora in shards; give workers or beam.")
        documents = sources.read(arguments.paths) if arguments.paths else sources.embedded()
        if arguments.piece_bytes is not None:
            documents = sources.pieces(documents, arguments.piece_bytes)
        manifest = prepare(documents, arguments.folder, arguments.heldout_percent, arguments.overwrite).manifest
    print(summary(arguments.folder, manifest))


def in_shards(arguments: Arguments) -> dict[str, Any]:
    """Prepares shards; the manifest.

    Raises:
      ValueError: for both workers and beam, no paths, or a licence of a source that no path names.
    """
    if arguments.workers is not None and arguments.beam is not None:
        raise ValueError(f"workers={arguments.workers}, beam={arguments.beam!r}: give one of them.")
    if not arguments.paths:
        raise ValueError("paths: name files, folders or globs; the standard library is prepared in one piece.")
    given = [Given.parse(path, arguments.licenses) for path in arguments.paths]
    unknown = sorted(set(arguments.licenses) - {one.source for one in given})
    if unknown:
        raise ValueError(f"licenses: no source is called {', '.join(unknown)}; name it in paths, as NAME=PATH.")

    def show(stage: str, done: int, count: int) -> None:
        if done == count or done % max(1, count // 20) == 0:
            print(f"{stage.replace('_', ' ')}: {done:,} of {count:,}", flush=True)

    sizes = {
        "heldout_percent": arguments.heldout_percent,
        "piece_bytes": arguments.piece_bytes,
        "shard_bytes": arguments.shard_bytes,
    }
    if arguments.workers is not None:
        return prepare_shards(given, arguments.folder, arguments.workers, arguments.overwrite, show, **sizes)
    # Imported here: Beam is an extra.
    from bltjax.data.beam import prepare_on_beam

    options = shlex.split(arguments.beam or "")
    return prepare_on_beam(make_plan(given, **sizes), arguments.folder, options, arguments.overwrite)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
