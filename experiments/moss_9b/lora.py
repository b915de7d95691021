"""LoRA SFT of the released model: adapters on the attention of trunk and branches."""

from experiments.moss_9b import sft


def get_config():
    config = sft.get_config()
    config.init_from = 'MOSS-Speech'
    config.model.lora = {'rank': 16, 'alpha': 32.0, 'targets': (r'.*/attn/[qkvo]',)}
    config.optim.peak_lr = 2e-4
    config.optim.weight_decay = 0.0
    return config
