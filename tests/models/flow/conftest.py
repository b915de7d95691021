"""The golden flow decoder: upstream's weights, converted, and what upstream computed with them."""

import jax
import pytest

from mossjax.convert import rules
from mossjax.convert.codec_flow import flow_network
from mossjax.convert.flow_rules import flow_rules
from mossjax.models.flow.config import FlowConfig

GOLDEN_CONFIG = FlowConfig(
    vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
    channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
)  # fmt: skip


@pytest.fixture(scope='session')
def flow_config():
    return GOLDEN_CONFIG


@pytest.fixture(scope='session')
def flow_params(golden):
    tensors = golden('decoder/flow_state.safetensors')
    shapes = flow_network(GOLDEN_CONFIG).shapes
    rules.check(flow_rules(), {k: v.shape for k, v in tensors.items()}, shapes)
    return rules.to_params(flow_rules(), tensors.__getitem__, shapes)


@pytest.fixture(scope='session')
def flow_model(flow_params):
    return flow_network(GOLDEN_CONFIG).bind(jax.tree.map(jax.numpy.asarray, flow_params))


@pytest.fixture(scope='session')
def flow_io(golden):
    return golden('decoder/flow_io.safetensors')


@pytest.fixture(scope='session')
def estimator_io(golden):
    return golden('decoder/estimator_io.safetensors')
