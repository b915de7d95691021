"""What the stages of the 9.1 B model share.

The paper gives learning rates, tokens of a batch, context and weight decay. Warm-up, betas and
clipping are not in it: what stands here is ours and usual.
"""

from mossjax.train.config import defaults


def moss_9b(rows: dict[str, str], batch_size: int):
    """A run of the released model on packed rows (name -> directory, `data.builder`)."""
    config = defaults()
    config.task = 'lm'
    config.log_every = 10
    config.save_every = 500
    config.keep = 3
    config.compute_dtype = 'bfloat16'
    config.model.config = 'released'
    config.model.attention = 'flash'
    config.model.remat = 'attention'
    config.data.rows = rows
    config.data.weights = {name: 1.0 for name in rows}
    config.data.batch_size = batch_size
    config.optim.weight_decay = 0.1
    return config
