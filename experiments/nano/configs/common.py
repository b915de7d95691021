"""What the language model runs of the nano recipe share."""

from mossjax.train.config import defaults


def language_model(weights: dict[str, float], batch_size: int = 16):
    """A run on the row data sets named in `weights`."""
    config = defaults()
    config.task = 'lm'
    config.log_every = 50
    config.save_every = 250
    config.keep = 1
    config.model.config = 'start'
    config.model.tokenizer = 'text'
    config.data.rows = {name: f'rows/{name}' for name in weights}
    config.data.weights = dict(weights)
    config.data.batch_size = batch_size
    config.loss.mean = 'channel'
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.98
    return config
