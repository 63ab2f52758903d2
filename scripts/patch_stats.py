"""What patches a text is cut into: a histogram, bytes per patch by document, the threshold for a wanted size.

    python scripts/patch_stats.py --rule space
    python scripts/patch_stats.py 'docs/**/*.rst' --rule strided --size 6 --view patches.html
    python scripts/patch_stats.py --corpus corpora/python --mean-patch-bytes 6 --json patches.json

Without paths and corpus it reads the standard library of the running Python. The entropy rule needs a corpus whose
entropies are stored beside it, and calibrates its threshold unless one is given. `--view` writes a page that shows a
document cut into its patches. A corpus of 100 MB takes a few seconds; with `--max-patch-length`, a minute.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bltjax import config
from bltjax.config import PatcherConfig
from bltjax.data import sources
from bltjax.data.corpus import Corpus, Documents, Split
from bltjax.data.stream import ByteStream, read_entropies
from bltjax.patching import stream_starts
from bltjax.patching.calibrate import (
    QUANTILES,
    PatchStatistics,
    calibrate,
    check_starts,
    document_patch_counts,
    patch_statistics,
)
from bltjax.patching.viewer import patch_page


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures the patches of a text."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, folders or globs; none: the corpus, or the standard library of the running Python."""
    patcher: Annotated[PatcherConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=PatcherConfig)
    """How to cut."""
    corpus: Path | None = None
    """A folder that prepare_corpus wrote."""
    split: Split = "train"
    """Which split of the corpus."""
    documents: int = 10
    """How many documents to list, the longest first."""
    json: Path | None = None
    """Where to write all of it, every document included, as JSON."""
    view: Path | None = None
    """Where to write a page that shows a document cut into its patches."""
    view_document: str = "0"
    """Which document that is: its name, or its number in the order they are stored in."""
    view_bytes: int = 4000
    """How much of it the page shows, from its beginning."""


@dataclasses.dataclass(frozen=True)
class Text:
    """The documents measured, with their entropies where they are known."""

    names: list[str]
    stream: ByteStream
    entropies: np.ndarray | None


def read(arguments: Arguments) -> Text:
    """The documents that the arguments name.

    Raises:
      ValueError: for both paths and a corpus, no bytes, the entropy rule without stored entropies, or a place where
        nothing can be written.
      OSError: for what cannot be read.
    """
    for name, path in (("json", arguments.json), ("view", arguments.view)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{name}={path}: name a file in a folder that exists.")
    if arguments.corpus is not None:
        if arguments.paths:
            raise ValueError(f"corpus={arguments.corpus}: give either paths or a corpus.")
        corpus = Corpus.open(arguments.corpus)
        documents = corpus.documents(arguments.split)
        if not len(documents):
            raise ValueError(f"split={arguments.split!r}: has no documents in {arguments.corpus}; take the other one.")
        return Text(documents.names, ByteStream(documents), _stored_entropies(corpus, arguments))
    if arguments.patcher.rule == "entropy":
        raise ValueError(
            "patcher.rule='entropy': needs entropies, which are stored beside a corpus (--corpus); without a model "
            "there are --rule space, strided and byte."
        )
    read = sources.read(arguments.paths) if arguments.paths else sources.embedded()
    found = [document for document in read if document.data]
    if not found:
        raise ValueError(f"paths={arguments.paths}: hold no bytes; name files that do.")
    return Text([document.name for document in found], ByteStream(Documents.of([d.data for d in found])), None)


def _stored_entropies(corpus: Corpus, arguments: Arguments) -> np.ndarray | None:
    about = corpus.folder / f"{arguments.split}.entropies.json"
    if arguments.patcher.rule != "entropy" and not about.is_file():
        return None  # other rules need none; the page is coloured by them where they are known
    # Whichever model made them: its fingerprint goes into the report, with nothing here to compare it with.
    stored = json.loads(about.read_bytes())["fingerprint"] if about.is_file() else {}
    return read_entropies(corpus, arguments.split, stored)


def listing(text: Text, starts: np.ndarray) -> list[dict[str, Any]]:
    """Name, bytes and patches of every document."""
    patches = document_patch_counts(starts, text.stream.document_starts)
    lengths = text.stream.documents.lengths
    return [
        {"name": name, "bytes": int(size), "patches": int(count)}
        for name, size, count in zip(text.names, lengths, patches, strict=True)
    ]


def histogram(statistics: PatchStatistics, bars: int = 40) -> list[str]:
    """Patches by length, one line a length up to 16 positions, then one for each doubling."""
    bins: dict[tuple[int, int], int] = {}
    for length, count in statistics.length_counts.items():
        last = length if length <= 16 else 1 << (length - 1).bit_length()
        span = (length if length <= 16 else last // 2 + 1, last)
        bins[span] = bins.get(span, 0) + count
    lines = [f"{'length':>13} {'patches':>13} {'share':>7}"]
    for (first, last), count in sorted(bins.items()):
        name = str(first) if first == last else f"{first:,}-{last:,}"
        bar = "#" * round(bars * count / max(bins.values()))
        lines.append(f"{name:>13} {count:>13,} {count / statistics.patches:>7.2%} {bar}".rstrip())
    return lines


def report(patcher: PatcherConfig, text: Text, statistics: PatchStatistics, listed: list[dict[str, Any]]) -> str:
    """All of it, for people; `listed` are the documents to name."""
    lines = [
        f"{statistics.documents:,} documents, {statistics.bytes:,} bytes, {statistics.patches:,} patches",
        f"{statistics.mean_patch_bytes:.4f} bytes per patch ({statistics.mean_patch_length:.4f} with BOS and EOS)",
    ]
    if patcher.rule == "entropy":
        lines.append(f"threshold {patcher.threshold!r} nats, variant {patcher.variant}")
    lines += ["", *histogram(statistics), "", "bytes per patch of single documents, by quantile"]
    lines.append("  ".join(f"{share:>7.0%}" for share in QUANTILES))
    lines.append("  ".join(f"{value:>7.3f}" for value in statistics.document_quantiles))
    if listed:
        lines += ["", f"{'bytes':>13} {'patches':>13} {'bytes/patch':>12}  document"]
        for each in listed:
            ratio = each["bytes"] / each["patches"]
            name = each["name"].encode("unicode_escape").decode()  # a name may hold anything, the terminal should not
            lines.append(f"{each['bytes']:>13,} {each['patches']:>13,} {ratio:>12.3f}  {name}")
    return "\n".join(lines)


def page(arguments: Arguments, patcher: PatcherConfig, text: Text, starts: np.ndarray) -> str:
    """The viewer's page of the chosen document.

    Raises:
      ValueError: for a document that is not there.
    """
    chosen = arguments.view_document
    if chosen in text.names:
        number = text.names.index(chosen)
    elif chosen.isdecimal() and int(chosen) < len(text.names):
        number = int(chosen)
    else:
        raise ValueError(f"view_document={chosen!r}: neither a document's name nor a number below {len(text.names)}.")
    begin, end = (int(place) for place in text.stream.document_starts[number : number + 2])
    length = end - begin - 2
    note = f"{length:,} bytes." if length <= arguments.view_bytes else (
        f"The first {arguments.view_bytes:,} of {length:,} bytes."
    )  # fmt: skip
    end = end if length <= arguments.view_bytes else begin + 1 + arguments.view_bytes
    entropies = None if text.entropies is None else np.asarray(text.entropies[begin:end])
    return patch_page(text.names[number], text.stream.ids(begin, end), starts[begin:end], patcher, entropies, note)


def main(arguments: Arguments) -> None:
    text = read(arguments)
    boundaries = text.stream.document_starts
    patcher = arguments.patcher
    if patcher.rule == "entropy" and patcher.threshold is None:
        patcher = calibrate(patcher, boundaries, text.entropies).config
    ids = text.stream.ids() if patcher.rule in ("space", "bpe") else None
    starts = stream_starts(patcher, boundaries, ids=ids, entropies=text.entropies)
    check_starts(patcher, starts, boundaries)
    statistics = patch_statistics(starts, boundaries)
    listed = listing(text, starts)
    # Everything that can fail comes before the first file is written.
    view = None if arguments.view is None else page(arguments, patcher, text, starts)
    whole = {"patcher": config.to_dict(patcher), **json.loads(statistics.to_json()), "by_document": listed}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    if arguments.view is not None and view is not None:
        arguments.view.write_text(view, encoding="utf-8")
    longest = sorted(listed, key=lambda each: -each["bytes"])[: arguments.documents]
    print(report(patcher, text, statistics, longest))


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
