"""Floating point operations of training, a token: the convention, and what is really done.

Both count multiplications and additions of matrix products and of causal attention (half of the
square); not the embedding lookup, norms, softmax, the optimiser, or what is computed again to save
memory.
"""

from collections.abc import Callable, Collection

from mossjax.models.lm.config import LMConfig


def convention(config: LMConfig, context: int) -> float:
    """What model FLOP utilisation is counted in: everything is built, everything is trained.

    6 x (layers + heads) + 6 x layers x width of attention x context. It never changes: a run that
    leaves out a branch or freezes the trunk is judged by tokens a second, or by `done`.

    Args:
      context: positions of a row.
    """
    everything = ('text', 'audio')
    return done(config, context, lambda part: True, everything)


def done(
    config: LMConfig, context: int, trained: Callable[[str], bool], channels: Collection[str],
    adapters: int = 0,
) -> float:  # fmt: skip
    """What a training step does.

    Args:
      trained: whether any weight of a part has a gradient: 'embed', 'trunk', CHANNEL_branch,
        CHANNEL_norm, CHANNEL_head.
      channels: that are built.
      adapters: weights of low-rank adapters, all trained, beside frozen matrices of layers. Those
        of a head are written into it once a step, which is not counted, and count as it.
    """
    d, q = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layer = 2 * d * q + 2 * d * kv + 3 * d * config.intermediate_size
    vocab = {'text': config.vocab_size, 'audio': config.audio_vocab_size}

    def stack(layers: int, weights: bool, inputs: bool) -> float:
        """Forward, gradients of weights, gradients of inputs: two operations a weight each."""
        attention = 2 * q * context * (1 + 2 * inputs)  # two products, half of the square
        return layers * (2 * layer * (1 + weights + inputs) + attention)

    # The gradient reaches a part's inputs if something at or below them is trained; inside a scan
    # over layers it passes all of them.
    reached = trained('embed') or trained('trunk') or adapters > 0
    total = stack(config.num_shared_layers, trained('trunk'), reached) + 6 * adapters
    for channel in channels:
        inside = reached or trained(f'{channel}_branch')
        total += stack(config.num_modality_layers, trained(f'{channel}_branch'), inside)
        below = inside or trained(f'{channel}_norm')
        total += 2 * d * vocab[channel] * (1 + trained(f'{channel}_head') + below)
    return float(total)
