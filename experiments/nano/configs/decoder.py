"""The decoder, second half: flow matching, mu's distance kept in the loss. About 10 minutes."""

from experiments.nano.configs import decoder_mu


def get_config():
    return second_half(decoder_mu.get_config(), 'decoder_mu', steps=800)


def second_half(config, before: str, steps: int):
    """What a run of this config goes on with, given the name of that run."""
    config.steps = steps
    config.init_from = before
    config.loss.objective = 'flow'
    config.loss.mu_weight = 1.0
    config.optim.peak_lr = 1.5e-3
    config.optim.final_lr = 1e-4
    return config
