"""A codec directory as released, there and back: what torch wrote is what torch reads again."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from mossjax import checkpoint
from mossjax.convert import codec_directory, kinds, sinks, transfer
from mossjax.convert.codec_folder import SETTINGS
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.journal import Journal
from mossjax.convert.transfer import Options, convert, verify
from mossjax.data.job import fingerprint
from mossjax.errors import InputError
from mossjax.infer import voice
from mossjax.infer.codec import StreamingMouth, WholeMouth, open_codec
from mossjax.models.flow.config import FlowConfig
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.train import starts
from mossjax.train.vocoder import players
from tests.cli.test_convert import run
from tests.parity import campp_torch
from tests.parity.released_codec import PARTS, compare, numbers, write
from tests.parity.test_speaker import export
from tests.tiny_codec import SPEAKER

TOKENIZER = TokenizerConfig(
    d=16, heads=2, ffn=32, encoder_layers=2, layers=1, mels=8, positions=100, codes=97, seconds=2,
    decoder_heads=2,
)
# Few layers of each kind: what is told apart are names.
FLOW = FlowConfig(
    vocab_size=97, input_size=8, width=8, heads=2, ff_width=12, blocks=2, up_blocks=1, channels=8,
    head_dim=4, estimator_heads=2, transformers=2, mid_blocks=1,
)
HIFT = HiftConfig(
    channels=8, f0_width=8, rates=(8, 15), kernels=(16, 31), block_kernels=(3,), dilations=(1, 3),
    source_kernels=(7, 11),
)
NEW = 'parametrizations.weight.original'
# Names of a vocoder's tensors in torch before 2.0, and in a file that mixes all three spellings.
OLD = {f'.{NEW}0': '.weight_g', f'.{NEW}1': '.weight_v'}


def spelled(tensors: dict, spelling: str) -> dict[str, torch.Tensor]:
    """The tensors of a vocoder under other names; 'mixed': some old, some folded."""
    found = {}
    for name, x in tensors.items():
        stem = name.split(f'.{NEW}')[0]
        if stem == name or spelling == 'new':
            found[name] = x
        elif spelling == 'mixed' and stem.startswith('f0_predictor'):
            g, v = (tensors[f'{stem}.{NEW}{i}'] for i in (0, 1))
            found[f'{stem}.weight'] = g * v / v.norm(dim=(1, 2), keepdim=True)
        elif spelling == 'old' or stem.startswith('ups'):
            found[stem + OLD[name.removeprefix(stem)]] = x
        else:
            found[name] = x
    return found


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """Everything that the released directory has, small and of random weights."""
    root = tmp_path_factory.mktemp('released') / 'codec'
    write(root, TOKENIZER, FLOW, HIFT, SPEAKER)
    with open(root / SETTINGS, 'a') as file:
        file.write('# as it came\n')
    (root / 'flow' / 'prompts').mkdir()
    (root / 'flow' / 'prompts' / 'ann.wav').write_bytes(b'RIFF')
    (root / 'README.md').write_text('of the codec')
    voice.save(root / VOICE, voice.Voice(np.int32([1]), np.ones((4, 80), 'f'), np.ones(192, 'f')))
    return root


@pytest.fixture(scope='module')
def orbax(released):
    """The same in the other form."""
    convert(kinds.open_source(released), released.parent / 'orbax')
    return released.parent / 'orbax'


def assert_same_codec(found, expected):
    """To the last bit of every tensor, and of every other file."""
    assert not any(compare(found, expected).values())
    kept = ['config.json', 'preprocessor_config.json', 'README.md', VOICE, SETTINGS,
            'flow/prompts/ann.wav']  # fmt: skip
    for name in kept:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    names = {p.relative_to(found).as_posix() for p in found.rglob('*') if p.is_file()}
    weights = {'model.safetensors', *(f'flow/{name}' for name in PARTS)}
    assert names == {*kept, *weights, 'certificate.json'}


def test_there_and_back(released, orbax, tmp_path, capsys):
    assert run('--verify', orbax, released) == 0
    assert run(orbax, tmp_path / 'back') == 0
    said = capsys.readouterr().out
    assert 'codec (speech tokenizer, campplus, flow, flow-chunk-25, flow-chunk-5, hift)' in said
    assert 'left behind' not in said
    assert_same_codec(tmp_path / 'back', released)
    paper = json.loads((tmp_path / 'back' / 'certificate.json').read_text())
    for part in PARTS[:-1]:
        front = f'flow/{part.removesuffix(".pt")}/'
        named = {n.removeprefix(front) for n in paper['tensors'] if n.startswith(front)}
        assert named == set(numbers(released / 'flow' / part))


def test_both_forms_open_as_the_same_networks(released, orbax):
    for opened, kwargs in (
        (codec_directory.open_tokenizer, {}), (codec_directory.open_flow, {}),
        (codec_directory.open_flow, {'stem': 'flow-chunk-5'}), (codec_directory.open_hift, {}),
        (codec_directory.open_campp, {}),
    ):  # fmt: skip
        (config, params), (wanted_config, wanted) = (
            opened(root, **kwargs) for root in (orbax, released)
        )
        assert config == wanted_config
        jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert codec_directory.open_config(orbax) == codec_directory.open_config(released)
    for root in (released, orbax):
        assert codec_directory.has(root, 'flow-chunk-25') and codec_directory.has(root, 'campplus')
        assert codec_directory.has_tokenizer(root) and codec_directory.has_decoder(root)
        assert not codec_directory.has(root, 'flow-chunk-10')
    # A voice made with one of them is a voice of the other.
    prints = codec_directory.prints(orbax)
    assert prints == codec_directory.prints(released) and set(prints) == {'codebook', 'speaker'}
    assert voice.load(orbax / VOICE, orbax).codes == [1]
    # Unequal weights are told apart by the files.
    assert codec_directory.weights(orbax, ['flow']) != codec_directory.weights(released, ['flow'])


def test_runs_start_alike_from_both_forms(released, orbax):
    """And both are taken for the codec that they are where recordings become rows."""
    fresh = SimpleNamespace(init=lambda key: {'directions': np.ones(3)})
    for start in (
        lambda root: starts.tokenizer(root, TOKENIZER, {})[1]._asdict(),
        lambda root: starts.decoder(root)({}),
        lambda root: starts.vocoder(root, players(HIFT, None))({}),
        lambda root: starts.speaker(root, fresh)({}),
        lambda root: codec_directory.open_tokenizer_config(root).codes,
    ):
        jax.tree.map(np.testing.assert_array_equal, start(str(orbax)), start(str(released)))
    one, other = (fingerprint(root) for root in (released, orbax))
    assert one != other and fingerprint(orbax) == other


def test_a_codec_that_streams_speaks_with_what_learned_to(released, orbax, tmp_path):
    """Without a vocoder that streams, there is no use for it."""
    shutil.copytree(released, tmp_path / 'mute', ignore=shutil.ignore_patterns('hift.*'))
    for root, streams, stem in (
        (released, True, 'flow-chunk-5'), (orbax, True, 'flow-chunk-5'),
        (released, False, 'flow'), (tmp_path / 'mute', True, 'flow'),
    ):  # fmt: skip
        config, wanted = codec_directory.open_flow(root, stem)
        opened = open_codec(root, config.vocab_size, hears=False, streams=streams)
        assert opened.ears is None
        jax.tree.map(np.testing.assert_array_equal, opened.decoder.params, wanted)
        assert isinstance(opened.mouth(), WholeMouth if root.name == 'mute' else StreamingMouth)


def test_an_orbax_form_without_what_is_asked_for(released, tmp_path):
    (tmp_path / 'codec' / 'flow').mkdir(parents=True)
    for name in (SETTINGS, 'flow/hift.pt'):
        shutil.copy(released / name, tmp_path / 'codec' / name)
    convert(kinds.open_source(tmp_path / 'codec'), tmp_path / 'orbax')
    assert codec_directory.open_hift(tmp_path / 'orbax')[0] == HIFT
    assert not codec_directory.has_decoder(tmp_path / 'orbax')
    assert not codec_directory.has_tokenizer(tmp_path / 'orbax')
    for opened, what in (
        (codec_directory.open_flow, 'flow/flow'), (codec_directory.open_tokenizer, 'tokenizer'),
        (codec_directory.open_config, 'flow decoder'),
        (codec_directory.open_tokenizer_config, 'tokenizer'),
        (lambda root: starts.tokenizer(str(root), TOKENIZER, {}), 'tokenizer'),
    ):
        with pytest.raises(InputError, match=f'holds no .*{what}.*convert the whole codec'):
            opened(tmp_path / 'orbax')


@pytest.mark.parametrize('spelling, folding', [('old', False), ('mixed', True)])
def test_other_spellings(spelling, folding, released, tmp_path):
    """The vocoder and the speaker encoder alone, as older and newer tools write them."""
    codec = tmp_path / 'codec'
    (codec / 'flow').mkdir(parents=True)
    shutil.copy(released / SETTINGS, codec / SETTINGS)
    tensors = torch.load(released / 'flow' / 'hift.pt', weights_only=True)
    torch.save(spelled(tensors, spelling), codec / 'flow' / 'hift.pt')
    kept = {} if folding else {
        'do_constant_folding': False, 'training': torch.onnx.TrainingMode.PRESERVE
    }  # fmt: skip
    graph, network = codec / 'flow' / 'campplus.onnx', campp_torch.random(SPEAKER)
    export(network, torch.randn(1, 230, 80), graph, **kept)
    paper = convert(kinds.open_source(codec), tmp_path / 'orbax')
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    for name in ('flow/hift.pt', 'flow/campplus.onnx'):
        assert numbers(tmp_path / 'back' / name) == numbers(codec / name)
    speaker = {n.removeprefix('flow/campplus/') for n in paper['tensors'] if '/campplus/' in n}
    plain = {n for n in network.state_dict() if not n.endswith('num_batches_tracked')}
    # Norms that are folded have gone into a shift of the convolution before them.
    assert 40 < len(speaker) < len(plain) if folding else speaker == plain


def test_the_orbax_form_is_one_tree(released, orbax):
    paper = json.loads((orbax / 'certificate.json').read_text())
    assert set(paper['source']['files']) == {
        'config.json', 'preprocessor_config.json', 'model.safetensors', SETTINGS,
        *(f'flow/{name}' for name in PARTS),
    }  # fmt: skip
    tree = checkpoint.read_shapes(orbax, 0)
    assert set(tree) == {'encoder', 'codebook', 'flow'}
    assert set(tree['flow']) == {'flow', 'flow-chunk-5', 'flow-chunk-25', 'hift', 'campplus'}
    table = checkpoint.open_array(orbax, 'flow/flow-chunk-5/embed/table', 0)
    want = torch.load(released / 'flow' / 'flow-chunk-5.pt', weights_only=True)
    np.testing.assert_array_equal(
        table.read().result(), want['input_embedding.weight'].numpy()
    )


ENOUGH = 300  # tensors of 600, so that some of each kind are in place


@pytest.mark.parametrize('way', ['there', 'back', 'while files are finished'])
def test_an_interrupted_conversion_goes_on(way, released, orbax, tmp_path, monkeypatch):
    start = released if way == 'there' else orbax

    class Interrupted(Exception):
        pass

    class Dying:
        """Works so often, and then no more."""

        def __init__(self, function, count):
            self.left, self.function = count, function

        def __call__(self, *args):
            self.left -= 1
            if self.left < 0:
                raise Interrupted
            return self.function(*args)

    where = (sinks.Rewritten, 'finish', 2) if way == 'while files are finished' else (
        Journal, 'add', ENOUGH
    )
    dying = Dying(getattr(*where[:2]), where[2])
    with monkeypatch.context() as patch:
        patch.setattr(transfer.os, 'cpu_count', lambda: 1)
        patch.setattr(*where[:2], lambda *args: dying(*args))
        with pytest.raises(Interrupted):
            convert(kinds.open_source(start), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    read, source = [], kinds.open_source(start)
    names, real = list(source.tensors.shapes), type(source.tensors).read
    monkeypatch.setattr(
        type(source.tensors), 'read', lambda self, name: read.append(name) or real(self, name)
    )
    convert(source, tmp_path / 'out')
    kept = len(names) if way == 'while files are finished' else ENOUGH
    assert len(set(read) & set(names)) <= len(names) - kept + 4
    monkeypatch.undo()
    assert verify(tmp_path / 'out') == []
    if way != 'there':
        assert_same_codec(tmp_path / 'out', released)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_in_half_precision_a_graph_keeps_its_own(released, orbax, tmp_path):
    convert(kinds.open_source(orbax), tmp_path / 'back', Options(dtype='bfloat16'))
    want = torch.load(released / 'flow' / 'flow.pt', weights_only=True)['encoder_proj.weight']
    found = torch.load(tmp_path / 'back' / 'flow' / 'flow.pt', weights_only=True)
    torch.testing.assert_close(found['encoder_proj.weight'], want.bfloat16(), rtol=0, atol=0)
    graph = tmp_path / 'back' / 'flow' / 'campplus.onnx'
    assert numbers(graph) == numbers(released / 'flow' / 'campplus.onnx')


def test_another_graph_is_refused_before_the_work(orbax, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(orbax, other)
    graph = other / 'flow' / 'campplus.onnx'
    wider = campp_torch.random(dataclasses.replace(SPEAKER, growth=8))
    for change, said in (
        (graph.unlink, 'no such file'),
        (lambda: export(wider, torch.randn(1, 230, 80), graph), 'does not have the tensors of'),
    ):
        change()
        with pytest.raises(InputError, match=said):
            convert(kinds.open_source(other), tmp_path / 'out')
        assert [p.name for p in tmp_path.iterdir()] == ['other']
