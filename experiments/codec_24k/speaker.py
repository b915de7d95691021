"""CAM++ at the released size, as a classifier of the speakers in a manifest.

    mossjax train --config experiments/codec_24k/speaker.py --workdir WORKDIR
    mossjax convert WORKDIR my-codec --companions MOSS-Speech-Codec

Every recording in recordings/manifest.jsonl names its "speaker", every speaker has two recordings
or more; the released encoder has heard 200,000 people. A decoder reads only vectors of the encoder
that it was trained with: another encoder needs another decoder run.
"""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'speaker'
    config.steps = 200_000
    config.save_every = 5000
    config.data.manifest = 'recordings/manifest.jsonl'
    config.data.seconds = 3.0
    config.data.rows = 256
    config.data.keep = 'disk'
    config.optim.peak_lr = 1e-3
    config.optim.final_lr = 1e-5
    config.optim.warmup_steps = 2000
    config.optim.weight_decay = 1e-4
    return config
