"""The released vocoder's size: HiFT against its discriminators, on recordings of one's own.

    mossjax train --config experiments/codec_24k/vocoder.py --workdir WORKDIR \
        --config.init_from=MOSS-Speech-Codec
    mossjax convert WORKDIR my-codec --companions MOSS-Speech-Codec

Data: recordings at 24 kHz or more, recordings/manifest.jsonl; their pitch is measured before the
first step and kept in f0.jsonl. With init_from a released vocoder's generator goes on and the
discriminators start fresh; without it everything starts from nothing. Weights of the losses are
upstream's. One accelerator; what it costs there has not been measured.
"""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'vocoder'
    config.steps = 400_000
    config.save_every = 5000
    config.data.manifest = 'recordings/manifest.jsonl'
    config.data.f0 = 'f0.jsonl'
    config.data.frames = 51  # 24480 samples
    config.data.rows = 32
    config.data.keep = 'disk'
    config.optim.peak_lr = 2e-4
    config.optim.final_lr = 2e-5
    config.optim.warmup_steps = 1000
    config.optim.b1, config.optim.b2 = 0.8, 0.99
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1000.0
    return config
