"""Random checkpoints with the names and shapes of the 9.1 B model, no two tensors alike."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from mossjax.convert import rules
from mossjax.convert.lm_rules import LM_RULES, module_order
from mossjax.convert.safetensors_writer import ShardWriter
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network

BLOCK = 1 << 26  # numbers drawn at a time


def write(directory: Path, config: LMConfig, seed: int = 0) -> int:
    """Fills a Hugging Face directory with bfloat16 tensors; returns their bytes.

    Random bit patterns with the exponents of weights (magnitudes 2^-15 to 1), so that statistics
    are those of a real file; every tensor has its own stream.
    """
    directory.mkdir(parents=True)
    shapes = rules.expected_tensors(LM_RULES, network(config).shapes)
    dtype = np.dtype(ml_dtypes.bfloat16)
    writer = ShardWriter(directory, shapes, dict.fromkeys(shapes, dtype), module_order)
    for i, (name, shape) in enumerate(writer.shapes.items()):
        writer.write(name, _weights(shape, np.random.Generator(np.random.SFC64([seed, i]))))
    writer.finish()
    (directory / 'config.json').write_text(json.dumps(config.to_hf(), indent=1))
    return 2 * sum(int(np.prod(shape)) for shape in shapes.values())


def _weights(shape, rng) -> np.ndarray:
    count = int(np.prod(shape))
    bits = np.empty(count, np.uint16)
    for start in range(0, count, BLOCK):
        part = bits[start : start + BLOCK]
        part[:] = np.frombuffer(rng.bytes(2 * len(part)), np.uint16)
        # sign and mantissa random; exponent 112 to 127.
        np.bitwise_and(part, 0b1_00001111_1111111, out=part)
        np.bitwise_or(part, 0b0_01110000_0000000, out=part)
    return bits.view(ml_dtypes.bfloat16).reshape(shape)
