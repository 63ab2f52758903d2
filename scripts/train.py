"""Trains one model on a corpus, or goes on with it, and scores it on the held-out documents.

    python scripts/prepare_corpus.py --folder corpora/python
    python scripts/train.py --preset byte-cpu-2 --corpus corpora/python --out runs/byte --steps 500

A BLT whose patches are set by entropy needs the entropies of the corpus: train the small model that they come from,
then name its run. They are stored beside the corpus, so the next BLT needs no `--entropy-run`.

    python scripts/train.py --preset entropy-cpu --corpus corpora/python --out runs/entropy --steps 1000
    python scripts/train.py --preset blt-cpu-2 --corpus corpora/python --entropy-run runs/entropy --out runs/blt

Every key of the configuration is a flag: `--optim.peak-rate 1e-3 --rows.bytes 2048 --model.encoder.layers 2`; `--help`
after a preset shows those of that model. `--config` takes a JSON file instead of a preset, such as the config.json
that a run leaves. Stopped or killed, the same command goes on; stopped by SIGTERM it ends with status 75.

Several processes, each with its own devices, train together: scripts/launch has files that start them.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from bltjax import vocabulary
from bltjax.config import (
    EntropyModelConfig,
    MeshConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TrainConfig,
    config_hash,
    from_dict,
    usual_patcher,
)
from bltjax.data.corpus import Corpus, Split
from bltjax.data.mixture import Mixture
from bltjax.data.pipeline import HeldoutBatches, heldout_batches
from bltjax.data.starts import patch_starts
from bltjax.data.stream import ByteStream, read_entropies
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.tokenizer import train as train_tokenizer
from bltjax.data.views import BLTSource, ByteSource, Source, StreamSource, TokenSource
from bltjax.metrics import replace_file
from bltjax.patching.calibrate import calibrate, check_starts
from bltjax.presets import preset
from bltjax.provenance import Provenance, note_scorer, scorer_of
from bltjax.runtime import Stopped, is_first_process, keep_compiled, process_count, start, together
from bltjax.scoring import params_hash, score_corpus
from bltjax.sharding import make_mesh
from bltjax.train import evaluate, fit, load_params
from bltjax.walltime import WallTime, table


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Trains one model."""

    corpus: Path
    """A folder that prepare_corpus wrote."""
    out: Path
    """The folder of this run."""
    run: Annotated[tyro.conf.AvoidSubcommands[TrainConfig], tyro.conf.arg(name="")]
    """The configuration; defaults from the preset or the file."""
    preset: str | None = None
    """Name of a model in bltjax.presets."""
    config: Path | None = None
    """JSON of a training configuration, in place of a preset."""
    entropy_run: Path | None = None
    """Run of the entropy model whose scores set the patches; None: the scores that are stored beside the corpus."""
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Draw training rows from these sources of the corpus, in these shares of bytes; none: every document alike."""
    heldout_bytes: int | None = None
    """Score at most this many bytes of held-out documents; None: all."""
    stride_bytes: int | None = None
    """How far apart the windows end in which long held-out documents are scored; None: half a row."""
    track: tuple[str, ...] = ()
    """Further places for the metrics: tensorboard, wandb."""
    checkpoint_minutes: float = 1.0
    """Save after so much time too, not only every --checkpoint-every steps."""
    grace_seconds: float | None = None
    """After SIGTERM: end by then, saved or not; None: take the time that saving takes."""
    allow_change: tuple[str, ...] = ()
    """Keys of the configuration that may differ from what this run was begun with, such as optim.peak-rate."""
    profile: int = 0
    """Trace so many steps, from the third one on, into the folder "profile" of the run, for xprof."""
    coordinator: str | None = None
    """host:port of process 0, where several processes train together; srun, mpirun and GKE need none of these three."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    distributed: bool | None = None
    """Whether there are several, to be found by their surroundings; needed on Cloud TPU VMs."""


def base(arguments: list[str]) -> TrainConfig:
    """The configuration before overrides, from --preset or --config.

    Raises:
      ValueError: for both, an unknown preset, or a file that is not a configuration.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--config"):
        parser.add_argument(name)
    chosen = parser.parse_known_args([a.replace("_", "-") if a.startswith("--") else a for a in arguments])[0]
    if (chosen.preset is None) == (chosen.config is None):
        raise ValueError("give one of --preset (a name in bltjax.presets) and --config (a JSON file).")
    if chosen.preset is not None:
        model = preset(chosen.preset)
        return TrainConfig(model, steps=1000, patcher=usual_patcher(model))
    try:
        values = json.loads(Path(chosen.config).read_bytes())
    except ValueError as error:
        raise ValueError(f"config={chosen.config}: is not JSON ({error}).") from error
    for note in ("data", "changes"):  # what a run notes about its corpus, and about itself
        values.pop(note, None)
    return from_dict(TrainConfig, values)


class Inputs:
    """What the model reads: the corpus in rows."""

    def __init__(
        self, corpus: Corpus, run: TrainConfig, entropy_run: Path | None, weights: dict[str, float] | None = None
    ) -> None:
        """
        Raises:
          ValueError: for an entropy run that is not needed, not one of an entropy model, or not that of the scores
            which are stored; for an entropy rule without scores.
        """
        self.corpus, self.run, self.weights = corpus, run, weights or {}
        patcher = run.patcher
        by_entropy = patcher is not None and patcher.rule == "entropy"
        if entropy_run is not None and not by_entropy:
            raise ValueError(f"entropy_run={entropy_run}: only a BLT with patcher.rule='entropy' reads entropies.")
        self.fingerprint = self._fingerprint(entropy_run) if by_entropy else None
        self.entropy_run = entropy_run
        if self.fingerprint is not None and entropy_run is None:
            self.entropy_run = scorer_of(corpus.folder, self.fingerprint)
        if patcher is not None and by_entropy and patcher.threshold is None:
            boundaries = ByteStream(corpus.documents("train")).document_starts
            found = calibrate(patcher, boundaries, self._entropies("train"))
            say(f"threshold {found.config.threshold!r} nats: {found.mean_patch_bytes:.3f} bytes per patch")
            self.run = dataclasses.replace(run, patcher=found.config)

    def _fingerprint(self, entropy_run: Path | None) -> dict[str, Any]:
        about = self.corpus.folder / "train.entropies.json"
        stored = json.loads(about.read_bytes())["fingerprint"] if about.is_file() else None
        if entropy_run is None:
            if stored is None:
                raise ValueError(
                    f"patcher.rule='entropy': {self.corpus.folder} has no entropies yet. Train an entropy model on it "
                    "(--preset entropy-cpu) and name its run with --entropy-run, or choose another --patcher.rule."
                )
            return {key: value for key, value in stored.items() if key != "corpus"}
        # Whole on every device, so that each process can hash them.
        mesh = make_mesh(MeshConfig(replica=-1, data=1)) if process_count() > 1 else None
        config, params, step = load_params(entropy_run, mesh)
        if not isinstance(config.model, EntropyModelConfig) or step < config.steps:
            kind = f"step {step} of {config.steps} of a {type(config.model).__name__}"
            raise ValueError(f"entropy_run={entropy_run}: is {kind}; name a finished run of an entropy model.")
        wanted = {"model": config_hash(config.model), "params": params_hash(params)}
        if stored is not None and any(stored.get(key) != value for key, value in wanted.items()):
            raise ValueError(
                f"entropy_run={entropy_run}: {self.corpus.folder} has the entropies of another model, which other runs "
                f"may have read. Leave --entropy-run out to use them, or remove {about} to score the corpus anew."
            )
        say("entropies: " + ("stored already" if stored else "scoring the corpus"))
        fingerprint = score_corpus(config.model, params, self.corpus)
        if is_first_process() and os.access(self.corpus.folder, os.W_OK):
            note_scorer(self.corpus.folder, entropy_run, fingerprint)
        return fingerprint

    def _entropies(self, split: Split, source: str | None = None) -> Any:
        assert self.fingerprint is not None
        return read_entropies(self.corpus, split, self.fingerprint, source)

    def _starts(self, patcher: PatcherConfig, split: Split, source: str | None) -> np.ndarray:
        documents = self.corpus.documents(split, source)
        entropies = None if self.fingerprint is None else self._entropies(split, source)
        starts = patch_starts(documents, patcher, entropies, self.fingerprint)
        if split == "train":
            check_starts(patcher, starts, ByteStream(documents).document_starts, self.run.rows.bytes)
        return starts

    def _tokenizer_file(self, tokens: int) -> Path:
        return self.corpus.folder / f"tokenizer-{tokens}.json"

    def _tokenizer(self, tokens: int) -> Tokenizer:
        path = self._tokenizer_file(tokens)
        if path.is_file():
            return Tokenizer.load(path)
        say(f"training a tokenizer of {tokens:,} tokens")
        tokenizer = train_tokenizer(self.corpus.documents("train"), tokens, path)
        tokenizer.check_lossless(self.corpus.documents("heldout"))
        return tokenizer

    def training(self) -> Source:
        """The training split in rows for the model, mixed by weights, if there are any."""
        rows = self.run.rows
        if not self.weights:
            return self._source("train", rows)
        if rows.slots is None and (self.run.model.reads_patches or isinstance(self.run.model, TokenTransformerConfig)):
            rows = self._source("train", rows).config  # one number for all sources
        mixed = [self._source("train", rows, name) for name in self.weights]
        return Mixture(mixed, list(self.weights.values()))

    def provenance(self) -> Provenance:
        """What the run is made with, for its folder to say."""
        model, folder = self.run.model, self.corpus.folder
        found = Provenance(self.corpus.fingerprint, folder, self.fingerprint, self.entropy_run)
        if not isinstance(model, TokenTransformerConfig):
            return found
        tokens = model.vocabulary_size - vocabulary.OFFSET
        tokenizer, file = self._tokenizer(tokens), self._tokenizer_file(tokens)
        return dataclasses.replace(found, tokenizer=tokenizer.fingerprint, tokenizer_file=file)

    def heldout(self) -> StreamSource:
        """The held-out split, to be scored by the model."""
        return self._source("heldout", RowsConfig(bytes=self.run.rows.bytes, batch=self.run.rows.batch))

    def _source(self, split: Split, rows: RowsConfig, source: str | None = None) -> StreamSource:
        documents, model = self.corpus.documents(split, source), self.run.model
        if model.reads_patches:
            assert self.run.patcher is not None
            return BLTSource(documents, self._starts(self.run.patcher, split, source), rows)
        if isinstance(model, TokenTransformerConfig):
            return TokenSource(documents, self._tokenizer(model.vocabulary_size - vocabulary.OFFSET), rows)
        return ByteSource(documents, rows)


def say(message: str) -> None:
    """Prints, if this is the first process."""
    if is_first_process():
        print(message, flush=True)


def sound_corpus(arguments: Arguments) -> Corpus:
    """The corpus, compared with its checksums where a run goes on."""
    corpus = Corpus.open(arguments.corpus)
    if (arguments.out / "config.json").exists() and "shards" not in corpus.manifest["splits"]["train"]:
        say("comparing the corpus with its checksums, since this run goes on")  # shards are compared when they are read
        corpus.verify()
    return corpus


def main(arguments: Arguments) -> None:
    wall = WallTime()
    start(
        arguments.coordinator, arguments.num_processes, arguments.process_id, several=arguments.distributed
    )  # fmt: skip
    keep_compiled(arguments.out / "compiled")
    corpus = together("corpus", lambda: sound_corpus(arguments))
    inputs = Inputs(corpus, arguments.run, arguments.entropy_run, arguments.weights)
    # What is made once, such as a tokenizer, the first process makes, and then the others find it.
    made = together("inputs", inputs.training, first_only=True)
    training = together("training rows", lambda: inputs.training() if made is None else made)
    rows = arguments.run.rows
    stride = rows.bytes // 2 if arguments.stride_bytes is None else arguments.stride_bytes
    part = (jax.process_index(), jax.process_count())

    def scored() -> HeldoutBatches:
        found = heldout_batches(inputs.heldout(), rows.bytes, stride, rows.batch, arguments.heldout_bytes, *part)
        found.verify()
        return found

    heldout = together("held-out rows", scored)
    wall.tick("start")
    result = fit(
        inputs.run,
        training,
        arguments.out,
        track=arguments.track,
        checkpoint_seconds=60 * arguments.checkpoint_minutes,
        grace_seconds=arguments.grace_seconds,
        allow_change=arguments.allow_change,
        profile=arguments.profile,
        provenance=inputs.provenance(),
    )
    wall.skip()  # what training took, `fit` has booked
    wall.add(result.wall)
    say(f"scoring {heldout.bytes:,} held-out bytes")
    score = evaluate(inputs.run.model, result.params, heldout)
    wall.tick("evaluation")
    if not is_first_process():
        return
    found = {
        "bits_per_byte": score.bits_per_byte,
        "sums": dataclasses.asdict(score),
        "heldout": heldout.description,
        "bytes_seen": result.bytes_seen,
        "device_seconds": result.device_seconds,
        "fill": result.fill,
    }
    replace_file(arguments.out / "result.json", json.dumps(found, indent=2).encode())
    say(f"where the wall time went\n{table(wall.seconds)}")
    say(f"{score.bits_per_byte:.4f} bits per byte on held-out documents; all about it in {arguments.out}")


if __name__ == "__main__":
    try:
        helping = {"-h", "--help"} & set(sys.argv) and not {"--preset", "--config"} & set(sys.argv)
        defaults = base(["--preset", "blt-cpu-2"] if helping else sys.argv[1:])
        run = Arguments(corpus=tyro.MISSING, out=tyro.MISSING, run=defaults)
        main(tyro.cli(Arguments, default=run, description=__doc__))
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(75)  # of sysexits.h: a failure that will pass, so try again
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint.")
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
