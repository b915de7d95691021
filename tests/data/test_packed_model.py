"""The schema and the model agree: a packed row scores as its examples do alone."""

import jax
import numpy as np

from mossjax.data.recipes import example
from mossjax.data.rows import IGNORE, pack
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.model import network
from mossjax.ops.attention import Mask
from tests.tiny_lm import tiny_config, tiny_grid, tiny_params


def log_likelihood(apply, row):
    """Sum over supervised positions of log p(label), both heads, in float64."""
    tokens, labels, segments, positions = (
        np.asarray(row[key])[None] for key in ('tokens', 'labels', 'segments', 'positions')
    )
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    logits = apply(tokens, positions, mask)
    total = 0.0
    for channel, values in enumerate((logits.text, logits.audio)):
        values = np.asarray(values, np.float64)[0]
        t = np.flatnonzero(labels[0, :, channel] != IGNORE)
        total += (values[t, labels[0, t, channel]] - np.log(np.exp(values[t]).sum(1))).sum()
    return total


def test_packed_is_unpacked():
    config = tiny_config()
    apply = jax.jit(network(config).bind(tiny_params(config)))
    ids = GridIds(
        vocab=config.vocab_size, audio_vocab=config.audio_vocab_size, sosp=config.sosp_token_id,
        speech=config.modality_pad_token_id, filler=config.audio_pad_token_id,
        eosp=config.eosp_token_id, pad=0, eos=config.eos_token_id, stops=(config.eos_token_id,),
    )  # fmt: skip
    examples = []
    for seed, t in enumerate((9, 14, 5, 12)):
        rows = tiny_grid(config, 1, t, seed)[0]
        examples.append(example(rows, np.ones(t, bool), ids, str(seed)))
    (packed,) = pack(examples, 48)
    assert packed['segments'].max() == 4
    alone = [log_likelihood(apply, next(pack([e], 48))) for e in examples]
    np.testing.assert_allclose(log_likelihood(apply, packed), sum(alone), rtol=1e-5)
    # The check can fail: in one segment the examples see each other, far beyond that tolerance.
    merged = {**packed, 'segments': np.minimum(packed['segments'], 1)}
    assert abs(log_likelihood(apply, merged) - sum(alone)) > 100 * 1e-5 * abs(sum(alone))
