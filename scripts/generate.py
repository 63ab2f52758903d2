"""Continues a text with a trained model, byte by byte.

    python scripts/generate.py runs/blt "def main("
    python scripts/generate.py blt-1b-hf "my name is" --temperature 0.8 --top-p 0.95 --max-new-bytes 500
    python scripts/generate.py runs/isoflop/runs/NAME --prompt-file README.md --show-patches
    cat notes.txt | python scripts/generate.py runs/blt --raw > continued.txt
    python scripts/generate.py runs/blt "def main(" --ahead 8
    python scripts/generate.py runs/blt --interactive

The model is the folder of a run of scripts/train.py or of a study, of any family, or a Hugging Face checkpoint of
`BltForCausalLM`. A prompt comes from the command line, a file or the standard input; in the interactive mode every line
is one. New bytes are written as they come. On a terminal what can't be shown is escaped; elsewhere `--raw` gives the
very bytes, and without it bytes that are no UTF-8 come as U+FFFD.

`--show-patches` prints prompt and continuation with the patches in turning colours, and writes the page of the patch
viewer, with the entropies that decided them.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from bltjax import vocabulary
from bltjax.generate import Continuation, Generator, Sampling, Stop
from bltjax.patching.viewer import patch_page
from bltjax.runtime import keep_compiled
from bltjax.trained import load_source

COLOURS = ("\x1b[48;5;254m\x1b[30m", "\x1b[48;5;153m\x1b[30m")
PLAIN = "\x1b[0m"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Continues a text."""

    model: Annotated[Path, tyro.conf.Positional]
    """The folder of a run, or a Hugging Face checkpoint."""
    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """What to continue; none: --prompt-file, or the standard input."""
    prompt_file: Path | None = None
    """A file to continue, whatever its bytes."""
    interactive: bool = False
    """Continue every line of the standard input by itself."""
    max_new_bytes: int = 256
    """How many bytes to write, unless something else ends the text."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Sampling)
    """How bytes are drawn; by default each is the likeliest."""
    stop: tuple[str, ...] = ()
    """End before any of these comes up."""
    stop_patches: int | None = None
    """End with so many patches."""
    ignore_eos: bool = False
    """Never draw the end of a document."""
    capacity: int | None = None
    """Room for prompt and continuation; None: as much as they need, up to the next power of two."""
    raw: bool = False
    """Write the very bytes, valid UTF-8 or not."""
    show_patches: bool = False
    """Print the text with its patches in colours at the end, and write --view."""
    view: Path = Path("patches.html")
    """Where --show-patches writes the patch viewer's page."""
    entropy_run: Path | None = None
    """The run of the entropy model that the patches depend on; a run knows its own."""
    tokenizer: Path | None = None
    """The tokenizer.json of a token model; a run knows its own."""
    ahead: int = 0
    """Bytes that a BLT's local models guess before the whole model reads them at once; the text is the same."""
    compiled: Path | None = None
    """A folder that keeps compiled programs for the next time."""


def visible(text: str) -> str:
    """A text with what a terminal would obey, or can't show, escaped."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def coloured(continuation: Continuation) -> str:
    """Prompt and continuation with the patches in turning colours; special ids are named."""
    assert continuation.starts is not None
    ids = np.concatenate([continuation.prompt_ids, continuation.ids])
    edges = [*np.flatnonzero(continuation.starts), len(ids)]
    out = []
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        piece = ids[begin:end]
        text = vocabulary.decode(piece).decode(errors="backslashreplace")
        lines = visible(text).replace("\n", f"\u21b5{PLAIN}\n{COLOURS[number % 2]}")
        out.append(f"{COLOURS[number % 2]}{'' if (piece >= vocabulary.OFFSET).any() else '|'}{lines}{PLAIN}")
    return "".join(out)


def prompts(arguments: Arguments) -> Iterator[bytes]:
    """What to continue.

    Raises:
      ValueError: for more than one source of prompts.
      OSError: for a file that can't be read.
    """
    given = [name for name in ("prompt", "prompt_file") if getattr(arguments, name) is not None]
    given += ["interactive"] * arguments.interactive
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one source of prompts.")
    if arguments.prompt is not None:
        yield arguments.prompt.encode(errors="surrogateescape")
    elif arguments.prompt_file is not None:
        yield arguments.prompt_file.read_bytes()
    elif arguments.interactive:
        while True:
            sys.stderr.write("> ")
            sys.stderr.flush()
            line = sys.stdin.buffer.readline()
            if not line:
                return
            yield line.rstrip(b"\n")
    else:
        yield sys.stdin.buffer.read()


def write(arguments: Arguments, generator: Generator, prompt: bytes) -> Continuation:
    """Writes the continuation of a prompt as it comes."""
    stop = Stop(not arguments.ignore_eos, arguments.stop, arguments.stop_patches)
    pieces = generator.stream(prompt, arguments.max_new_bytes, arguments.sampling, stop, raw=arguments.raw)
    out = sys.stdout.buffer
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        if sys.stdout.isatty() and not arguments.raw:
            piece = visible(piece.decode()).encode()
        out.write(piece)
        out.flush()


def report(continuation: Continuation, seconds: float, is_first: bool) -> str:
    """What came of a prompt, in a line; the first that a generator is given has its programs compiled."""
    count = len(continuation.text)
    words = f"{count} bytes in {seconds:.2f} s{', compiling included' * is_first}, ended by {continuation.ended_by}"
    if count:
        words += f"; {float(continuation.nats.sum()) / math.log(2) / count:.3f} bits per byte"
    if continuation.starts is not None:
        words += f"; {int(continuation.starts[len(continuation.prompt_ids) :].sum())} patches began"
    guesses = continuation.guesses
    if guesses is not None:
        words += f"; {guesses.accepted:.2f} bytes a round, the global model ran {guesses.latent_rounds} times"
        words += f" instead of {guesses.patches}"
    return words


def show(arguments: Arguments, generator: Generator, continuation: Continuation) -> None:
    """Prints the patches and writes their page.

    Raises:
      ValueError: for a model that is given no patches.
    """
    patcher = generator.source.patcher
    if continuation.starts is None or patcher is None:
        raise ValueError("show_patches: this model is given none.")
    print(coloured(continuation))
    ids = np.concatenate([continuation.prompt_ids, continuation.ids])
    note = f"The first {len(continuation.prompt_ids)} positions are the prompt, the others its continuation."
    page = patch_page(str(arguments.model), ids, continuation.starts, patcher, continuation.entropies, note)
    arguments.view.write_text(page, encoding="utf-8")
    sys.stderr.write(f"{arguments.view}\n")


def main(arguments: Arguments) -> None:
    if arguments.show_patches and (arguments.view.is_dir() or not arguments.view.parent.is_dir()):
        raise ValueError(f"view={arguments.view}: name a file in a folder that exists.")
    if arguments.compiled is not None:
        keep_compiled(arguments.compiled)
    source = load_source(arguments.model, entropy_run=arguments.entropy_run, tokenizer=arguments.tokenizer)
    if arguments.show_patches and source.patcher is None:
        raise ValueError(f"show_patches: {arguments.model} holds a model that is given none.")
    generator = None
    for prompt in prompts(arguments):
        room = len(source.ids_of(prompt)) + max(arguments.max_new_bytes, 0)
        is_first = generator is None or (arguments.capacity is None and room > generator.capacity)
        if is_first:
            capacity = arguments.capacity or max(1024, 1 << (room - 1).bit_length())
            generator = Generator(source, capacity=capacity, ahead=arguments.ahead)
        begin = time.perf_counter()
        continuation = write(arguments, generator, prompt)
        if not arguments.raw:
            sys.stdout.write("\n")
            sys.stdout.flush()
        sys.stderr.write(f"{report(continuation, time.perf_counter() - begin, is_first)}\n")
        if arguments.show_patches:
            show(arguments, generator, continuation)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
