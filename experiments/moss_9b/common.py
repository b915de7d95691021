"""What the stages of the 9.1 B model share: the slices they are laid out for, and the settings.

The paper gives learning rates, tokens of a batch, context and weight decay. Warm-up, betas and
clipping are not in it: what stands here is ours and usual.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mossjax.errors import InputError
from mossjax.parallel import slices
from mossjax.train.config import defaults


class Layout(NamedTuple):
    """How a run lies on a slice.

    Attributes:
      remat: what layers keep for the backward pass (`nn.remat`) of one row a part of the mesh at a
        time. tensor: chips that share a row. chunk: positions whose logits exist at a time.
    """

    remat: str
    tensor: int = 1
    chunk: int = 2048


# By the names of `parallel.slices`; NxNAME for several joined, along `data`.
SLICES = {
    'v5p-16': Layout('projections'),
    'v5p-128': Layout('projections'),
    # A row of 14,336 positions is too long for one chip of 16 GB.
    'v5e-16': Layout('full', tensor=2, chunk=1024),
    'v5e-256': Layout('attention', tensor=2, chunk=1024),
    'v6e-8': Layout('full', chunk=1024),
    'v6e-256': Layout('heads', chunk=1024),
    '2xv6e-256': Layout('heads', tensor=4, chunk=1024),
}


def moss_9b(rows: Mapping[str, str], context: int, batches: Mapping[str, int], name: str):
    """A run of the released model on packed rows.

    Args:
      rows: name -> directory (`data.builder`). context: positions of each.
      batches: slice -> rows of a batch; taken in as many parts as keep one row at a time.
      name: of the slice.

    Raises:
      InputError: the run is not laid out for this slice.
    """
    if name not in batches:
        raise InputError(
            f'{name!r} is no slice this run is laid out for; name one of {", ".join(batches)} '
            'behind the colon of --config FILE.py:SLICE'
        )
    layout, batch_size = SLICES[name], batches[name]
    one, count = slices.several(name, 'slice')
    rows_at_once = one.chips * count // layout.tensor  # one for each group that shares it
    config = defaults()
    config.task = 'lm'
    config.log_every = 10
    config.save_every = 500
    config.keep = 3
    config.compute_dtype = 'bfloat16'
    config.mesh.data = config.mesh.slices = count
    config.mesh.fsdp = rows_at_once // count
    config.mesh.tensor = layout.tensor
    config.rules = 'fsdp_tensor' if layout.tensor > 1 else 'fsdp'
    config.model.config = 'released'
    config.model.attention = 'flash'
    config.model.remat = layout.remat
    config.loss.chunk = layout.chunk
    config.data.rows = dict(rows)
    config.data.weights = {name: 1.0 for name in rows}
    config.data.context = context
    config.data.batch_size = batch_size
    config.accumulate = max(1, batch_size // rows_at_once)
    config.optim.weight_decay = 0.1
    return config


def steps(tokens: float, config) -> int:
    """Steps in which a run sees so many tokens, in hundreds."""
    return round(tokens / config.data.batch_size / config.data.context / 100) * 100
