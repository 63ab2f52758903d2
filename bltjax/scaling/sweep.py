"""A study run from beginning to end: every run once, whatever happens to the process, then the table and figures."""

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bltjax.checkpoint import Checkpoints
from bltjax.config import PatcherConfig, config_hash, to_dict
from bltjax.flops import non_embedding_parameters, parameters
from bltjax.metrics import Progress, duration
from bltjax.runtime import Stopped
from bltjax.scaling import plots
from bltjax.scaling.fit import best_of_rates
from bltjax.scaling.fit.vocabularies import chosen, swept, vocabulary_of
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plan import RowFacts, RunPlan, plan_run, plan_table, run_hash
from bltjax.scaling.plots import budget_text, count_text, flops_text
from bltjax.scaling.rates import rate_suffix
from bltjax.scaling.store import Json, Run, write_json, write_table
from bltjax.scaling.study import Study
from bltjax.scaling.throughput import machine_of, measure, throughput_of
from bltjax.scaling.trunk import branch_off, origin_of, seconds_spent, trunk_hash
from bltjax.scaling.variants import MARK
from bltjax.train import evaluate, fit

Row = dict[str, Any]
Cut = tuple[str, PatcherConfig | None]  # the name of a model, and how its text is cut
PARABOLAS = "Parabolas in ln N, no intervals; dotted where the runs do not bracket an optimum."
CHECKPOINT_SECONDS = 30.0  # at most so much work is lost to a kill


def plan_study(study: Study, inputs: Inputs, only: Cut | None = None) -> list[RunPlan]:
    """All runs of a study, smallest budget first.

    Args:
      only: the runs of one model on text cut in one way, so that no other rows are made.

    Raises:
      ValueError: for a budget of less than one step.
    """
    if only is None or study.vocabularies:
        inputs.make_tokenizers()  # text too short for one of them shows before a model is trained
    plans = []
    for name, model in study.models().items():
        for wanted in study.patchers_of(name):
            if only is not None and only != (name, wanted):
                continue
            source = inputs.source(model, wanted, "train")
            patcher = None if wanted is None else inputs.patcher(wanted)
            facts = RowFacts.of(source, model)
            identity = inputs.identity(model, wanted)
            throughput = throughput_of(study, name, model, source.config)
            for budget, seed, rate in itertools.product(study.budgets, study.seeds, study.peak_rates):
                plans.append(
                    plan_run(
                        study, name, model, source.config, facts, budget, seed, rate, patcher, wanted, identity,
                        throughput,
                    )
                )  # fmt: skip
    return sorted(plans, key=lambda plan: plan.budget)


def run_of(study: Study, plan: RunPlan) -> Run:
    """The folder of a run: readable, and unique by the hash of all that the run depends on."""
    patches = "" if plan.patch_size is None else f"-p{plan.patch_size:g}"
    name = f"{plan.name}{patches}-{flops_text(plan.budget)}{rate_suffix(plan.rate)}-s{plan.seed}"
    return Run(study.out / "runs" / f"{name}-{run_hash(plan)}")


def execute(study: Study, plan: RunPlan, inputs: Inputs, label: str = "") -> Json:
    """Trains and scores one run, or goes on with it, or finds it complete; its manifest.

    What ends it other than a stop is written into the manifest.

    Raises:
      Busy: while another process does this run.
      Stopped: when it was asked to stop during training; the state is saved.
    """
    run = run_of(study, plan)
    if not run.complete:
        with run.hold():
            if not run.complete:  # another process may have completed it just before
                try:
                    return _train_and_score(study, plan, inputs, run, label)
                except (Stopped, BlockingIOError):
                    raise
                except Exception as error:
                    run.fail(run_hash(plan), error)
                    raise
    manifest = run.manifest()
    assert manifest is not None
    return manifest


def _train_and_score(study: Study, plan: RunPlan, inputs: Inputs, run: Run, label: str) -> Json:
    model = plan.train.model
    heldout = inputs.heldout(model, plan.wanted)
    source = inputs.source(model, plan.wanted, "train")
    steps = Checkpoints(run.folder / "checkpoints").steps()
    branch_off(study, plan, run.folder, source, Progress(f"{label or plan.name}, trunk"), CHECKPOINT_SECONDS)
    manifest = run.begin(
        {
            "id": run_hash(plan),
            "trunk": trunk_hash(plan) if plan.branch_step else run_hash(plan),
            "branch_step": plan.branch_step,
            "family": plan.family,
            "series": plan.series,
            "preset": plan.name,
            "budget": plan.budget,
            "equal": plan.equal,
            "accounting": plan.accounting,
            "patch_size_wanted": plan.patch_size,
            "config": to_dict(plan.train),
            "config_hash": config_hash(plan.train),
            "inputs": plan.inputs,
            "rows": dataclasses.asdict(plan.facts),
            "parameters": {**parameters(model), "non_embedding": non_embedding_parameters(model)},
            "flops_per_byte": {
                name: {
                    "version": cost.accounting,
                    "forward": cost.forward,
                    "training": cost.training,
                    "parts": dict(cost.parts),
                }
                for name, cost in plan.flops.items()
            },
            "entropy_model": study.shared_patcher() if plan.by_entropy else None,
            "heldout": heldout.description,
        },
        resumed_from=steps[0] if steps else None,
    )
    result = fit(
        plan.train,
        source,
        run.folder,
        progress=Progress(label or plan.name),
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    score = evaluate(model, result.params, heldout)
    if not math.isfinite(score.bits_per_byte):
        raise FloatingPointError(f"{run.folder}: the held-out loss is not finite; lower peak_rates.")
    complete = run.finish(
        manifest,
        {
            "heldout_bits_per_byte": score.bits_per_byte,
            "heldout_sums": dataclasses.asdict(score),
            "heldout_special_bits": score.special_nats / math.log(2) / max(score.specials, 1),
            "heldout_unit_bytes": inputs.heldout_unit_bytes(model, plan.wanted),
            "bytes_seen": result.bytes_seen,
            "epochs": plan.facts.epochs(result.bytes_seen),
            "fill": result.fill,
            "training_flops": {name: cost.training * result.bytes_seen for name, cost in plan.flops.items()},
            "bench_seconds": plan.bench_seconds,
            "device_seconds": result.device_seconds,
            "own_device_seconds": result.device_seconds - origin_of(run.folder)["device_seconds"],
        },
    )
    if not study.keep_weights:
        shutil.rmtree(run.folder / "checkpoints")
    return complete


def table_row(manifest: Json) -> Row:
    """One row of a study's table, from the manifest of a complete run."""
    result, flops, groups = manifest["result"], manifest["flops_per_byte"], manifest["parameters"]
    config = manifest["config"]
    accounting = manifest["accounting"]
    return {
        "run": manifest["id"],
        "family": manifest["family"],
        "series": manifest["series"],
        "preset": manifest["preset"],
        "vocabulary": vocabulary_of(manifest),
        "seed": config["seed"],
        "budget": manifest["budget"],
        "accounting": flops[accounting]["version"],
        "training_flops": result["training_flops"][accounting],
        "heldout_bits_per_byte": result["heldout_bits_per_byte"],
        "heldout_special_bits": result["heldout_special_bits"],
        "heldout_bytes": result["heldout_sums"]["bytes"],
        "parameters_non_embedding": groups["non_embedding"],
        "parameters": sum(count for name, count in groups.items() if name != "non_embedding"),
        "bytes_seen": result["bytes_seen"],
        "epochs": result["epochs"],
        "steps": config["steps"],
        "peak_rate": config["optim"]["peak_rate"],  # of the base, where it is transferred
        "transfer": config["optim"].get("transfer", {"rule": "none"})["rule"],
        "bytes_per_unit": manifest["rows"]["unit_bytes"],
        "heldout_bytes_per_unit": result["heldout_unit_bytes"],
        "byte_fill": manifest["rows"]["byte_fill"],
        "slot_fill": manifest["rows"]["slot_fill"],
        "training_flops_paper": result["training_flops"]["paper"],
        "training_flops_full": result["training_flops"]["full"],
        "forward_flops_per_byte_paper": flops["paper"]["forward"],
        "forward_flops_per_byte_full": flops["full"]["forward"],
        "device_seconds": result["device_seconds"],
        # Budgets of an older manifest are FLOPs.
        "equal": manifest.get("equal", "flops"),
        "bench_seconds": result.get("bench_seconds"),
        # A manifest that names no trunk is older than trunks: its run was trained alone.
        "schedule": config["optim"]["schedule"],
        "trunk": manifest.get("trunk", manifest["id"]),
        "branch_step": manifest.get("branch_step", 0),
        "own_device_seconds": result.get("own_device_seconds", result["device_seconds"]),
    }


def claim(study: Study) -> None:
    """Makes the study's folder its own, by its study.json.

    Raises:
      ValueError: for a file, or a folder that holds something else.
    """
    if study.out.exists() and not study.out.is_dir():
        raise ValueError(f"out={study.out}: is a file; name a folder.")
    if study.out.is_dir() and any(study.out.iterdir()) and not (study.out / "study.json").exists():
        raise ValueError(f"out={study.out}: holds something else than a study; name another folder.")
    write_json(study.out / "study.json", {**dataclasses.asdict(study), "out": str(study.out)})


def run_study(study: Study, say: Callable[[str], None]) -> list[Row]:
    """Does all of a study that is not done yet, cheapest first, then writes table and figures; the table's rows.

    Raises:
      ValueError: for what cannot be trained, before anything is trained.
      Stopped: when it was asked to stop during training; the state is saved.
    """
    claim(study)
    begun = time.monotonic()

    def tell(message: str) -> None:
        say(f"[{duration(time.monotonic() - begun)}] {message}")

    inputs = Inputs(study, tell)
    if study.equal == "seconds":
        measure(study, inputs, tell)
    plans = plan_study(study, inputs)
    say(plan_table(plans))
    found: dict[str, Row] = {}
    total, spent = sum(plan.training_flops for plan in plans), 0.0
    for number, plan in enumerate(sorted(plans, key=lambda plan: plan.device_flops), start=1):
        done = run_of(study, plan).complete
        label = f"{number}/{len(plans)} {plan.name} {flops_text(plan.budget)}{rate_suffix(plan.rate)}"
        row = found[run_hash(plan)] = table_row(execute(study, plan, inputs, label))
        spent += plan.training_flops
        bits = row["heldout_bits_per_byte"]
        tell(f"{label}: {bits:.4f} bits per byte{' (done before)' if done else ''}; {spent / total:.0%} of all FLOPs")
    rows = [found[run_hash(plan)] for plan in plans]
    if study.schedule == "wsd":
        tell(seconds_spent(study, rows))
    write_table(rows, study.out)
    draw(rows, study, inputs)
    return rows


def draw(rows: Sequence[Row], study: Study, inputs: Inputs) -> list[Path]:
    """Writes the figures of a study: bits_per_byte, and isoflop_<series> for each series."""
    about = f"{caption(rows, study, inputs)} {PARABOLAS}"
    paths = plots.save(plots.frontier_figure(rows, about), study.out, "bits_per_byte")
    for series in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == series]
        if MARK in series and len({row["preset"] for row in own}) == 1:
            continue  # of a variant there is often one size alone
        paths += plots.save(plots.isoflop_figure(own, about), study.out, f"isoflop_{series}")
    return paths


def caption(rows: Sequence[Row], study: Study, inputs: Inputs) -> str:
    """What every figure says about its numbers."""
    text = ", ".join(study.corpus) or inputs.corpus.manifest["origin"]["embedded"]
    seeds = ", ".join(str(seed) for seed in study.seeds) + (" (means)" if len(study.seeds) > 1 else "")
    tried = len(study.peak_rates)
    seeds += f". Of {tried} learning rates each size counts by its best" if tried > 1 else ""
    return (
        f"{text} (fingerprint {inputs.corpus.fingerprint}); {rows[0]['heldout_bytes']:,} bytes of held-out documents "
        f"split off by hash, in windows of {study.row_bytes} bytes with {study.stride} new ones each; losses at the "
        f"end of each run's schedule, {study.schedule}. {_budgets_text(rows, study)}FLOPs: {rows[0]['accounting']}, "
        f"with measured bytes per patch and token. N leaves out byte, token and hash embeddings. Seeds: {seeds}. "
        f"{plots.vocabularies_text(rows)}"
    ).strip()


def _budgets_text(rows: Sequence[Row], study: Study) -> str:
    if plots.equal_of(rows) == "flops":
        return ""
    return (
        f"Budgets are device-seconds on {machine_of(study)}, turned into steps by a bench before training; the entropy "
        "model, compiling and reading text are not in them. "
    )


def summary(rows: Sequence[Row]) -> str:
    """The numbers that stand in the figures, for people."""
    head = ("series", "preset", "N", "budget", "FLOPs paper", "full", "MB", "epochs", "B/unit", "rate", "bits/byte")
    wide = [max(least, *(len(row[name]) for row in rows)) for name, least in (("series", 10), ("preset", 14))]
    form = f"{{:<{wide[0]}}} {{:<{wide[1]}}} {{:>7}} {{:>8}} {{:>11}} {{:>9}} {{:>7}} {{:>6}} {{:>6}} {{:>7}} {{:>9}}"
    lines = [form.format(*head)]
    optima = []
    several, counts = swept(rows), {row["run"] for row in chosen(best_of_rates(rows))}
    for series in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == series]
        best = {row["budget"]: row["preset"] for row in plots.best_of_budgets(own)}
        counted = [row["run"] for row in best_of_rates(own) if best[row["budget"]] == row["preset"]]
        order = ("budget", "parameters_non_embedding", "seed", "peak_rate")
        for row in sorted(own, key=lambda row: tuple(row[name] for name in order)):
            values = (
                series, row["preset"], count_text(row["parameters_non_embedding"]),
                flops_text(row["budget"]) if row["equal"] == "flops" else f"{row['budget']:g} s",
                flops_text(row["training_flops_paper"]), flops_text(row["training_flops_full"]),
                f"{row['bytes_seen'] / 1e6:.2f}", f"{row['epochs']:.2f}", f"{row['bytes_per_unit']:.2f}",
                f"{row['peak_rate']:.3g}",
                f"{row['heldout_bits_per_byte']:.4f}",
            )  # fmt: skip
            is_best = best[row["budget"]] == row["preset"] and row["run"] in counted
            is_chosen = row["run"] in counts and series in several
            lines.append(form.format(*values) + (" *" if is_best else " +" if is_chosen else ""))
        fits = plots.isoflop_fits(own)
        optima += [
            f"{plots.series_name(series)} at {budget_text(budget, plots.equal_of(rows))}: "
            f"{plots.verdict(fits.get(budget))}"
            for budget in sorted(best)
        ]
    lines.append("* the best size of its series at its budget, at its best rate")
    if several:
        lines += ["+ another size of the best vocabulary at its budget", "", plots.vocabularies_text(rows)]
    return "\n".join([*lines, "", "Parabolas in ln N:", *optima])
