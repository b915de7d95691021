"""The decoder of all voices, second half: flow matching after a prompt of the voice."""

from experiments.nano.configs import decoder, decoder_voices_mu


def get_config():
    return decoder.second_half(decoder_voices_mu.get_config(), 'decoder_voices_mu', steps=1600)
