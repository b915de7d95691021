"""A language model small enough for every test, with no two sizes alike."""

import jax
import numpy as np

from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.qwen3 import QwenStart
from mossjax.convert.rules import to_params
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network

SPEECH = 60  # modality_pad_token_id


def tiny_config(**changes) -> LMConfig:
    values = {
        'vocab_size': 64,
        'audio_vocab_size': 40,
        'hidden_size': 32,
        'intermediate_size': 56,
        'num_hidden_layers': 5,
        'num_shared_layers': 3,
        'num_modality_layers': 2,
        'num_attention_heads': 6,
        'num_key_value_heads': 2,
        'head_dim': 12,
        'rms_norm_eps': 0.01,  # large enough to be seen in the output
        'rope_theta': 12345.0,
        'max_position_embeddings': 96,
        'modality_pad_token_id': SPEECH,
        'sosp_token_id': 61,
        'eosp_token_id': 32,
        'audio_pad_token_id': 5,
        'eos_token_id': 62,
        'dtype': 'float32',
    }
    return LMConfig(**{**values, **changes})


def tiny_params(config: LMConfig, seed: int = 0) -> dict:
    """Lively weights: large enough kernels that every layer matters, norm scales away from 1."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        normal = rng.normal(size=shape.shape).astype(np.float32)
        return 1 + 0.3 * normal if path[-1].key == 'scale' else 0.25 * normal

    return jax.tree_util.tree_map_with_path(draw, network(config).shapes)


def start_params(start: QwenStart, config: LMConfig) -> dict:
    """All parameters of a model that starts from a Qwen3."""
    return to_params(LM_RULES, start.read, network(config).shapes)


def tiny_grid(config: LMConfig, batch: int, t: int, seed: int = 0) -> np.ndarray:
    """(batch, t, 2) ids: text rows and speech rows in turn, junk on the channel not in use."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, config.modality_pad_token_id, (batch, t))
    audio = rng.integers(0, config.audio_vocab_size, (batch, t))
    speech = (np.arange(t)[None] // 3 + np.arange(batch)[:, None]) % 2 == 1
    text = np.where(speech, config.modality_pad_token_id, text)
    return np.stack([text, audio], axis=-1).astype(np.int32)


def close(got, want, tolerance: float = 1e-5) -> None:
    """max|got - want| <= tolerance * max|want|."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error <= tolerance, f'relative error {error:.2e} > {tolerance:.0e}'
