"""What the speech tokenizer is made of, and how upstream's two JSON files say it."""

import dataclasses
from typing import Any

from absl import logging

from mossjax import values
from mossjax.errors import InputError
from mossjax.models.tokenizer import mel
from mossjax.values import NOT_NEGATIVE, SIZE, Range, ranged

# Our field <-> upstream's key in config.json (a Whisper config with quantiser keys).
_KEYS = {
    'd': 'd_model',
    'heads': 'encoder_attention_heads',
    'ffn': 'encoder_ffn_dim',
    'encoder_layers': 'encoder_layers',
    'layers': 'quantize_position',
    'mels': 'num_mel_bins',
    'positions': 'max_source_positions',
    'pool': 'pooling_kernel_size',
    'codes': 'quantize_vocab_size',
    'commitment': 'quantize_commit_coefficient',
    'loss_scale': 'quantize_loss_scale',
    'decay': 'quantize_ema_decay',
    'restart_interval': 'quantize_restart_interval',
    'decoder_layers': 'decoder_layers',
    'decoder_heads': 'decoder_attention_heads',
    'decoder_ffn': 'decoder_ffn_dim',
    'vocab': 'vocab_size',
    'target_positions': 'max_target_positions',
    'start_id': 'decoder_start_token_id',
    'pad_id': 'pad_token_id',
}
_SECONDS = values.Range(1, 3600, whole=True)
_RANGES = {
    **dict.fromkeys((
        'd', 'heads', 'ffn', 'mels', 'positions', 'pool', 'codes', 'decoder_heads',
        'decoder_ffn', 'vocab', 'target_positions', 'restart_interval',
    ), values.SIZE),
    **dict.fromkeys(('layers', 'encoder_layers', 'decoder_layers'), values.LAYERS),
    **dict.fromkeys(('start_id', 'pad_id'), values.COUNT),
    **dict.fromkeys(('commitment', 'loss_scale'), values.NOT_NEGATIVE),
    'seconds': _SECONDS, 'decay': values.SHARE,
}  # fmt: skip
# Entries of a position table, which is worked out in memory whatever becomes of it.
MAX_TABLE = 2**24
# What this implementation is; another value describes another network, so it is refused.
_FIXED = {
    'activation_function': 'gelu',
    'pooling_type': 'avg',
    'encoder_causal_convolution': True,
    'encoder_causal_attention': True,
    'scale_embedding': False,
}
# Of training, and not done here: another value is said, and changes no code.
_TRAINING = {
    'dropout': 0.0,
    'attention_dropout': 0.0,
    'activation_dropout': 0.0,
    'encoder_layerdrop': 0.0,
    'decoder_layerdrop': 0.0,
}
_FIXED_PREPROCESSOR = {
    'feature_extractor_type': 'WhisperFeatureExtractor',
    'sampling_rate': mel.RATE,
    'n_fft': mel.N_FFT,
    'hop_length': mel.HOP,
    'padding_side': 'right',
    'padding_value': 0.0,
}
# The same for keys that upstream's file does not have; dither is noise added to the samples.
_ABSENT_PREPROCESSOR = {'dither': 0.0}
# Keys of the families we read that may be present and change nothing here: the block size and
# the flag matter to upstream only where attention is not causal, the last one only decides which
# layers upstream builds.
_INERT = {
    'quantize_causal_block_size': 200,
    'quantize_causal_encoder': True,
    'quantize_encoder_only': True,
}
_FAMILIES = ('encoder_', 'quantize_', 'pooling_')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of the causal Whisper-VQ encoder; the defaults are MOSS-Speech's own.

    Attributes:
      d, heads, ffn: width of the encoder, attention heads, feed-forward width.
      layers: transformer layers before the codebook, at 50 Hz.
      encoder_layers: layers in all; the rest runs behind the codebook, in training only.
      mels: mel bins. positions: rows of the position table (frames at 50 Hz).
      pool: frames averaged into one code. codes: rows of the codebook.
      seconds: recordings are cut in pieces of this length.
      commitment, loss_scale, decay, restart_interval: training of the codebook.
      decoder_layers ... pad_id: the text decoder that training may attach.
    """

    d: int = 1280
    heads: int = 20
    ffn: int = 5120
    encoder_layers: int = 32
    layers: int = 16
    mels: int = 128
    positions: int = 1500
    pool: int = 4
    codes: int = 16384
    seconds: int = 30
    commitment: float = ranged(NOT_NEGATIVE, 0.25)
    loss_scale: float = ranged(NOT_NEGATIVE, 10.0)
    decay: float = ranged(Range(0, 1, below=True), 0.99)
    restart_interval: int = ranged(SIZE, 100)
    decoder_layers: int = 32
    decoder_heads: int = 20
    decoder_ffn: int = 5120
    vocab: int = 51866
    target_positions: int = 448
    start_id: int = 50258
    pad_id: int = 50256

    def __post_init__(self):
        for name, accepted in _RANGES.items():
            key = _KEYS.get(name, name)
            values.number(getattr(self, name), f'tokenizer config: {key}', accepted)
        if self.d * max(self.positions, self.target_positions) > MAX_TABLE:
            raise InputError(
                f'tokenizer config: max_source_positions {self.positions} (max_target_positions '
                f'{self.target_positions}) times d_model {self.d} is more than any table of '
                'positions has; correct them'
            )
        for heads in ('heads', 'decoder_heads'):
            if self.d % getattr(self, heads):
                raise InputError(
                    f'tokenizer config: d_model {self.d} is not a multiple of {_KEYS[heads]} '
                    f'{getattr(self, heads)}; change one of them'
                )
        if self.d % 2 or self.d < 4:
            raise InputError(
                f'tokenizer config: d_model {self.d} must be even and at least 4 (sinusoid pairs)'
            )
        if self.encoder_layers < self.layers:
            raise InputError(
                f'tokenizer config: quantize_position {self.layers} lies behind the last of '
                f'{self.encoder_layers} encoder_layers; lower it or add layers'
            )
        if self.piece % self.stride or self.piece // (2 * mel.HOP) > self.positions:
            raise InputError(
                f'tokenizer config: a piece of {self.seconds} s must be a multiple of '
                f'{self.stride} samples and fit {self.positions} positions (max_source_positions) '
                'of 20 ms; change chunk_length'
            )

    @property
    def stride(self) -> int:
        """Samples per code: 1280 in all known models."""
        return mel.HOP * 2 * self.pool

    @property
    def piece(self) -> int:
        """Samples of the hard cut."""
        return self.seconds * mel.RATE

    @classmethod
    def from_hf(cls, config: dict[str, Any], preprocessor: dict[str, Any]) -> 'TokenizerConfig':
        """Reads upstream's config.json and preprocessor_config.json.

        Raises:
          InputError: a needed key is missing, or a value describes a network that this is not
            (non-causal attention or convolution, another pooling, another feature extractor).
        """
        _refuse_others(config, _FIXED, 'config.json')
        fixed = _FIXED_PREPROCESSOR | _ABSENT_PREPROCESSOR
        _refuse_others(preprocessor, fixed, 'preprocessor_config.json')
        for key in ('encoder_causal_convolution', 'encoder_causal_attention'):
            if key not in config:
                raise InputError(
                    f'tokenizer config.json lacks {key!r}: without it the encoder is not causal, '
                    'and only the causal MOSS-Speech tokenizer is implemented; use its files'
                )
        given = {
            field: config[key] for field, key in _KEYS.items() if config.get(key) is not None
        }
        for field in ('d', 'heads', 'ffn', 'encoder_layers', 'layers', 'codes', 'mels'):
            if field not in given:
                raise InputError(
                    f'tokenizer config.json lacks {_KEYS[field]!r}; download it again or add the '
                    'key'
                )
        if config.get('pooling_position', given['layers']) != given['layers']:
            raise InputError(
                'tokenizer config.json: pooling_position '
                f'{values.shown(config["pooling_position"])} differs from quantize_position '
                f'{values.shown(given["layers"])}; only equal positions are implemented'
            )
        if preprocessor.get('feature_size', given['mels']) != given['mels']:
            raise InputError(
                'preprocessor_config.json: feature_size '
                f'{values.shown(preprocessor["feature_size"])} differs from num_mel_bins '
                f'{values.shown(given["mels"])} in config.json; take both files from one download'
            )
        given.setdefault('decoder_heads', given['heads'])
        where = 'preprocessor_config.json: '
        seconds = preprocessor.get('chunk_length', cls.seconds)
        given['seconds'] = values.number(seconds, f'{where}chunk_length', _SECONDS)
        samples = seconds * mel.RATE
        if preprocessor.get('n_samples', samples) != samples:
            raise InputError(
                f'{where}n_samples {values.shown(preprocessor["n_samples"])} is not chunk_length x '
                f'sampling_rate = {samples}; correct one of them'
            )
        _report_unread(config)
        return cls(**given)

    def to_hf(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config.json, preprocessor_config.json) with upstream's keys; inverse of `from_hf`."""
        config = {
            'model_type': 'whisper',
            'architectures': ['WhisperVQEncoder'],
            **{key: getattr(self, field) for field, key in _KEYS.items()},
            'pooling_position': self.layers,
            **_FIXED,
            **_TRAINING,
            **_INERT,
        }
        preprocessor = {
            **_FIXED_PREPROCESSOR,
            'feature_size': self.mels,
            'chunk_length': self.seconds,
            'n_samples': self.piece,
            'nb_max_frames': self.piece // mel.HOP,
            'return_attention_mask': False,
        }
        return config, preprocessor


def _refuse_others(found: dict, fixed: dict, where: str):
    for key, value in fixed.items():
        if key in found and found[key] != value:
            raise InputError(
                f'tokenizer {where}: {key} is {values.shown(found[key])}, but only {value!r} is '
                'implemented; '
                'use the files of the MOSS-Speech codec'
            )


def _report_unread(config: dict):
    """Unknown keys of the encoder's own families could change the network: refuse them."""
    known = {*_KEYS.values(), *_FIXED, *_TRAINING, *_INERT, 'pooling_position'}
    unread = sorted(set(config) - known)
    risky = [key for key in unread if key.startswith(_FAMILIES)]
    if risky:
        raise InputError(
            f'tokenizer config.json: unknown keys {risky}; they may change the encoder in ways '
            'this implementation does not follow. Remove them if they do not'
        )
    for key, used in _TRAINING.items():
        if config.get(key, used) != used:
            logging.warning(
                'tokenizer config.json: %s is %s; training here has none, and codes do not depend '
                'on it', key, values.shown(config[key]),
            )  # fmt: skip
    logging.debug('tokenizer config.json: keys without effect here: %s', unread)
