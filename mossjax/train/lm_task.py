"""Training task of the language model: packed rows of the two-channel grid.

Batch: `data.rows`, int32 tokens (r, t, 2), labels (r, t, 2), segments (r, t), positions (r, t).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mossjax.convert import kinds
from mossjax.data.pipeline import Batch, Batches
from mossjax.models.lm import loss as loss_lib
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import TEXT, keep_all, network
from mossjax.nn.lora import Lora, adapt
from mossjax.nn.param import Network
from mossjax.ops.attention import attention


@dataclasses.dataclass(frozen=True)
class LMTask:
    """What the training loop needs to know about the language model.

    Attributes:
      config: the network's.
      batches: the data; planning needs none.
      attend, remat: see `models.lm.model.LanguageModel`.
      text_weight, audio_weight: of the two channels in the loss.
      chunk: positions whose logits exist at a time.
      reply: the two text ids that open the assistant's turn (`<|im_start|>`, `assistant`). Given,
        the loss of the replies is logged by itself: in rows that are supervised whole it drowns
        among question codes, which nothing can predict.
      lora: train adapters on frozen weights; parameters are then {'base': ..., 'lora': ...}.
    """

    config: LMConfig
    batches: Batches
    attend: Callable = attention
    remat: Callable = keep_all
    text_weight: float = 1.0
    audio_weight: float = 1.0
    chunk: int = 2048
    reply: tuple[int, int] | None = None
    lora: Lora | None = None

    @functools.cached_property
    def network(self) -> Network:
        net = network(self.config, attend=self.attend, remat=self.remat)
        return net if self.lora is None else adapt(net, self.lora, matrix)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Weights under adapters are never trained."""
        return () if self.lora is None else ('base/.*',)

    @property
    def model(self) -> dict:
        """What a checkpoint says of its parameters, so that it can be exported; see `kinds`."""
        adapted = {} if self.lora is None else {'lora': dataclasses.asdict(self.lora)}
        configs = {kinds.CONFIG: self.config.to_hf()}
        return {'kind': kinds.LANGUAGE_MODEL, 'configs': configs, **adapted}

    def init_extra(self, params: dict) -> dict:
        del params
        return {}

    def size(self, step: int) -> int:
        return self.batches.size(step)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        return self.batches.batch(step, rows)

    def loss(self, params, extra, batch, key):
        del key
        watch = {'reply': reply_positions(batch, *self.reply)} if self.reply else {}
        loss, metrics = loss_lib.loss(
            self.network.bind(params), batch, text_weight=self.text_weight,
            audio_weight=self.audio_weight, chunk=self.chunk, watch=watch,
        )
        metrics['tokens'] = jnp.sum(batch['segments'] > 0).astype(jnp.float32)
        return loss, (metrics, extra)


def reply_positions(batch: dict, turn: int, assistant: int) -> jax.Array:
    """(r, t) bool: positions whose last opened turn, in their own segment, is the assistant's.

    Args:
      turn: text id that opens any turn; the id after it names the speaker.
      assistant: that name.
    """
    text, segments = batch['tokens'][..., TEXT], batch['segments']
    t = text.shape[1]
    opened = jax.lax.cummax(jnp.where(text == turn, jnp.arange(t), -1), axis=1)
    at = jnp.maximum(opened, 0)
    speaker = jnp.take_along_axis(text, jnp.minimum(at + 1, t - 1), axis=1)
    own = jnp.take_along_axis(segments, at, axis=1) == segments
    return (opened >= 0) & own & (speaker == assistant) & (jnp.arange(t) > opened)
