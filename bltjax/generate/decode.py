"""The compiled programs of generation: reading prompts in parts, and the loop that draws an id and reads it.

In goes a `Session`, which holds all that is known of a batch of rows; out comes the same session, further on. Both
programs are compiled once for a batch size and a `Program`: how long prompts are, how many ids are wanted and how they
are drawn are numbers that the compiled program is given. `Generator` calls them; it alone turns text into ids.

Rows end their patches at different bytes, and the global model is most of the work. So a row whose patch has ended
waits, its last byte drawn and known to the patching rule alone, until so many others wait (`Program.together`). With
16 rows of `blt-bench`, each 128 to 384 bytes long, eight on each of two devices of a CPU with two cores, a byte took
0.89 ms where half of the rows wait, 1.20 where the global model runs when any does, masked, and 1.42 where all must
wait, so that patches are in step (scripts/benchmark_generate.py, jax 0.12.0.1).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.blocked import MANY, in_one_piece
from bltjax.generate.kinds import Kind, Model, kind_of
from bltjax.generate.sampling import Drawing, draw
from bltjax.parallel import by_replica

TOGETHER = 0.5  # the best of the three that were measured

RUNNING, BY_EOS, BY_BYTES, BY_PATCHES = range(4)  # why a row has ended


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program is made for, besides the number of rows; hashable.

    Attributes:
      positions: room for the ids of a row.
      part: ids of a prompt that are read at once.
      together: the share of the rows still to go on that must wait before the global model runs for them; 0: it runs
        when any waits, 1: when no row can go on without it.
    """

    model: Model
    positions: int
    part: int
    together: float = TOGETHER

    @property
    def vocabulary_size(self) -> int:
        return getattr(self.model, "vocabulary_size", vocabulary.SIZE)

    @property
    def kind(self) -> Kind:
        return kind_of(self.model)


@chex.dataclass
class Session:
    """All that is known of a batch of rows."""

    state: Any  # the model's, of its kind
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
    rounds: Int[Array, "batch"]  # of guessing (`speculation`) that gave the drawn ids; 0 where nothing is guessed
    latent_rounds: Int[Array, "batch"]  # of these in which the global model ran for the row


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
    return begin_rows(program, ids, np.array([len(prompt) for prompt in prompts], np.int32))


@functools.partial(jax.jit, static_argnames="program")
def begin_rows(program: Program, ids: Int[Array, "batch positions"], known: Int[Array, "batch"]) -> Session:
    """`begin`, compiled."""
    batch = len(ids)
    return Session(
        state=program.kind.empty(program.model, batch, program.positions),
        ids=ids,
        known=known,
        read=jnp.zeros(batch, jnp.int32),
        logits=jnp.zeros((batch, program.vocabulary_size)),
        nats=jnp.zeros((batch, program.positions)),
        starts=jnp.zeros((batch, program.positions + 1), bool).at[:, 0].set(program.kind.patched),
        entropies=jnp.zeros((batch, program.positions)),
        ended=jnp.full(batch, RUNNING, jnp.int32),
        drawn_bytes=jnp.zeros(batch, jnp.int32),
        drawn_patches=jnp.zeros(batch, jnp.int32),
        rounds=jnp.zeros(batch, jnp.int32),
        latent_rounds=jnp.zeros(batch, jnp.int32),
    )


def _absorb(program: Program, params: Any, session: Session, ids: Array, count: Array, starts: Array) -> Session:
    """Reads `count` more ids of each row with all but the model that patches."""
    found, state = program.kind.read(program.model, params, session.state, ids, starts, session.read, count)
    return dataclasses.replace(
        session, state=state, read=session.read + count, logits=jnp.where(count[:, None] > 0, found, session.logits)
    )


def _decide(
    program: Program, params: Any, session: Session, ids: Array, position: Array, count: Array, threshold: Array
) -> tuple[Array, Session]:
    """Whether a patch starts after each of `count` new ids."""
    kind = program.kind
    starts, entropies, state = kind.patch(program.model, params, session.state, ids, position, count, threshold)
    session = dataclasses.replace(session, state=state)
    return starts, noted(program, session, starts, entropies, position, count) if kind.patched else session


def noted(
    program: Program, session: Session, starts: Array, entropies: Array | None, position: Array, count: Array
) -> Session:
    """The session with what was decided of the first `count` new ids written down."""
    row, index = jnp.arange(len(count))[:, None], jnp.arange(starts.shape[1])
    places = jnp.where(index < count[:, None], position[:, None] + index, program.positions + 1)
    session = dataclasses.replace(session, starts=session.starts.at[row, places + 1].set(starts, mode="drop"))
    if entropies is None:
        return session
    return dataclasses.replace(session, entropies=session.entropies.at[row, places].set(entropies, mode="drop"))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="session")
def read_prompts(program: Program, params: Any, session: Session, threshold: Float[Array, ""]) -> Session:
    """Reads the ids that have not been read, `program.part` at a time."""
    return by_replica(functools.partial(_read, program))((params, threshold), session)


def _read(program: Program, whole: tuple[Any, Array], session: Session) -> Session:
    (params, threshold), index = whole, jnp.arange(program.part)
    if session.ids.shape[0] * program.part > MANY:
        params = in_one_piece(params)

    def body(session: Session) -> Session:
        places = jnp.minimum(session.read[:, None] + index, program.positions - 1)
        ids = jnp.take_along_axis(session.ids, places, axis=1)
        count = jnp.clip(session.known - session.read, 0, program.part)
        starts, session = _decide(program, params, session, ids, session.read, count, threshold)
        return _absorb(program, params, session, ids, count, starts)

    return jax.lax.while_loop(lambda s: jnp.any(s.read < s.known), body, session)


def filled(session: Session, limits: Limits) -> Session:
    """The session where rows that have all their bytes before anything is drawn have ended."""
    full = (session.drawn_bytes >= limits.bytes) & (session.ended == RUNNING)
    return dataclasses.replace(session, ended=jnp.where(full, BY_BYTES, session.ended))


def reasons(
    ids: Int[Array, "*any"], drawn_bytes: Int[Array, "*any"], drawn_patches: Int[Array, "*any"], limits: Limits
) -> Int[Array, "*any"]:
    """Why rows end with ids, after which so much has been drawn; RUNNING where they do not."""
    ended = jnp.where(drawn_patches >= limits.patches, BY_PATCHES, RUNNING)
    ended = jnp.where(drawn_bytes >= limits.bytes, BY_BYTES, ended)
    return jnp.where(ids == vocabulary.EOS, BY_EOS, ended)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="session")
def draw_ids(
    program: Program, params: Any, session: Session, threshold: Float[Array, ""], drawing: Drawing, limits: Limits
) -> Session:
    """Draws ids and reads them, until `limits` or an EOS ends every row; all that was known has been read before.

    A row ends with the id that reaches a limit, and with an EOS. Each row that has not ended must have room for
    `limits.steps` more ids.
    """
    return each_draws(functools.partial(_draw, program), params, session, threshold, drawing, limits)


def each_draws(
    draws: Callable[..., Session], params: Any, session: Session, threshold: Array, drawing: Drawing, limits: Limits
) -> Session:
    """What `draws`, given the other arguments, makes of a session; replicas make it of their own rows."""

    def by_one(whole: Any, rows: Any) -> Session:
        (params, threshold, how, limits), (session, keys) = whole, rows
        return draws(params, session, threshold, Drawing(keys=keys, **how), limits)

    how = dict(vars(drawing))
    keys = how.pop("keys")
    return by_replica(by_one)((params, threshold, how, limits), (session, keys))


def _draw(
    program: Program, params: Any, session: Session, threshold: Array, drawing: Drawing, limits: Limits
) -> Session:
    row = jnp.arange(session.ids.shape[0])

    def goes_on(carry: tuple[Session, Array, Array]) -> Array:
        session, left, waits = carry
        return jnp.any((session.ended == RUNNING) & (left > 0)) | jnp.any(waits)

    def body(carry: tuple[Session, Array, Array]) -> tuple[Session, Array, Array]:
        session, left, waits = carry
        draws = (session.ended == RUNNING) & (left > 0) & ~waits
        count = draws.astype(jnp.int32)
        ids = draw(session.logits, session.known, drawing)
        nats = jax.nn.logsumexp(session.logits, axis=-1) - session.logits[row, ids]
        place = jnp.where(draws, session.known, program.positions)
        starts, session = _decide(program, params, session, ids[:, None], session.known, count, threshold)
        drawn_bytes = session.drawn_bytes + count * limits.id_bytes[ids]
        drawn_patches = session.drawn_patches + starts[:, 0]
        session = dataclasses.replace(
            session,
            ids=session.ids.at[row, place].set(ids, mode="drop"),
            nats=session.nats.at[row, place].set(nats, mode="drop"),
            known=session.known + count,
            drawn_bytes=drawn_bytes,
            drawn_patches=drawn_patches,
            ended=jnp.where(draws, reasons(ids, drawn_bytes, drawn_patches, limits), session.ended),
        )
        left, waits = left - count, waits | starts[:, 0]
        free = (session.ended == RUNNING) & (left > 0) & ~waits
        runs = jnp.sum(waits) >= program.together * jnp.sum(waits | free)
        reads = (session.read < session.known) & (runs | ~waits)
        newest = session.ids[row, jnp.minimum(session.read, program.positions - 1)]
        session = _absorb(program, params, session, newest[:, None], reads.astype(jnp.int32), waits[:, None])
        return session, left, waits & ~runs

    batch = len(row)
    carry = filled(session, limits), jnp.full(batch, limits.steps), jnp.zeros(batch, bool)
    return jax.lax.while_loop(goes_on, body, carry)[0]
