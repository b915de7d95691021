"""The Orbax side: what `mossjax convert` wrote, or the workdir of a training run.

What a checkpoint holds is said by its meta item; the arrays must be those of the configuration in
it, and so must a config.json that lies beside the steps.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

from mossjax import checkpoint, values
from mossjax.convert import (
    codec_folder,
    codec_meta,
    codec_parts,
    peft,
    rules,
    tokenizer_rules,
)
from mossjax.convert.lm_rules import size_doubts
from mossjax.convert.orbax_tensors import OrbaxTensors
from mossjax.convert.safetensors_io import TensorFile
from mossjax.convert.source import (
    CODEC,
    CONFIG,
    DECODER,
    HUGGING_FACE,
    LANGUAGE_MODEL,
    PREPROCESSOR,
    TOKENIZER,
    Kind,
    Source,
    Together,
    language_model,
    listing,
    speech_tokenizer,
)
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.config import LMConfig

TRAINED = {'codebook': ('extra', 'codebook/codes')}  # where a tokenizer run keeps it
UNUSED = 'unused'  # .safetensors beside the steps: tensors of the file that no parameter holds


def find_root(path: Path) -> Path | None:
    """The directory of the numbered steps: `path`, or its `checkpoints` (a training run)."""
    for root in (path, path / 'checkpoints'):
        if root.is_dir() and any(p.name.isdigit() and _is_step(p) for p in root.iterdir()):
            return root
    return None


def _is_step(path: Path) -> bool:
    return (path / 'params').is_dir() or (path / 'meta').is_dir()


def open_orbax(root: Path, path: Path) -> Source:
    """Opens the last step in `root`, which `find_root` found for `path`.

    Raises:
      InputError: it does not say what it holds, or does not hold that.
    """
    step = checkpoint.find_step(root, items=('params', 'extra'))
    where = f'{root}, step {step}'
    model = _model(root, step, where)
    kind = _kind(model, where)
    converted = root == path
    adapters, unused = None, ()
    # A tokenizer run has more parameters, and keeps the codebook beside them.
    if kind.name == TOKENIZER and model.get('trained'):
        table, unused = tokenizer_rules.trained_rules(model['prefix'])
        tensors = OrbaxTensors(root, table, step, beside=TRAINED)
    else:
        inside = 'base/' if 'lora' in model else model.get('inside', '')
        last = model.get('beside', ())
        beside = {
            rule.path: ('extra', rule.path) for rule in kind.rules
            if rule.path.rpartition('/')[-1] in last
        }
        tensors = OrbaxTensors(root, kind.rules, step, inside, beside)
    own = {name: shape for name, shape in tensors.shapes.items() if name not in unused}
    doubts = ''
    if kind.name == LANGUAGE_MODEL:
        doubts = size_doubts(kind.config, own)
    rules.check(
        kind.rules, own, kind.network.shapes, where=where, doubts=doubts, dtypes=tensors.dtypes
    )
    if converted and kind.name == LANGUAGE_MODEL and (path / CONFIG).is_file():
        _check_beside(path, kind)
    if 'lora' in model:
        adapters = peft.Adapters.stored(root, step, model['lora'], kind.network)
        tensors = peft.Merged(tensors, kind.rules, adapters)
    weights, extra = sorted(p for p in (root / str(step)).rglob('*') if p.is_file()), []
    if (root / f'{UNUSED}.safetensors').is_file():
        extra = [root / f'{UNUSED}.safetensors']
        others = TensorFile(extra[0])
        tensors, unused = Together((tensors, others)), tuple(others.shapes)
    files = listing(path, extra)['files'] if converted else ()
    if kind.parts and DECODER in files:
        # A graph takes the numbers back and is written anew.
        graphs = [part.file for part in kind.parts if part.suffix == codec_parts.ONNX]
        files = (*(n for n in files if n != DECODER), *codec_folder.files(path, graphs))
    return Source(
        path, HUGGING_FACE, kind, tensors, unused,
        weights=tuple(str(p.relative_to(path)) for p in (*weights, *extra)), files=files,
        step=step, adapters=adapters, choices=model.get('choices', {}),
    )


def _model(root: Path, step: int, where: str) -> dict:
    """The 'model' of the meta item."""
    meta = values.plain(checkpoint.read_meta(root, step), f'{where}: meta')
    model = meta.get('model') if isinstance(meta, Mapping) else None
    if not isinstance(model, dict) or 'kind' not in model:
        raise InputError(
            f'{where} does not say what it holds (no "model" in its meta item); convert '
            'checkpoints of language model runs, or what mossjax convert wrote'
        )
    return model


def _kind(model: Mapping, where: str) -> Kind:
    if model['kind'] == CODEC:
        tokenizer = None
        if model.get('configs'):
            tokenizer = _kind({**model, 'kind': TOKENIZER}, where)
        if not isinstance(model.get('inside', ''), str):
            raise InputError(f'{where}: "inside" in its meta item is no text; copy it again')
        return codec_parts.codec(tokenizer, codec_meta.of_meta(model, where))
    names = {LANGUAGE_MODEL: [CONFIG], TOKENIZER: [CONFIG, PREPROCESSOR]}
    if model['kind'] not in (LANGUAGE_MODEL, TOKENIZER):
        raise InputError(
            f'{where} holds a {values.shown(model["kind"])}, which has no other form'
        )
    configs, choices = model.get('configs'), model.get('choices', {})
    configs = configs if isinstance(configs, dict) else {}
    found = [configs.get(name) for name in names[model['kind']]]
    if not all(isinstance(content, dict) for content in (*found, choices)):
        raise InputError(f'{where}: its meta item holds no configuration; copy it again')
    if model['kind'] == LANGUAGE_MODEL:
        return language_model(found[0], where)
    if model.get('prefix') not in tokenizer_rules.PREFIXES:
        raise InputError(
            f'{where}: prefix in its meta item is {values.shown(model.get("prefix"))}, none of '
            f'{", ".join(map(repr, tokenizer_rules.PREFIXES))}; copy the checkpoint again'
        )
    return speech_tokenizer(*found, model['prefix'])


def _check_beside(path: Path, kind: Kind) -> None:
    """Refuses a config.json that says something else than the checkpoint beside it."""
    content = read_json(path / CONFIG)
    if content == kind.configs[CONFIG]:
        return
    beside = LMConfig.from_hf(content, where=str(path / CONFIG))
    for field in dataclasses.fields(LMConfig):
        said, meant = getattr(beside, field.name), getattr(kind.config, field.name)
        if field.compare and field.name != 'dtype' and said != meant:
            raise InputError(
                f'{path / CONFIG}: {field.name} is {said!r}, but the checkpoint beside it was '
                f'made with {meant!r}. Put the file back, or convert again from the source with '
                'the change in its config.json'
            )
