"""How far other weights (int8, say) move a language model: on the same rows, head by head.

Both models read the same grids, prompts with the replies of the first one, so histories never
drift apart. A head counts on the rows where it decides: the text head before text rows, the audio
head before speech rows.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert.int8 import int8
from mossjax.convert.placement import on_host
from mossjax.eval.demo import MODES, Tour
from mossjax.infer.assets import Assets
from mossjax.infer.chat import Chat, Reply
from mossjax.models.lm.dialogue import Turn
from mossjax.models.lm.grid import GridIds, collate
from mossjax.models.lm.model import Logits
from mossjax.ops.attention import Mask

BATCH = 32
LONGEST = 64  # rows of a reply that are compared


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of one head: mean KL(first || other) in nats, share of equal largest logits, rows."""

    head: str
    kl: float
    top1: float
    rows: int


def of_tour(assets: Assets, tour: Tour) -> list[Agreement]:
    """int8 against the stored weights, on the questions of a tour in all modes."""
    reference = Chat.open(assets.lm, put=on_host('float32'))
    other = Chat.open(assets.lm, put=int8('float32')).params
    settings = reference.settings.greedy().at_most(LONGEST)
    replies = []
    for medium, kind in MODES.values():
        asked = tour.heard if medium == 'speech' else [clip.text for clip in tour.asked]
        dialogues = [[Turn('user', question)] for question in asked]
        replies += reference.replies(dialogues, kind, settings)
    return compare(reference, other, replies)


def compare(reference: Chat, other: dict, replies: Sequence[Reply]) -> list[Agreement]:
    """Agreement of parameters `other` with a chat's own, on that chat's replies."""
    generator = reference.generator
    run = jax.jit(functools.partial(_distances, generator.network, generator.ids))
    grids = [np.concatenate([reply.prompt, reply.grid]) for reply in replies]
    length = max(map(len, grids))
    sums = np.zeros((2, 3))
    for start in range(0, len(grids), BATCH):
        part = grids[start : start + BATCH]
        tokens, valid = collate(part, generator.ids, length)
        replied = np.zeros(valid.shape, bool)
        for i, reply in enumerate(replies[start : start + BATCH]):
            replied[i, length - len(reply.grid) :] = True
        sums += np.asarray(run(reference.params, other, tokens, valid, replied))
    return [
        Agreement(head, float(kl / n), float(same / n), int(n)) if n else Agreement(head, 0, 1, 0)
        for head, (kl, same, n) in zip(('text', 'audio'), sums, strict=True)
    ]


def _distances(network, ids: GridIds, a: dict, b: dict, tokens, valid, replied) -> jax.Array:
    """(2, 3): for each head the sums of KL and of equal largest logits, and the rows counted.

    Args:
      tokens (b, t, 2); valid, replied (b, t): rows that exist, rows of the reply.
    """
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    mask = Mask(causal=True, kv_valid=valid)
    first, second = (network.bind(p)(tokens, positions, mask) for p in (a, b))
    speech = tokens[:, 1:, 0] == ids.speech
    decided = Logits(~speech & replied[:, 1:], speech & replied[:, 1:])
    return jnp.stack([_head(*x) for x in zip(first, second, decided, strict=True)])


def _head(a: jax.Array, b: jax.Array, decided: jax.Array) -> jax.Array:
    log_a, log_b = (jax.nn.log_softmax(x[:, :-1].astype(jnp.float32)) for x in (a, b))
    kl = jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)
    same = jnp.argmax(log_a, axis=-1) == jnp.argmax(log_b, axis=-1)
    return jnp.stack([jnp.sum(jnp.where(decided, x, 0.0)) for x in (kl, same, decided)])


def table(found: Sequence[Agreement]) -> str:
    """One line a head."""
    lines = ['int8 against the stored weights, same rows   mean KL (nats)   same top-1     rows']
    lines += [
        f'  {a.head} head{"":33}{a.kl:14.6f}{100 * a.top1:12.2f}%{a.rows:9d}' for a in found
    ]
    return '\n'.join(lines)
