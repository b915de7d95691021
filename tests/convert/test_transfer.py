"""Conversions: nothing is lost, whatever happens in between.

Tensors hold random bit patterns (NaNs and denormals too), every one different; the independent
source is the file they came from.
"""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from mossjax import checkpoint
from mossjax.convert import certificate, kinds, rules, transfer
from mossjax.convert.journal import Journal
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.orbax_tensors import chunks
from mossjax.convert.qwen3 import QwenStart, speech_config
from mossjax.convert.safetensors_io import write
from mossjax.convert.transfer import Options, convert, verify
from mossjax.convert.weight_files import open_tensors
from mossjax.errors import InputError
from tests.conftest import GOLDEN
from tests.convert.conftest import CONFIG, SHAPES, random_tensors
from tests.tiny_lm import start_params


def assert_same_tensors(a, b):
    a, b = open_tensors(a), open_tensors(b)
    assert set(a.shapes) == set(b.shapes)
    for name in a.shapes:
        assert a.dtypes[name] == b.dtypes[name]
        assert a.read(name).tobytes() == b.read(name).tobytes(), name


def test_round_trip_is_byte_equal(tmp_path, source):
    convert(kinds.open_source(source), tmp_path / 'orbax')
    convert(
        kinds.open_source(tmp_path / 'orbax'), tmp_path / 'again', Options(shard_bytes=20_000)
    )
    assert_same_tensors(source, tmp_path / 'again')
    for name in ('config.json', 'tokenizer.json', 'evil.py'):
        assert (tmp_path / 'again' / name).read_bytes() == (source / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {'source', 'orbax', 'again'}


def test_orbax_restores_what_the_rules_say(tmp_path, source):
    """Through Orbax itself: the streamed checkpoint is an ordinary one, with its stacks."""
    convert(kinds.open_source(source), tmp_path / 'orbax')
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, ml_dtypes.bfloat16, sharding=sharding), SHAPES
    )
    params, meta = checkpoint.restore_params(tmp_path / 'orbax', abstract)
    want = rules.to_params(LM_RULES, open_tensors(source).read, SHAPES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(
        np.asarray(a).view(np.uint16), b.view(np.uint16)), params, want)
    assert meta['model']['kind'] == 'moss_speech'


def test_certificate_describes_every_tensor(tmp_path, source):
    paper = convert(kinds.open_source(source), tmp_path / 'orbax')
    tensors = open_tensors(source)
    assert set(paper['tensors']) == set(tensors.shapes)
    assert paper['coverage']['tensors'] == 83 and paper['round_trip']['differing'] == []
    name = 'model.text_block.layers.1.mlp.up_proj.weight'
    values = (tensors.read(name).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    finite = values[np.isfinite(values)]
    entry = paper['tensors'][name]
    assert entry['non_finite'] == values.size - finite.size
    assert (entry['min'], entry['max']) == (finite.min(), finite.max())
    np.testing.assert_allclose(entry['mean'], finite.mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(entry['std'], finite.std(dtype=np.float64), rtol=1e-6)
    assert verify(tmp_path / 'orbax', source) == []


def test_verify_names_the_tensor_that_changed(tmp_path, source):
    convert(kinds.open_source(source), tmp_path / 'orbax')
    victim = tmp_path / 'orbax' / '0' / 'params' / 'audio_branch.mlp.up' / '1.0.0'
    raw = bytearray(victim.read_bytes())
    raw[7] ^= 1
    victim.write_bytes(raw)
    [fault] = verify(tmp_path / 'orbax')
    assert fault.startswith('model.audio_block.layers.1.mlp.up_proj.weight: sha256')


def test_verify_notices_another_source(tmp_path, source):
    convert(kinds.open_source(source), tmp_path / 'orbax')
    shard = source / 'model-00002-of-00010.safetensors'
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    [fault] = verify(tmp_path / 'orbax', source)
    assert shard.name in fault


class Interrupted(Exception):
    pass


@pytest.mark.parametrize('way', ['to_orbax', 'to_hugging_face'])
def test_an_interrupted_conversion_goes_on(tmp_path, source, monkeypatch, way):
    """Dies after 30 tensors; the second run reads only the rest, and the bytes are right."""
    if way == 'to_hugging_face':
        convert(kinds.open_source(source), tmp_path / 'orbax')
        start = tmp_path / 'orbax'
    else:
        start = source
    monkeypatch.setattr(transfer.os, 'cpu_count', lambda: 1)
    read = []
    add = Journal.add

    def dying(self, name, entry):
        add(self, name, entry)
        read.append(name)
        if len(read) == 30:
            raise Interrupted

    monkeypatch.setattr(Journal, 'add', dying)
    with pytest.raises(Interrupted):
        convert(kinds.open_source(start), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    journal = tmp_path / '.out.converting' / 'progress.jsonl'
    before = len(journal.read_text().splitlines()) - 1
    with journal.open('a') as file:
        file.write('{"tensor": "model.em')  # torn by the kill
    monkeypatch.setattr(Journal, 'add', lambda self, name, entry: read.append(name))
    read.clear()
    convert(kinds.open_source(start), tmp_path / 'out')
    assert 30 <= before and len(read) == 83 - before
    assert verify(tmp_path / 'out') == []
    if way == 'to_hugging_face':
        assert_same_tensors(source, tmp_path / 'out')
    assert not (tmp_path / '.out.converting').exists()


def test_what_another_conversion_left_is_not_used(tmp_path, source, rng, monkeypatch):
    left = tmp_path / '.out.converting'
    left.mkdir()
    (left / 'progress.jsonl').write_text('{"source": "elsewhere"}\n{"tensor": "model.text_norm"}\n')
    (left / 'junk').write_text('x')
    convert(kinds.open_source(source), tmp_path / 'out')
    assert verify(tmp_path / 'out') == [] and not (tmp_path / 'out' / 'junk').exists()


def test_tokenizer_keeps_tensors_that_ids_do_not_need(tmp_path):
    directory = tmp_path / 'codec'
    directory.mkdir()
    for name, file in (
        ('config.json', 'small_config.json'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
        ('model.safetensors', 'small_model.safetensors'),
    ):
        shutil.copyfile(GOLDEN / 'tokenizer' / file, directory / name)
    (directory / 'flow').mkdir()
    (directory / 'flow' / 'notes.bin').write_bytes(b'what is no network goes along as it is')
    source = kinds.open_source(directory)
    assert source.kind.name == 'speech_tokenizer' and source.left == ()
    paper = convert(source, tmp_path / 'orbax')
    unused = paper['coverage']['unused']
    assert 'encoder.embed_positions2.weight' in unused
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'again')
    assert_same_tensors(directory, tmp_path / 'again')
    for made in ('orbax', 'again'):
        file = tmp_path / made / 'flow' / 'notes.bin'
        assert file.read_bytes() == b'what is no network goes along as it is'


def test_dtype_on_export(tmp_path, source):
    """bfloat16 -> float32 is exact; the configuration says what is stored."""
    convert(kinds.open_source(source), tmp_path / 'orbax')
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'wide', Options(dtype='float32'))
    narrow, wide = open_tensors(source), open_tensors(tmp_path / 'wide')
    for name in narrow.shapes:
        np.testing.assert_array_equal(wide.read(name), narrow.read(name).astype(np.float32))
    assert json.loads((tmp_path / 'wide' / 'config.json').read_text())['dtype'] == 'float32'


QWEN = {
    'model_type': 'qwen3', 'hidden_size': 32, 'intermediate_size': 56, 'num_hidden_layers': 5,
    'num_attention_heads': 6, 'num_key_value_heads': 2, 'head_dim': 12, 'rms_norm_eps': 0.01,
    'rope_theta': 12345.0, 'vocab_size': 70, 'max_position_embeddings': 96,
    'tie_word_embeddings': False,
}  # fmt: skip
CHANGES = {
    name: getattr(CONFIG, name) for name in (
        'vocab_size', 'audio_vocab_size', 'num_modality_layers', 'modality_pad_token_id',
        'sosp_token_id', 'eosp_token_id', 'audio_pad_token_id', 'eos_token_id',
    )
} | {'num_shared_layers': 3}  # fmt: skip


@pytest.fixture
def qwen(tmp_path, rng):
    directory = tmp_path / 'qwen'
    directory.mkdir()
    layers = {
        'input_layernorm': (32,), 'self_attn.q_proj': (72, 32), 'self_attn.k_proj': (24, 32),
        'self_attn.v_proj': (24, 32), 'self_attn.o_proj': (32, 72), 'self_attn.q_norm': (12,),
        'self_attn.k_norm': (12,), 'post_attention_layernorm': (32,), 'mlp.gate_proj': (56, 32),
        'mlp.up_proj': (56, 32), 'mlp.down_proj': (32, 56),
    }  # fmt: skip
    shapes = {'model.embed_tokens.weight': (70, 32), 'model.norm.weight': (32,)}
    shapes['lm_head.weight'] = (70, 32)
    for i in range(5):
        shapes |= {f'model.layers.{i}.{name}.weight': s for name, s in layers.items()}
    write(directory / 'model.safetensors', random_tensors(shapes, rng))
    (directory / 'config.json').write_text(json.dumps(QWEN))
    return directory


def test_start_from_qwen3(tmp_path, qwen):
    """The parameters of a `QwenStart`; the text side comes back as the Qwen3 it was."""
    paper = convert(kinds.open_source(qwen, CHANGES), tmp_path / 'orbax')
    assert paper['made']['choices']['audio_branch'] == 'copy of text_branch'
    config = speech_config(QWEN, CHANGES)
    want = start_params(QwenStart(QWEN, open_tensors(qwen), config, 0), config)
    got = kinds.open_source(tmp_path / 'orbax')
    have = rules.to_params(LM_RULES, got.tensors.read, SHAPES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(
        a.view(np.uint16), np.asarray(b).view(np.uint16)), have, want)
    back = kinds.text_side(got)
    convert(back, tmp_path / 'text')
    before, after = open_tensors(qwen), open_tensors(tmp_path / 'text')
    assert set(after.shapes) == set(before.shapes)
    for name in before.shapes:
        tensor = before.read(name)
        tensor = tensor[:64] if name in ('model.embed_tokens.weight', 'lm_head.weight') else tensor
        assert after.read(name).tobytes() == np.ascontiguousarray(tensor).tobytes(), name


# ---------------------------------------------------------------------------------- refusals


def test_a_qwen3_that_is_too_small_says_what_to_set(qwen):
    with pytest.raises(InputError, match='modality_pad_token_id is 151667.*--config'):
        kinds.open_source(qwen, {'num_modality_layers': 2})


def test_geometry_cannot_be_changed(qwen):
    with pytest.raises(InputError, match='head_dim cannot be changed'):
        kinds.open_source(qwen, {'head_dim': 16})


@pytest.mark.parametrize('shards', [20_000, None])
def test_missing_and_misshaped_tensors_are_listed_together(tmp_path, rng, shards):
    shapes = rules.expected_tensors(LM_RULES, SHAPES)
    del shapes['model.text_norm.weight']
    shapes['model.audio_norm.weight'] = (31,)
    shapes['lm_head.weight'] = (64, 32)
    write(tmp_path / 'model.safetensors', random_tensors(shapes, rng), shard_bytes=shards)
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG.to_hf()))
    with pytest.raises(InputError) as error:
        kinds.open_source(tmp_path)
    for said in ('missing: model.text_norm', 'wrong shape: model.audio', 'unexpected: lm_head'):
        assert said in str(error.value)


def test_a_directory_that_is_neither(tmp_path):
    (tmp_path / 'pytorch_model.bin').write_text('x')
    with pytest.raises(InputError, match='neither a Hugging Face.*holds pytorch_model.bin'):
        kinds.open_source(tmp_path)
    with pytest.raises(InputError, match='is not a directory'):
        kinds.open_source(tmp_path / 'nowhere')


def test_other_architectures_are_refused_by_name(tmp_path, rng):
    write(tmp_path / 'model.safetensors', random_tensors({'a': (2,)}, rng))
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="model_type is 'llama'"):
        kinds.open_source(tmp_path)


def test_pieces_fit_shards():
    """A piece holds a power of two of rows of the axis that meshes divide, at most 64 pieces."""
    axes = ('layers', 'embed', 'mlp')
    assert chunks((32, 4096, 12288), np.dtype(ml_dtypes.bfloat16), axes) == (1, 128, 12288)
    assert chunks((151680, 4096), np.dtype(ml_dtypes.bfloat16), ('vocab', 'embed')) == (18960, 64)
    assert chunks((4, 4096), np.dtype(np.float32), ('layers', 'norm')) == (1, 4096)


def test_revision_is_found_where_the_client_leaves_it(tmp_path):
    commit = 'cff025bb41d8459d59abac0b5e44aba7f659ec9e'
    snapshot = tmp_path / 'models--a--b' / 'snapshots' / commit
    snapshot.mkdir(parents=True)
    assert certificate.revision_of(snapshot) == commit
    local = tmp_path / 'local' / '.cache' / 'huggingface' / 'download'
    local.mkdir(parents=True)
    (local / 'config.json.metadata').write_text(f'{commit}\netag\n1.0\n')
    assert certificate.revision_of(tmp_path / 'local') == commit
    assert certificate.revision_of(tmp_path) is None
