"""Tokenizer and decoder runs: their text targets, and where their parameters come from."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tokenizers

from mossjax.convert import kinds
from mossjax.convert.codec_flow import save_flow
from mossjax.convert.codec_tokenizer import open_recogniser, open_tokenizer
from mossjax.convert.transfer import convert
from mossjax.data.labels import Transcripts
from mossjax.data.manifest import Recording
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.train import loop, starts, tasks, tokenizer
from mossjax.train.config import check, defaults
from mossjax.train.flow import FlowTask

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TEXTS = ('it is may', 'seven', '')


@pytest.fixture
def config(tmp_path):
    """A tiny run on golden recordings with the text decoder as its objective."""
    words = ['<unk>', '<|endoftext|>', 'it', 'is', 'may', 'seven']
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<unk>')
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / 'tokenizer.json').write_text(tokenizer.to_str())
    lines = []
    for path, text in zip(sorted((GOLDEN / 'judge').glob('*.flac')), TEXTS, strict=False):
        shutil.copy(path, tmp_path / path.name)
        lines.append({'audio': path.name, 'text': text, 'times': [['a', 0.3]]})
    (tmp_path / 'manifest.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    config = defaults()
    config.task, config.steps = 'tokenizer', 2
    config.model.update(
        d=16, heads=2, ffn=16, layers=1, encoder_layers=2, mels=80, codes=8, decoder_heads=2,
        decoder_layers=1, decoder_ffn=16, vocab=6, target_positions=8, start_id=0, pad_id=1,
    )  # fmt: skip
    config.data.update(
        manifest=str(tmp_path / 'manifest.jsonl'), seconds=16.0, buckets=1, tokenizer=str(tmp_path)
    )
    config.loss.update(text=1.0, inputs='plain')
    check(config)
    return config


def test_texts_are_targets_and_a_run_goes_on_in_another_and_in_a_codec(config, tmp_path):
    run = tasks.make(config)
    rows = {tuple(row[row >= 0]) for row in run.task.batch(0)['text']}
    assert rows == {(2, 3, 4, 1), (5, 1), ()}
    assert set(run.task.objectives) == {'text'}
    state = loop.fit(run.task, config, tmp_path / 'run')
    config.init_from = str(tmp_path / 'run')
    again = tasks.make(config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    jax.tree.map(np.testing.assert_array_equal, again.init_from(shapes), state.params)
    for ours, theirs in zip(again.task.init_extra({})['codebook'], state.extra['codebook'],
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(ours, theirs)
    convert(kinds.open_source(tmp_path / 'run'), tmp_path / 'codec')
    read, params = open_tokenizer(tmp_path / 'codec')
    wanted = run.task.tokenizer(state.params, state.extra)
    assert read == run.task.config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.fixture
def codec(tmp_path, request):
    root = tmp_path / 'codec'
    root.mkdir()
    for source, name in (
        (f'{request.param}_config.json', 'config.json'),
        (f'{request.param}_model.safetensors', 'model.safetensors'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
    ):
        shutil.copyfile(GOLDEN / 'tokenizer' / source, root / name)
    content = json.loads((root / 'config.json').read_text())
    preprocessor = json.loads((root / 'preprocessor_config.json').read_text())
    seconds = min(30, content['max_source_positions'] // 50)
    preprocessor |= {'feature_size': content['num_mel_bins'], 'chunk_length': seconds}
    preprocessor.pop('n_samples', None)
    (root / 'preprocessor_config.json').write_text(json.dumps(preprocessor))
    return root, TokenizerConfig.from_hf(content, preprocessor)


@pytest.mark.parametrize('codec', ['small'], indirect=True)
def test_an_encoder_alone_starts_a_run(codec):
    root, config = codec
    chosen = tokenizer.objectives(ctc=1.0, phones=4)
    start, book = starts.tokenizer(str(root), config, chosen)
    _, params = open_tokenizer(root)
    jax.tree.map(np.testing.assert_array_equal, start({})['encoder'], params['encoder'])
    np.testing.assert_array_equal(book.codes, params['codebook'])
    assert start({}).keys() == {'encoder', 'upper', 'heads'} and list(start({})['heads']) == ['ctc']


@pytest.mark.parametrize('codec', ['asr_vq'], indirect=True)
def test_a_whole_training_model_starts_a_run(codec, tmp_path):
    root, config = codec
    start, book = starts.tokenizer(str(root), config, tokenizer.objectives(text=1.0))
    _, params, wanted = open_recogniser(root)
    jax.tree.map(np.testing.assert_array_equal, start({}), params)
    np.testing.assert_array_equal(book.total, wanted.total)
    convert(kinds.open_source(root), tmp_path / 'orbax')  # keeps what ids do not need
    again, kept = starts.tokenizer(
        str(tmp_path / 'orbax'), config, tokenizer.objectives(text=1.0)
    )
    jax.tree.map(np.testing.assert_array_equal, (again({}), kept), (params, wanted))
    other = TokenizerConfig.from_hf(
        json.loads((root / 'config.json').read_text()) | {'quantize_vocab_size': 9},
        json.loads((root / 'preprocessor_config.json').read_text()),
    )
    with pytest.raises(InputError, match='codes is .*config.model says 9'):
        starts.tokenizer(str(root), other, {})


def test_a_decoder_starts_from_a_codec_directory(tmp_path):
    config = FlowConfig(
        vocab_size=8, input_size=16, width=16, heads=2, ff_width=32, blocks=1, up_blocks=1,
        channels=32, head_dim=16, estimator_heads=2, transformers=1, mid_blocks=1,
    )  # fmt: skip
    task = FlowTask(config, batches=None)
    params = jax.jit(task.network.init)(jax.random.key(0))
    save_flow(tmp_path, config, params)
    jax.tree.map(np.testing.assert_array_equal, starts.decoder(str(tmp_path))({}), params)


@pytest.mark.parametrize('start', [
    starts.from_workdir, starts.decoder, lambda path: starts.tokenizer(path, None, {}),
])  # fmt: skip
def test_a_directory_that_is_no_start(tmp_path, start):
    with pytest.raises(InputError, match=tmp_path.name):
        start(str(tmp_path))


def test_texts_that_do_not_fit(config, tmp_path):
    with pytest.raises(InputError, match='has 6 ids and an end token .* knows 5 ids'):
        Transcripts(tmp_path, 5, 8)
    with pytest.raises(InputError, match='x.wav: its text has 3 tokens, the text decoder takes 2'):
        Transcripts(tmp_path, 6, 3).sequence(Recording('x.wav', 'it is may'))
    config.data.tokenizer = ''
    with pytest.raises(InputError, match='config.data.tokenizer'):
        tasks.make(config)
