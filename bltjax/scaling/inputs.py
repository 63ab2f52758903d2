"""What the runs of a study share: the corpus, the tokenizer, the entropy model, its scores, and sources of rows.

Each stage leaves its result in the study's folder and is skipped where that lies there already; a stage that was
stopped half-way is done again (or, for the entropy model's training, gone on with). Of several processes one makes it,
under a lock, and the others wait for it.
"""

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bltjax import vocabulary
from bltjax.config import (
    ModelConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TrainConfig,
    config_hash,
    to_dict,
)
from bltjax.data import sources
from bltjax.data.corpus import Corpus, Split
from bltjax.data.delimited import DelimitedSource
from bltjax.data.pipeline import HeldoutBatches, heldout_batches
from bltjax.data.sources import Sources
from bltjax.data.starts import patch_starts
from bltjax.data.stream import ByteStream, read_entropies
from bltjax.data.tokenizer import Tokenizer, train
from bltjax.data.views import BLTSource, ByteSource, StreamSource, TokenSource
from bltjax.data.write import prepare
from bltjax.lock import Busy, Lock
from bltjax.metrics import Progress
from bltjax.patching.calibrate import calibrate, check_starts
from bltjax.scaling.rates import learning_rate_rule
from bltjax.scaling.schedules import optim_of
from bltjax.scaling.store import Run, digest
from bltjax.scaling.study import Study
from bltjax.scoring import score_corpus
from bltjax.train import fit

EMBEDDED_BYTES = 8_000_000  # of the standard library, unless a study asks for more

Made = TypeVar("Made")
Say = Callable[[str], None]


def limited(documents: Sources, max_bytes: int | None) -> Sources:
    """At most `max_bytes` bytes of documents, in the order of their SHA-256, each that still fits; None: all.

    Reads everything twice, so that memory holds one document at a time. Copies of a document count once.

    Raises:
      ValueError: where not one document fits.
    """
    if max_bytes is None:
        return documents
    sizes = {hashlib.sha256(document.data).digest(): len(document.data) for document in documents if document.data}
    chosen, left = set(), max_bytes
    for identity in sorted(sizes):
        if sizes[identity] <= left:
            chosen.add(identity)
            left -= sizes[identity]
    if sizes and not chosen:
        raise ValueError(f"corpus_bytes={max_bytes}: the shortest document has {min(sizes.values())} bytes.")

    def choose() -> Iterator[sources.Document]:
        for document in documents:
            if hashlib.sha256(document.data).digest() in chosen:
                yield document

    return Sources(choose, {**documents.origin, "at_most_bytes": max_bytes})


def corpus_limit(study: Study) -> int | None:
    """At most so many bytes of documents are taken; None: all."""
    return EMBEDDED_BYTES if study.corpus_bytes is None and not study.corpus else study.corpus_bytes


def corpus_folder(study: Study) -> Path:
    """Where the corpus of a study lies, or will lie."""
    return study.out / f"corpus-{digest([study.corpus, corpus_limit(study), study.heldout_percent])}"


def is_prepared(study: Study) -> bool:
    """Whether the corpus of a study lies there already."""
    return (corpus_folder(study) / "manifest.json").is_file()


class Inputs:
    """The inputs of a study, each made when it is first asked for.

    Attributes:
      study: whose they are.
      corpus: its documents, split.
    """

    def __init__(self, study: Study, say: Say) -> None:
        """Opens the study's corpus, or prepares it."""
        self.study = study
        self._say = say
        self._made: dict[Hashable, Any] = {}
        folder, limit = corpus_folder(study), corpus_limit(study)
        if not is_prepared(study):
            with self._sole(folder):
                if not is_prepared(study):
                    say(f"preparing the corpus: {', '.join(study.corpus) or 'the standard library of this Python'}")
                    read = sources.read(study.corpus) if study.corpus else sources.embedded()
                    prepare(limited(read, limit), folder, study.heldout_percent)
        self.corpus = Corpus.open(folder)
        sizes = {split: self.corpus.documents(split).total_bytes for split in ("train", "heldout")}
        say(f"corpus {self.corpus.fingerprint}: {sizes['train']:,} bytes to train on, {sizes['heldout']:,} held out")

    def _sole(self, made: Path) -> Lock:
        """The sole right to make something; waits while another process makes it, so look again whether it is there."""
        path = made.with_name(f".{made.name}.lock")  # hidden: it is no input
        try:
            return Lock(path)
        except Busy as busy:
            by = busy.holder
        self._say(f"waiting for {by}, which makes {made.name}")
        return Lock(path, wait=True)

    def _once(self, what: Hashable, make: Callable[[], Made]) -> Made:
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    def tokenizer(self, vocabulary_size: int) -> Tokenizer:
        """A BPE of so many tokens, trained on the training split and checked on every held-out document."""
        return self._once(("tokenizer", vocabulary_size), lambda: self._tokenizer(vocabulary_size))

    def _tokenizer_file(self, vocabulary_size: int) -> Path:
        return self.corpus.folder / f"tokenizer-{vocabulary_size}.json"

    def _tokenizer(self, vocabulary_size: int) -> Tokenizer:
        path = self._tokenizer_file(vocabulary_size)
        if not path.is_file():
            with self._sole(path):
                if not path.is_file():
                    self._say(f"training a tokenizer of {vocabulary_size:,} tokens")
                    train(self.corpus.documents("train"), vocabulary_size, path)
        tokenizer = Tokenizer.load(path)
        tokenizer.check_lossless(self.corpus.documents("heldout"))
        return tokenizer

    def make_tokenizers(self) -> None:
        """Trains every tokenizer of the study that does not lie there, the largest first.

        Raises:
          ValueError: for text too short for one of them, before a model is trained.
        """
        models = self.study.models()
        of_tokens = [model for model in models.values() if isinstance(model, TokenTransformerConfig)]
        wanted = {model.vocabulary_size - vocabulary.OFFSET for model in of_tokens}
        if any(rule is not None and rule.rule == "bpe" for name in models for rule in self.study.patchers_of(name)):
            wanted.add(self.study.delimiter_tokens)
        for tokens in sorted(wanted, reverse=True):
            if not self._tokenizer_file(tokens).is_file():
                try:
                    self.tokenizer(tokens)
                except ValueError as error:
                    if tokens not in self.study.vocabularies:
                        raise
                    raise ValueError(f"vocabularies={self.study.vocabularies!r}: {error}") from error

    @functools.cached_property
    def _entropy_training(self) -> tuple[TrainConfig, ByteSource, dict[str, str], Run]:
        """How the entropy model is trained: its configuration, its rows, what it is known by, and its folder."""
        study, model = self.study, self.study.patcher_model()
        source = ByteSource(self.corpus.documents("train"), RowsConfig(bytes=study.row_bytes, batch=study.batch))
        steps = max(1, round(study.entropy_bytes / (study.batch * source.mean_row_bytes)))
        config = TrainConfig(
            model=model,
            steps=steps,
            rows=source.config,
            optim=optim_of(learning_rate_rule(study.entropy_rate, model), steps),
            log_every=max(1, steps // 50),
            checkpoint_every=1000,
        )
        identity = {"training": config_hash(config), "corpus": self.corpus.fingerprint}
        return config, source, identity, Run(study.out / f"entropy-{digest(identity)}")

    @functools.cached_property
    def entropy_fingerprint(self) -> dict[str, str]:
        """What the stored entropies are known by: the entropy model's training, and the hash of its parameters.

        Trains the entropy model and scores both splits with it, unless that is done.
        """
        run = self._entropy_training[-1]
        if not run.complete:
            with self._sole(run.folder):
                if not run.complete:
                    self._train_entropy_model()
        manifest = run.manifest()
        assert manifest is not None
        return manifest["result"]["fingerprint"]

    def _train_entropy_model(self) -> None:
        config, source, identity, run = self._entropy_training
        self._say(f"training the entropy model on {self.study.entropy_bytes / 1e6:.3g} MB, {config.steps:,} steps")
        manifest = run.begin({"id": digest(identity), "config": to_dict(config), "inputs": identity})
        done = fit(config, source, run.folder, progress=Progress("entropy model"), checkpoint_seconds=30)
        self._say("scoring the corpus with it")
        # The corpus is this study's own, and each run is known by the scores that it has read.
        fingerprint = score_corpus(self.study.patcher_model(), done.params, self.corpus, overwrite=True)
        run.finish(manifest, {"fingerprint": fingerprint, "device_seconds": done.device_seconds})

    def patcher(self, wanted: PatcherConfig) -> PatcherConfig:
        """A patcher as asked for; one by entropy with the threshold that gives the mean patch of the training split."""
        if wanted.rule != "entropy":
            return wanted
        return self._once(("patcher", wanted), lambda: self._calibrated(wanted))

    def _calibrated(self, wanted: PatcherConfig) -> PatcherConfig:
        entropies = read_entropies(self.corpus, "train", self.entropy_fingerprint)
        boundaries = ByteStream(self.corpus.documents("train")).document_starts
        found = calibrate(wanted, boundaries, entropies)
        self._say(f"threshold {found.threshold:.4f} nats: {found.mean_patch_bytes:.3f} bytes per patch")
        return found.config

    def _starts(self, wanted: PatcherConfig, split: Split) -> np.ndarray:
        config, documents = self.patcher(wanted), self.corpus.documents(split)
        if config.rule != "entropy":
            return patch_starts(documents, config)
        known_by = self.entropy_fingerprint
        starts = patch_starts(documents, config, read_entropies(self.corpus, split, known_by), known_by)
        if split == "train":
            check_starts(config, starts, ByteStream(documents).document_starts, self.study.row_bytes)
        return starts

    def trained(self, model: ModelConfig, wanted: PatcherConfig | None) -> bool:
        """Whether what the rows of a model need lies there: a tokenizer, or an entropy model and its scores."""
        if wanted is not None and wanted.rule == "entropy":
            return self._entropy_training[-1].complete
        if wanted is not None and wanted.rule == "bpe":
            return self._tokenizer_file(self.study.delimiter_tokens).is_file()
        if isinstance(model, TokenTransformerConfig):
            return self._tokenizer_file(model.vocabulary_size - vocabulary.OFFSET).is_file()
        return True

    def source(self, model: ModelConfig, wanted: PatcherConfig | None, split: Split) -> StreamSource:
        """A split as rows that a model reads, cut as asked for where it reads patches."""
        if wanted is not None:
            make = self._delimited_source if wanted.rule == "bpe" else self._patched_source
            return self._once(("patches", wanted, split), lambda: make(wanted, split))
        if isinstance(model, TokenTransformerConfig):
            tokens = model.vocabulary_size - vocabulary.OFFSET
            return self._once(("tokens", tokens, split), lambda: self._token_source(tokens, split))
        return self._once(("bytes", split), lambda: ByteSource(self.corpus.documents(split), self._rows))

    @property
    def _rows(self) -> RowsConfig:
        return RowsConfig(bytes=self.study.row_bytes, batch=self.study.batch)

    def _patched_source(self, wanted: PatcherConfig, split: Split) -> StreamSource:
        return BLTSource(self.corpus.documents(split), self._starts(wanted, split), self._rows)

    def _delimited_source(self, wanted: PatcherConfig, split: Split) -> StreamSource:
        return DelimitedSource(self.corpus.documents(split), self.tokenizer(self.study.delimiter_tokens), self._rows)

    def _token_source(self, tokens: int, split: Split) -> StreamSource:
        return TokenSource(self.corpus.documents(split), self.tokenizer(tokens), self._rows)

    def heldout(self, model: ModelConfig, wanted: PatcherConfig | None) -> HeldoutBatches:
        """The held-out windows that a model is scored on: the same bytes for every family."""
        source = self.source(model, wanted, "heldout")
        return self._once(("windows", source), lambda: self._windows(source))

    def _windows(self, source: StreamSource) -> HeldoutBatches:
        study = self.study
        return heldout_batches(source, study.row_bytes, study.stride, study.batch, study.heldout_bytes)

    def heldout_unit_bytes(self, model: ModelConfig, wanted: PatcherConfig | None) -> float:
        """Raw bytes per patch or token over all held-out documents; 1 for bytes."""
        source = self.source(model, wanted, "heldout")
        if isinstance(source, BLTSource):
            return source.documents.total_bytes / int(source.stream_starts.sum())
        if isinstance(source, TokenSource | DelimitedSource):
            return source.documents.total_bytes / len(source.tokens.ids)
        return 1.0

    def identity(self, model: ModelConfig, wanted: PatcherConfig | None) -> dict[str, Any]:
        """What went into a run of a model besides its configuration: part of what the run is known by."""
        study = self.study
        scoring = {"row_bytes": study.row_bytes, "stride_bytes": study.stride, "bytes": study.heldout_bytes}
        out: dict[str, Any] = {"corpus": self.corpus.fingerprint, "scoring": scoring}
        if wanted is not None and wanted.rule == "entropy":
            out["entropies"] = self.entropy_fingerprint
        if wanted is not None and wanted.rule == "bpe":
            out["tokenizer"] = self.tokenizer(study.delimiter_tokens).fingerprint
        if isinstance(model, TokenTransformerConfig):
            out["tokenizer"] = self.tokenizer(model.vocabulary_size - vocabulary.OFFSET).fingerprint
        return out
