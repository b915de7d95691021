"""LoRA on the finished model: adapters alone learn the four modes further; weights stay.

    cd runs/nano
    mossjax train --config ../../experiments/nano/configs/lora.py --workdir lora
    mossjax convert --adapter lora adapter
"""

from experiments.nano.configs import sft


def get_config():
    config = sft.get_config()
    config.steps = 200
    config.init_from = 'sft'
    config.model.lora = {'rank': 8, 'alpha': 16.0, 'targets': (r'.*/attn/[qkvo]', r'.*/mlp/.*')}
    config.optim.peak_lr = 1e-3
    config.optim.weight_decay = 0.0
    return config
