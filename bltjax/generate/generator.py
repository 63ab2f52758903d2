"""`Generator`: text in, text out, for every family.

In go prompts; out come continuations, or a stream of bytes. `generate` of the package and scripts/generate.py call
this. Between the two lie `decode`'s compiled programs, which are given a batch of rows; this room turns text into ids
and back, looks for stop strings, and refuses what would otherwise be cut short in silence.
"""

import contextlib
import dataclasses
from collections.abc import Generator as Iterating
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from bltjax.blocked import in_blocks
from bltjax.config import PatcherConfig
from bltjax.generate import decode
from bltjax.generate.decode import BY_BYTES, BY_EOS, BY_PATCHES, RUNNING, Limits, Program, Session
from bltjax.generate.kinds import prepared
from bltjax.generate.sampling import GREEDY, Sampling, drawing
from bltjax.generate.source import Pretrained, Prompt, Source
from bltjax.generate.speculation import draw_ahead
from bltjax.generate.text import AT_EOS, Characters, Stop, cut, safe
from bltjax.sharding import batch_ways, in_one_copy, is_whole_on_each, mesh_of

REASONS = {BY_EOS: "eos", BY_BYTES: "bytes", BY_PATCHES: "patches"}
LOOK_EVERY = 32  # ids drawn between two looks for stop strings


@dataclasses.dataclass(frozen=True)
class Guesses:
    """How far the guesses of one row held.

    Attributes:
      ids: that were drawn, those of a stop string included.
      rounds: parallel passes that gave them.
      patches: that ended with them; the global model would have run for each by itself.
      latent_rounds: passes in which it did run.
    """

    ids: int
    rounds: int
    patches: int
    latent_rounds: int

    @property
    def accepted(self) -> float:
        """Ids of a round, the one that is no guess included."""
        return self.ids / max(self.rounds, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """What came of one prompt.

    Attributes:
      text: the new bytes.
      ids: that were drawn, an EOS at the end included; those of a stop string are not.
      nats: what each of them cost: -log of its probability under the model, whatever it was drawn by.
      ended_by: "bytes", "eos", "string" or "patches".
      prompt_ids: BOS included.
      starts: where patches start among prompt_ids and ids; None for flat models.
      entropies: with the entropy rule, nats about the id after each of prompt_ids and ids; else None.
      guesses: how far they held, of a Generator that makes any; else None.
    """

    text: bytes
    ids: Int32[np.ndarray, "ids"]
    nats: Float32[np.ndarray, "ids"]
    ended_by: str
    prompt_ids: Int32[np.ndarray, "prompt"]
    starts: Bool[np.ndarray, "all"] | None
    entropies: Float32[np.ndarray, "all"] | None
    guesses: Guesses | None = None


class Generator:
    """A model ready to generate.

    Its programs are compiled when they are first needed: one that reads prompts and one that draws, for each number of
    prompts. Within the room that there is neither a longer prompt nor more bytes compiles anything again, and another
    Generator of the same configuration and room finds them compiled.

    Params that lie on a mesh (`Source.on`) are used where they lie, and rows are split as batches are in training; rows
    that are missing to divide them are made up, and left out of what comes back. Replicas go on without each other.
    """

    def __init__(
        self,
        pretrained: Pretrained | Source,
        *,
        capacity: int = 2048,
        patch_capacity: int | None = None,
        part: int = 128,
        patcher: PatcherConfig | None = None,
        ahead: int = 0,
    ) -> None:
        """
        Args:
          capacity: room for the ids of a row, BOS, prompt and what is drawn together.
          patch_capacity: how many patches it may have; None: as many as ids, which always suffices. Where a rule cuts
            patches, keys and values of the global model take this room, so that a smaller number saves memory if they
            are known to be long.
          part: ids of a prompt that are read at once.
          patcher: takes the place of the entropy rule of a Hugging Face checkpoint.
          ahead: ids of a BLT that the local models guess before the whole model reads them at once (`speculation`);
            what is drawn is the same, and comes faster where many guesses hold and the global model is large.

        Raises:
          ValueError: for a model that can't be generated from, one that is to guess and can't, or a number below 1
            (`ahead`: below 0).
        """
        self.source = source = Source.of(pretrained, patcher)
        for name, value in (("capacity", capacity), ("patch_capacity", patch_capacity), ("part", part)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1.")
        if ahead < 0:
            raise ValueError(f"ahead={ahead}: must be at least 0.")
        self.ahead = ahead
        self.capacity = capacity
        self.patch_capacity = min(capacity, patch_capacity or capacity)
        model, params = prepared(source, capacity, self.patch_capacity, ahead)
        self._mesh = mesh_of(source.params)
        # On the device once, and not again with every call.
        params = jax.tree.map(jnp.asarray, params)
        on_cpu = all(device.platform == "cpu" for device in jax.tree.leaves(params)[0].devices())
        if on_cpu and is_whole_on_each(self._mesh):
            params = in_one_copy(jax.jit(in_blocks)(params))
        self._params = params
        self._threshold = jnp.float32(0.0 if source.patcher is None else source.patcher.threshold or 0.0)
        self._program = Program(model, capacity, min(part, capacity), decode.TOGETHER)
        self._id_bytes = jnp.asarray(source.id_bytes())

    def __call__(
        self, prompts: Sequence[Prompt], max_new_bytes: int, sampling: Sampling = GREEDY, stop: Stop = AT_EOS
    ) -> list[Continuation]:
        """Continues prompts, each as if it were alone.

        Args:
          prompts: text, any bytes, or ids; an empty one is continued from BOS alone.
          max_new_bytes: that each is continued by, unless something in `stop` comes first. A last token that goes
            beyond it is cut.

        Raises:
          ValueError: for a prompt that leaves no room for that many bytes, a negative number, a prompt that is no
            text (`vocabulary.encode`), or more patches than there is room for.
        """
        rows, session = self._begin(prompts, max_new_bytes)
        needles, left = stop.needles, max_new_bytes
        while left > 0 and RUNNING in np.asarray(session.ended):
            steps = min(left, LOOK_EVERY) if needles else left
            session = self._draw(session, steps, max_new_bytes, sampling, stop)
            left -= steps
            if needles:
                has_one = np.zeros(len(session.ended), bool)
                has_one[: len(rows)] = [
                    cut(text, needles) is not None for text in self._texts(rows, session, max_new_bytes)
                ]
                session = dataclasses.replace(session, ended=jnp.where(has_one, BY_BYTES, session.ended))
        return self._continuations(rows, session, max_new_bytes, needles)

    def stream(
        self,
        prompt: Prompt,
        max_new_bytes: int,
        sampling: Sampling = GREEDY,
        stop: Stop = AT_EOS,
        *,
        raw: bool = False,
        every: int = 8,
    ) -> Iterating[bytes, None, Continuation]:
        """Continues one prompt, and yields the new bytes as they come; its return value is the `Continuation`.

        All pieces together are the text that a call gives, but for what is no UTF-8: no piece ends within a character,
        and bytes that are none come as U+FFFD. Bytes that may be the beginning of a stop string are held back.

        Args:
          raw: yield the very bytes, wherever a piece of them ends.
          every: ids to draw between two pieces.

        Others, and what is raised: as for a call.
        """
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1.")
        rows, session = self._begin([prompt], max_new_bytes)
        needles, left, shown, characters = stop.needles, max_new_bytes, 0, Characters()
        is_last = left == 0
        while not is_last:
            steps = min(left, every)
            session = self._draw(session, steps, max_new_bytes, sampling, stop)
            left -= steps
            text = self._texts(rows, session, max_new_bytes)[0]
            end = cut(text, needles)
            is_last = end is not None or left == 0 or int(session.ended[0]) != RUNNING
            end = end if end is not None else len(text) if is_last else safe(text, needles)
            piece = text[shown:end]
            shown = max(shown, end)
            piece = piece if raw else characters.feed(piece, is_last)
            if piece:
                yield piece
        return self._continuations(rows, session, max_new_bytes, needles)[0]

    def _begin(self, prompts: Sequence[Prompt], max_new_bytes: int) -> tuple[list[np.ndarray], Session]:
        """The ids of the prompts, and a session that has read them."""
        if max_new_bytes < 0:
            raise ValueError(f"max_new_bytes={max_new_bytes}: must be at least 0.")
        if isinstance(prompts, str | bytes):
            raise ValueError(f"prompts={prompts[:40]!r}: pass a list of prompts, also where there is only one.")
        if not len(prompts):
            raise ValueError("prompts=[]: pass at least one; an empty prompt is allowed.")
        rows = [self.source.ids_of(prompt) for prompt in prompts]
        for number, ids in enumerate(rows):
            longest = self._program.kind.longest(self._program.model)
            if longest is not None and len(ids) + max_new_bytes > longest:
                raise ValueError(
                    f"prompts[{number}] has {len(ids)} ids, which with max_new_bytes={max_new_bytes} more exceed the "
                    f"{longest} that the model has positions for: shorten one of them."
                )
            if len(ids) + max_new_bytes > self.capacity:
                raise ValueError(
                    f"prompts[{number}] has {len(ids)} ids, which with max_new_bytes={max_new_bytes} more do not fit "
                    f"in capacity={self.capacity}: make a Generator with more, or shorten one of them."
                )
        with self._on_mesh():
            ways = 1 if self._mesh is None else batch_ways(self._mesh)
            made_up = [self.source.ids_of(b"")] * (-len(rows) % ways)
            session = decode.begin(self._program, rows + made_up)
            session = decode.read_prompts(self._program, self._params, session, self._threshold)
        if made_up:
            real = np.arange(len(rows) + len(made_up)) < len(rows)
            session = dataclasses.replace(session, ended=jnp.where(real, session.ended, BY_BYTES))
        return rows, self._checked(session)

    def _on_mesh(self) -> Any:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _draw(self, session: Session, steps: int, max_new_bytes: int, sampling: Sampling, stop: Stop) -> Session:
        limits = Limits(
            steps=jnp.int32(steps),
            bytes=jnp.int32(max_new_bytes),
            patches=jnp.int32(self.capacity if stop.patches is None else stop.patches),
            id_bytes=self._id_bytes,
        )
        drawn = drawing(sampling, len(session.ended), self.source.drawable(stop.eos))
        draw = draw_ahead if self.ahead else decode.draw_ids
        with self._on_mesh():
            session = draw(self._program, self._params, session, self._threshold, drawn, limits)
        return self._checked(session)

    def _checked(self, session: Session) -> Session:
        most = int(np.asarray(session.starts)[:, 1:].sum(axis=1).max())  # a start at 0 ends none
        if most > self.patch_capacity:
            raise ValueError(
                f"patch_capacity={self.patch_capacity}: a row has {most} patches; make a Generator with more room."
            )
        return session

    def _drawn(self, rows: list[np.ndarray], session: Session) -> list[np.ndarray]:
        ids, known = np.asarray(session.ids), np.asarray(session.known)
        return [ids[number, len(prompt) : known[number]] for number, prompt in enumerate(rows)]

    def _texts(self, rows: list[np.ndarray], session: Session, max_new_bytes: int) -> list[bytes]:
        return [self.source.text_of(ids)[:max_new_bytes] for ids in self._drawn(rows, session)]

    def _continuations(
        self, rows: list[np.ndarray], session: Session, max_new_bytes: int, needles: Sequence[bytes]
    ) -> list[Continuation]:
        nats, starts, entropies, ended, id_bytes = (
            np.asarray(x) for x in (session.nats, session.starts, session.entropies, session.ended, self._id_bytes)
        )
        rounds, latent_rounds, patches = (
            np.asarray(x) for x in (session.rounds, session.latent_rounds, session.drawn_patches)
        )
        patcher, patched = self.source.patcher, self._program.kind.patched
        out = []
        for number, (prompt, ids) in enumerate(zip(rows, self._drawn(rows, session), strict=True)):
            text = self.source.text_of(ids)[:max_new_bytes]
            reason = REASONS.get(int(ended[number]), "bytes")
            found = Guesses(len(ids), int(rounds[number]), int(patches[number]), int(latent_rounds[number]))
            place = cut(text, needles)
            if place is not None:
                text, reason = text[:place], "string"
                # The ids that it takes to write what comes before the stop string.
                ids = ids[: int(np.searchsorted(np.cumsum(id_bytes[ids]), place)) + 1] if place else ids[:0]
            end = len(prompt) + len(ids)
            out.append(
                Continuation(
                    text=text,
                    ids=ids,
                    nats=nats[number, len(prompt) : end],
                    ended_by=reason,
                    prompt_ids=prompt,
                    starts=starts[number, :end] if patched else None,
                    entropies=entropies[number, :end] if patcher is not None and patcher.rule == "entropy" else None,
                    guesses=found if self.ahead else None,
                )
            )
        return out
