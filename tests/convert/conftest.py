"""A tiny language model directory in which every tensor is different."""

import json

import ml_dtypes
import numpy as np
import pytest

from mossjax.convert import rules
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.safetensors_io import write
from mossjax.models.lm.model import network
from tests.tiny_lm import tiny_config

CONFIG = tiny_config()
SHAPES = network(CONFIG).shapes


def random_tensors(shapes, rng) -> dict:
    return {
        name: rng.integers(0, 2**16, shape, dtype=np.uint16).view(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }


@pytest.fixture
def source(tmp_path, rng):
    """A language model directory in several shards, with companions."""
    directory = tmp_path / 'source'
    directory.mkdir()
    tensors = random_tensors(rules.expected_tensors(LM_RULES, SHAPES), rng)
    write(directory / 'model.safetensors', tensors, shard_bytes=20_000)
    content = {**CONFIG.to_hf(), 'dtype': 'bfloat16', 'auto_map': {'AutoModel': 'evil.Model'}}
    (directory / 'config.json').write_text(json.dumps(content))
    (directory / 'tokenizer.json').write_text('{"a": "b"}')
    (directory / 'evil.py').write_text('raise RuntimeError("remote code was run")')
    return directory
