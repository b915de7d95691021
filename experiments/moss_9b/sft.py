"""Supervised fine-tuning on dialogues in four modes; the loss is on the replies.

    mossjax train --config experiments/moss_9b/sft.py:v5p-16 --workdir WORKDIR --pod \
        --config.init_from=STAGE2_WORKDIR --config.steps=STEPS

Data: rows of 10,240 positions at rows/dialogues (`mossjax rows`). Paper: batch of 8 (packed rows
presumed), two epochs: set `steps` to rows / 4. To tune the released weights on data of your own,
give their directory as init_from.

Slices: v5p-16, v5e-16, v6e-8, the batch of 8 on each: one row a chip, on v5e one for two chips.
The state takes 109 GB, 13.7 of each of 8 chips. By arithmetic (60 GFLOP a token by the convention)
at 50 % of peak 2.7 s a step on v5p-16, 3.1 on v5e-16, at 33 % 2.0 on v6e-8; not timed on a TPU by
us.
"""

from experiments.moss_9b.common import moss_9b

ROWS = {'v5p-16': 8, 'v5e-16': 8, 'v6e-8': 8}


def get_config(slice='v5p-16'):
    config = moss_9b({'dialogues': 'rows/dialogues'}, 10_240, ROWS, slice)
    config.init_from = 'stage2'
    config.steps = 10_000
    config.save_every = 250
    config.optim.peak_lr = 1e-5
    config.optim.final_lr = 1e-6
    config.optim.warmup_steps = 100
    return config
