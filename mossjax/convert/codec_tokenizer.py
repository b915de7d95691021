"""The tokenizer's part of a codec directory: config.json, preprocessor_config.json, tensors."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert import rules, safetensors_io, tokenizer_rules
from mossjax.errors import InputError
from mossjax.files import replacing
from mossjax.models.tokenizer import quantizer
from mossjax.models.tokenizer.asr import Recogniser, TextDecoder
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.encoder import Tokenizer, sinusoids
from mossjax.models.tokenizer.quantizer import Codebook
from mossjax.nn.param import describe

CONFIG, PREPROCESSOR, WEIGHTS = 'config.json', 'preprocessor_config.json', 'model.safetensors'


def tokenizer_network(config: TokenizerConfig):
    """The `Network` whose parameters a codec directory holds."""
    return describe(lambda rngs: Tokenizer(config, rngs=rngs))


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f'{path} is missing: a codec directory holds {CONFIG}, {PREPROCESSOR} and {WEIGHTS}; '
            'give the directory of the codec, completely downloaded'
        ) from None
    except json.JSONDecodeError as e:
        raise InputError(f'{path} is not valid JSON ({e}); download it again') from None


def open_tokenizer(codec_dir) -> tuple[TokenizerConfig, dict]:
    """Reads the speech tokenizer of a codec directory.

    Returns:
      (config, parameters of `models.tokenizer.encoder.Tokenizer` as numpy arrays).

    Raises:
      InputError: a file is missing, the configuration describes another network, or tensors are
        missing, unexpected or of the wrong shape.
    """
    root = pathlib.Path(codec_dir)
    config, tensors, prefix = open_files(root)
    table = tokenizer_rules.tokenizer_rules(prefix)
    shapes = tokenizer_network(config).shapes
    rules.check(
        table, tensors.shapes, shapes, where=str(root),
        ignore=tokenizer_rules.unused(prefix, config.layers, config.encoder_layers),
    )
    return config, rules.to_params(table, tensors.read, shapes)


def open_files(root: pathlib.Path):
    """(config, lazy tensors, prefix of the tokenizer's tensors) of a codec directory."""
    config = TokenizerConfig.from_hf(_read_json(root / CONFIG), _read_json(root / PREPROCESSOR))
    tensors = safetensors_io.open_tensors(root)
    prefix = next(
        (p for p in tokenizer_rules.PREFIXES if f'{p}codebook.weight' in tensors.shapes), None
    )
    if prefix is None:
        names = ' or '.join(f'{p}codebook.weight' for p in tokenizer_rules.PREFIXES)
        raise InputError(
            f'{root}: no tensor is called {names}, so this is no Whisper-VQ tokenizer; '
            'give the directory of the MOSS-Speech codec'
        )
    return config, tensors, prefix


def open_recogniser(directory) -> tuple[TokenizerConfig, dict, Codebook]:
    """Reads a whole training model (tokenizer, upper half, text decoder) in upstream's layout.

    Returns:
      (config, parameters of `models.tokenizer.asr.Recogniser` with the one head 'text', codebook
      with the moving averages of the file, or fresh ones where it has none).

    Raises:
      InputError: as `open_tokenizer`.
    """
    root = pathlib.Path(directory)
    config, tensors, prefix = open_files(root)
    table = tokenizer_rules.recogniser_rules(prefix, 'model.decoder.', config.layers)
    shapes = describe(lambda rngs: Recogniser(config, {'text': TextDecoder}, rngs=rngs)).shapes
    buffers = [f'{prefix}{name}' for name in ('codebook.weight', 'ema_count', 'ema_weight')]
    rules.check(
        table, tensors.shapes, shapes, where=str(root), ignore=[*buffers, r'proj_out\.weight']
    )
    matrix = (config.codes, config.d)
    for name, shape in zip(buffers, (matrix, matrix[:1], matrix), strict=True):
        if name in tensors.shapes and tuple(tensors.shapes[name]) != shape:
            raise InputError(
                f'{root}: {name} is {tuple(tensors.shapes[name])}, expected {shape}; check that '
                'config and weights belong together'
            )
    book = quantizer.from_codes(np.asarray(tensors.read(buffers[0])))
    if set(buffers) <= set(tensors.shapes):
        count, total = (np.asarray(tensors.read(name)) for name in buffers[1:])
        book = book._replace(count=jnp.asarray(count), total=jnp.asarray(total))
    return config, rules.to_params(table, tensors.read, shapes), book


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
    safetensors_io.write(root / WEIGHTS, tensors)
    for name, content in zip((CONFIG, PREPROCESSOR), config.to_hf(), strict=True):
        with replacing(root / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + '\n')
