"""LoRA on the shipped model, for the guide in README.md: adapters alone learn, weights stay.

    mossjax train --config experiments/own_voice/lora.py --workdir runs/own
"""

from mossjax.train.config import defaults

MODEL = 'mossjax/assets/nano/lm'


def get_config():
    config = defaults()
    config.task = 'lm'
    config.steps = 60
    config.log_every = 20
    config.save_every = 60
    config.keep = 1
    config.init_from = MODEL
    config.model.config = MODEL
    config.model.tokenizer = MODEL
    config.model.lora = {'rank': 16, 'alpha': 32.0, 'targets': (r'.*/attn/[qkvo]', r'.*/mlp/.*')}
    config.data.rows = {'own': 'rows/own'}
    config.data.weights = {'own': 1.0}
    config.data.batch_size = 4
    config.optim.peak_lr = 1e-3
    config.optim.warmup_steps = 10
    config.loss.mean = 'channel'  # as the shipped model was trained
    config.optim.weight_decay = 0.0
    return config
