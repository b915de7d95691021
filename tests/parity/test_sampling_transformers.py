"""Filtered distributions against the processors of Transformers, in its order."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from mossjax.infer import sampling
from mossjax.infer.sampling import Channel

EOS = 7


@pytest.mark.parametrize(
    'temperature, top_k, top_p, penalty',
    [(0.6, 20, 0.95, 1.1), (0.7, 20, 0.95, 1.0), (1.3, 0, 0.5, 1.7), (1.0, 5, 1.0, 0.8)],
)
@pytest.mark.parametrize('made', [0, 9, 10])
def test_processed_scores(temperature, top_k, top_p, penalty, made):
    rng = np.random.default_rng(made)
    scores = (rng.normal(size=(4, 200)) * 5).astype(np.float32)
    prompt = rng.integers(0, 200, (4, 12))
    ids = np.concatenate([prompt, rng.integers(0, 200, (4, made))], axis=1)

    chain = [theirs.RepetitionPenaltyLogitsProcessor(penalty)]
    chain.append(theirs.MinNewTokensLengthLogitsProcessor(12, 10, EOS))
    chain.append(theirs.TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(theirs.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(theirs.TopPLogitsWarper(top_p))
    expected = torch.tensor(scores)
    for processor in chain:
        expected = processor(torch.tensor(ids), expected)
    expected = expected.numpy()

    seen = np.zeros(scores.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    found = sampling.repetition_penalty(jnp.array(scores), jnp.array(seen), penalty)
    found = sampling.min_new_tokens(found, made, 10, (EOS,))
    found = sampling.warp(found, Channel(temperature, top_k, top_p))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ties_at_the_border_of_top_k():
    scores = np.array([[1.0, 5.0, 3.0, 3.0, 3.0, -2.0]], np.float32)
    expected = theirs.TopKLogitsWarper(2)(None, torch.tensor(scores)).numpy()
    np.testing.assert_array_equal(sampling.top_k(jnp.array(scores), 2), expected)
