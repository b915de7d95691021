"""The decoder, second half: flow matching, told whose voice by prompt and speaker vector.

Mu's distance stays in the loss. Half of the steps see no more than streaming does, by coin.
"""

from experiments.nano.configs import decoder_mu


def get_config():
    config = decoder_mu.get_config()
    config.steps = 1900
    config.save_every = 100
    config.init_from = 'decoder_mu'
    config.data.seconds = 24.0  # besides prompts, which make a step twice as long
    config.data.prompts = 0.9
    config.data.prompt_codes = 25
    config.data.vectors, config.data.speaker = 'vectors.jsonl', 'codec'
    config.loss.objective = 'flow'
    config.loss.scaled = False  # mu's weights are
    config.loss.mu_weight = 1.0
    config.loss.chunk = 5
    config.loss.chunk_share = 0.5
    config.optim.peak_lr = 1.5e-3
    config.optim.final_lr = 2e-5
    return config
