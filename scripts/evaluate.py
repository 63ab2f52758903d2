"""Scores a trained model in bits per byte of documents that it has not seen.

    python scripts/evaluate.py runs/blt
    python scripts/evaluate.py runs/isoflop/runs/NAME --stride-bytes 64 --csv documents.csv
    python scripts/evaluate.py blt-1b-hf --files wiki=wiki/*.jsonl code=src --context-bytes 4096 --json scores.json
    python scripts/evaluate.py runs/blt --tasks mine --task-folder tasks

The model is the folder of a run of scripts/train.py or of a study, of any family, or a Hugging Face checkpoint of
`BltForCausalLM`. The documents are the held-out ones of the run's own corpus, or of --corpus, or given files (NAME=PATH
names a source; what is not named is called by its path). They are summed up by source, and by script: that of most of
a document's letters.

Each document is scored alone, in windows of --context-bytes positions, of which BOS is one. The first window scores all
that it holds; each later one ends --stride-bytes further on and scores what is new. So every byte is scored exactly
once, seeing at least context - stride bytes before it where its document has them (tokens: less what is left of the
token that the window would have to cut). Bits per byte are the nats of raw document bytes over their number; what the
model pays for the end of a document (EOS) stands apart.

--tasks runs tasks of EleutherAI's lm-eval (extra [eval]) instead; those of --task-folder, or else its own.
"""

import csv
import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bltjax.config import config_hash
from bltjax.data import sources
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.pipeline import heldout_batches
from bltjax.data.slices import Given
from bltjax.data.stream import read_entropies
from bltjax.data.writing import NO_LETTERS, writing_system
from bltjax.evaluate import Reader, Score, evaluate_documents
from bltjax.generate import Source
from bltjax.metrics import replace_file
from bltjax.provenance import Provenance
from bltjax.runtime import keep_compiled
from bltjax.scoring import params_hash
from bltjax.sharding import batch_ways, make_mesh
from bltjax.trained import load_source, own_corpus, row_bytes

DEFAULT_CONTEXT = 8192  # for a checkpoint that does not say what it was trained on


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Scores a trained model."""

    model: Annotated[Path, tyro.conf.Positional]
    """The folder of a run, or a Hugging Face checkpoint."""
    corpus: Path | None = None
    """Score the held-out documents of this corpus; None: of the run's own."""
    files: tuple[str, ...] = ()
    """Score these files, folders or globs, NAME=PATH to name a source, in place of a corpus."""
    context_bytes: int | None = None
    """Positions of a window; None: as many as the rows that the model was trained on."""
    stride_bytes: int | None = None
    """How far apart windows end; None: half of the context."""
    max_bytes: int | None = None
    """Score documents of at most so many bytes together, chosen by their hash; None: all."""
    batch: int = 8
    """Windows at once."""
    documents: bool = False
    """Print a row for each document too."""
    json: Path | None = None
    """Write everything here: what was scored, how, and what each document cost."""
    csv: Path | None = None
    """Write a row for each document here."""
    tasks: tuple[str, ...] = ()
    """Run these tasks of lm-eval, in place of all that."""
    task_folder: Path | None = None
    """Where the YAML files of the tasks are; None: lm-eval's own tasks, which download their data."""
    fewshot: int | None = None
    """Examples that each question of a task comes after; None: as the task says."""
    limit: int | None = None
    """Ask only the first so many questions of each task."""
    entropy_run: Path | None = None
    """The run of the entropy model that the patches depend on; a run knows its own."""
    tokenizer: Path | None = None
    """The tokenizer.json of a token model; a run knows its own."""
    compiled: Path | None = None
    """A folder that keeps compiled programs for the next time."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Documents to score: what they are called, and where each comes from."""

    documents: Documents
    names: Sequence[str]
    sources: Sequence[str]
    about: dict[str, Any]
    corpus: Corpus | None = None


def given_text(files: Sequence[str]) -> Text:
    """The documents of files.

    Raises:
      ValueError: for an empty document; and as `sources.files` does.
      OSError: for files that are not there, or can't be read.
    """
    found = [(one.source, document) for one in map(Given.parse, files) for document in sources.read(one.path)]
    for _, document in found:
        if not document.data:
            raise ValueError(f"{document.name} is empty: there is no byte to score; leave it out.")
    return Text(
        Documents.of([document.data for _, document in found]),
        [document.name for _, document in found],
        [source for source, _ in found],
        {"files": list(files)},
    )


def corpus_text(corpus: Corpus) -> Text:
    """The held-out documents of a corpus."""
    documents = corpus.documents("heldout")
    shards = corpus.manifest["splits"]["heldout"].get("shards", [])
    whole = [(corpus.folder.name, len(documents))]
    counts = [(shard["source"], shard["documents"]) for shard in shards] or whole
    return Text(
        documents,
        documents.names,
        list(itertools.chain.from_iterable(itertools.repeat(*count) for count in counts)),
        {"corpus": str(corpus.folder), "fingerprint": corpus.fingerprint, "split": "heldout"},
        corpus,
    )


def stored_entropies(folder: Path, corpus: Corpus | None) -> tuple[Any, dict[str, Any] | None]:
    """The entropies beside a corpus, if they are those that the run in a folder was patched by; and their fingerprint.

    What is not stored is made anew, and comes out the same.
    """
    fingerprint = Provenance.of(folder).entropies
    if corpus is None or fingerprint is None:
        return None, None
    try:
        return read_entropies(corpus, "heldout", fingerprint), fingerprint
    except (FileNotFoundError, ValueError) as error:
        print(f"scoring the documents with the entropy model ({error})", file=sys.stderr)
        return None, None


def context(arguments: Arguments) -> tuple[int, int]:
    """Positions of a window and how far apart windows end.

    Raises:
      ValueError: for a context that the model was not trained on, or a stride that does not fit it.
    """
    most = row_bytes(arguments.model)
    length = (most or DEFAULT_CONTEXT) if arguments.context_bytes is None else arguments.context_bytes
    if length < 2:
        raise ValueError(f"context_bytes={length}: must be at least 2.")
    if most is not None and length > most:
        raise ValueError(f"context_bytes={length}: {arguments.model} was trained on rows of {most}, not longer.")
    stride = max(1, length // 2) if arguments.stride_bytes is None else arguments.stride_bytes
    if not 1 <= stride <= length:
        raise ValueError(f"stride_bytes={stride}: must lie in 1 .. context_bytes, {length}.")
    return length, stride


@dataclasses.dataclass(frozen=True)
class Scored:
    """A document and what it cost."""

    name: str
    source: str
    script: str
    score: Score

    def row(self) -> dict[str, Any]:
        """As a row of a file."""
        costs = dataclasses.asdict(self.score)
        about = {"name": self.name, "source": self.source, "script": self.script}
        return {**about, **costs, "bits_per_byte": self.score.bits_per_byte}


def grouped(scored: Sequence[Scored], by: Literal["source", "script"]) -> dict[str, list[Score]]:
    """The scores of each source, or each script, in the order in which they first come."""
    found: dict[str, list[Score]] = {}
    for one in scored:
        found.setdefault(getattr(one, by), []).append(one.score)
    return found


def totals(groups: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """The sums of each group, as JSON values."""
    return {name: dataclasses.asdict(Score.total(scores)) for name, scores in groups.items()}


def table(scored: Sequence[Scored], each: bool) -> str:
    """Bits per byte of each document, if they are wanted, of each source and script, and of all documents."""
    groups = [(one.name, [one.score]) for one in scored] if each else []
    of_sources, of_scripts = grouped(scored, "source"), grouped(scored, "script")
    groups += of_sources.items()
    if len(of_scripts) > 1:
        groups += [(f"in {script}" if script != NO_LETTERS else script, own) for script, own in of_scripts.items()]
    if len(of_sources) > 1:
        groups.append(("all", [one.score for one in scored]))
    width = max(len(name) for name, _ in groups)
    lines = [f"{'':<{width}}{'documents':>11}{'bytes':>15}{'bits/byte':>11}{'median':>9}{'EOS':>8}"]
    for name, scores in groups:
        total = Score.total(scores)
        middle = statistics.median(score.bits_per_byte for score in scores)
        end = total.special_nats / math.log(2) / total.specials
        numbers = f"{len(scores):>11,}{total.bytes:>15,}{total.bits_per_byte:>11.4f}{middle:>9.3f}{end:>8.2f}"
        lines.append(f"{name:<{width}}{numbers}")
    lines.append("median: of the documents' bits per byte; EOS: bits for the end of a document, in no other column")
    if len(of_scripts) > 1:
        lines.append("in ...: documents most of whose letters are of that script")
    return "\n".join(lines)


def score(arguments: Arguments, trained: Source) -> None:
    """Scores documents, prints the table and writes the files."""
    length, stride = context(arguments)
    if arguments.files:
        text = given_text(arguments.files)
    else:
        text = corpus_text(own_corpus(arguments.model) if arguments.corpus is None else Corpus.open(arguments.corpus))
    mesh = make_mesh()
    batch = -(-arguments.batch // batch_ways(mesh)) * batch_ways(mesh)
    read = Reader(trained, batch=batch, mesh=mesh)
    stream = read(text.documents, length, *stored_entropies(arguments.model, text.corpus))
    batches = heldout_batches(stream, length, stride, batch, arguments.max_bytes)
    batches.verify()
    scores = evaluate_documents(trained.config, trained.params, batches, mesh=mesh)
    numbers: list[int] = batches.documents.tolist()
    scored = [
        Scored(text.names[i], text.sources[i], writing_system(text.documents[i].tobytes()), one)
        for i, one in zip(numbers, scores, strict=True)
    ]
    print(table(scored, arguments.documents))
    print(f"windows of {length:,} positions, {stride:,} apart: each byte once, after {length - stride:,} or more")
    rows = [one.row() for one in scored]
    if arguments.json is not None:
        params = {"config": config_hash(trained.config), "params": params_hash(trained.params)}
        total = Score.total(scores)
        found = {
            "model": {"folder": str(arguments.model), **params},
            "text": text.about,
            "windows": batches.description,
            "bits_per_byte": total.bits_per_byte,
            "sums": dataclasses.asdict(total),
            "sources": totals(grouped(scored, "source")),
            "scripts": totals(grouped(scored, "script")),
            "documents": rows,
        }
        replace_file(arguments.json, json.dumps(found, indent=1).encode())
    if arguments.csv is not None:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def run_tasks(arguments: Arguments, trained: Source) -> None:
    """Runs tasks of lm-eval, prints their table and writes their results."""
    from bltjax.harness import Harness, evaluate_tasks  # here, since lm-eval is an extra

    length, stride = context(arguments)
    model = Harness(trained, context_bytes=length, stride_bytes=stride, batch=arguments.batch)
    results, lines = evaluate_tasks(model, arguments.tasks, arguments.task_folder, arguments.fewshot, arguments.limit)
    print(lines)
    if arguments.json is not None:
        replace_file(arguments.json, json.dumps(results, indent=1, default=str).encode())


def check(arguments: Arguments) -> None:
    """Refuses, before anything is loaded, what does not fit together (ValueError)."""
    for name, path in (("json", arguments.json), ("csv", arguments.csv)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{name}={path}: name a file in a folder that exists.")
    if arguments.batch < 1:
        raise ValueError(f"batch={arguments.batch}: must be at least 1.")
    if arguments.corpus is not None and arguments.files:
        raise ValueError(f"corpus={arguments.corpus}, files={arguments.files}: give one of them.")
    of_documents = ("corpus", "files", "max_bytes", "documents", "csv")
    of_tasks = ("task_folder", "fewshot", "limit")
    for name in of_documents if arguments.tasks else of_tasks:
        if getattr(arguments, name):
            which = "is of no use with tasks; leave one of the two out" if arguments.tasks else "needs tasks"
            raise ValueError(f"{name}={getattr(arguments, name)}: {which}.")
    context(arguments)


def main(arguments: Arguments) -> None:
    check(arguments)
    if arguments.compiled is not None:
        keep_compiled(arguments.compiled)
    trained = load_source(arguments.model, entropy_run=arguments.entropy_run, tokenizer=arguments.tokenizer)
    (run_tasks if arguments.tasks else score)(arguments, trained)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
