"""Stage 0: the text model, which the paper takes ready-made (Qwen3).

All facts in writing, and repeating words. Trunk and text branch learn; about 4 minutes.
"""

from experiments.nano.configs import common


def get_config():
    config = common.language_model({'text': 0.7, 'repeat': 0.3}, batch_size=8)
    config.steps = 1000
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 1e-4
    config.optim.frozen = ('audio_.*',)
    return config
