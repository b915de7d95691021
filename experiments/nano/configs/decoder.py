"""The decoder, second half: flow matching, mu's distance kept in the loss. About 10 minutes."""

from experiments.nano.configs import decoder_mu


def get_config():
    config = decoder_mu.get_config()
    config.steps = 800
    config.init_from = 'decoder_mu'
    config.loss.objective = 'flow'
    config.loss.mu_weight = 1.0
    config.optim.peak_lr = 1.5e-3
    config.optim.final_lr = 1e-4
    return config
