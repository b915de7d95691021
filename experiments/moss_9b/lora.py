"""LoRA SFT of the released model: adapters on the attention of trunk and branches.

    mossjax train --config experiments/moss_9b/lora.py:v6e-8 --workdir WORKDIR --pod \
        --config.init_from=MOSS-Speech --config.steps=STEPS

Data and slices are those of `sft`. The weights take 36 GB in float32, 4.6 of each of 8 chips;
optimiser state is kept of the adapters alone. A third less is computed than in SFT, since weights
that stay have no gradient. `experiments/own_voice` has a small one that runs anywhere.
"""

from experiments.moss_9b import sft

ROWS = sft.ROWS


def get_config(slice='v6e-8'):
    config = sft.get_config(slice)
    config.init_from = 'MOSS-Speech'
    config.model.lora = {'rank': 16, 'alpha': 32.0, 'targets': (r'.*/attn/[qkvo]',)}
    config.optim.peak_lr = 2e-4
    config.optim.weight_decay = 0.0
    return config
