"""Stage 2: everything learns, with text replayed so that it is not forgotten (paper section 5).

About 12 minutes.
"""

from experiments.nano.configs import common


def get_config():
    config = common.language_model(
        {'asr': 0.4, 'tts': 0.1, 'mixed': 0.15, 's2s': 0.25, 'text': 0.07, 'repeat': 0.03}
    )
    config.steps = 1000
    config.init_from = 'stage1'
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 1e-3
    return config
