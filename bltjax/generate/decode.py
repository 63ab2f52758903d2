"""The compiled programs of generation: reading prompts in parts, and the loop that draws an id and reads it.

In goes a `Session`, which holds all that is known of a batch of rows; out comes the same session, further on. Both
programs are compiled once for a batch size and a `Program`: how long prompts are, how many ids are wanted and how they
are drawn are numbers that the compiled program is given. `Generator` calls them; it alone turns text into ids.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.config import LanguageModelConfig
from bltjax.generate import flat, latent, state
from bltjax.generate.flat import FlatState
from bltjax.generate.sampling import Drawing, draw
from bltjax.generate.state import Latent, LatentState

RUNNING, BY_EOS, BY_BYTES, BY_PATCHES = range(4)  # why a row has ended


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program is made for, besides the number of rows; hashable.

    Attributes:
      positions: room for the ids of a row.
      part: ids of a prompt that are read at once.
    """

    model: Latent | LanguageModelConfig
    positions: int
    part: int

    @property
    def vocabulary_size(self) -> int:
        return self.model.vocabulary_size if isinstance(self.model, LanguageModelConfig) else vocabulary.SIZE


@chex.dataclass
class Session:
    """All that is known of a batch of rows."""

    state: LatentState | FlatState
    ids: Int[Array, "batch positions"]  # prompts, and what was drawn
    known: Int[Array, "batch"]  # how many ids of a row there are
    read: Int[Array, "batch"]  # how many of them the model has read
    logits: Float[Array, "batch vocabulary"]  # of the id after the last one read
    nats: Float[Array, "batch positions"]  # what each drawn id cost: -log of its probability, whatever it was drawn by
    starts: Bool[Array, "batch positions+1"]  # where patches start; False for flat models
    entropies: Float[Array, "batch positions"]  # nats, of the entropy model; 0 where there is none
    ended: Int[Array, "batch"]  # RUNNING, or why the row has ended
    drawn_bytes: Int[Array, "batch"]
    drawn_patches: Int[Array, "batch"]  # that have ended with a drawn byte


@chex.dataclass
class Limits:
    """Where rows end."""

    steps: Int[Array, ""]  # ids to draw in this call
    bytes: Int[Array, ""]  # raw bytes of a row
    patches: Int[Array, ""]
    id_bytes: Int[Array, "vocabulary"]  # raw bytes that each id stands for


def begin(program: Program, prompts: list[np.ndarray]) -> Session:
    """A session of rows that begin with these ids, none of which has been read.

    Raises:
      ValueError: for a prompt without ids, or one longer than there is room for.
    """
    ids = np.zeros((len(prompts), program.positions), np.int32)
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= program.positions:
            raise ValueError(f"prompts[{row}] has {len(prompt)} ids: from 1 to {program.positions} fit.")
        ids[row, : len(prompt)] = prompt
    return _begin(program, ids, np.array([len(prompt) for prompt in prompts], np.int32))


@functools.partial(jax.jit, static_argnames="program")
def _begin(program: Program, ids: Int[Array, "batch positions"], known: Int[Array, "batch"]) -> Session:
    batch = len(ids)
    model, is_flat = program.model, isinstance(program.model, LanguageModelConfig)
    empty = state.empty(model, batch) if isinstance(model, Latent) else flat.empty(model, batch, program.positions)
    return Session(
        state=empty,
        ids=ids,
        known=known,
        read=jnp.zeros(batch, jnp.int32),
        logits=jnp.zeros((batch, program.vocabulary_size)),
        nats=jnp.zeros((batch, program.positions)),
        starts=jnp.zeros((batch, program.positions + 1), bool).at[:, 0].set(not is_flat),
        entropies=jnp.zeros((batch, program.positions)),
        ended=jnp.full(batch, RUNNING, jnp.int32),
        drawn_bytes=jnp.zeros(batch, jnp.int32),
        drawn_patches=jnp.zeros(batch, jnp.int32),
    )


def _read(program: Program, params: Any, session: Session, ids: Array, count: Array, threshold: Array) -> Session:
    """Reads `count` more ids of each row, with which all but `ended` and what was drawn is brought up to date."""
    model, row = program.model, jnp.arange(ids.shape[0])
    last = jnp.maximum(count - 1, 0)
    starts, entropies = session.starts, session.entropies
    if isinstance(model, LanguageModelConfig):
        assert isinstance(session.state, FlatState)
        x, state = flat.read(model, params, session.state, ids, session.read, count)
        found = flat.logits(model, params, x[row, last][:, None])[:, 0]
    else:
        assert isinstance(session.state, LatentState)
        reading, state = latent.read(model, params, session.state, ids, session.read, count, threshold)
        found = latent.logits(model, params, reading.x[row, last][:, None])[:, 0]
        index = jnp.arange(ids.shape[1])
        places = jnp.where(index < count[:, None], session.read[:, None] + index, program.positions + 1)
        starts = starts.at[row[:, None], places + 1].set(reading.starts, mode="drop")
        if reading.entropies is not None:
            entropies = entropies.at[row[:, None], places].set(reading.entropies, mode="drop")
    return dataclasses.replace(
        session,
        state=state,
        read=session.read + count,
        logits=jnp.where(count[:, None] > 0, found, session.logits),
        starts=starts,
        entropies=entropies,
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="session")
def read_prompts(program: Program, params: Any, session: Session, threshold: Float[Array, ""]) -> Session:
    """Reads the ids that have not been read, `program.part` at a time."""
    index = jnp.arange(program.part)

    def body(session: Session) -> Session:
        places = jnp.minimum(session.read[:, None] + index, program.positions - 1)
        ids = jnp.take_along_axis(session.ids, places, axis=1)
        count = jnp.clip(session.known - session.read, 0, program.part)
        return _read(program, params, session, ids, count, threshold)

    return jax.lax.while_loop(lambda s: jnp.any(s.read < s.known), body, session)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="session")
def draw_ids(
    program: Program, params: Any, session: Session, threshold: Float[Array, ""], drawing: Drawing, limits: Limits
) -> Session:
    """Draws ids and reads them, until `limits` or an EOS ends every row; all that was known has been read before.

    A row ends with the id that reaches a limit, and with an EOS. Each row that has not ended must have room for
    `limits.steps` more ids.
    """
    row = jnp.arange(session.ids.shape[0])

    def goes_on(carry: tuple[Array, Session]) -> Array:
        step, session = carry
        return (step < limits.steps) & jnp.any(session.ended == RUNNING)

    def body(carry: tuple[Array, Session]) -> tuple[Array, Session]:
        step, session = carry
        running = session.ended == RUNNING
        ids = draw(session.logits, session.known, drawing)
        nats = jax.nn.logsumexp(session.logits, axis=-1) - session.logits[row, ids]
        place = jnp.where(running, session.known, program.positions)
        count = running.astype(jnp.int32)
        session = dataclasses.replace(
            session,
            ids=session.ids.at[row, place].set(ids, mode="drop"),
            nats=session.nats.at[row, place].set(nats, mode="drop"),
            known=session.known + count,
            drawn_bytes=session.drawn_bytes + count * limits.id_bytes[ids],
        )
        session = _read(program, params, session, ids[:, None], count, threshold)
        drawn_patches = session.drawn_patches + count * session.starts[row, session.known]
        reasons = (
            (ids == vocabulary.EOS, BY_EOS),
            (session.drawn_bytes >= limits.bytes, BY_BYTES),
            (drawn_patches >= limits.patches, BY_PATCHES),
        )
        ended = session.ended
        for holds, reason in reasons:
            ended = jnp.where((ended == RUNNING) & holds, reason, ended)
        return step + 1, dataclasses.replace(session, ended=ended, drawn_patches=drawn_patches)

    # A row that is full before anything is drawn ends there.
    full = (session.drawn_bytes >= limits.bytes) & (session.ended == RUNNING)
    session = dataclasses.replace(session, ended=jnp.where(full, BY_BYTES, session.ended))
    return jax.lax.while_loop(goes_on, body, (jnp.int32(0), session))[1]
