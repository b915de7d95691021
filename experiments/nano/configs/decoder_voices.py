"""The decoder of all voices: that of one goes on, told whose voice by prompt and speaker vector.

It speaks each recording from its own codes or from those of its doubles in other voices. Half of
the steps see no more than streaming does, by coin.
"""

from experiments.nano.configs import decoder


def get_config():
    config = decoder.get_config()
    config.steps = 1600
    config.save_every = 100
    config.init_from = 'decoder'
    config.data.only = {}
    config.data.weights = {'answer': 8, 'answer_other': 2}
    config.data.codes = 'doubles.jsonl'
    config.data.undisturbed = 0.15
    config.data.prompts = 0.9
    config.data.prompt_codes = 25
    config.data.vectors, config.data.speaker = 'vectors.jsonl', 'codec'
    config.loss.scaled = False  # the decoder of one voice is
    config.loss.chunk = 5
    config.loss.chunk_share = 0.5
    return config
