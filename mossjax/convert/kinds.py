"""What can be converted, found from the files themselves.

`open_source` looks at a directory and returns its tensors under checkpoint names, whichever side it
is on; `Kind` holds what the other side needs. Kinds: the MOSS-Speech language model, a Qwen3 text
model (read as the start of a speech model), the speech tokenizer. Code that comes with a checkpoint
is copied like any other file and never run.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from mossjax import checkpoint, values
from mossjax.convert import (
    codec_tokenizer,
    peft,
    qwen3,
    rules,
    safetensors_io,
    tokenizer_rules,
)
from mossjax.convert.lm_rules import LM_RULES, TEXT_RULES, module_order
from mossjax.convert.orbax_tensors import OrbaxTensors
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.param import Network

LANGUAGE_MODEL, TOKENIZER = 'moss_speech', 'speech_tokenizer'
ORBAX, HUGGING_FACE = 'Orbax', 'Hugging Face'
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
# Of no use without the weights they belong to, or weights that are converted or named as left.
WEIGHTS = ('.safetensors', '.safetensors.index.json', '.bin', '.pt', '.pth', '.ckpt', '.onnx')


class Tensors(Protocol):
    """Tensors under checkpoint names; `read` returns one of them."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Together:
    """Tensors of several places as one; no name is in two of them."""

    parts: Sequence

    @property
    def shapes(self) -> dict:
        return {name: shape for part in self.parts for name, shape in part.shapes.items()}

    @property
    def dtypes(self) -> dict:
        return {name: dtype for part in self.parts for name, dtype in part.dtypes.items()}

    def read(self, name: str) -> np.ndarray:
        return self._part(name).read(name)

    def write(self, name: str, tensor: np.ndarray) -> None:
        self._part(name).write(name, tensor)

    def _part(self, name: str):
        return next(part for part in self.parts if name in part.shapes)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network and its names.

    Attributes:
      name: LANGUAGE_MODEL or TOKENIZER.
      rules: tensor names <-> parameters.
      network: shapes and logical axes of the parameters.
      order: sort key of tensor names in files.
      configs: {file name: content} of the configuration files, as stored.
    """

    name: str
    rules: Sequence[rules.Rule]
    network: Network
    order: Callable[[str], object]
    configs: Mapping[str, dict]


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened directory.

    Attributes:
      path: the directory. becomes: HUGGING_FACE or ORBAX, the form it is converted to.
      kind: what it holds.
      tensors: all that there are, by checkpoint name.
      unused: names of those that the network does not need; they are kept beside it.
      weights: files that hold the tensors (for hashes), relative to `path`.
      files: companions to copy (configuration, text tokenizer, README), relative to `path` or
        absolute.
      left: what stays behind, relative to `path`.
      step: of an Orbax checkpoint, None otherwise.
      adapters: of a LoRA run; `tensors` has them worked in.
      choices: how a start was made, {} for a plain conversion.
    """

    path: Path
    becomes: str
    kind: Kind
    tensors: Tensors
    unused: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    step: int | None = None
    adapters: peft.Adapters | None = None
    choices: Mapping = dataclasses.field(default_factory=dict)


def language_model(content: dict, where: str) -> Kind:
    """The kind of a config.json of a MOSS-Speech language model."""
    config = LMConfig.from_hf(content, where=where)
    return Kind(LANGUAGE_MODEL, LM_RULES, network(config), module_order, {CONFIG: content})


def speech_tokenizer(content: dict, preprocessor: dict, prefix: str) -> Kind:
    """The kind of a codec directory; `prefix` is that of its tensor names."""
    network = codec_tokenizer.tokenizer_network(TokenizerConfig.from_hf(content, preprocessor))
    configs = {CONFIG: content, PREPROCESSOR: preprocessor}
    return Kind(TOKENIZER, tokenizer_rules.tokenizer_rules(prefix), network, str, configs)


def open_source(path: str | Path, changes: Mapping | None = None) -> Source:
    """Opens a directory of either side; nothing but headers is read.

    Args:
      changes: keys of config.json that a start from Qwen3 sets (`qwen3.speech_config`).

    Raises:
      InputError: it is none of the known kinds, incomplete or damaged, or its tensors are not those
        of its configuration; all faults are listed together.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f'{path} is not a directory; name the one that holds the weights')
    if changes and not is_qwen3(path):
        raise InputError(f'{path}: only a start from Qwen3 takes changes to the configuration')
    if _orbax_root(path) is not None:
        return _open_orbax(_orbax_root(path), path)
    if not (path / CONFIG).is_file() and not _has_weights(path):
        found = ', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'
        raise InputError(
            f'{path} is neither a Hugging Face directory ({CONFIG} with model.safetensors or its '
            f'index) nor an Orbax one (numbered steps); it holds {found}. A download may be '
            'incomplete, or this is the directory above'
        )
    content = read_json(path / CONFIG)
    if is_qwen3(path):
        return _open_qwen3(path, content, dict(changes or {}))
    if (path / PREPROCESSOR).is_file() and content.get('model_type') != LANGUAGE_MODEL:
        return _open_tokenizer(path)
    if content.get('model_type') != LANGUAGE_MODEL:
        raise InputError(
            f'{path / CONFIG}: model_type is {content.get("model_type")!r}; what can be converted '
            f"is {LANGUAGE_MODEL!r}, 'qwen3', or a speech tokenizer (with {PREPROCESSOR} beside it)"
        )
    return _open_language_model(path, content)


# ------------------------------------------------------------------------------- Hugging Face


def _open_language_model(path: Path, content: dict) -> Source:
    kind = language_model(content, str(path / CONFIG))
    tensors = safetensors_io.open_tensors(path)
    rules.check(kind.rules, tensors.shapes, kind.network.shapes, where=str(path))
    return Source(path, ORBAX, kind, tensors, **_listing(path))


def _open_qwen3(path: Path, qwen: dict, changes: dict) -> Source:
    seed = changes.pop('seed', 0)
    values.number(seed, 'seed', values.SEED)
    config = qwen3.speech_config(qwen, changes)
    tensors = qwen3.QwenStart(qwen, safetensors_io.open_tensors(path), config, seed)
    content = config.to_hf()
    listing = _listing(path)
    listing['files'] = tuple(name for name in listing['files'] if name != CONFIG)
    choices = {
        'start': 'qwen3', 'seed': seed, 'changes': changes,
        'audio_branch': 'copy of text_branch', 'audio_norm': 'copy of text_norm',
        'audio_embed': f'normal(0, {config.initializer_range})',
        'audio_head': f'normal(0, {config.initializer_range})',
        'text_head': 'copy of the embedding (tied)' if tensors.tied else 'lm_head',
        'vocabulary': f'first {config.vocab_size} of {qwen["vocab_size"]} rows',
    }
    kind = language_model(content, str(path / CONFIG))
    return Source(path, ORBAX, kind, tensors, choices=choices, **listing)


def _open_tokenizer(path: Path) -> Source:
    config, tensors, prefix = codec_tokenizer.open_files(path)
    kind = speech_tokenizer(read_json(path / CONFIG), read_json(path / PREPROCESSOR), prefix)
    rules.check(
        kind.rules, tensors.shapes, kind.network.shapes, where=str(path),
        ignore=tokenizer_rules.unused(prefix, config.layers, config.encoder_layers),
    )
    expected = rules.expected_tensors(kind.rules, kind.network.shapes)
    unused = tuple(name for name in tensors.shapes if name not in expected)
    return Source(path, ORBAX, kind, tensors, unused, **_listing(path))


def is_qwen3(path: Path) -> bool:
    """Whether a directory is a Qwen3 text model in Hugging Face form."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get('model_type') == 'qwen3'


def _has_weights(path: Path) -> bool:
    return any((path / f'model.safetensors{end}').is_file() for end in ('', '.index.json'))


def _listing(path: Path) -> dict:
    """Files of a directory by what becomes of them, see `Source`."""
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith('.'))
    files = [n for n in names if (path / n).is_file()]
    weights = [n for n in files if n.startswith('model') and n.endswith(WEIGHTS[:2])]
    companions = [n for n in files if not n.endswith(WEIGHTS) and n != 'certificate.json']
    kept = {*weights, *companions, 'certificate.json'}
    left = [n for n in names if n not in kept and not n.isdigit()]
    return {'weights': tuple(weights), 'files': tuple(companions), 'left': tuple(left)}


def stored_tensors(path: Path) -> Tensors:
    """The tensors of a directory under the names they are stored by (a Qwen3's are its own)."""
    return safetensors_io.open_tensors(path) if is_qwen3(path) else open_source(path).tensors


# -------------------------------------------------------------------------------------- Orbax

TRAINED = {'codebook': ('extra', 'codebook/codes')}  # where a tokenizer run keeps it
UNUSED = 'unused'  # .safetensors beside the steps: tensors of the file that no parameter holds


def _orbax_root(path: Path) -> Path | None:
    """The directory of the numbered steps: `path`, or its `checkpoints` (a training run)."""
    for root in (path, path / 'checkpoints'):
        if root.is_dir() and any(p.name.isdigit() and _is_step(p) for p in root.iterdir()):
            return root
    return None


def _is_step(path: Path) -> bool:
    return (path / 'params').is_dir() or (path / 'meta').is_dir()


def _open_orbax(root: Path, path: Path) -> Source:
    step = checkpoint.find_step(root)
    model = checkpoint.read_meta(root, step).get('model')
    if not isinstance(model, dict) or 'kind' not in model:
        raise InputError(
            f'{root}, step {step} does not say what it holds (no "model" in its meta item); '
            'convert checkpoints of language model runs, or what mossjax convert wrote'
        )
    configs = model['configs']
    if model['kind'] == LANGUAGE_MODEL:
        kind = language_model(configs[CONFIG], f'{root}, step {step}')
    elif model['kind'] == TOKENIZER:
        kind = speech_tokenizer(configs[CONFIG], configs[PREPROCESSOR], model['prefix'])
    else:
        raise InputError(f'{root}, step {step} holds a {model["kind"]!r}, which has no other form')
    listing = _listing(path) if root == path else {}
    adapters, unused = None, ()
    if model.get('trained'):  # by a tokenizer run: more parameters, and a codebook beside them
        table, names = tokenizer_rules.trained_rules(model['prefix'])
        tensors, unused = OrbaxTensors(root, table, step, beside=TRAINED), names
    else:
        tensors = OrbaxTensors(root, kind.rules, step, 'base/' if 'lora' in model else '')
    if 'lora' in model:
        adapters = peft.Adapters.stored(root, step, model['lora'])
        tensors = peft.Merged(tensors, kind.rules, adapters)
    weights = sorted(p for p in (root / str(step)).rglob('*') if p.is_file())
    if (root / f'{UNUSED}.safetensors').is_file():
        weights.append(root / f'{UNUSED}.safetensors')
        others = safetensors_io.TensorFile(weights[-1])
        tensors, unused = Together((tensors, others)), tuple(others.shapes)
    return Source(
        path, HUGGING_FACE, kind, tensors, unused,
        weights=tuple(str(p.relative_to(path)) for p in weights), files=listing.get('files', ()),
        step=step, adapters=adapters, choices=model.get('choices', {}),
    )


def with_companions(source: Source, directory: str | Path) -> Source:
    """The source with the companion files of another directory instead of its own.

    Raises:
      InputError: the directory is not there.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f'{directory} is not a directory; name the one with tokenizer.json')
    names = [n for n in _listing(directory)['files'] if n not in source.kind.configs]
    return dataclasses.replace(source, files=tuple(str(directory.resolve() / n) for n in names))


def text_side(source: Source) -> Source:
    """Trunk and text branch of a language model as a Qwen3 text model, to be written as such.

    Raises:
      InputError: the source is no language model.
    """
    if source.kind.name != LANGUAGE_MODEL:
        raise InputError(f'{source.path} is no language model: it has no text side')
    config = LMConfig.from_hf(source.kind.configs[CONFIG], where=str(source.path))
    tensors = qwen3.TextSide(source.tensors, config)
    content = qwen3.qwen_config(config, tensors.dtypes['lm_head.weight'].name)
    kind = dataclasses.replace(
        source.kind, name='qwen3', order=qwen3.module_order, configs={CONFIG: content},
        rules=TEXT_RULES,
    )
    files = tuple(name for name in source.files if Path(name).name != CONFIG)
    return dataclasses.replace(
        source, becomes=HUGGING_FACE, kind=kind, tensors=tensors, files=files
    )


def describe(source: Source) -> dict:
    """The 'model' of a converted checkpoint's meta item, which `open_source` reads back."""
    prefix = {}
    if source.kind.name == TOKENIZER:
        first = next(r.name for r in source.kind.rules if r.path == 'codebook')
        prefix = {'prefix': first.removesuffix('codebook.weight')}
    return {
        'kind': source.kind.name, 'configs': dict(source.kind.configs),
        'choices': dict(source.choices), **prefix,
    }
