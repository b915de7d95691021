"""The decoder of all voices, first half: the encoder alone learns the mean mel of each code."""

from experiments.nano.configs import decoder_mu


def get_config():
    config = decoder_mu.get_config()
    config.data.only = {}
    config.data.weights = {'answer': 8, 'answer_other': 2}
    config.data.prompts = 0.9
    config.data.prompt_codes = 25
    config.loss.chunk = 5
    config.loss.chunk_share = 0.5
    return config
