"""mossjax demo on a packed, untrained checkpoint: whatever the scores, the figures must agree."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib

import numpy as np
import pytest

from experiments.nano import ship
from mossjax.cli import demo as command
from mossjax.cli import main as cli
from mossjax.convert.placement import on_host
from mossjax.eval import demo
from mossjax.infer import audio
from mossjax.infer.assets import Assets
from mossjax.infer.chat import Chat
from mossjax.models.lm.dialogue import Turn
from tests.tiny_run import WORLD, write_run


@pytest.fixture(scope='module')
def assets(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo')
    ship.pack(
        write_run(root / 'run'), root / 'nano', flite='flite', licence='-', questions=3,
        never_spoken=1,
    )  # fmt: skip
    return root / 'nano'


def run(*args):
    for name in command.FLAGS:  # a process runs one command; a test runs many
        command.FLAGS[name].unparse()
    return cli.main(['demo', *map(str, args)])


@dataclasses.dataclass
class Finished:
    code: int
    out: pathlib.Path
    shown: str
    tour: demo.Tour

    @property
    def content(self):
        return json.loads((self.out / 'demo.json').read_text())


@pytest.fixture(scope='module')
def finished(assets, tmp_path_factory):
    """One run with two questions of each kind that has them."""
    out = tmp_path_factory.mktemp('out') / 'demo'
    kept, original = [], demo.tour
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        patch.setattr(demo, 'tour', lambda *args: kept.append(original(*args)) or kept[0])
        code = run('--assets', assets, '--out', out, '--questions', 2, '--check', '--nosound')
    return Finished(code, out, shown.getvalue(), kept[0])


def test_figures_agree_with_the_single_answers(finished):
    content = finished.content
    answers, controls = content['answers'], content['controls']
    assert len(answers) == 4 * 3
    figures = {(x['section'], x['name']): x for x in content['table']}
    for split, count in (('heldout', 2), ('never_spoken', 1)):
        for mode in {a['mode'] for a in answers}:
            own = [a['right'] for a in answers if (a['mode'], a['split']) == (mode, split)]
            figure = figures[split, mode]
            assert (figure['count'], figure['score']) == (count, sum(own) / count)
    for a in answers:
        fact = WORLD.facts[a['fact']]
        assert (a['question'], a['expected']) == (fact.question, fact.answer)
        said = f'the answer is {a["heard"]}' if a['mode'].endswith('speech') else a['text']
        assert a['right'] == (said.split() == fact.sentence.split())
    # golden recordings of the two answers: the judge hears both, whatever the model does
    assert [c['heard'] for c in controls['source']] == ['seven', 'twelve']
    assert figures['judge', 'source']['score'] == 1 and figures['judge', 'silence']['score'] == 0
    assert figures['heldout', 'speech to speech']['verdict'] == 'too few'
    assert finished.code == 1 and content['all_gates_met'] is False


def test_replies_are_the_model_s_own_to_each_question(finished, assets):
    packed = Assets.open(assets)
    chat = Chat.open(packed.lm, put=on_host('float32'))
    settings = chat.settings.greedy()
    asked = packed.questions('heldout')[:2] + packed.questions('never_spoken')
    said = iter(finished.content['answers'])
    for mode, (medium, kind) in demo.MODES.items():
        for clip, codes in zip(asked, finished.tour.heard, strict=True):
            turn = Turn('user', codes if medium == 'speech' else clip.text)
            (alone,) = chat.replies([[turn]], kind, settings)
            found = next(said)
            assert (found['mode'], found['fact'], found['speaker']) == (
                mode, clip.fact, clip.speaker,
            )  # fmt: skip
            assert found['codes'] == alone.codes.tolist()
            assert found['text'] == (alone.text if kind == 'text' else '')
    assert [len(codes) for codes in finished.tour.heard] == [
        -(-len(packed.load(clip, 16000)) // 1280) for clip in asked
    ]
    hashes = finished.content['sha256']
    weights = (assets / 'lm' / 'model.safetensors').read_bytes()
    assert hashes['lm/model.safetensors'] == hashlib.sha256(weights).hexdigest()
    assert len(hashes) == 10


def test_waveforms_are_the_decoded_answers(finished):
    answers = finished.content['answers']
    written = [a for a in answers if a['wav']]
    assert len(written) == sum(bool(a['codes']) for a in answers) > 0
    for a in written:
        got = audio.load(finished.out / a['wav'], 24000)
        assert len(got) == 1920 * len(a['codes']) == round(24000 * a['seconds'])
        want = finished.tour.wavs[tuple(a['codes'])]
        np.testing.assert_allclose(got, np.clip(want, -1, 1), atol=1 / 32768)
        question = finished.out / a['wav'].replace('_answer', '_question')
        assert question.is_file() == (a['mode'] == 'speech to speech')


def test_the_picture_is_there(finished):
    import matplotlib.image

    picture = matplotlib.image.imread(finished.out / 'demo.png')
    height, width, _ = picture.shape
    assert width > height > 300 and picture[..., :3].std() > 0.05


def test_the_table_is_printed_and_low_scores_alone_are_no_error(
    finished, assets, tmp_path, monkeypatch
):
    for words in ('speech to speech', '>= 90% too few', 'reconstructed', 'stage2', '75.0%',
                  'Not all gates are met'):  # fmt: skip
        assert words in finished.shown
    monkeypatch.setattr(demo, 'tour', lambda *args: finished.tour)
    assert run('--assets', assets, '--out', tmp_path, '--questions', 2, '--nosound') == 0


def test_int8_says_how_far_it_moves(finished, assets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'tour', lambda *args: finished.tour)
    assert run('--assets', assets, '--out', tmp_path, '--questions', 2, '--int8', '--nosound') == 0
    content = json.loads((tmp_path / 'demo.json').read_text())
    found = {head['head']: head for head in content['int8']}
    assert found.keys() == {'text', 'audio'}
    for head in found.values():
        assert head['rows'] > 0 and 0 < head['kl'] < 0.05  # it moves, by little
    assert 'same top-1' in capsys.readouterr().out


@pytest.mark.parametrize(
    'args, word',
    [
        (['--questions', 0], '--questions=0: expected a whole number from 1'),
        (['--questions', 'nan'], '--questions=nan: expected a whole number'),
        (['stray'], 'stray argument'),
        (['--assets', 'nowhere'], '--assets nowhere: no such folder'),
        (['--out', __file__], 'is a file; give the name of a folder'),
    ],
)
def test_bad_calls_end_with_code_2(args, word, assets, capsys):
    given = args if '--assets' in args else ['--assets', assets, *args]
    assert run(*given) == 2
    error = capsys.readouterr().err
    assert word in error and 'Traceback' not in error
