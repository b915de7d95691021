"""The tokenizer's part of a codec directory: config.json, preprocessor_config.json, tensors."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mossjax import values
from mossjax.convert import names, rules, safetensors_io, tokenizer_rules
from mossjax.convert.weight_files import Tensors, open_tensors
from mossjax.errors import InputError
from mossjax.files import read_json, replacing
from mossjax.models.tokenizer import quantizer
from mossjax.models.tokenizer.asr import Recogniser, TextDecoder
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.encoder import Tokenizer, sinusoids
from mossjax.models.tokenizer.quantizer import Codebook
from mossjax.nn.param import describe

CONFIG, PREPROCESSOR, WEIGHTS = 'config.json', 'preprocessor_config.json', 'model.safetensors'
FILES = (CONFIG, PREPROCESSOR, WEIGHTS)


class Opened(NamedTuple):
    """A speech tokenizer of which only headers have been read.

    Attributes:
      prefix: of its tensors' names. where: what a message calls it.
    """

    config: TokenizerConfig
    tensors: Tensors
    prefix: str
    where: str


def tokenizer_network(config: TokenizerConfig, **modules):
    """The `Network` whose parameters a codec directory holds; `modules`: of `Tokenizer`."""
    return describe(lambda rngs: Tokenizer(config, rngs=rngs, **modules))


def has_tokenizer(codec_dir) -> bool:
    """Whether a codec directory has a speech tokenizer, or some of its files."""
    names = (CONFIG, PREPROCESSOR, '*model*')
    return any(True for name in names for _ in pathlib.Path(codec_dir).glob(name))


def open_tokenizer(codec_dir) -> tuple[TokenizerConfig, dict]:
    """Reads the speech tokenizer of a codec directory.

    Returns:
      (config, parameters of `models.tokenizer.encoder.Tokenizer` as numpy arrays).

    Raises:
      InputError: a file is missing, the configuration describes another network, or tensors are
        missing, unexpected or of the wrong shape.
    """
    opened = _opened(codec_dir)
    return opened.config, encoder(opened)


def _opened(directory) -> Opened:
    root = pathlib.Path(directory)
    return Opened(*open_files(root)[:3], str(root))


def encoder(opened: Opened) -> dict:
    """The parameters of `open_tokenizer`."""
    config, tensors, prefix, where = opened
    table = tokenizer_rules.tokenizer_rules(prefix)
    shapes = tokenizer_network(config).shapes
    rules.check(
        table, tensors.shapes, shapes, where=where,
        ignore=tokenizer_rules.unused(prefix, config.layers, config.encoder_layers),
        dtypes=tensors.dtypes,
    )
    return rules.to_params(table, tensors.read, shapes)


def open_files(root: pathlib.Path):
    """(config, lazy tensors, prefix of the tokenizer's tensors, weight files) of a codec.

    Raises:
      InputError: as `open_tokenizer`, of all but the tensors' shapes.
    """
    config = TokenizerConfig.from_hf(read_json(root / CONFIG), read_json(root / PREPROCESSOR))
    weights = open_tensors(root)
    tensors, prefix = _find(weights, str(root))
    if prefix is None:
        wanted = ' or '.join(f'{p}codebook.weight' for p in tokenizer_rules.PREFIXES)
        raise InputError(
            f'{root}: no tensor is called {wanted}, so this is no Whisper-VQ tokenizer (there are '
            f'{values.listed(tensors.shapes, 4)}); give the directory of the MOSS-Speech codec'
        )
    return config, tensors, prefix, weights.files


def _find(weights: Tensors, where: str) -> tuple[Tensors, str | None]:
    """(tensors, prefix of the tokenizer's names), None if it is not there."""
    plain = names.unwrapped(weights)
    for prefix in tokenizer_rules.PREFIXES:
        if f'{prefix}codebook.weight' in plain.shapes:
            return plain, prefix
    for prefix in tokenizer_rules.PREFIXES:  # a part of something larger
        wanted = [f'{prefix}{name}' for name in ('codebook.weight', 'conv1.weight', 'conv2.weight')]
        tensors = names.fitted(weights, wanted, where)
        if set(wanted) <= set(tensors.shapes):
            return tensors, prefix
    return plain, None


def open_recogniser(directory) -> tuple[TokenizerConfig, dict, Codebook]:
    """Reads a whole training model (tokenizer, upper half, text decoder) in upstream's layout.

    Returns:
      (config, parameters of `models.tokenizer.asr.Recogniser` with the one head 'text', codebook
      with the moving averages of the file, or fresh ones where it has none).

    Raises:
      InputError: as `open_tokenizer`.
    """
    return recogniser(_opened(directory))


def recogniser(opened: Opened) -> tuple[TokenizerConfig, dict, Codebook]:
    """See `open_recogniser`."""
    config, tensors, prefix, where = opened
    table = tokenizer_rules.recogniser_rules(prefix, 'model.decoder.', config.layers)
    shapes = describe(lambda rngs: Recogniser(config, {'text': TextDecoder}, rngs=rngs)).shapes
    buffers = [f'{prefix}{name}' for name in ('codebook.weight', 'ema_count', 'ema_weight')]
    rules.check(
        table, tensors.shapes, shapes, where=where, dtypes=tensors.dtypes,
        ignore=[*buffers, r'proj_out\.weight'],
    )
    matrix = (config.codes, config.d)
    for name, shape in zip(buffers, (matrix, matrix[:1], matrix), strict=True):
        if name in tensors.shapes and tuple(tensors.shapes[name]) != shape:
            raise InputError(
                f'{where}: {name} is {tuple(tensors.shapes[name])}, expected {shape}; check that '
                'config and weights belong together'
            )
    book = quantizer.from_codes(np.asarray(tensors.read(buffers[0])))
    if set(buffers) <= set(tensors.shapes):
        count, total = (np.asarray(tensors.read(name)) for name in buffers[1:])
        book = book._replace(count=jnp.asarray(count), total=jnp.asarray(total))
    return config, rules.to_params(table, tensors.read, shapes), book


def open_trained(directory, config: TokenizerConfig) -> tuple[dict, Codebook]:
    """As much of a training model as a codec directory has: all of it, or the encoder alone.

    Args:
      config: what it must be; what only training needs may differ.

    Returns:
      (parameters under the names of `Recogniser`, codebook).

    Raises:
      InputError: as `open_tokenizer`, or the network is another one.
    """
    return trained(_opened(directory), config)


def trained(opened: Opened, config: TokenizerConfig) -> tuple[dict, Codebook]:
    """See `open_trained`."""
    found, tensors, where = opened.config, opened.tensors, opened.where
    sizes = ('d', 'heads', 'ffn', 'layers', 'mels', 'positions', 'pool', 'codes')
    if wrong := [n for n in sizes if getattr(found, n) != getattr(config, n)]:
        raise InputError(
            f'{where}: {", ".join(f"{n} is {getattr(found, n)}" for n in wrong)}; config.model '
            f'says {", ".join(str(getattr(config, n)) for n in wrong)}'
        )
    if any(name.startswith('model.decoder.') for name in tensors.shapes):
        _, params, book = recogniser(opened)
        return params, book
    params = encoder(opened)
    return {'encoder': params['encoder']}, quantizer.from_codes(np.asarray(params['codebook']))


def save_tokenizer(codec_dir, config: TokenizerConfig, params: dict) -> None:
    """Writes a codec directory's tokenizer in upstream's layout; inverse of `open_tokenizer`.

    The position table behind the codebook, which upstream's module expects in the file and which
    ids do not need, is written as the sinusoids it always is.
    """
    root = pathlib.Path(codec_dir)
    root.mkdir(parents=True, exist_ok=True)
    prefix = tokenizer_rules.PREFIXES[0]
    params = jax.tree.map(np.asarray, params)
    tensors = rules.to_tensors(tokenizer_rules.tokenizer_rules(prefix), params)
    tensors[f'{prefix}embed_positions2.weight'] = sinusoids(
        config.positions // config.pool, config.d
    )
    # Weights never stand beside the settings of others: without its config a directory is refused.
    (root / CONFIG).unlink(missing_ok=True)
    safetensors_io.write(root / WEIGHTS, tensors)
    content, preprocessor = config.to_hf()
    for name, settings in ((PREPROCESSOR, preprocessor), (CONFIG, content)):
        with replacing(root / name) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + '\n')
