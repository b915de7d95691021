"""What a config says reaches the run: data, network, loss, and where parameters come from."""

import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from mossjax.convert.directories import save_lm
from mossjax.data import speech
from mossjax.data.builder import open_rows, write_rows
from mossjax.data.clips import clips_in_memory
from mossjax.data.codes import CodesStore
from mossjax.data.labels import Inventory
from mossjax.data.manifest import read_recordings
from mossjax.data.pipeline import RowBatches
from mossjax.data.rows import IGNORE, Example
from mossjax.errors import InputError
from mossjax.models.flow.loss import mu_loss
from mossjax.models.flow.mel import log_mel
from mossjax.train import loop, tasks
from mossjax.train.config import check, defaults
from tests.tiny_lm import tiny_config, tiny_params

SPOKEN = Path(__file__).parents[1] / 'golden' / 'judge'


@pytest.fixture
def lm(tmp_path, rng):
    """A config on two tiny row data sets and a saved model."""
    model = tiny_config()
    save_lm(tmp_path / 'model', model, tiny_params(model))
    for name in ('a', 'b'):
        tokens = [rng.integers(0, 8, (12, 2)) for _ in range(8)]
        labels = [np.vstack([t[1:], np.full((1, 2), IGNORE)]) for t in tokens]
        examples = [Example(t, x) for t, x in zip(tokens, labels, strict=True)]
        write_rows(str(tmp_path / name), examples, 24, config={'source': name})
    config = defaults()
    config.model.config = str(tmp_path / 'model')
    config.data.rows = {name: str(tmp_path / name) for name in ('a', 'b')}
    config.data.weights = {'a': 0.25, 'b': 0.75}
    config.data.batch_size = 8
    config.steps = 2
    check(config)
    return config


def test_language_model_batches_are_those_of_the_data_sets(lm):
    lm.seed = 5
    sources = {name: open_rows(path) for name, path in lm.data.rows.items()}
    by_hand = RowBatches(sources, 8, 5, weights={'a': 0.25, 'b': 0.75})
    task, _, start = tasks.make(lm)
    assert start is None
    for key, value in by_hand.batch(3).items():
        np.testing.assert_array_equal(task.batch(3)[key], value)


def test_channel_weights_reach_the_loss(lm, rng):
    params = None
    losses = []
    lm.loss.mean = 'channel'
    for text, audio in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        lm.loss.text_weight, lm.loss.audio_weight = text, audio
        task = tasks.make(lm).task
        params = tiny_params(task.config) if params is None else params
        losses.append(task.loss(params, {}, task.batch(0), jax.random.key(0))[0])
    np.testing.assert_allclose(losses[2], 2 * losses[0] + 3 * losses[1], rtol=1e-6)


def test_a_run_goes_on_from_a_model_and_from_another_run(lm, tmp_path):
    lm.init_from, lm.optim.peak_lr = lm.model.config, 0.0
    lm.optim.weight_decay = 0.0
    task, _, start = tasks.make(lm)
    first = loop.fit(task, lm, tmp_path / 'first', init_from=start)
    want = tiny_params(task.config)
    jax.tree.map(np.testing.assert_array_equal, first.params, want)
    lm.init_from = str(tmp_path / 'first')
    start = tasks.make(lm).init_from
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first.params
    )
    jax.tree.map(np.testing.assert_array_equal, start(like), want)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c.model.update(attention='fast'), 'model.attention.*reference, flash, splash'),
        (lambda c: c.data.update(batchsize=4), 'batchsize.*did you mean batch_size'),
        (lambda c: c.update(task='lmm'), "config.task is 'lmm'; choose one of lm, tokenizer, flow"),
        (lambda c: c.data.rows.update(a='nowhere'), 'nowhere: no complete packed data set'),
        (lambda c: c.update(init_from='nowhere'), 'nowhere'),
        (lambda c: c.update(init_from='hf://org/model'), 'config.init_from hf://org/model: hf:// '),
        (lambda c: c.data.rows.update(a='s3://b/rows'), 'config.data.rows.a s3://b/rows: s3:// is'),
        (lambda c: c.model.update(config='gs://B'), 'config.model.config gs://B: a bucket is nam'),
    ],
)
def test_a_wrong_choice_is_named(lm, change, message):
    lm.data.unlock(), lm.model.unlock()
    change(lm)
    with pytest.raises(InputError, match=message):
        tasks.make(lm)


@pytest.fixture
def recordings(tmp_path):
    """A manifest of the golden clips, phones made up, with codes."""
    lines, codes = [], []
    for i, path in enumerate(sorted(SPOKEN.glob('*.flac'))[:4]):
        shutil.copy(path, tmp_path / path.name)
        speaker = 'one' if i % 2 else 'two'
        lines.append({'audio': path.name, 'text': 'x', 'speaker': speaker, 'kind': 'k',
                      'times': [['a', 0.3], ['b', 0.5]]})  # fmt: skip
        codes.append({'path': path.name, 'codes': list(range(10)), 'seconds': 0.8})
    for name, content in (('manifest.jsonl', lines), ('codes.jsonl', codes)):
        (tmp_path / name).write_text(''.join(json.dumps(x) + '\n' for x in content))
    return tmp_path


def test_tokenizer_batches_and_objectives(recordings):
    config = defaults()
    config.task = 'tokenizer'
    config.model.update(
        d=16, heads=2, ffn=16, layers=1, encoder_layers=1, mels=80, codes=8, decoder_heads=2
    )
    config.data.update(manifest=str(recordings / 'manifest.jsonl'), seconds=8.0, room=0.07,
                       rows_multiple=3, inventory=str(recordings / 'labels.json'))  # fmt: skip
    config.loss.update(frames=0.5, ctc=0.25, commitment='relative', inputs='plain')
    found = read_recordings(config.data.manifest)
    by_hand = speech.TokenizerBatches(
        clips_in_memory(found, 16_000), Inventory.of(found), room=0.07, seconds=8.0, seed=0,
        buckets=4, rows_multiple=3, weight=speech.by_key('kind', {}),
    )  # fmt: skip
    task = tasks.make(config).task
    for key, value in by_hand.batch(1).items():
        np.testing.assert_array_equal(task.batch(1)[key], value)
    assert {k: o.weight for k, o in task.objectives.items()} == {'frames': 0.5, 'ctc': 0.25}
    assert Inventory.open(config.data.inventory) == Inventory.of(found)


@pytest.mark.parametrize('name, without, said', [
    ('frames', ['times'], 'config.loss.frames = 1 would train nothing: no .* "times"'),
    ('ctc', ['times', 'text'], 'config.loss.ctc = 1 would train nothing'),
    ('text', ['text'], 'config.loss.text = 1 would train nothing'),
])  # fmt: skip
def test_objectives_without_targets_are_refused(recordings, name, without, said):
    manifest = recordings / 'manifest.jsonl'
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    config = defaults()
    config.task = 'tokenizer'
    config.model.update(
        d=16, heads=2, ffn=16, layers=1, encoder_layers=1, mels=80, codes=8, decoder_heads=2,
        decoder_layers=1, decoder_ffn=16, vocab=8, target_positions=8,
    )  # fmt: skip
    config.data.update(manifest=str(manifest), seconds=8.0, tokenizer=str(tokenizer(recordings)))
    config.loss.update({name: 1.0, 'commitment': 'relative', 'inputs': 'plain'})
    for line in lines[1:]:  # one that has targets is enough
        for key in without:
            del line[key]
    manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    tasks.make(config)
    for key in without:
        del lines[0][key]
    manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with pytest.raises(InputError, match=said):
        tasks.make(config)


def tokenizer(folder):
    """A directory with a tokenizer.json of two ids, the end token among them."""
    model = tokenizers.models.WordLevel({'x': 0, '<|endoftext|>': 1}, unk_token='x')
    tokenizers.Tokenizer(model).save(str(folder / 'tokenizer.json'))
    return folder


def test_decoder_batches_of_one_speaker_and_the_scale_of_its_mel(recordings):
    config = defaults()
    config.task = 'flow'
    config.model.update(
        vocab_size=16, input_size=8, width=8, heads=2, ff_width=8, blocks=1, up_blocks=1,
        channels=8, head_dim=4, estimator_heads=2, transformers=1, mid_blocks=1, dropout=0.0,
    )  # fmt: skip
    config.data.update(manifest=str(recordings / 'manifest.jsonl'), seconds=4.0,
                       codes=str(recordings / 'codes.jsonl'))  # fmt: skip
    config.data.only = {'speaker': ['one']}
    config.loss.update(objective='mu', scaled=True)
    one = [r for r in read_recordings(config.data.manifest) if r.speaker == 'one']
    by_hand = speech.DecoderBatches(
        clips_in_memory(one, 24_000), CodesStore.open(config.data.codes), seconds=4.0, seed=0,
        rows_multiple=8, weight=speech.by_key('kind', {}),
    )  # fmt: skip
    task = tasks.make(config).task
    batch = by_hand.batch(0)
    np.testing.assert_array_equal(task.batch(0)['audio'], batch['audio'])
    assert task.objective is mu_loss
    frames = [
        np.asarray(log_mel(jnp.asarray(wav)[None]))[0, : 4 * n]  # four frames a code
        for step in range(4)
        for wav, n in zip(*(by_hand.batch(step)[k] for k in ('audio', 'code_lengths')), strict=True)
    ]
    np.testing.assert_allclose(task.statistics[0], np.concatenate(frames).mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(task.statistics[1], np.concatenate(frames).std(axis=0), atol=1e-4)
