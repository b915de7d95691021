"""Stage 1: the text model is frozen; speech embedding, branch and head learn (paper section 5).

Reading speech, saying words, passages that alternate between speech and text. About 4 minutes.
"""

from experiments.nano.configs import common


def get_config():
    config = common.language_model({'asr': 0.35, 'tts': 0.2, 'mixed': 0.25, 's2s': 0.2})
    config.steps = 400
    config.init_from = 'text_model'
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 1e-3
    config.optim.frozen = ('trunk/.*', 'text_.*')
    return config
