"""The vocoder, second half: against discriminators."""

from experiments.nano.configs import vocoder_mel


def get_config():
    config = vocoder_mel.get_config()
    config.steps = 1200
    config.init_from = 'vocoder_mel'
    config.loss.update(adversarial=1.0, feature=2.0)
    config.loss.discriminators = {
        'period_channels': (8, 32, 64, 64), 'resolution_channels': 8, 'n_ffts': (512, 128),
        'windows': (480, 120), 'hops': (240, 60),
    }  # fmt: skip
    config.optim.peak_lr = 4e-4
    config.optim.final_lr = 2e-5
    return config
