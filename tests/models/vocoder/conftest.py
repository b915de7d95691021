"""The golden vocoder: upstream's weights, converted, and what upstream computed with them."""

import jax
import pytest

from mossjax.convert.codec_vocoder import hift_network
from mossjax.nn.weight_norm import fold
from tests.tiny_codec import HIFT, hift_params


@pytest.fixture(scope='session')
def hift_io(golden):
    return golden('decoder/hift.npz')


@pytest.fixture(scope='session')
def hift(hift_io):
    params = jax.tree.map(jax.numpy.asarray, hift_params(hift_io))
    return hift_network(HIFT).bind(fold(params))
