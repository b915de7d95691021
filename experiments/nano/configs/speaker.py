"""The speaker encoder: which of the nano voices speaks, and how fast it is played."""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'speaker'
    config.steps = 400
    config.log_every = 20
    config.save_every = 100
    config.keep = 1
    config.model.update(head=8, width=32, growth=8, bottleneck=32, layers=(4, 6, 4))
    config.data.manifest = 'recordings/train/manifest.jsonl'
    config.data.seconds = 1.0
    # Twenty voices of four: it is to place those, too, that it never heard.
    config.data.speeds = (0.8, 0.9, 1.1, 1.2)
    config.data.rows = 32
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 1e-4
    config.optim.weight_decay = 0.01
    return config
