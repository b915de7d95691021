"""What is fuzzed: real files, the reader of each, and what an independent reader says of them.

To add a reader, add a `Seed` to SEEDS. Everything heavy is made once, before limits are set.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import yaml

from mossjax.convert import kinds, peft
from mossjax.convert.certificate import load as load_certificate
from mossjax.convert.directories import save_lm
from mossjax.convert.flow_config import _KEYS, read_config, write_config
from mossjax.convert.journal import Journal
from mossjax.convert.qwen3 import speech_config
from mossjax.convert.rules import flatten
from mossjax.convert.safetensors_io import write
from mossjax.convert.torch_reader import TorchReader
from mossjax.convert.transfer import convert
from mossjax.convert.weight_files import open_tensors
from mossjax.files import read_json
from mossjax.infer.sampling import Settings
from mossjax.models.flow.config import FlowConfig
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.lora import Lora, adapt
from tests.fuzz import audio_seeds, data_seeds, voice_seeds
from tests.fuzz.seed import (
    NANO,
    Seed,
    command,
    copy,
    digest,
    lines,
    put,
    refusal,
    sha256,
    written,
)
from tests.tiny_lm import tiny_config, tiny_params

GOLDEN = Path(__file__).parents[1] / 'golden'
CONFIG = tiny_config()


# --------------------------------------------------------------------------- the language model


@functools.cache
def _model() -> dict[str, bytes]:
    return written(lambda folder: save_lm(folder / 'x', CONFIG, tiny_params(CONFIG)))


def _config(folder: Path) -> dict:
    config = LMConfig.from_hf(read_json(folder / 'config.json'))
    assert LMConfig.from_hf(config.to_hf()) == config
    return dataclasses.asdict(dataclasses.replace(config, source={}))


def _config_right(folder: Path, result: dict) -> bool:
    """Every number is the one that the standard library reads."""
    content = json.loads((folder / 'config.json').read_text('utf-8-sig'))
    theta = (content.get('rope_scaling') or {}).get('rope_theta')
    content.setdefault('rope_theta', theta)
    return all(
        result[key] == content[key] and type(result[key]) in (type(content[key]), float)
        for key in result if content.get(key) is not None and key != 'source'
    )  # fmt: skip


def _source(folder: Path) -> Any:
    source = kinds.open_source(folder)
    return digest(source.tensors)


def _source_right(folder: Path, result: dict) -> bool:
    """All that safetensors' own reader finds, whatever the configuration says."""
    from safetensors.numpy import load_file

    want = {k: v for file in folder.glob('*.safetensors') for k, v in load_file(file).items()}
    return {name: (x.shape, str(x.dtype), sha256(x)) for name, x in want.items()} == result


@functools.cache
def _shards() -> dict[str, bytes]:
    return written(_sharded)


def _sharded(folder: Path) -> None:
    tensors = {
        'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.arange(5),
        'c': np.ones((2, 0), np.float16), 'd': np.array([True, False, True]),
    }  # fmt: skip
    (folder / 'x').mkdir()
    write(folder / 'x' / 'model.safetensors', tensors, shard_bytes=64)


def _qwen(folder: Path) -> dict:
    """A start whose keys a user sets."""
    qwen = {
        key: getattr(CONFIG, key) for key in (
            'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
            'num_key_value_heads', 'head_dim', 'rms_norm_eps', 'rope_theta',
        )
    } | {'vocab_size': 70}
    return dataclasses.asdict(speech_config(qwen, read_json(folder / 'changes.json')))


CHANGES = {
    name: getattr(CONFIG, name) for name in (
        'vocab_size', 'audio_vocab_size', 'num_modality_layers', 'modality_pad_token_id',
        'sosp_token_id', 'eosp_token_id', 'audio_pad_token_id', 'eos_token_id',
    )
} | {'num_shared_layers': 3}  # fmt: skip


def _settings(folder: Path) -> str:
    return repr(Settings.of(read_json(folder / 'generation_config.json')))


# ------------------------------------------------------------------------------- its adapters


@functools.cache
def _adapter() -> dict[str, bytes]:
    lora = Lora(3, 6.0, ('trunk/attn/q', 'text_branch/mlp/down'))
    shapes = adapt(network(CONFIG), lora, matrix).shapes['lora']
    rng = np.random.default_rng(0)
    flat = {k: rng.normal(size=x.shape).astype('f4') for k, x in flatten(shapes).items()}
    return written(lambda folder: peft.save(folder / 'x', peft.Adapters(lora, flat)))


@functools.cache
def _shapes() -> dict:
    return network(CONFIG).shapes


def _adapters(folder: Path) -> dict:
    found = peft.load(folder, _shapes())
    deltas = {
        path: found.lora.scale * np.tensordot(
            found.flat[f'{path}/down'][0], found.flat[f'{path}/up'][0], 1
        ) for path in found.targets
    }
    return {path: sha256(np.asarray(x, np.float32)) for path, x in deltas.items()}


# ---------------------------------------------------------------------------------- the codec


def _tokenizer(folder: Path) -> dict:
    return dataclasses.asdict(TokenizerConfig.from_hf(
        read_json(folder / 'config.json'), read_json(folder / 'preprocessor_config.json')
    ))  # fmt: skip


@functools.cache
def _flow() -> dict[str, bytes]:
    def make(folder: Path) -> None:
        (folder / 'x').mkdir()
        write_config(folder / 'x' / 'config.yaml', FlowConfig(vocab_size=97, blocks=2))

    return written(make)


@functools.cache
def _tagged() -> dict[str, bytes]:
    from tests.convert.test_flow_config import TAGGED

    return {'config.yaml': TAGGED.format(marker='marker').encode()}


def _flow_config(folder: Path) -> dict:
    return dataclasses.asdict(read_config(folder / 'config.yaml'))


def _flow_right(folder: Path, result: dict) -> bool:
    """Numbers are those that PyYAML's safe loader finds in a file without tags."""
    text = (folder / 'config.yaml').read_text()
    if '!' in text:
        return True  # a tag, with which it cannot be asked
    flow = yaml.safe_load(text)['flow']
    for name, key in _KEYS.items():
        value: Any = flow
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, dict) else None
        value = value[0] if isinstance(value, list) else value
        if value is not None and float(value) != result[name]:
            return False
    return True


def _torch(folder: Path) -> dict:
    return digest(TorchReader(folder / 'tensors.pt'))


def _torch_right(folder: Path, result: dict) -> bool:
    """What torch itself reads; where it stops at entries that hold no tensors, the original."""
    import torch

    try:
        found = torch.load(folder / 'tensors.pt', weights_only=True)
    except Exception:  # at an entry that holds no tensor; what is in them may differ
        found = torch.load(GOLDEN / 'decoder/tensors.pt', weights_only=True)
        shapes = {name: tuple(x.shape) for name, x in found.items() if hasattr(x, 'shape')}
        return shapes == {name: shape for name, (shape, *_) in result.items()}
    want = {
        str(name): (tuple(x.shape), sha256(x.detach().reshape(-1).view(torch.uint8).numpy()))
        for name, x in found.items() if isinstance(x, torch.Tensor)
    }
    return want == {name: (shape, sha) for name, (shape, _, sha) in result.items()}


# ------------------------------------------------------------------------------- conversions


@functools.cache
def _converted() -> dict[str, bytes]:
    def make(folder: Path) -> None:
        save_lm(folder / 'hf', CONFIG, tiny_params(CONFIG))
        convert(kinds.open_source(folder / 'hf'), folder / 'x')

    return written(make)


def _meta() -> str:
    return next(name for name in _converted() if name.startswith('0/meta/'))


IDENTITY = {'tensors': {'a': [[3], 'float32'], 'b': [[], 'int8']},
            'options': {'certify': True, 'dtype': '', 'shard_bytes': 5}}  # fmt: skip
ENTRY = {'dtype': 'float32', 'shape': [3], 'sha256': '0', 'min': 0.5, 'max': 1.0, 'mean': 0.7,
         'std': 0.1, 'non_finite': 0, 'equal': True}  # fmt: skip


def _journal(folder: Path) -> None:
    (folder / 'work').mkdir()
    other = {'tensor': 'b', **ENTRY, 'shape': [], 'dtype': 'int8'}
    lines = IDENTITY, {'tensor': 'a', **ENTRY}, other
    (folder / 'work' / Journal.NAME).write_text(''.join(json.dumps(x) + '\n' for x in lines))


def _resumed(folder: Path) -> dict:
    return Journal.resume(folder / 'work', IDENTITY)


def _resumed_right(folder: Path, result: dict) -> bool:
    """Nothing is in place but what the first journal said."""
    return set(result) <= {'a', 'b'} and all(
        [x['shape'], x['dtype']] == IDENTITY['tensors'][name] for name, x in result.items()
    )


# -------------------------------------------------------------------------- the command line


def _convert(folder: Path) -> Any:
    """There and back, by commands; what comes back is read by safetensors' own reader."""
    from safetensors.numpy import load_file

    model, orbax, back = folder / 'model', folder / 'orbax', folder / 'back'
    refusal(*command('convert', model, orbax))
    refusal(*command('convert', orbax, back))
    found = load_file(back / 'model.safetensors')
    shutil.rmtree(orbax), shutil.rmtree(back)
    return {name: sha256(x) for name, x in found.items()}


def _convert_right(folder: Path, result: dict) -> bool:
    from safetensors.numpy import load_file

    found = load_file(folder / 'model' / 'model.safetensors')
    return {name: sha256(x) for name, x in found.items()} == result


def _verify(folder: Path) -> int:
    code, said = command('convert', '--verify', folder)
    if code == 1 and 'Traceback' not in said:
        return 1  # faults found, as it should
    refusal(code, said)
    return code


def _inside(name: str, files: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    return put(lambda: {f'{name}/{file}': content for file, content in files().items()})


SEEDS = (
    Seed('config.json', 'config.json', 'json', put(_model), _config, _config_right, weight=6),
    Seed('generation_config.json', 'generation_config.json', 'json',
         copy(NANO / 'lm' / 'generation_config.json'), _settings, weight=5),
    Seed('changes of a start', 'changes.json', 'json',
         lines('changes.json', CHANGES), _qwen, weight=3),
    Seed('model directory', 'config.json', 'json', put(_model), _source, _source_right, weight=1),
    Seed('weights of a model', 'model.safetensors', 'safetensors', put(_model), _source,
         _source_right, weight=1),
    Seed('safetensors', 'model-00001-of-00002.safetensors', 'safetensors',
         put(_shards), lambda f: digest(open_tensors(f)), _source_right, weight=6),
    Seed('index', 'model.safetensors.index.json', 'json', put(_shards),
         lambda f: digest(open_tensors(f)), _source_right, weight=4),
    Seed('adapter_config.json', peft.CONFIG, 'json', put(_adapter), _adapters, weight=5),
    Seed('weights of an adapter', peft.WEIGHTS, 'safetensors', put(_adapter), _adapters, weight=2),
    Seed('codec config.json', 'config.json', 'json',
         copy(NANO / 'codec/config.json', NANO / 'codec/preprocessor_config.json'), _tokenizer,
         weight=5),
    Seed('preprocessor_config.json', 'preprocessor_config.json', 'json',
         copy(NANO / 'codec/config.json', NANO / 'codec/preprocessor_config.json'), _tokenizer,
         weight=3),
    Seed('flow/config.yaml', 'config.yaml', 'yaml', put(_flow), _flow_config, _flow_right,
         weight=5),
    Seed('tagged flow/config.yaml', 'config.yaml', 'yaml', put(_tagged), _flow_config, weight=5),
    Seed('torch archive', 'tensors.pt', 'zip', copy(GOLDEN / 'decoder/tensors.pt'), _torch,
         _torch_right, weight=6),
    Seed('certificate.json', 'certificate.json', 'json', put(_converted), load_certificate,
         weight=2),
    Seed('meta of a checkpoint', _meta(), 'json', put(_converted),
         lambda f: sorted(kinds.open_source(f).tensors.shapes), weight=1),
    Seed('journal of a conversion', f'work/{Journal.NAME}', 'jsonl', _journal, _resumed,
         _resumed_right, leaves=('work',), weight=3),
    Seed('convert, config.json', 'model/config.json', 'json', _inside('model', _model), _convert,
         _convert_right, weight=1),
    Seed('convert, weights', 'model/model.safetensors', 'safetensors', _inside('model', _model),
         _convert, _convert_right, weight=1),
    Seed('verify, certificate', 'certificate.json', 'json', put(_converted), _verify, weight=1),
    *data_seeds.SEEDS,
    *audio_seeds.SEEDS,
    *voice_seeds.SEEDS,
)  # fmt: skip
