"""Manifests, codes and what else training and the demo read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mossjax.data.codes import CodesStore
from mossjax.data.folder import read_folder
from mossjax.data.labels import Inventory
from mossjax.data.manifest import read_manifest
from mossjax.infer.assets import Clip, Fact, _parse
from mossjax.models.lm.text import TextTokenizer
from tests.fuzz.seed import NANO, Seed, copy, lines

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
    """Of several lines about one version, the last counts."""
    found = [json.loads(line) for line in (folder / 'c.jsonl').read_bytes().split(b'\n')[:-1]]
    last = {(Path(x['path']).name, x.get('version', 0)): x['codes'] for x in found}
    got = [codes for versions in result.values() for codes, _ in versions]
    return sorted(got) == sorted(last.values())


TABLE = (
    {'file_name': 'a.wav', 'text': 'what is three plus four', 'speaker': 'slt'},
    {'file_name': 'b.wav', 'text': 'seven', 'speaker': 'rms'},
)  # fmt: skip


def _recordings(folder: Path) -> None:
    """Files that are there; nothing opens them to find out what is said in them."""
    for name in ('a.wav', 'b.wav'):
        (folder / name).write_bytes(b'RIFF')


def _jsonl_table(folder: Path) -> None:
    _recordings(folder)
    lines('metadata.jsonl', *TABLE)(folder)


def _csv_table(folder: Path) -> None:
    _recordings(folder)
    rows = [','.join(TABLE[0]), *(','.join(line.values()) for line in TABLE)]
    (folder / 'metadata.csv').write_text('\n'.join(rows) + '\n')


def _table(folder: Path) -> Any:
    found = read_folder(folder)
    entries = [dataclasses.asdict(entry) for entry in found.entries]
    return json.loads(json.dumps(entries).replace(str(folder.resolve()), '')), len(found.rejects)


def _text(folder: Path) -> Any:
    text = TextTokenizer.open(folder)
    return text.size, text.encode_plain('what is three plus four'), text.pad


SEEDS = (
    Seed('manifest', 'm.jsonl', 'jsonl', lines('m.jsonl', *MANIFEST), _manifest, _manifest_right,
         weight=5),
    Seed('codes', 'c.jsonl', 'jsonl', lines('c.jsonl', *CODES), _codes, _codes_right, weight=5),
    Seed('table of a folder, JSONL', 'metadata.jsonl', 'jsonl', _jsonl_table, _table),
    Seed('table of a folder, CSV', 'metadata.csv', 'binary', _csv_table, _table),
    Seed('labels', 'labels.json', 'json', lines('labels.json', {'labels': ['a', 'b', 'pau']}),
         lambda f: Inventory.open(f / 'labels.json').labels),
    Seed('world.json', 'world.json', 'json', copy(NANO / 'world.json'),
         lambda f: [dataclasses.asdict(x) for x in _parse(f / 'world.json', 'facts', Fact)]),
    Seed('index.json', 'index.json', 'json', copy(NANO / 'recordings/index.json'),
         lambda f: [dataclasses.asdict(x) for x in _parse(f / 'index.json', 'recordings', Clip)]),
    Seed('tokenizer.json', 'tokenizer.json', 'json',
         copy(NANO / 'lm/tokenizer.json', NANO / 'lm/tokenizer_config.json'), _text),
    Seed('tokenizer_config.json', 'tokenizer_config.json', 'json',
         copy(NANO / 'lm/tokenizer.json', NANO / 'lm/tokenizer_config.json'), _text, weight=1),
)  # fmt: skip
