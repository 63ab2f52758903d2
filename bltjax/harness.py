"""A trained model behind the interface of EleutherAI's lm-eval (extra [eval]), so that its tasks can be run on it.

In go requests, which are texts; out come log-probabilities and continuations. Texts are taken as UTF-8 and scored in
the windows of `evaluate`, so the log-likelihood of a text is what scripts/evaluate.py says that it costs, for every
family and however long it is. scripts/evaluate.py --tasks calls this.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

from bltjax import vocabulary
from bltjax.batch import Batch
from bltjax.config import ModelConfig
from bltjax.data.corpus import Documents
from bltjax.data.pipeline import HeldoutBatches
from bltjax.data.rows import Windows
from bltjax.data.views import StreamSource
from bltjax.evaluate import Reader
from bltjax.generate import Generator, Sampling, Source, Stop
from bltjax.generate.sampling import GREEDY
from bltjax.loss import row_sums
from bltjax.sharding import batch_ways, divisible, make_mesh, put_batch, replicated, shard_params
from bltjax.step import batch_logits, on_devices

BYTES_PER_TOKEN = 4  # tasks limit what is generated in the tokens of other models
TOKENS = 256  # where a task sets no limit
SHORTEST = 64  # positions of a row; longer ones are powers of two, so that few programs serve all requests

Pair = tuple[bytes, bytes]  # a context, and what follows it


class Harness(LM):
    """A model of any family for lm-eval.

    Attributes:
      cut: prompts that were cut on their left so far, since they left no room for what was to be generated.
    """

    def __init__(
        self,
        trained: Source,
        *,
        context_bytes: int,
        stride_bytes: int | None = None,
        batch: int = 8,
        seed: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        """
        Args:
          context_bytes: positions of a window, and of a prompt with what is generated.
          stride_bytes: how far apart the windows of a long text end; None: half of the context.
          batch: texts at once.
          seed: of what is drawn at random.
          mesh: for scoring; None: one over all devices.

        Raises:
          ValueError: for a number below 1, or a stride that exceeds the context.
        """
        super().__init__()
        stride = max(1, context_bytes // 2) if stride_bytes is None else stride_bytes
        if not 1 <= stride <= context_bytes:
            raise ValueError(f"stride_bytes={stride}: must lie in 1 .. context_bytes, {context_bytes}.")
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1.")
        self.trained, self.cut = trained, 0
        self._context, self._stride, self._batch, self._seed = context_bytes, stride, batch, seed
        self._mesh = make_mesh() if mesh is None else mesh
        ways = batch_ways(self._mesh)
        self._rows = -(-batch // ways) * ways
        self._read = Reader(trained, batch=self._rows, mesh=self._mesh)
        self._params = shard_params(trained.params, self._mesh)
        self._generators: dict[int, Generator] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-probability in nats of each continuation after its context, and whether greedy decoding gives it.

        Tokens: those of the whole text; the first that is scored is the one that holds the continuation's first byte.
        """
        found = self.scores([(_bytes(request.args[0]), _bytes(request.args[1])) for request in requests])
        return self._told("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-probability in nats of each text from its beginning."""
        found = self.scores([(b"", _bytes(request.args[0])) for request in requests])
        return self._told("loglikelihood_rolling", requests, [nats for nats, _ in found])

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What follows each context, up to one of the strings in "until", the end of the document, or the limit.

        A limit of "max_gen_toks" tokens stands for four bytes each, for every family. What is no UTF-8 comes as U+FFFD.

        Raises:
          ValueError: for a setting that is not known, or a limit that leaves no room for a prompt.
        """
        settings = [_settings(request.args[1], self._context) for request in requests]
        prompts = [
            self._shortened(_bytes(request.args[0]), limit)
            for request, (limit, _, _) in zip(requests, settings, strict=True)
        ]
        found: dict[int, str] = {}
        # Those of one setting together, and long ones with long ones.
        order = sorted(range(len(requests)), key=lambda i: (repr(settings[i]), len(prompts[i]), i))
        while order:
            limit, sampling, stop = setting = settings[order[0]]
            chosen = [i for i in order[: self._batch] if settings[i] == setting]
            order = order[len(chosen) :]
            # Row i of a batch draws with the seed + i: so no two requests draw the same numbers.
            sampling = dataclasses.replace(sampling, seed=self._seed + len(found))
            texts = [prompts[i] for i in chosen] + [b""] * (self._batch - len(chosen))
            room = max(len(text) for text in texts) + 1 + limit
            for i, one in zip(chosen, self._generator(room)(texts, limit, sampling, stop), strict=False):
                found[i] = one.text.decode(errors="replace")
        if self.cut:
            logging.getLogger(__name__).warning("%d prompts so far were cut on their left", self.cut)
        return self._told("generate_until", requests, [found[i] for i in range(len(requests))])

    def scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """As `loglikelihood`, for any bytes."""
        nats, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
        numbers = [i for i, (_, continuation) in enumerate(pairs) if continuation]
        if numbers:
            documents = Documents.of([b"".join(pairs[i]) for i in numbers])
            source = self._read(documents, self._context)
            found = continuations(source, [len(pairs[i][0]) for i in numbers], self._context, self._stride)
            for batches in self._batches(source, found):
                slots = batches.slots if self.trained.config.reads_patches else None
                score = _compile_score(on_devices(self.trained.config, self._mesh), self._mesh, slots)
                allowed = self.trained.drawable(eos=True)
                for rows, batch in zip(batches.row_documents, batches, strict=True):
                    with jax.set_mesh(self._mesh):
                        costs, hits = jax.device_get(score(self._params, put_batch(batch, self._mesh), allowed))
                    real = rows >= 0
                    place = np.array(numbers)[rows[real]]
                    np.add.at(nats, place, costs[real].astype(np.float64))
                    np.logical_and.at(greedy, place, hits[real])
        return [(-cost, hit) for cost, hit in zip(nats.tolist(), greedy.tolist(), strict=True)]

    def _batches(self, source: StreamSource, found: Windows) -> list[HeldoutBatches]:
        """Batches of windows of about one length, each length a power of two."""
        lengths = np.maximum(found.end - found.begin, SHORTEST)
        lengths = np.minimum(1 << np.ceil(np.log2(lengths)).astype(np.int64), max(self._context, SHORTEST))
        out = []
        for length in np.unique(lengths).tolist():
            here, columns = lengths == length, (found.begin, found.end, found.after, found.documents)
            own = Windows(*(column[here] for column in columns))
            slots = min(length, 1 << (source.window_shape(own, length)[1] - 1).bit_length())
            rows = np.full(-(-len(own) // self._rows) * self._rows, -1, np.int64)
            rows[: len(own)] = own.documents
            shape = length, slots
            out.append(HeldoutBatches(source, own, shape, rows.reshape(-1, self._rows), slice(None), {}))
        return out

    def _generator(self, room: int) -> Generator:
        capacity = 1 << (room - 1).bit_length()
        if capacity not in self._generators:
            self._generators[capacity] = Generator(self.trained, capacity=capacity)
        return self._generators[capacity]

    def _shortened(self, prompt: bytes, limit: int) -> bytes:
        room = self._context - 1 - limit
        self.cut += len(prompt) > room
        return prompt[max(0, len(prompt) - room) :]

    def _told(self, kind: str, requests: Sequence[Any], found: list[Any]) -> list[Any]:
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, one)
        return found


def continuations(source: StreamSource, begins: Sequence[int], context_bytes: int, stride_bytes: int) -> Windows:
    """The windows of `StreamSource.windows` that score something of the continuations, and nothing else.

    Args:
      source: documents, each a context and its continuation.
      begins: of each, the byte at which the continuation begins.
    """
    found = source.windows(context_bytes, stride_bytes, np.arange(len(source.documents)))
    first, last = np.empty(len(begins), np.int64), np.empty(len(begins), np.int64)
    for document, byte in enumerate(begins):
        begin, positions = source.document_positions(document)
        first[document] = begin + np.searchsorted(positions, 1 + byte, "right") - 1  # BOS comes before the first byte
        last[document] = begin + len(positions) - 3  # before EOS
    after = np.maximum(found.after, first[found.documents] - 1)
    end = np.minimum(found.end, last[found.documents])
    kept = end > after
    return Windows(begin=found.begin[kept], end=end[kept], after=after[kept], documents=found.documents[kept])


@functools.lru_cache(maxsize=64)
def _compile_score(model: ModelConfig, mesh: Mesh, slots: int | None) -> Callable[..., Any]:
    slots = None if slots is None else divisible(slots, mesh)

    def score(params: Any, batch: Batch, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of each row: nats of the raw bytes that are scored, and whether each was the likeliest."""
        logits = batch_logits(model, slots, params, batch)
        likeliest = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
        hits = (likeliest == batch.targets) | (batch.target_bytes == 0)
        return row_sums(logits, batch.targets, batch.target_bytes).byte_nats, jnp.all(hits, axis=1)

    return jax.jit(score, out_shardings=replicated(mesh))


def _bytes(text: str) -> bytes:
    return vocabulary.decode(vocabulary.encode(text))


def _settings(given: dict[str, Any], context_bytes: int) -> tuple[int, Sampling, Stop]:
    """What a task says about generating: the limit in bytes, how bytes are drawn, and where to stop.

    Raises:
      ValueError: for a setting that is not known, or a limit that leaves no room for a prompt.
    """
    known = dict(given)
    until = known.pop("until", None) or ()
    tokens = known.pop("max_gen_toks", None)
    limit = min(TOKENS * BYTES_PER_TOKEN, context_bytes // 2) if tokens is None else int(tokens) * BYTES_PER_TOKEN
    if not 0 <= limit < context_bytes:
        raise ValueError(
            f"max_gen_toks={tokens}: its {limit} bytes leave no room for a prompt in context_bytes={context_bytes}."
        )
    temperature = known.pop("temperature", None)
    at_random = known.pop("do_sample", False) and temperature != 0
    filters: dict[str, Any] = {name: known.pop(name, None) or None for name in ("top_k", "top_p", "min_p")}
    if known:
        raise ValueError(f"generation_kwargs has {', '.join(sorted(known))}: not known here; leave it out of the task.")
    # A task may say how to draw, and not to draw: lm-eval takes that for greedy.
    sampling = Sampling(1.0 if temperature is None else float(temperature), **filters) if at_random else GREEDY
    return limit, sampling, Stop(strings=(until,) if isinstance(until, str) else tuple(until))


def evaluate_tasks(
    model: Harness,
    tasks: Sequence[str],
    folder: Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
) -> tuple[dict[str, Any], str]:
    """Runs tasks of lm-eval.

    Args:
      tasks: by name.
      folder: with their YAML files; None: lm-eval's own tasks.
      fewshot: examples before each question; None: as the task says.
      limit: questions of each task; None: all.

    Returns:
      What lm-eval reports, and its table for people.

    Raises:
      ValueError: for a task that is not known.
    """
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ValueError(
            f"tasks: {folder or 'lm-eval'} has no {', '.join(unknown)}: check the names in its YAML files."
        )
    found = simple_evaluate(
        model, tasks=list(tasks), num_fewshot=fewshot, limit=limit, task_manager=manager, log_samples=False
    )
    return found, make_table(found)
