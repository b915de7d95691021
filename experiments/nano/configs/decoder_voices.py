"""The decoder of all voices, second half: flow matching after a prompt of the voice."""

from experiments.nano.configs import decoder_voices_mu


def get_config():
    config = decoder_voices_mu.get_config()
    config.steps = 1600
    config.init_from = 'decoder_voices_mu'
    config.loss.objective = 'flow'
    config.loss.mu_weight = 1.0
    config.optim.peak_lr = 1.5e-3
    config.optim.final_lr = 1e-4
    return config
