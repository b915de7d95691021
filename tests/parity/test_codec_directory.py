"""A codec directory as released, there and back: what torch wrote is what torch reads again."""

import json
import shutil

import numpy as np
import pytest
import torch

from mossjax import checkpoint
from mossjax.convert import kinds, sinks, transfer
from mossjax.convert.codec_folder import SETTINGS
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.journal import Journal
from mossjax.convert.transfer import Options, convert, verify
from mossjax.infer import voice
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.models.tokenizer.config import TokenizerConfig
from tests import tiny_codec
from tests.cli.test_convert import run
from tests.parity import campp_torch
from tests.parity.released_codec import PARTS, compare, numbers, write
from tests.parity.test_speaker import export

TOKENIZER = TokenizerConfig(
    d=16, heads=2, ffn=32, encoder_layers=2, layers=1, mels=8, positions=100, codes=97, seconds=2
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
    write(root, TOKENIZER, tiny_codec.FLOW, tiny_codec.HIFT, tiny_codec.SPEAKER)
    with open(root / SETTINGS, 'a') as file:
        file.write('# as it came\n')
    (root / 'flow' / 'prompts').mkdir()
    (root / 'flow' / 'prompts' / 'ann.wav').write_bytes(b'RIFF')
    (root / 'README.md').write_text('of the codec')
    voice.save(root / VOICE, voice.Voice(np.int32([1]), np.ones((4, 80), 'f'), np.ones(192, 'f')))
    return root


@pytest.fixture
def codec(released, tmp_path):
    return shutil.copytree(released, tmp_path / 'codec')


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


@pytest.mark.parametrize('spelling', ['new', 'old', 'mixed'])
def test_there_and_back(spelling, codec, tmp_path, capsys):
    path = codec / 'flow' / 'hift.pt'
    torch.save(spelled(torch.load(path, weights_only=True), spelling), path)
    if spelling == 'old':  # and norms that are not folded
        export(
            campp_torch.random(tiny_codec.SPEAKER), torch.randn(1, 230, 80),
            codec / 'flow' / 'campplus.onnx', do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    assert run(codec, tmp_path / 'orbax') == 0
    said = capsys.readouterr().out
    assert 'codec (speech tokenizer, flow, flow-chunk-25, flow-chunk-5, hift, campplus)' in said
    assert 'left behind' not in said
    assert run('--verify', tmp_path / 'orbax', codec) == 0
    assert run(tmp_path / 'orbax', tmp_path / 'back') == 0
    assert_same_codec(tmp_path / 'back', codec)
    assert run('--verify', tmp_path / 'back') == 0
    paper = json.loads((tmp_path / 'back' / 'certificate.json').read_text())
    for part in PARTS[:-1]:
        front = f'flow/{part.removesuffix(".pt")}/'
        named = {n.removeprefix(front) for n in paper['tensors'] if n.startswith(front)}
        assert named == set(numbers(codec / 'flow' / part))
    speaker = {n.removeprefix('flow/campplus/') for n in paper['tensors'] if '/campplus/' in n}
    plain = {n for n in campp_torch.random(tiny_codec.SPEAKER).state_dict()
             if not n.endswith('num_batches_tracked')}  # fmt: skip
    # Norms that are folded have gone into a shift of the convolution before them.
    assert speaker == plain if spelling == 'old' else 40 < len(speaker) < len(plain)


def test_the_orbax_form_is_one_tree(codec, tmp_path):
    paper = convert(kinds.open_source(codec), tmp_path / 'orbax')
    assert set(paper['source']['files']) == {
        'config.json', 'preprocessor_config.json', 'model.safetensors', SETTINGS,
        *(f'flow/{name}' for name in PARTS),
    }  # fmt: skip
    tree = checkpoint.read_shapes(tmp_path / 'orbax', 0)
    assert set(tree) == {'encoder', 'codebook', 'flow'}
    assert set(tree['flow']) == {'flow', 'flow-chunk-5', 'flow-chunk-25', 'hift', 'campplus'}
    table = checkpoint.open_array(tmp_path / 'orbax', 'flow/flow-chunk-5/embed/table', 0)
    want = torch.load(codec / 'flow' / 'flow-chunk-5.pt', weights_only=True)
    np.testing.assert_array_equal(
        table.read().result(), want['input_embedding.weight'].numpy()
    )


def test_what_comes_back_speaks(codec, tmp_path):
    convert(kinds.open_source(codec), tmp_path / 'orbax')
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back')
    found, want = SpeechDecoder.open(tmp_path / 'back'), SpeechDecoder.open(codec)
    assert found.config == want.config and str(found.voice) == str(want.voice)
    for name, x in want.params['estimator']['time_in'].items():
        np.testing.assert_array_equal(found.params['estimator']['time_in'][name], x)


@pytest.mark.parametrize('way', ['there', 'back', 'while files are finished'])
def test_an_interrupted_conversion_goes_on(way, codec, tmp_path, monkeypatch):
    start = codec
    if way != 'there':
        convert(kinds.open_source(codec), tmp_path / 'orbax')
        start = tmp_path / 'orbax'

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
        Journal, 'add', 900
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
    kept = len(names) if way == 'while files are finished' else 900
    assert len(set(read) & set(names)) <= len(names) - kept + 4
    monkeypatch.undo()
    assert verify(tmp_path / 'out') == []
    if way != 'there':
        assert_same_codec(tmp_path / 'out', codec)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_in_half_precision_a_graph_keeps_its_own(codec, tmp_path):
    convert(kinds.open_source(codec), tmp_path / 'orbax')
    convert(kinds.open_source(tmp_path / 'orbax'), tmp_path / 'back', Options(dtype='bfloat16'))
    want = torch.load(codec / 'flow' / 'flow.pt', weights_only=True)['encoder_proj.weight']
    found = torch.load(tmp_path / 'back' / 'flow' / 'flow.pt', weights_only=True)
    torch.testing.assert_close(found['encoder_proj.weight'], want.bfloat16(), rtol=0, atol=0)
    graph = tmp_path / 'back' / 'flow' / 'campplus.onnx'
    assert numbers(graph) == numbers(codec / 'flow' / 'campplus.onnx')
