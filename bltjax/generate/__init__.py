"""Incremental generation with live patching, exact: each new byte costs the same however long the text has become.

The state after each byte is that of the parallel forward pass over all bytes so far, so the logits are too. The rooms,
from the models up: `cache` (attention to what was read), `flat`, `megabyte`, `spacebyte`, `pieces` and `latent` (the
models a step at a time), `kinds` (what is run of each), `sampling`, `decode` and `speculation` (the compiled loops),
`source`, `text` and `generator` (text in, text out).
"""

from collections.abc import Sequence

from bltjax.generate.generator import Continuation, Generator, Guesses
from bltjax.generate.sampling import GREEDY, Sampling
from bltjax.generate.source import Pretrained, Prompt, Source
from bltjax.generate.text import AT_EOS, Stop

__all__ = ["Continuation", "Generator", "Guesses", "Sampling", "Source", "Stop", "generate"]

SMALLEST = 256  # ids of room; more are powers of two, so that few programs serve all lengths


def generate(
    pretrained: Pretrained | Source,
    prompts: Sequence[Prompt],
    max_new_bytes: int,
    sampling: Sampling = GREEDY,
    stop: Stop = AT_EOS,
    *,
    capacity: int | None = None,
) -> list[bytes]:
    """Continues prompts, each as if it were alone; the new bytes of each.

    Args:
      pretrained: what `interop.huggingface.load_pretrained` reads, or a `Source` of any family.
      prompts: text, any bytes, or ids; an empty one is continued from BOS alone.
      max_new_bytes: that each is continued by, unless something in `stop` comes first.
      sampling: how bytes are drawn; by default each is the likeliest.
      stop: what else ends a row; by default an EOS.
      capacity: room for the ids of a row; None: as much as these prompts need, up to the next power of two.

    Raises:
      ValueError: for a model that cannot be generated from, or prompts and numbers that do not fit (`Generator`).
    """
    if not prompts:
        return []
    source = Source.of(pretrained)
    if capacity is None:
        longest = max(len(source.ids_of(prompt)) for prompt in prompts) + max(max_new_bytes, 0)
        capacity = max(SMALLEST, 1 << (longest - 1).bit_length())
    return [each.text for each in Generator(source, capacity=capacity)(prompts, max_new_bytes, sampling, stop)]
