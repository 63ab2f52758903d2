"""Self-speculation: the local models guess on past the end of a patch, and one parallel pass says how far that holds.

In goes a `Session`, as for `decode.draw_ids`, and out comes the same one: the ids are those that drawing one at a time
gives. Nothing is trained for it (Fast BLT, arXiv 2605.08044, where it is called BLT-S). A round:

1. The next id is drawn from the logits that are there; it is no guess.
2. After it `Latent.ahead` more are drawn, from the logits of encoder and decoder alone, as if the patch went on: they
   keep the newest latent. Up to where the patch ends these are the logits of the whole model.
3. All are read at once as a part of a prompt is: the patching model, the encoder, the global model for all patches
   that end among them together, the decoder. Each gives the logits after it.
4. Ids stay up to the first that is not drawn from those logits. The state is that after the last one that stays.

A random draw depends on logits, seed and place alone (`sampling.draw`). So a guess is drawn as the id itself would be,
and all this holds at any temperature. What is saved is going through the weights of the large models for every byte
and every patch; what it costs is the rounds of the local models whose guesses do not stay.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bltjax.generate import latent
from bltjax.generate.decode import RUNNING, Limits, Program, Session, each_draws, filled, noted, reasons
from bltjax.generate.sampling import Drawing, draw
from bltjax.generate.state import Latent, LatentState


@functools.partial(jax.jit, static_argnames="program", donate_argnames="session")
def draw_ahead(
    program: Program, params: Any, session: Session, threshold: Float[Array, ""], drawing: Drawing, limits: Limits
) -> Session:
    """Draws ids and reads them, `Latent.ahead` + 1 at most in a round; arguments and result as for `draw_ids`."""
    return each_draws(functools.partial(_draw, program), params, session, threshold, drawing, limits)


def _draw(
    program: Program, params: Any, session: Session, threshold: Array, drawing: Drawing, limits: Limits
) -> Session:
    model = program.model
    assert isinstance(model, Latent)
    row, index = jnp.arange(session.ids.shape[0])[:, None], jnp.arange(model.ahead + 1)

    def goes_on(carry: tuple[Session, Array]) -> Array:
        session, left = carry
        return jnp.any((session.ended == RUNNING) & (left > 0))

    def body(carry: tuple[Session, Array]) -> tuple[Session, Array]:
        session, left = carry
        assert isinstance(session.state, LatentState)
        position = session.known
        count = jnp.where(session.ended == RUNNING, jnp.minimum(left, model.ahead + 1), 0)
        ids, state = _guesses(model, params, session, count, drawing)
        decision = latent.decide(model, params, state, ids, position, count, threshold)
        taken = latent.take(model, params, state, ids, decision.starts, position, count)
        found = latent.logits(model, params, taken.x)

        drawn = jax.vmap(draw, in_axes=(1, 1, None), out_axes=1)(found, position[:, None] + 1 + index, drawing)
        holds = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), drawn[:, :-1] == ids[:, 1:]], axis=1)
        drawn_bytes = session.drawn_bytes[:, None] + jnp.cumsum(limits.id_bytes[ids], axis=1)
        drawn_patches = session.drawn_patches[:, None] + jnp.cumsum(decision.starts, axis=1, dtype=jnp.int32)
        why = reasons(ids, drawn_bytes, drawn_patches, limits)
        # An id stays if it holds, and all before it hold and do not end the row.
        ended = jnp.concatenate([jnp.zeros_like(ids[:, :1], bool), why[:, :-1] != RUNNING], axis=1)
        stays = jnp.cumprod(holds & ~ended & (index < count[:, None]), axis=1)
        stay = jnp.sum(stays, axis=1, dtype=jnp.int32)

        last = jnp.maximum(stay - 1, 0)[:, None]

        def at_last(x: Array, before: Array) -> Array:
            return jnp.where(stay > 0, jnp.take_along_axis(x, last, axis=1)[:, 0], before)

        before = jnp.concatenate([session.logits[:, None], found[:, :-1]], axis=1)
        nats = jax.nn.logsumexp(before, axis=-1) - jnp.take_along_axis(before, ids[:, :, None], axis=-1)[:, :, 0]
        places = jnp.where(index < stay[:, None], position[:, None] + index, program.positions)
        state = latent.decided(model, state, decision, ids, position, stay)
        session = noted(program, session, decision.starts, decision.entropies, position, stay)
        session = dataclasses.replace(
            session,
            state=latent.settle(model, state, taken, position, stay),
            ids=session.ids.at[row, places].set(ids, mode="drop"),
            nats=session.nats.at[row, places].set(nats, mode="drop"),
            known=position + stay,
            read=position + stay,
            logits=jnp.where(stay[:, None] > 0, found[row[:, 0], last[:, 0]], session.logits),
            drawn_bytes=at_last(drawn_bytes, session.drawn_bytes),
            drawn_patches=at_last(drawn_patches, session.drawn_patches),
            ended=at_last(why, session.ended),
            rounds=session.rounds + (stay > 0),
            latent_rounds=session.latent_rounds + jnp.any(decision.starts, axis=1),
        )
        return session, left - stay

    carry = filled(session, limits), jnp.full(len(session.ids), limits.steps)
    return jax.lax.while_loop(goes_on, body, carry)[0]


def _guesses(
    model: Latent, params: Any, session: Session, count: Int[Array, "batch"], drawing: Drawing
) -> tuple[Int[Array, "batch guesses"], LatentState]:
    """The next `count` ids of each row: the first is drawn, the others are guessed; and the state before them, whose
    local caches hold guesses at the places that they will have."""
    assert isinstance(session.state, LatentState)
    kept = session.state
    first = draw(session.logits, session.known, drawing)
    ids = jnp.zeros((len(first), model.ahead + 1), jnp.int32).at[:, 0].set(first)

    # Only what changes is carried along: of all else XLA would keep a copy.
    changes = {name: getattr(kept, name) for name in ("ids", "document", "encoder", "decoder")}

    def guess(number: Array, carry: tuple[Array, dict[str, Any]]) -> tuple[Array, dict[str, Any]]:
        ids, changes = carry
        state = dataclasses.replace(kept, **changes)
        goes_on = (number + 1 < count).astype(jnp.int32)
        found, state = latent.guess(model, params, state, ids[:, number], session.known + number, goes_on)
        drawn = draw(found, session.known + number + 1, drawing)
        return ids.at[:, number + 1].set(drawn), {name: getattr(state, name) for name in changes}

    ids, changes = jax.lax.fori_loop(0, jnp.max(count) - 1, guess, (ids, changes))
    return ids, dataclasses.replace(kept, encoder=changes["encoder"], decoder=changes["decoder"])
