"""The decoder of all voices, second half: flow matching, told whose voice by prompt and vector."""

from experiments.nano.configs import decoder, decoder_voices_mu


def get_config():
    config = decoder_voices_mu.get_config()
    config.data.vectors, config.data.speaker = 'vectors.jsonl', 'codec'
    return decoder.second_half(config, 'decoder_voices_mu', steps=1600)
