"""The language model's facts, under the names of upstream's `config.json` (`MossSpeechConfig`).

Every key of a configuration file falls in one of four classes: read (a field of `LMConfig`),
honoured (we implement one value and refuse any other), inert (has no effect on a forward pass; the
reason is listed) and unknown (warned about). All are kept and written back on export.
"""

from collections.abc import Mapping
import dataclasses

from absl import logging

from mossjax import values
from mossjax.errors import InputError
from mossjax.models.lm import rope_settings

# Keys of which we implement exactly one value. Absent means that value.
HONOURED = {
    'model_type': 'moss_speech',
    'hidden_act': 'silu',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'rope_scaling': None,
    'use_sliding_window': False,
    'sliding_window': None,
    'tie_word_embeddings': False,
    'channels': 2,
}

# The same for keys that upstream's file does not have, but that others' tools add.
ABSENT = {'partial_rotary_factor': 1.0, 'quantization_config': None}

# Keys that change nothing in what a model computes, and why.
INERT = {
    '_name_or_path': 'where the file was loaded from',
    'architectures': 'class name, written back',
    'auto_map': 'where Transformers finds upstream classes',
    'bos_token_id': 'the dialogue format has no start token',
    'dtype': 'tensors carry their own dtype; rewritten on export',
    'max_window_layers': 'only read with a sliding window, which is refused',
    'pad_token_id': "the tokenizer's pad token is used",
    'torch_dtype': 'older spelling of dtype',
    'transformers_version': 'provenance',
    'use_cache': 'caching is chosen by the caller',
}

# What a field may be. Layers are few, since every one is gone through by name.
RANGES = {
    **dict.fromkeys((
        'vocab_size', 'audio_vocab_size', 'hidden_size', 'intermediate_size',
        'num_attention_heads', 'num_key_value_heads', 'head_dim', 'max_position_embeddings',
    ), values.SIZE),
    **dict.fromkeys(
        ('num_hidden_layers', 'num_shared_layers', 'num_modality_layers'), values.LAYERS
    ),
    **dict.fromkeys((
        'modality_pad_token_id', 'sosp_token_id', 'eosp_token_id', 'audio_pad_token_id',
        'eos_token_id',
    ), values.COUNT),
    'rms_norm_eps': values.Range(0, 1, above=True), 'rope_theta': rope_settings.THETA,
    'initializer_range': values.Range(0, 100),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Shapes, constants and special ids of the language model.

    Attributes:
      vocab_size, audio_vocab_size: rows of the two embedding tables and columns of the two heads.
      hidden_size, intermediate_size: model width d and MLP width f.
      num_hidden_layers: depth seen by one channel, num_shared_layers + num_modality_layers.
      num_shared_layers: trunk layers.
      num_modality_layers: layers of each of the two branches.
      num_attention_heads, num_key_value_heads, head_dim: n, k, h; n is a multiple of k.
      rms_norm_eps: added to the mean square in every norm.
      rope_theta: base of the rotary frequencies; never defaulted (upstream's class default, 1e4,
        is not what the released model uses).
      max_position_embeddings: most rows a sequence may have; larger caches are refused.
      modality_pad_token_id: text id that says "this row carries speech".
      sosp_token_id: text id that opens speech.
      eosp_token_id: audio id that ends speech; codec codes are the ids below it.
      audio_pad_token_id: audio id written on text rows (also an ordinary code).
      eos_token_id: text id that ends a turn.
      initializer_range: standard deviation of fresh kernels and embeddings.
      dtype: what the tensors were stored in; a record, not an order.
    """

    vocab_size: int
    audio_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_shared_layers: int
    num_modality_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    modality_pad_token_id: int
    sosp_token_id: int
    eosp_token_id: int
    audio_pad_token_id: int
    eos_token_id: int
    initializer_range: float = 0.02
    dtype: str = 'bfloat16'
    # The file this came from, key for key; no part of equality or hashing.
    source: Mapping = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        _check_values(self)

    @classmethod
    def from_hf(cls, content: Mapping, *, where: str = 'config.json') -> 'LMConfig':
        """Reads the JSON object of a `config.json`.

        Raises:
          InputError: a needed key is missing or has the wrong type, or a value is one we cannot
            honour; the message names key and remedy.
        """
        try:
            _refuse_unsupported(content)
            config = cls(**_read_fields(content), source=dict(content))
        except InputError as error:
            raise InputError(f'{where}: {error}') from None
        known = {*HONOURED, *ABSENT, *INERT, *_field_names(), *rope_settings.NESTED, 'layer_types'}
        if unknown := sorted(set(content) - known):
            logging.warning(
                '%s: keys %s are unknown and have no effect here; they are kept for export.',
                where, unknown,
            )
        return config

    def to_hf(self) -> dict:
        """The JSON object to write: the source's keys and spelling, our values where changed."""
        content = dict(self.source)
        before = _read_fields(self.source) if self.source else {}
        for name in _field_names():
            value = getattr(self, name)
            if name not in before or before[name] != value:
                if self.source and name not in before and value == _defaults().get(name):
                    continue
                if name == 'rope_theta' and self.source:
                    content = rope_settings.with_theta(content, value)
                elif name == 'dtype':
                    content = with_dtype(content, value)
                else:
                    content[name] = value
        if not self.source:
            content = {'architectures': ['MossSpeechForCausalLM'], **HONOURED, **content}
        elif 'layer_types' in content:
            content['layer_types'] = ['full_attention'] * self.num_hidden_layers
        return content

    @classmethod
    def released(cls) -> 'LMConfig':
        """The published 9.1 B model."""
        return cls(
            vocab_size=151680,
            audio_vocab_size=16512,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_shared_layers=32,
            num_modality_layers=4,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_theta=1_000_000.0,
            max_position_embeddings=40960,
            modality_pad_token_id=151667,
            sosp_token_id=151646,
            eosp_token_id=16384,
            audio_pad_token_id=512,
            eos_token_id=151645,
        )


def with_dtype(content: Mapping, name: str) -> dict:
    """The same file with another record of what the tensors are stored in, however it is spelt."""
    spelt = [key for key in ('dtype', 'torch_dtype') if key in content] or ['dtype']
    return {**content, **dict.fromkeys(spelt, name)}


def _field_names() -> list[str]:
    return [f.name for f in dataclasses.fields(LMConfig) if f.name != 'source']


def _defaults() -> dict:
    return {
        f.name: f.default
        for f in dataclasses.fields(LMConfig)
        if f.default is not dataclasses.MISSING
    }


def _read_fields(content: Mapping) -> dict:
    """Field values out of a JSON object; absent optional keys are left out."""
    given = dict(content)
    if 'dtype' not in given and 'torch_dtype' in given:
        given['dtype'] = given['torch_dtype']
    given['rope_theta'] = rope_settings.theta(content)
    kinds = {f.name: f.type for f in dataclasses.fields(LMConfig)}
    found = {}
    for name in _field_names():
        value = given.get(name)
        if value is None:
            if name not in _defaults():
                raise InputError(
                    f'key {name!r} is missing. It has no default: copy it from the config.json '
                    'that was published with these weights.'
                )
        elif name in RANGES:
            found[name] = kinds[name](values.number(value, f'key {name!r}', RANGES[name]))
        elif isinstance(value, str):
            found[name] = value
        else:
            raise InputError(f'key {name!r} is {values.shown(value)}, expected text')
    return found


def _refuse_unsupported(content: Mapping) -> None:
    for key, only in (HONOURED | ABSENT).items():
        value = content.get(key, only)
        if key in rope_settings.NESTED:
            continue  # read together with the base of the rotation
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            raise InputError(
                f'key {key!r} is {values.shown(value)}, but only {only!r} is implemented. Use a '
                f'checkpoint trained with {only!r}; editing the key would change what the model '
                'computes.'
            )
    check_layer_types(content)


def check_layer_types(content: Mapping) -> None:
    """Raises InputError for layers that do not see everything before them."""
    layers = content.get('layer_types') or ()
    if not isinstance(layers, list | tuple) or any(kind != 'full_attention' for kind in layers):
        raise InputError(
            f"key 'layer_types' is {values.shown(layers)}, but only a list of 'full_attention' is "
            'implemented. Use a checkpoint trained with full attention.'
        )


def _check_values(c: LMConfig) -> None:
    """Values that contradict each other or no network can have."""

    def demand(holds: bool, message: str):
        if not holds:
            raise InputError(message)

    for name, accepted in RANGES.items():
        values.number(getattr(c, name), name, accepted)
    demand(isinstance(c.dtype, str), f'dtype is {values.shown(c.dtype)}, expected text')
    demand(
        c.num_shared_layers + c.num_modality_layers == c.num_hidden_layers,
        f'num_hidden_layers is {c.num_hidden_layers}, but num_shared_layers {c.num_shared_layers} '
        f'+ num_modality_layers {c.num_modality_layers} differs; set it to their sum.',
    )
    demand(
        c.num_attention_heads % c.num_key_value_heads == 0,
        f'num_attention_heads {c.num_attention_heads} is not a multiple of num_key_value_heads '
        f'{c.num_key_value_heads}; each kv head serves equally many query heads.',
    )
    demand(c.head_dim % 2 == 0, f'head_dim is {c.head_dim}; rotation needs an even number.')
    for name in ('modality_pad_token_id', 'sosp_token_id', 'eos_token_id'):
        demand(
            0 <= getattr(c, name) < c.vocab_size,
            f'{name} is {getattr(c, name)}, outside the text vocabulary of {c.vocab_size}; set it '
            'to the id in this tokenizer.',
        )
    for name in ('eosp_token_id', 'audio_pad_token_id'):
        demand(
            0 <= getattr(c, name) < c.audio_vocab_size,
            f'{name} is {getattr(c, name)}, outside the audio vocabulary of {c.audio_vocab_size}; '
            'set it to an id of the codec.',
        )
    text_ids = [c.modality_pad_token_id, c.sosp_token_id, c.eos_token_id]
    demand(
        len(set(text_ids)) == 3,
        f'modality_pad_token_id, sosp_token_id and eos_token_id are {text_ids}; they must differ.',
    )
