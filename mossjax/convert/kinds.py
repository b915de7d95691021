"""What can be converted, found from the files themselves.

`open_source` looks at a directory and returns its tensors under checkpoint names, whichever side it
is on; `Kind` holds what the other side needs. Kinds: the MOSS-Speech language model, a Qwen3 text
model (read as the start of a speech model), the codec: speech tokenizer, decoder, or both. Code
that comes with a checkpoint is copied like any other file and never run.
"""

from collections.abc import Mapping
import dataclasses
import os
from pathlib import Path

from mossjax import paths, values
from mossjax.convert import (
    codec_folder,
    codec_meta,
    codec_parts,
    codec_tokenizer,
    names,
    qwen3,
    rules,
    tokenizer_rules,
)
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.lm_rules import TEXT_RULES, size_doubts
from mossjax.convert.orbax_source import find_root, open_orbax
from mossjax.convert.source import (
    CODEC,
    CONFIG,
    DECODER,
    HUGGING_FACE,
    LANGUAGE_MODEL,
    ORBAX,
    PREPROCESSOR,
    TOKENIZER,
    Source,
    Together,
    language_model,
    listing,
    prefixed,
    speech_tokenizer,
)
from mossjax.convert.weight_files import Tensors, open_tensors
from mossjax.errors import InputError
from mossjax.files import read_json


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
    root = find_root(path)
    if root is not None:
        return open_orbax(root, path)
    if not os.path.lexists(path / CONFIG):
        if parts := codec_parts.open_parts(path):
            return _with_decoder(None, path, parts)
        found = values.listed(sorted(os.listdir(path))) or 'nothing'
        raise InputError(
            f'{path} is neither a Hugging Face directory ({CONFIG} with model.safetensors or its '
            f'index) nor an Orbax one (numbered steps); it holds {found}. {_where_else(path)}'
        )
    content = read_json(path / CONFIG)
    if is_qwen3(path):
        return _open_qwen3(path, content, dict(changes or {}))
    if (path / PREPROCESSOR).is_file() and content.get('model_type') != LANGUAGE_MODEL:
        tokenizer, parts = _open_tokenizer(path), codec_parts.open_parts(path)
        return _with_decoder(tokenizer, path, parts) if parts else tokenizer
    if content.get('model_type') != LANGUAGE_MODEL:
        raise InputError(
            f'{path / CONFIG}: model_type is {values.shown(content.get("model_type"))}; what can '
            f"be converted is {LANGUAGE_MODEL!r}, 'qwen3', or a speech tokenizer (with "
            f'{PREPROCESSOR} beside it)'
        )
    return _open_language_model(path, content)


def _where_else(path: Path) -> str:
    """What to do where a directory holds no checkpoint: the one below may."""
    found = [p.parent for depth in ('*', '*/*') for p in sorted(path.glob(f'{depth}/{CONFIG}'))]
    if found:
        return f'Give {paths.printable(found[0])} instead'
    return 'A download may be incomplete, or this is the directory above'


# ------------------------------------------------------------------------------- Hugging Face


def _open_language_model(path: Path, content: dict) -> Source:
    kind, files = language_model(content, str(path / CONFIG)), open_tensors(path)
    expected = rules.expected_tensors(kind.rules, kind.network.shapes)
    tensors = names.fitted(files, expected, str(path))
    rules.check(
        kind.rules, tensors.shapes, kind.network.shapes, where=str(path),
        doubts=size_doubts(kind.config, tensors.shapes), dtypes=tensors.dtypes,
    )
    return Source(path, ORBAX, kind, tensors, **listing(path, files.files))


def _open_qwen3(path: Path, qwen: dict, changes: dict) -> Source:
    seed = changes.pop('seed', 0)
    values.number(seed, 'seed', values.SEED)
    config = qwen3.speech_config(qwen, changes)
    files = open_tensors(path)
    tensors = qwen3.QwenStart(qwen, files, config, seed)
    content, found = config.to_hf(), listing(path, files.files)
    found['files'] = tuple(name for name in found['files'] if name != CONFIG)
    choices = {
        'start': 'qwen3', 'seed': seed, 'changes': changes,
        'audio_branch': 'copy of text_branch', 'audio_norm': 'copy of text_norm',
        'audio_embed': f'normal(0, {config.initializer_range})',
        'audio_head': f'normal(0, {config.initializer_range})',
        'text_head': 'copy of the embedding (tied)' if tensors.tied else 'lm_head',
        'vocabulary': f'first {config.vocab_size} of {qwen["vocab_size"]} rows',
    }
    kind = language_model(content, str(path / CONFIG))
    return Source(path, ORBAX, kind, tensors, choices=choices, **found)


def _open_tokenizer(path: Path) -> Source:
    config, tensors, prefix, files = codec_tokenizer.open_files(path)
    kind = speech_tokenizer(read_json(path / CONFIG), read_json(path / PREPROCESSOR), prefix)
    rules.check(
        kind.rules, tensors.shapes, kind.network.shapes, where=str(path),
        ignore=tokenizer_rules.unused(prefix, config.layers, config.encoder_layers),
        dtypes=tensors.dtypes,
    )
    expected = rules.expected_tensors(kind.rules, kind.network.shapes)
    unused = tuple(name for name in tensors.shapes if name not in expected)
    return Source(path, ORBAX, kind, tensors, unused, **listing(path, files))


def _with_decoder(tokenizer: Source | None, path: Path, parts: list) -> Source:
    """A codec of a tokenizer, if it has one, and the networks of its decoder."""
    networks = [part for part, _ in parts]
    kind = codec_parts.codec(tokenizer and tokenizer.kind, networks)
    files = [part.file for part in networks]
    # What a part is read from stands beside its other forms, which are stale.
    stale = {form for part in networks for form in codec_folder.forms(part)} - set(files)
    source = tokenizer or Source(path, ORBAX, kind, Together(()), **listing(path, ()))
    graphs = [part.file for part in networks if part.suffix == codec_parts.ONNX]
    inside = codec_folder.files(path, [*(file for file in files if file not in graphs), *stale])
    return dataclasses.replace(
        source, kind=kind,
        tensors=Together((source.tensors, *(prefixed(x, part.front) for part, x in parts))),
        weights=(*source.weights, *files),
        files=(*(name for name in source.files if name != DECODER), *inside),
        left=(*source.left, *(name for name in sorted(stale) if (path / name).is_file())),
    )  # fmt: skip


def is_qwen3(path: Path) -> bool:
    """Whether a directory is a Qwen3 text model in Hugging Face form."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get('model_type') == 'qwen3'


def stored_tensors(path: Path) -> Tensors:
    """The tensors of a directory under the names they are stored by (a Qwen3's are its own)."""
    return open_tensors(path) if is_qwen3(path) else open_source(path).tensors


# ---------------------------------------------------------------------------------- changes


def with_companions(source: Source, directory: str | Path) -> Source:
    """The source with the companion files of another directory instead of its own.

    A part of a codec, of a training run, gets all of another codec but that part.

    Raises:
      InputError: the directory is not there, or the part does not fit the codec in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f'{directory} is not a directory; name the one with tokenizer.json')
    kind = source.kind
    if kind.name != LANGUAGE_MODEL and find_root(directory) is not None:
        raise InputError(
            f'{directory} is the Orbax form of a codec; name the codec directory itself: mossjax '
            f'convert {directory} CODEC makes it'
        )
    found = [n for n in listing(directory, ())['files'] if n not in kind.configs]
    if PREPROCESSOR in kind.configs:  # another tokenizer than that of the voice
        found = [name for name in found if name != VOICE]
    for part in kind.parts:
        codec_folder.check_settings(directory, part)
    if kind.parts:
        others = [form for part in kind.parts for form in codec_folder.forms(part)]
        found = [n for n in found if n != DECODER] + codec_folder.files(directory, others)
    if kind.parts and not kind.configs and (directory / PREPROCESSOR).is_file():
        found += [Path(file).name for file in codec_tokenizer.open_files(directory)[-1]]
    return dataclasses.replace(source, files=tuple(found), other=directory.resolve())


def text_side(source: Source) -> Source:
    """Trunk and text branch of a language model as a Qwen3 text model, to be written as such.

    Raises:
      InputError: the source is no language model.
    """
    if source.kind.name != LANGUAGE_MODEL:
        raise InputError(f'{source.path} is no language model: it has no text side')
    tensors = qwen3.TextSide(source.tensors, source.kind.config)
    content = qwen3.qwen_config(source.kind.config, tensors.dtypes['lm_head.weight'].name)
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
    kind, more = source.kind, {}
    if kind.name == TOKENIZER or kind.name == CODEC and kind.configs:
        first = next(r.name for r in kind.rules if r.path == 'codebook')
        more['prefix'] = first.removesuffix('codebook.weight')
    if kind.parts:
        more['parts'] = {part.name: codec_meta.describe(part) for part in kind.parts}
    return {
        'kind': kind.name, 'configs': dict(kind.configs), 'choices': dict(source.choices), **more
    }
