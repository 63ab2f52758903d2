"""Measures the data's way: from shards on disk to batches on the device, and the scoring of short documents.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --corpus corpora/mine --row-bytes 24576 --out data.md

The loader is to give at least 50 MB/s to each process on two cores, counted in raw document bytes; packed scoring at
least 5 times the bytes per second of scoring documents one at a time. Without a corpus the sources of this Python's
standard library are prepared, in shards, in a temporary folder. Takes about two minutes on two cores.
"""

import dataclasses
import itertools
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from bltjax import families
from bltjax.config import PatcherConfig, RowsConfig
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.pipeline import BLTSource, ByteSource, Source, train_batches
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
from bltjax.data.stream import ByteStream
from bltjax.patching import next_byte_entropy, stream_starts
from bltjax.presets import preset
from bltjax.scoring import Scorer
from bltjax.sharding import make_mesh, put_batch

LOADER_MB_PER_SECOND, SCORING_RATIO = 50, 5


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Command line of the benchmark."""

    corpus: Path | None = None
    """A corpus in shards; None: the standard library of the running Python."""
    row_bytes: int = 8192
    """Bytes of a row."""
    batch: int = 32
    """Rows of a batch."""
    batches: int = 200
    """Batches of each measurement."""
    document_bytes: int = 200
    """Mean size of the short documents that are scored."""
    documents: int = 2000
    """How many of them."""
    model: str = "entropy-cpu"
    """The entropy model, by its preset; its parameters are random."""
    out: Path | None = None
    """A Markdown file to write."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measurement: what of, its value, and the least that it should be."""

    what: str
    value: float
    unit: str
    at_least: float | None = None

    def row(self) -> str:
        least = "" if self.at_least is None else f"{self.at_least:g}"
        value = f"{self.value:,.1f}" if self.value >= 1 else f"{self.value:.2g}"
        return f"| {self.what} | {value} {self.unit} | {least} |"


def corpus_of(arguments: Arguments, folder: str) -> Corpus:
    """The corpus named, or that of the standard library."""
    if arguments.corpus is not None:
        return Corpus.open(arguments.corpus)
    pattern = f"{sysconfig.get_path('stdlib')}/**/*.py"
    prepare_shards([Given(pattern, "python")], folder, shard_bytes=4_000_000)
    return Corpus.open(folder)


def loader_speed(source: Source, batches: int) -> list[float]:
    """MB/s of raw document bytes from disk to the device: over the first batches, then over as many more."""
    mesh = make_mesh(devices=jax.devices()[:1])
    stream = train_batches(source, source.config)
    speeds = []
    for _ in range(2):
        sizes, waiting = [], None
        begin = time.perf_counter()
        for batch in itertools.islice(stream, batches):
            placed = put_batch(batch, mesh)
            sizes.append(int(batch.target_bytes.sum()))
            jax.block_until_ready(waiting)
            waiting = placed
        jax.block_until_ready(waiting)
        speeds.append(sum(sizes) / (time.perf_counter() - begin) / 1e6)
    return speeds


def measure_loader(arguments: Arguments, corpus: Corpus) -> Iterator[Figure]:
    """The loader's speed for each way of cutting rows."""
    config = RowsConfig(bytes=arguments.row_bytes, batch=arguments.batch)

    def blt(documents: Documents) -> Source:
        stream = ByteStream(documents)
        starts = stream_starts(PatcherConfig(rule="strided", size=6), stream.document_starts)
        return BLTSource(documents, starts, config)

    for name, make in (("bytes", lambda documents: ByteSource(documents, config)), ("patches", blt)):
        documents = corpus.documents("train")  # anew: what was read before counts as compared with its SHA-256
        first, later = loader_speed(make(documents), arguments.batches)
        yield Figure(f"loader, rows of {name}, first reading (SHA-256 compared)", first, "MB/s", LOADER_MB_PER_SECOND)
        yield Figure(f"loader, rows of {name}, later", later, "MB/s", LOADER_MB_PER_SECOND)


def alone(model: Any, params: Any, documents: Documents, lengths: list[int]) -> float:
    """Bytes per second of scoring documents one at a time, each in a row padded to the next of these lengths."""
    module = families.build(model)

    def entropies(params: Any, ids: jax.Array) -> jax.Array:
        logits: Any = module.apply({"params": params}, ids, None)
        return next_byte_entropy(logits)

    compiled = jax.jit(entropies)
    stream = ByteStream(documents)
    for length in lengths:
        compiled(params, np.zeros((1, length), np.int32)).block_until_ready()
    begin = time.perf_counter()
    for start, end in itertools.pairwise(stream.document_starts):
        ids = np.zeros((1, next(length for length in lengths if length >= end - start)), np.int32)
        ids[0, : end - start] = stream.ids(int(start), int(end))
        np.asarray(compiled(params, ids))
    return documents.total_bytes / (time.perf_counter() - begin)


def measure_scoring(arguments: Arguments) -> Iterator[Figure]:
    """Scoring of short documents, packed and one at a time."""
    model: Any = preset(arguments.model)
    params = families.initialize(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.exponential(arguments.document_bytes, arguments.documents), 1, 1000).astype(int)
    documents = Documents.of([rng.integers(32, 127, n).astype(np.uint8).tobytes() for n in sizes])
    scorer = Scorer(model, params, mesh=make_mesh(devices=jax.devices()[:1]))
    scorer.score(documents)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        scorer.score(documents)
        seconds.append(time.perf_counter() - begin)
    packed = documents.total_bytes / statistics.median(seconds)
    few = Documents.of([documents[i].tobytes() for i in range(min(len(documents), 500))])
    fixed = alone(model, params, few, [max(1024, scorer.length)])
    fitted = alone(model, params, few, [64, 128, 256, 512, 1024])
    about = f"documents of {documents.total_bytes / len(documents):.0f} bytes"
    yield Figure(f"scoring, {about}, packed", packed / 1e3, "kB/s")
    yield Figure(f"scoring, {about}, one at a time, rows of {max(1024, scorer.length):,}", fixed / 1e3, "kB/s")
    yield Figure(f"scoring, {about}, one at a time, rows of the next power of two", fitted / 1e3, "kB/s")
    yield Figure("packed over one at a time", packed / fixed, "times", SCORING_RATIO)
    yield Figure("packed over one at a time, rows of the next power of two", packed / fitted, "times")


def main(arguments: Arguments) -> list[Figure]:
    """Measures and prints all figures."""
    lines = ["| what | measured | at least |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for figure in itertools.chain(
            measure_loader(arguments, corpus_of(arguments, folder)), measure_scoring(arguments)
        ):
            figures.append(figure)
            lines.append(figure.row())
            print(lines[-1], flush=True)
    device = jax.devices()[0].device_kind
    lines += ["", f"{platform.machine()}, {device}, Python {platform.python_version()}, jax {jax.__version__}."]
    print("\n".join(lines[-2:]))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")
    return figures


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
