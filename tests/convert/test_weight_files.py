"""Layouts and names in which weights come: read, or said what is there and what to do."""

import json
import logging
import os

import numpy as np
import pytest
from safetensors.numpy import save_file
import torch

from mossjax.convert import kinds, names
from mossjax.convert.directories import save_lm
from mossjax.convert.safetensors_io import write
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from tests.tiny_lm import tiny_config, tiny_params

TENSORS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate('abcd')}
A, B = {n: TENSORS[n] for n in 'ab'}, {n: TENSORS[n] for n in 'cd'}
SHARDS = {'model-00001-of-00002.safetensors': A, 'model-00002-of-00002.safetensors': B}


def put(folder, files):
    """Files by name: tensors (in the format of the suffix), JSON or bytes."""
    for name, content in files.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith('.json'):
            path.write_text(json.dumps(content))
        elif name.endswith('.safetensors'):
            save_file(content, path)
        else:
            torch.save({n: torch.from_numpy(x) for n, x in content.items()}, path)


def index(files):
    return {'weight_map': {name: file for file, part in files.items() for name in part}}


def sharded(pattern):
    return {pattern.format(1): A, pattern.format(2): B}


FP16 = sharded('model.fp16-0000{}-of-00002.safetensors')
BIN = sharded('pytorch_model-0000{}-of-00002.bin')
READ = {
    'one file': {'model.safetensors': TENSORS},
    'shards': {**SHARDS, 'model.safetensors.index.json': index(SHARDS)},
    'shards without index': SHARDS,
    'an index of one file': {'model.safetensors': TENSORS, 'model.safetensors.index.json': index(
        {'model.safetensors': TENSORS})},
    'a variant': {'model.fp16.safetensors': TENSORS},
    'shards of a variant': {**FP16, 'model.safetensors.index.fp16.json': index(FP16)},
    'a variant beside the plain one': {'model.safetensors': TENSORS, 'model.fp16.safetensors': A},
    'torch': {'pytorch_model.bin': TENSORS},
    'torch in shards': {**BIN, 'pytorch_model.bin.index.json': index(BIN)},
    'torch in shards without index': BIN,
    'torch beside safetensors': {'model.safetensors': TENSORS, 'pytorch_model.bin': b'never read'},
    'another name': {'pytorch_model.safetensors': TENSORS},
    'others beside': {'model.safetensors': TENSORS, 'optimizer.bin': b'',
                      'consolidated.safetensors': A, 'model-of-mine.safetensors': A},
}  # fmt: skip


@pytest.mark.parametrize('files', READ.values(), ids=READ.keys())
def test_every_layout_gives_the_same_tensors(files, tmp_path):
    put(tmp_path, files)
    found = open_tensors(tmp_path)
    assert set(found.shapes) == set(TENSORS)
    for name, x in TENSORS.items():
        np.testing.assert_array_equal(found.read(name), x)
        assert found.shapes[name] == x.shape and found.dtypes[name] == x.dtype
    assert all(path.parent == tmp_path for path in found.files)


REFUSED = {
    'nothing': ({}, 'holds no model.safetensors; download the weights'),
    'other names': ({'weights.safetensors': A, 'x.pt': B},
                    'no model.safetensors, but weights.safetensors, x.pt; rename'),
    'two layouts': ({'model.safetensors': A, **SHARDS}, 'both model.safetensors and model-00'),
    'an index of others': ({'model.safetensors': A, 'model.safetensors.index.json': index(SHARDS)},
                           'names other files. Remove the stale one'),
    'a missing shard': ({'model-00002-of-00003.safetensors': A},
                        'shard 1, 3 of 3 is not there, nor an index'),
    'a missing shard of an index': ({'model.safetensors.index.json': index(SHARDS),
                                     'model-00001-of-00002.safetensors': A},
                                    'shard model-00002-of-00002.safetensors is not there'),
    'a shard that the index leaves out': (
        {**SHARDS, 'model.safetensors.index.json': index({'model-00001-of-00002.safetensors': A})},
        'does not name model-00002-of-00002.safetensors'),
    'a tensor in two shards': ({'model-00001-of-00002.safetensors': A,
                                'model-00002-of-00002.safetensors': A}, "'a' is in another shard"),
    'two variants': ({'model.fp16.safetensors': A, 'model.bf16.safetensors': A},
                     'model.bf16.safetensors, model.fp16.safetensors: several variants. Rename'),
    'a pointer': ({'model.safetensors': b'version https://git-lfs.github.com/spec/v1\n'},
                  'is a Git LFS pointer.*git lfs pull'),
    'no archive': ({'pytorch_model.bin': b'PK\x03\x04'}, 'pytorch_model.bin: no zip archive'),
    'an index of text': ({'model.safetensors.index.json': b'[]'}, 'not a JSON object'),
    'an index of nothing': ({'model.safetensors.index.json': {'weight_map': {}}}, 'no "weight_m'),
    'an empty file': ({'model.safetensors': b''}, 'not a whole safetensors file'),
}  # fmt: skip


@pytest.mark.parametrize('files, said', REFUSED.values(), ids=REFUSED.keys())
def test_a_layout_that_is_none_is_named(files, said, tmp_path):
    put(tmp_path, files)
    with pytest.raises(InputError, match=said) as refused:
        open_tensors(tmp_path)
    assert '\n' not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_links_and_folders_in_place_of_files(tmp_path):
    os.symlink('../blobs/gone', tmp_path / 'model.safetensors')
    with pytest.raises(InputError, match='model.safetensors is a link to a file that is not there'):
        open_tensors(tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    (tmp_path / 'model.safetensors').mkdir()
    with pytest.raises(InputError, match='model.safetensors is a folder where a file is due'):
        open_tensors(tmp_path)


# ---------------------------------------------------------------------------------------- names

CONFIG = tiny_config()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp('model') / 'plain'
    save_lm(root, CONFIG, tiny_params(CONFIG))
    return root


def renamed(folder, model, change):
    """The model with other tensor names."""
    folder.mkdir()
    (folder / 'config.json').write_bytes((model / 'config.json').read_bytes())
    tensors = open_tensors(model)
    write(folder / 'model.safetensors', {change(n): tensors.read(n) for n in tensors.shapes})
    return folder


WRAPPED = {
    'data parallel': lambda n: f'module.{n}',
    'compiled': lambda n: f'_orig_mod.{n}',
    'compiled, data parallel': lambda n: f'_orig_mod.module.{n}',
    'data parallel, compiled': lambda n: f'module._orig_mod.{n}',
    'FSDP': lambda n: n.replace('.layers.', '._fsdp_wrapped_module.layers.').replace(
        '.self_attn.', '._fsdp_wrapped_module.self_attn.'),
    'FSDP, remat': lambda n: '_fsdp_wrapped_module.' + n.replace(
        '.mlp.', '._checkpoint_wrapped_module.mlp.'),
    'layers compiled one by one': lambda n: n.replace('.mlp.', '._orig_mod.mlp.'),
    'doubled': lambda n: f'model.{n}',
    'part of another': lambda n: f'system.student.{n}',
    'compiled part of another': lambda n: f'system._orig_mod.student.{n}',
    'saved from an adapted model': lambda n: f'base_model.model.{n}',
    'deepspeed': lambda n: f'_forward_module.{n}',
}  # fmt: skip


@pytest.mark.parametrize('change', WRAPPED.values(), ids=WRAPPED.keys())
def test_wrappers_in_names_are_taken_off_and_said_once(change, model, tmp_path, caplog):
    logging.getLogger('absl').propagate = True
    with caplog.at_level(logging.INFO, logger='absl'):
        found = kinds.open_source(renamed(tmp_path / 'x', model, change)).tensors
    assert sum('in their names' in record.getMessage() for record in caplog.records) == 1
    want = open_tensors(model)
    assert set(found.shapes) == set(want.shapes)
    for name in ('model.text_block.layers.1.mlp.up_proj.weight', 'audio_lm_head.weight'):
        np.testing.assert_array_equal(found.read(name), want.read(name))


def test_names_that_fit_nothing_are_shown(model, tmp_path):
    folder = renamed(tmp_path / 'x', model, lambda n: n.replace('shared_block', 'trunk'))
    with pytest.raises(InputError) as refused:
        kinds.open_source(folder)
    said = str(refused.value)
    assert 'missing: model.shared_block.layers.0.input_layernorm.weight (32,)' in said
    assert 'unexpected: model.trunk.layers.0.' in said
    assert '\n' not in said and len(said) < 2000


def test_adapters_in_place_of_weights_are_recognised(model, tmp_path):
    folder = renamed(tmp_path / 'x', model, lambda n: n.replace('q_proj.', 'q_proj.base_layer.'))
    name = 'base_model.model.model.shared_block.layers.0.self_attn.q_proj.lora_A.weight'
    write(folder / 'model.safetensors', {name: np.ones((2, 2))})
    with pytest.raises(InputError, match='These are LoRA adapters.*--adapter.*merge_and_unload'):
        kinds.open_source(folder)


@pytest.mark.parametrize('dtype', [np.int8, np.int32, np.bool_])
def test_weights_that_are_no_floats_are_refused(dtype, model, tmp_path):
    folder = renamed(tmp_path / 'x', model, lambda n: n)
    tensors = open_tensors(model)
    name = 'model.text_block.layers.0.mlp.up_proj.weight'
    write(folder / 'model.safetensors', {
        n: tensors.read(n).astype(dtype) if n == name else tensors.read(n) for n in tensors.shapes
    })  # fmt: skip
    with pytest.raises(InputError, match=f'{name} .* no floating numbers. Quantised'):
        kinds.open_source(folder)


def test_a_network_that_is_there_twice_is_ambiguous(model):
    tensors = open_tensors(model)
    both = {f'{who}.{n}': tensors for who in ('student', 'teacher') for n in tensors.shapes}

    class Both:
        shapes = {name: (1,) for name in both}
        dtypes = {name: np.dtype('f4') for name in both}

    with pytest.raises(InputError, match='is there 2 times, as student., teacher.'):
        names.fitted(Both(), tensors.shapes, 'here')


def test_names_that_would_become_one_stay_two():
    class Two:
        shapes = {'a': (1,), 'module.a': (1,)}
        dtypes = {'a': np.dtype('f4'), 'module.a': np.dtype('f4')}

    two = Two()
    assert names.unwrapped(two) is two and names.fitted(two, ['b'], 'here') is two


# ----------------------------------------------------------------------------- sizes that lie


@pytest.mark.parametrize(
    'key, value, more',
    [
        ('hidden_size', 2**31 - 1, {}),
        ('intermediate_size', 2**31 - 1, {'hidden_size': 2**31 - 1}),
        ('vocab_size', 2**31 - 1, {}),
        ('num_shared_layers', 4000, {'num_hidden_layers': 4002}),
        ('head_dim', 2**31 - 2, {'num_attention_heads': 2**31 - 1, 'num_key_value_heads': 1}),
    ],
)
def test_sizes_that_no_memory_holds_are_seen_in_the_headers(key, value, more, model, tmp_path):
    folder = renamed(tmp_path / 'x', model, lambda n: n)
    content = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**content, key: value, **more}))
    with pytest.raises(InputError, match=f'{key} is {value} in config.json, [0-9]+ in the weights'):
        kinds.open_source(folder)
