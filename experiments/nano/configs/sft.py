"""SFT: questions answered in four modes, chosen by the system prompt; loss on the replies.

Transcription goes on beside it: without, the model unlearns to hear. About 20 minutes.
"""

from experiments.nano.configs import common


def get_config():
    config = common.language_model(
        {'s2s': 0.4, 's2t': 0.2, 'asr': 0.2, 't2s': 0.08, 'text': 0.12}
    )
    config.steps = 1600
    config.init_from = 'stage2'
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 5e-5
    return config
