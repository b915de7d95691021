"""What is fuzzed: real files, the reader of each, and what an independent reader says of them.

To add a reader, add a `Seed` to SEEDS. Everything heavy is made once, before limits are set.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.resources
import io
import json
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

import numpy as np
import yaml

from mossjax.convert import kinds, peft
from mossjax.convert.certificate import load as load_certificate
from mossjax.convert.directories import save_lm
from mossjax.convert.flow_config import _KEYS, read_config, write_config
from mossjax.convert.journal import Journal
from mossjax.convert.rules import flatten
from mossjax.convert.safetensors_io import write
from mossjax.convert.torch_reader import TorchReader
from mossjax.convert.transfer import convert
from mossjax.convert.weight_files import open_tensors
from mossjax.data.codes import CodesStore
from mossjax.data.labels import Inventory
from mossjax.data.manifest import read_manifest
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.infer import audio
from mossjax.infer.assets import Clip, Fact, _parse
from mossjax.infer.sampling import Settings
from mossjax.models.flow.config import FlowConfig
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.models.lm.text import TextTokenizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.lora import Lora, adapt
from tests.tiny_lm import tiny_config, tiny_params

NANO = Path(str(importlib.resources.files('mossjax'))) / 'assets' / 'nano'
GOLDEN = Path(__file__).parents[1] / 'golden'
CONFIG = tiny_config()


@dataclasses.dataclass(frozen=True)
class Seed:
    """One file that is damaged, and what reads it.

    Attributes:
      name: of the seed. file: the one that is damaged, relative to the folder.
      kind: of the file, see `mutations.mutate`.
      make: writes the folder's files.
      read: folder -> what comes of it, comparable with ==.
      right: (folder, what came of it) -> whether an independent reader agrees.
      leaves: names that reading may leave behind or remove.
      weight: how often it is drawn.
    """

    name: str
    file: str
    kind: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    right: Callable[[Path, Any], bool] = lambda folder, result: True
    leaves: tuple[str, ...] = ()
    weight: int = 2


def digest(tensors) -> dict[str, tuple]:
    """What is comparable of lazily read tensors."""
    return {
        name: (tuple(shape), str(tensors.dtypes[name]), _hash(tensors.read(name)))
        for name, shape in tensors.shapes.items()
    }


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def copy(*files: Path) -> Callable[[Path], None]:
    return lambda folder: [shutil.copy(file, folder / file.name) for file in files] and None


# --------------------------------------------------------------------------- the language model


@functools.cache
def _model() -> dict[str, bytes]:
    return _written(lambda folder: save_lm(folder / 'x', CONFIG, tiny_params(CONFIG)))


def _written(make: Callable[[Path], Any]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        root = Path(folder) / 'x'
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def put(files: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, content in files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return make


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
    return {name: (x.shape, str(x.dtype), _hash(x)) for name, x in want.items()} == result


@functools.cache
def _shards() -> dict[str, bytes]:
    return _written(_sharded)


def _sharded(folder: Path) -> None:
    tensors = {
        'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.arange(5),
        'c': np.ones((2, 0), np.float16), 'd': np.array([True, False, True]),
    }  # fmt: skip
    (folder / 'x').mkdir()
    write(folder / 'x' / 'model.safetensors', tensors, shard_bytes=64)


def _qwen(folder: Path) -> dict:
    """A start whose keys a user sets."""
    from mossjax.convert.qwen3 import speech_config

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
    return _written(lambda folder: peft.save(folder / 'x', peft.Adapters(lora, flat)))


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
    assert all(np.isfinite(x).all() or True for x in deltas.values())
    return {path: _hash(np.asarray(x, np.float32)) for path, x in deltas.items()}


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

    return _written(make)


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
    except Exception:
        found = torch.load(GOLDEN / 'decoder/tensors.pt', weights_only=True)
    want = {
        str(name): (tuple(x.shape), _hash(x.detach().reshape(-1).view(torch.uint8).numpy()))
        for name, x in found.items() if isinstance(x, torch.Tensor)
    }  # fmt: skip
    return want == {name: (shape, sha) for name, (shape, _, sha) in result.items()}


# ---------------------------------------------------------------------------------------- data


def _lines(name: str, *lines: dict) -> Callable[[Path], None]:
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    return lambda folder: (folder / name).write_text(text) and None


MANIFEST = (
    {'audio': 'wav/1.wav', 'text': 'the answer is seven', 'speaker': 'slt',
     'times': [['dh', 0.08], ['ax', 0.13]], 'words': [['the', 0.13]], 'split': 3},
    {'turns': [{'role': 'user', 'audio': 'wav/2.wav'}, {'role': 'assistant', 'text': 'seven'},
               {'role': 'user', 'codes': [1, 5, 9]}]},
    {'audio': '/elsewhere/b.wav'},
)  # fmt: skip
CODES = (
    {'path': 'a.wav', 'version': 0, 'offset': 0.0, 'codes': [1, 2, 3], 'seconds': 0.24},
    {'path': 'a.wav', 'version': 1, 'offset': 0.04, 'codes': [1, 2, 7, 9], 'seconds': 0.28},
    {'path': 'b.wav', 'codes': []},
)  # fmt: skip


def _manifest(folder: Path) -> list:
    entries = [dataclasses.asdict(entry) for entry in read_manifest(folder / 'm.jsonl')]
    return json.loads(json.dumps(entries).replace(str(folder.resolve()), ''))


def _manifest_right(folder: Path, result: list) -> bool:
    lines = (folder / 'm.jsonl').read_text().split('\n')
    want = [json.loads(line) for line in lines if line.strip()]
    return [entry.get('text', '') for entry in want if 'audio' in entry] == [
        entry['text'] for entry in result if 'audio' in entry
    ]


def _codes(folder: Path) -> dict:
    store = CodesStore.open(folder / 'c.jsonl')
    return {
        Path(name).name: [(v.codes.tolist(), v.offset) for v in found]
        for name, found in store._versions.items()
    }


def _codes_right(folder: Path, result: dict) -> bool:
    lines = (folder / 'c.jsonl').read_bytes().split(b'\n')[:-1]
    want = sorted(json.loads(line)['codes'] for line in lines)
    return sorted(codes for found in result.values() for codes, _ in found) == want


def _text(folder: Path) -> Any:
    text = TextTokenizer.open(folder)
    return text.size, text.encode_plain('what is three plus four'), text.pad


# ------------------------------------------------------------------------------- conversions


@functools.cache
def _converted() -> dict[str, bytes]:
    def make(folder: Path) -> None:
        save_lm(folder / 'hf', CONFIG, tiny_params(CONFIG))
        convert(kinds.open_source(folder / 'hf'), folder / 'x')

    return _written(make)


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


def command(name: str, *args: str) -> tuple[int, str]:
    """(exit code, what stderr got) of one command, run in this process."""
    from mossjax.cli import main as cli

    module = importlib.import_module(f'mossjax.cli.{name}')
    for flag in module.FLAGS:  # as new as a process of its own has them
        module.FLAGS[flag].unparse()
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = cli.main([name, *map(str, args)])
    return code, err.getvalue()


def refusal(code: int, said: str) -> None:
    """Raises what the command refused, if it did so as it must; absl's own lines may precede."""
    lines = [line for line in said.splitlines() if not re.match(r'[IW]\d{4} ', line)]
    if code == 2 and len(lines) == 1 and lines[0].startswith('mossjax '):
        raise InputError(lines[0])
    if code != 0 or lines:
        raise AssertionError(f'exit code {code}: {said[-2000:]}')


def _convert(folder: Path) -> Any:
    """There and back, by commands; what comes back is read by safetensors' own reader."""
    from safetensors.numpy import load_file

    model, orbax, back = folder / 'model', folder / 'orbax', folder / 'back'
    refusal(*command('convert', model, orbax))
    refusal(*command('convert', orbax, back))
    found = {k: _hash(v) for file in back.glob('*.safetensors') for k, v in load_file(file).items()}
    shutil.rmtree(orbax), shutil.rmtree(back)
    return found


def _convert_right(folder: Path, result: dict) -> bool:
    from safetensors.numpy import load_file

    found = load_file(folder / 'model' / 'model.safetensors')
    return {name: _hash(x) for name, x in found.items()} == result


def _verify(folder: Path) -> int:
    code, said = command('convert', '--verify', folder)
    if code == 1 and 'Traceback' not in said:
        return 1  # faults found, as it should
    refusal(code, said)
    return code


def _inside(name: str, files: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    return put(lambda: {f'{name}/{file}': content for file, content in files().items()})


# --------------------------------------------------------------------------------------- audio


def _wave(path: str) -> Callable[[Path], np.ndarray]:
    return lambda folder: _hash(audio.load(folder / path, 16000))


def _sound(name: str, **options) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import soundfile

        wav = 0.3 * np.sin(np.arange(8000) * 0.05).astype(np.float32)
        soundfile.write(folder / name, wav, 16000, **options)

    return make


AUDIO = (
    Seed('WAV', 'q.wav', 'binary', _sound('q.wav'), _wave('q.wav')),
    Seed('FLAC', 'q.flac', 'binary', _sound('q.flac'), _wave('q.flac')),
    Seed('OGG', 'q.ogg', 'binary', _sound('q.ogg'), _wave('q.ogg')),
    Seed('MP3', 'q.mp3', 'binary', _sound('q.mp3'), _wave('q.mp3')),
)
SEEDS = (
    Seed('config.json', 'config.json', 'json', put(_model), _config, _config_right, weight=6),
    Seed('generation_config.json', 'generation_config.json', 'json',
         copy(NANO / 'lm' / 'generation_config.json'), _settings, weight=5),
    Seed('changes of a start', 'changes.json', 'json',
         _lines('changes.json', CHANGES), _qwen, weight=3),
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
    Seed('manifest', 'm.jsonl', 'jsonl', _lines('m.jsonl', *MANIFEST), _manifest, _manifest_right,
         weight=5),
    Seed('codes', 'c.jsonl', 'jsonl', _lines('c.jsonl', *CODES), _codes, _codes_right, weight=5),
    Seed('labels', 'labels.json', 'json', _lines('labels.json', {'labels': ['a', 'b', 'pau']}),
         lambda f: Inventory.open(f / 'labels.json').labels),
    Seed('world.json', 'world.json', 'json', copy(NANO / 'world.json'),
         lambda f: [dataclasses.asdict(x) for x in _parse(f / 'world.json', 'facts', Fact)]),
    Seed('index.json', 'index.json', 'json', copy(NANO / 'recordings/index.json'),
         lambda f: [dataclasses.asdict(x) for x in _parse(f / 'index.json', 'recordings', Clip)]),
    Seed('tokenizer.json', 'tokenizer.json', 'json',
         copy(NANO / 'lm/tokenizer.json', NANO / 'lm/tokenizer_config.json'), _text),
    Seed('tokenizer_config.json', 'tokenizer_config.json', 'json',
         copy(NANO / 'lm/tokenizer.json', NANO / 'lm/tokenizer_config.json'), _text, weight=1),
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
    *AUDIO,
)  # fmt: skip
