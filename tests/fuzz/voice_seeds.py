"""What a decoder speaks, and who: codes by the line, and files of voices."""

import json
from pathlib import Path

import numpy as np

from mossjax.errors import InputError
from mossjax.infer import vocode, voice
from mossjax.models.flow.config import FlowConfig
from tests.fuzz.seed import Seed, lines, sha256

CONFIG = FlowConfig(vocab_size=100)
CODES = (
    {'path': 'in/ann.wav', 'codes': [1, 2, 99], 'seconds': 0.24},
    {'path': 'ann.flac', 'codes': [7] * 12},
    {'codes': [0]},
)


def _codes(folder: Path) -> dict:
    try:
        found = vocode.read_lines(folder / 'c.jsonl', CONFIG)
    except InputError as error:  # of several lines it lists them, one below the other
        raise InputError(str(error).replace('\n', ' ')) from None
    assert len({line.name.casefold() for line in found}) == len(found)
    assert all(Path(line.name).name == line.name for line in found)
    return {str(line.number): line.codes.tolist() for line in found}


def _codes_right(folder: Path, result: dict) -> bool:
    given = enumerate((folder / 'c.jsonl').read_bytes().split(b'\n'), 1)
    return result == {str(i): json.loads(text)['codes'] for i, text in given if text.strip()}


def _write_voice(folder: Path) -> None:
    rng = np.random.default_rng(0)
    made = voice.Voice(
        np.arange(3, dtype=np.int32), rng.normal(size=(12, 80)).astype('f4'),
        rng.normal(size=192).astype('f4'), {'codebook': bytes(range(32))},
    )  # fmt: skip
    voice.save(folder / 'v.safetensors', made)


def _voice(folder: Path) -> dict:
    found = voice.check(voice.load(folder / 'v.safetensors', folder), CONFIG)
    parts = {name: getattr(found, name) for name in ('codes', 'mel', 'xvector')}
    return {name: (list(x.shape), sha256(x)) for name, x in parts.items()}


def _voice_right(folder: Path, result: dict) -> bool:
    from safetensors.numpy import load_file

    found = load_file(folder / 'v.safetensors')
    return result == {name: (list(found[name].shape), sha256(found[name])) for name in result}


SEEDS = (
    Seed('codes to speak', 'c.jsonl', 'jsonl', lines('c.jsonl', *CODES), _codes, _codes_right),
    Seed('voice', 'v.safetensors', 'safetensors', _write_voice, _voice, _voice_right),
)
