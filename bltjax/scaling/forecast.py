"""The runs of a study before it begins: with rows as measured where its inputs lie there, else as they are wanted.

A study measures its rows once its corpus is read, its tokenizer trained and its entropy model done. Before that a run
is planned with full rows, with patches of the size that is asked for, and with tokens (and words) of 4 bytes. Which of
the two a number rests on is kept with it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bltjax.config import ModelConfig, PatcherConfig, RowsConfig, TokenTransformerConfig
from bltjax.data.rows import default_slots
from bltjax.scaling.inputs import Inputs, corpus_limit, is_prepared
from bltjax.scaling.plan import RowFacts, RunPlan, plan_run
from bltjax.scaling.series import patch_size
from bltjax.scaling.study import NOMINAL_BYTES, Study
from bltjax.scaling.sweep import run_of
from bltjax.scaling.throughput import throughput_of
from bltjax.scaling.trunk import Trunk, jobs, saved_steps


@dataclasses.dataclass(frozen=True)
class Text:
    """What is known of a study's text, in bytes; None: not known before it is read."""

    train_bytes: int | None
    heldout_bytes: int | None  # of all documents that are held out
    measured: bool
    words: str  # where the numbers come from


@dataclasses.dataclass(frozen=True)
class Foreseen:
    """A run, whether its rows were measured, and whether it is complete, so that nothing is left to be spent."""

    plan: RunPlan
    measured: bool
    done: bool = False

    def warnings(self) -> list[str]:
        """What a reader of its result should know; how full rows are is only known once they are measured."""
        if self.measured:
            return self.plan.warnings()
        full = dataclasses.replace(self.plan.facts, byte_fill=1.0, slot_fill=1.0)
        return dataclasses.replace(self.plan, facts=full).warnings()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a trunk, computed once for all runs that leave it further on.

    Attributes:
      plan: the longest of those runs.
      first, last: steps.
      done: its end is reached, or no run is left that needs it.
    """

    plan: RunPlan
    measured: bool
    first: int
    last: int
    done: bool

    @property
    def bytes(self) -> float:
        """Raw bytes that it is trained on, as expected."""
        return (self.last - self.first) * self.plan.train.rows.batch * self.plan.facts.mean_row_bytes


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All runs of a study, cheapest budget first, and the text that they are to read."""

    study: Study
    text: Text
    runs: tuple[Foreseen, ...]
    pieces: tuple[Piece, ...] = ()  # of the trunks that runs leave, in the order in which they are trained
    entropy_done: bool = False  # whether the entropy model is trained, and the text scored with it

    @property
    def by_entropy(self) -> bool:
        """Whether an entropy model is trained first, which the runs share."""
        return any(run.plan.by_entropy for run in self.runs)


def forecast(study: Study, say: Callable[[str], None], prepare: bool = False) -> Forecast:
    """The runs of a study.

    Args:
      prepare: prepare the corpus, train tokenizers and the entropy model first, as the study does: the study finds
        them there, and all rows are measured. Otherwise nothing is made, and only what lies there is measured.

    Raises:
      ValueError: for a budget of less than one step.
    """
    inputs = Inputs(study, say) if prepare or is_prepared(study) else None
    text = _text(study, inputs)
    if inputs is not None and prepare:
        inputs.make_tokenizers()
    runs = []
    for name, model in study.models().items():
        for wanted in study.patchers_of(name):
            if inputs is not None and (prepare or inputs.trained(model, wanted)):
                source = inputs.source(model, wanted, "train")
                rows, facts = source.config, RowFacts.of(source, model)
                patcher = None if wanted is None else inputs.patcher(wanted)
                identity, measured = inputs.identity(model, wanted), True
            else:
                rows, facts = expected_rows(study, model, wanted, text.train_bytes)
                patcher, identity, measured = wanted, None, False
            throughput = throughput_of(study, name, model, rows if measured else None)
            for budget, seed, rate in itertools.product(study.budgets, study.seeds, study.peak_rates):
                plan = plan_run(
                    study, name, model, rows, facts, budget, seed, rate, patcher, wanted, identity, throughput
                )
                runs.append(Foreseen(plan, measured, measured and run_of(study, plan).complete))
    runs.sort(key=lambda run: run.plan.budget)
    entropy_done = any(run.measured and run.plan.by_entropy for run in runs)
    return Forecast(study, text, tuple(runs), tuple(_pieces(study, runs)), entropy_done)


def _pieces(study: Study, runs: Sequence[Foreseen]) -> Iterator[Piece]:
    """The trunks in parts, cut at every step where a run leaves, and wherever a part that lies there ends."""
    by_plan = {id(run.plan): run for run in runs}
    for job in jobs([run.plan for run in runs if run.plan.branch_step]):
        longest = max(job, key=lambda plan: plan.branch_step)
        measured = by_plan[id(longest)].measured
        there = Trunk(study, longest).points() if measured else []
        waiting = [
            plan.branch_step
            for plan in job
            if not (by_plan[id(plan)].done or (measured and saved_steps(run_of(study, plan).folder)))
        ]
        starts = {point: max((one for one in there if one <= point), default=0) for point in waiting}
        cuts = sorted({0, *(plan.branch_step for plan in job), *(p for p in there if p < longest.branch_step)})
        for first, last in itertools.pairwise(cuts):
            done = not any(start < last <= point for point, start in starts.items())
            yield Piece(longest, measured, first, last, done)


def _text(study: Study, inputs: Inputs | None) -> Text:
    if inputs is not None:
        sizes = [inputs.corpus.documents(split).total_bytes for split in ("train", "heldout")]
        return Text(sizes[0], sizes[1], True, f"corpus {inputs.corpus.fingerprint}, as prepared")
    limit = corpus_limit(study)
    if limit is None:
        return Text(None, None, False, "not read yet, so its size is not known")
    heldout = round(limit * study.heldout_percent / 100)
    return Text(limit - heldout, heldout, False, f"not read yet, taken to have {limit:,} bytes, its limit")


def expected_rows(
    study: Study, model: ModelConfig, wanted: PatcherConfig | None, train_bytes: int | None
) -> tuple[RowsConfig, RowFacts]:
    """The rows of a model if its text were cut as is wanted, evenly and without a byte left over.

    Patches whose rule has no choice of size, and tokens, are taken to hold NOMINAL_BYTES.
    """
    positions = study.row_bytes
    is_token = isinstance(model, TokenTransformerConfig)
    if not (is_token or model.reads_patches):
        rows = RowsConfig(bytes=positions, batch=study.batch)
        return rows, RowFacts(train_bytes, positions, float(positions), 1.0, 1.0, 1.0)
    unit = min(patch_size(wanted) or NOMINAL_BYTES, float(positions))
    slots = default_slots(np.array([math.ceil(positions / unit)], np.int64))
    delimiters = 0
    if wanted is not None and wanted.rule == "bpe":
        delimiters, slots = slots, slots + 2  # each token spelt in bytes has a delimiter; see data.delimited
    facts = RowFacts(
        corpus_bytes=train_bytes,
        positions=positions + delimiters,
        mean_row_bytes=float(positions),
        unit_bytes=unit,
        byte_fill=positions / (positions + delimiters),
        slot_fill=positions / unit / slots,
    )
    return RowsConfig(bytes=positions, slots=slots, batch=study.batch), facts
