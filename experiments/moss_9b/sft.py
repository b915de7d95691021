"""Supervised fine-tuning on dialogues in four modes; the loss is on the replies.

    mossjax train --config experiments/moss_9b/sft.py --workdir WORKDIR --pod \
        --config.init_from=STAGE2_WORKDIR --config.steps=STEPS

Data: rows of 10,240 positions at rows/dialogues. Paper: batch of 8 (packed rows presumed), two
epochs: set `steps` to rows / 4. To tune the released weights on data of your own, give their
directory as init_from.
Hardware: 8 chips of v5p (v5p-16), one row each. Not compiled or timed by us; state alone is 14 GB
a chip.
"""

from experiments.moss_9b.common import moss_9b


def get_config():
    config = moss_9b({'dialogues': 'rows/dialogues'}, batch_size=8)
    config.init_from = 'stage2'
    config.steps = 10_000
    config.save_every = 250
    config.optim.peak_lr = 1e-5
    config.optim.final_lr = 1e-6
    config.optim.warmup_steps = 100
    return config
