"""What a step would take by arithmetic alone: the sieve before anything is compiled.

Memory: the state's own bytes, what each layer keeps of a position under a remat policy, and what
the heads take while they are whole. Time: the operations by the convention and those done again,
at the share of a chip's peak that compiled steps reach, and the sums over chips that share a row.
Both are within a fifth of the compiler's account of the stage 2 steps on record. Only of two
slices, four chips to a row, too little is found: 0.57 of the memory (the compiler spends what lies
idle on tables gathered early) and 0.74 of the time. What may fit is compiled.
"""

from mossjax.models.lm import flops
from mossjax.models.lm.config import LMConfig
from mossjax.parallel.chips import CHIPS

# What is computed, again or not, beside the peak: that of the stage 2 steps on record by estimate
# (`experiments/benchmarks/step.json`); a test holds it to them.
EFFICIENCY = {'v5p': 0.83, 'v5e': 0.81, 'v6e': 0.58}
REDUCED = 9  # activations summed over chips that share a row, times a layer, forward and back
SLACK = 1.2  # what is larger than this times the memory of a chip is not compiled
_HALF, _FULL = 2, 4  # bytes of bfloat16 and float32


def widths(model: LMConfig) -> tuple[int, int]:
    """Of the queries of all heads, and of the keys."""
    return (
        model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    )


def kept(model: LMConfig, remat: str) -> int:
    """Bytes that a layer keeps of a position for the backward pass."""
    d, f = model.hidden_size, model.intermediate_size
    q, kv = widths(model)
    inputs = _HALF * d
    attention = _HALF * q + _FULL * model.num_attention_heads
    heads = _HALF * (q + 2 * kv + d)
    wide = _HALF * (2 * f + d)
    return {
        'full': inputs,
        'attention': inputs + attention,
        'heads': inputs + attention + heads,
        'projections': inputs + attention + heads + wide,
        'none': inputs + attention + heads + wide + _HALF * (f + 2 * q + 2 * d) + _FULL * 2 * d,
    }[remat]


def layers(model: LMConfig) -> int:
    return model.num_shared_layers + 2 * model.num_modality_layers


def memory(model: LMConfig, remat: str, state: int, tokens: int, tensor: int) -> int:
    """Bytes on each device.

    Args:
      state: bytes of parameters and optimiser. tokens: on a device at a time.
      tensor: parts that a layer is divided in.
    """
    d, f = model.hidden_size, model.intermediate_size
    q, kv = widths(model)
    layer = 2 * d * (q + kv) + 3 * d * f
    head = d * max(model.vocab_size, model.audio_vocab_size)
    # Two layers on their way, a head, and the gradient of one in float32.
    whole = 2 * _HALF * layer + _HALF * head + _FULL * head
    inputs = _HALF * d
    activations = layers(model) * tokens * (inputs + (kept(model, remat) - inputs) / tensor)
    return int(state + activations + whole / tensor)


def again(model: LMConfig, remat: str, context: int) -> float:
    """Operations that a remat policy does twice, a token."""
    d, f = model.hidden_size, model.intermediate_size
    q, kv = widths(model)
    gates, projections = 2 * d * 2 * f, 2 * d * (q + 2 * kv) + 2 * q * d
    attention = 2 * q * context
    return layers(model) * {
        'full': gates + projections + attention,
        'attention': gates + projections,
        'heads': gates,
        'projections': 0,
        'none': 0,
    }[remat]


def seconds(
    model: LMConfig, remat: str, generation: str, context: int, tokens: int, tensor: int,
    done: float | None = None,
) -> float:  # fmt: skip
    """Of a step in which each device, or group of `tensor` devices, sees so many tokens.

    Devices that share a row wait for the sums of what each has computed of a layer.

    Args:
      done: operations a token, of a run that does not train all; by the convention otherwise.
    """
    once = flops.convention(model, context) if done is None else done
    work = once + again(model, remat, context)
    chip = CHIPS[generation]
    computing = work * tokens / tensor / (chip.flops * EFFICIENCY[generation])
    activations = _HALF * model.hidden_size * tokens
    moved = layers(model) * REDUCED * 2 * activations * (tensor - 1) / tensor
    return computing + moved / (chip.link * 2 * chip.axes)
