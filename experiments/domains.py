"""What does the same text cost in different languages: bytes a patch, bits a byte, bits a message?

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/domains.py

took 4 minutes on one core (9 runs: BLT, BPE tokens and flat bytes by three seeds, 1e11 FLOPs each). It needs
Django's source distribution: the messages of its programs and their translations, some 720 that all of eleven languages
have. Of every four messages one is held out, in all languages alike; the models are trained on the others, all
languages mixed (about 240 kB, passed over two to three times), and scored on each language. Bits per byte do not
compare languages, since the same message has 26 bytes in Chinese and 57 in Greek; bits per message do.

Expected before it was run: patches longest in Greek and Russian, where every other byte is a letter's first and easily
guessed, and shortest in Chinese; bits per byte lowest in Greek, Russian and Arabic, but bits per message within a
factor of 1.6 between languages; and tokens ahead of BLT, the more so where patches are long. All is so but the last
(results/domains): BLT is ahead of tokens in bits per message in French, Spanish, Greek, Russian, Arabic and Hebrew, by
7 to 14, behind by 10 in Chinese, and elsewhere no difference is shown. Its patches of 29 bytes in Russian cost it
nothing, but the threshold that gives 4.5 bytes over all languages is hardly one for any. The paper has no such table;
its Table 4 (translation, BLT ahead of tokens by 2 BLEU into English) is out of reach.

It leaves in runs/domains (or --out) what experiments/isoflop.py does, weights included, and

    domains.csv, .parquet, .txt            every run in every language; and the means over seeds
    domains.png, .svg                      bits per message

With --corpus, models are trained on that text, and scored on all messages. On 8 H100, 40 % of their peak taken for
granted, 9 runs of about 400M parameters at 1e19 FLOPs take 8 hours:

    python experiments/domains.py --scale accelerator --corpus 'multilingual/*.parquet'
"""

import dataclasses
import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bltjax.data.corpus import Documents
from bltjax.data.messages import Message, as_documents, parallel_messages
from bltjax.data.pipeline import heldout_batches
from bltjax.data.views import BLTSource, StreamSource, TokenSource
from bltjax.evaluate import Reader, Score, evaluate_documents
from bltjax.scaling.ablation import Row, reach_of_differences
from bltjax.scaling.experiment import Settings, Studies, command_line, run_all, say, show_plan
from bltjax.scaling.plots import STYLE, flops_text, new_figure, save, series_name, series_style
from bltjax.scaling.store import replace_file, write_table
from bltjax.scaling.sweep import claim
from bltjax.sharding import batch_ways, make_mesh
from bltjax.trained import load_source

ONE_IN, AT_A_TIME = 4, 20  # messages held out; messages to a document


@dataclasses.dataclass(frozen=True)
class Languages(Settings):
    """How the experiment is run, and on which messages."""

    messages: str = "django-5.*"
    """Folder, or a glob that only one matches, below which the catalogues lie."""
    languages: tuple[str, ...] = ("en", "de", "fr", "es", "el", "ru", "ar", "he", "ja", "zh_Hans", "ko")
    """As the catalogues' folders are called."""


def studies(settings: Languages) -> Studies:
    corpus = settings.corpus or (str(settings.out / "text"),)
    shared = {"corpus": corpus, "keep_weights": True}
    cpu = {"preset": ("byte-cpu-1", "token-cpu-1", "blt-cpu-1"), "budgets": (1e11,), "entropy_bytes": 5e5}
    large = {"preset": ("byte-450m", "token-470m", "blt-400m")}
    return {"": settings.study(shared | cpu, shared | large)}


def found_messages(settings: Languages) -> list[Message]:
    """The messages in all languages.

    Raises:
      FileNotFoundError: unless just one folder matches.
    """
    folders = [Path(path) for path in sorted(glob.glob(settings.messages)) if Path(path).is_dir()]
    if len(folders) != 1:
        raise FileNotFoundError(f"messages={settings.messages}: {len(folders)} folders match; unpack one Django there.")
    return parallel_messages(folders[0] / "django", settings.languages)


def units(source: StreamSource) -> np.ndarray:
    """Patches, tokens or bytes of each document, those of BOS and EOS left out."""
    if isinstance(source, TokenSource):
        return np.diff(source.tokens.document_starts) - 2
    if isinstance(source, BLTSource):
        return np.add.reduceat(source.stream_starts, source.stream.document_starts[:-1]) - 1
    return np.diff(source.stream.document_starts) - 2


def scored(folder: Path, texts: dict[str, list[bytes]], context: int, stride: int) -> dict[str, tuple[Score, int]]:
    """What the model of a run pays for the documents of each language, and the units that it reads them in."""
    mesh = make_mesh()
    batch = 8 * batch_ways(mesh)
    of = [language for language, documents in texts.items() for _ in documents]
    trained = load_source(folder)
    source = Reader(trained, batch=batch, mesh=mesh)(Documents.of([t for own in texts.values() for t in own]), context)
    scores = evaluate_documents(
        trained.config, trained.params, heldout_batches(source, context, stride, batch), mesh=mesh
    )
    counts = units(source)
    return {
        language: (
            Score.total(score for score, own in zip(scores, of, strict=True) if own == language),
            int(sum(count for count, own in zip(counts, of, strict=True) if own == language)),
        )
        for language in texts
    }


def table(rows: Sequence[Row], languages: Sequence[str]) -> str:
    """Means over seeds, and the difference of BLT to tokens."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    lines = [f"{'':<9}{'B/message':>10}" + "".join(f"{name:>9} B/unit bits/byte bits/msg" for name in series)]
    lines[0] += "   blt - token, bits/msg"
    for language in languages:
        own = {name: [row for row in rows if (row["series"], row["language"]) == (name, language)] for name in series}
        first = own[series[0]][0]
        line = f"{language:<9}{first['bytes'] / first['messages']:>10.1f}"
        for name in series:
            for key, form in (("bytes_per_unit", "16.2f"), ("bits_per_byte", "10.3f"), ("bits_per_message", "9.2f")):
                line += f"{np.mean([row[key] for row in own[name]]):>{form}}"
        bits = np.array([[row["bits_per_message"] for row in own[name]] for name in ("token", "blt")])
        reach = reach_of_differences(bits)
        line += f"   {float(np.diff(bits.mean(axis=1))[0]):+.2f}" + ("" if reach is None else f" +- {reach:.2f}")
        lines.append(line)
    return "\n".join(lines)


def figure(rows: Sequence[Row], languages: Sequence[str], about: str) -> Figure:
    """Bits per message of each language, a mark for each run."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    with matplotlib.rc_context(STYLE):
        drawn, (axes,) = new_figure(about)
        for name in series:
            own = [row for row in rows if row["series"] == name]
            colour, marker = series_style(name, series)
            x = [languages.index(row["language"]) for row in own]
            y = [row["bits_per_message"] for row in own]
            axes.plot(x, y, linestyle="", marker=marker, color=colour, alpha=0.7, label=series_name(name))
        axes.set_xticks(range(len(languages)), languages)
        axes.set_ylabel("bits per message")
        axes.set_ylim(bottom=0)
        axes.legend()
        drawn.suptitle("The same messages in different languages", x=0.02, ha="left", fontsize=11)
        return drawn


def main(settings: Languages) -> None:
    asked = studies(settings)
    if settings.plan:
        return show_plan(asked)
    messages = found_messages(settings)
    held = [message for message in messages if settings.corpus or message.held_out(ONE_IN)]
    (study,) = asked.values()
    claim(study)
    if not settings.corpus:
        kept = [message for message in messages if not message.held_out(ONE_IN)]
        for language in settings.languages:
            for number, text in enumerate(as_documents(kept, language, AT_A_TIME)):
                replace_file(settings.out / "text" / language / f"{number:04d}.txt", lambda p, t=text: p.write_bytes(t))
    runs = run_all(asked, settings)
    texts = {language: as_documents(held, language, AT_A_TIME) for language in settings.languages}
    rows: list[dict[str, Any]] = []
    for run in runs:
        (folder,) = (study.out / "runs").glob(f"*{run['run']}")
        say(f"scoring {folder.name}")
        for language, (score, count) in scored(folder, texts, study.row_bytes, study.stride).items():
            bits = score.byte_nats / math.log(2)
            rows.append(
                {
                    **{name: run[name] for name in ("run", "series", "preset", "seed", "budget", "training_flops")},
                    "language": language, "messages": len(held), "bytes": score.bytes,
                    "bytes_per_unit": score.bytes / count, "bits_per_byte": bits / score.bytes,
                    "bits_per_message": bits / len(held),
                }
            )  # fmt: skip
    write_table(rows, settings.out, "domains")
    found = table(rows, settings.languages)
    replace_file(settings.out / "domains.txt", lambda path: path.write_text(f"{found}\n"))
    about = (
        f"{len(held)} messages of {settings.messages} that no model was trained on, the same in every language, scored "
        f"in documents of {AT_A_TIME}; a mark for each seed, at {flops_text(study.budgets[0])} training FLOPs."
    )
    save(figure(rows, settings.languages, about), settings.out, "domains")
    say(f"\n{found}\n\nTables and figures: {settings.out}")


if __name__ == "__main__":
    command_line(Languages(Path("runs/domains")), __doc__, main)
