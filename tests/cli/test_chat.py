"""mossjax chat on a tiny random model; the codec is a stand-in.

The model has so few positions that prompts of all lengths have one shape: one program a test.
"""

import dataclasses
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mossjax.cli import chat as command
from mossjax.cli import main as cli
from mossjax.infer import audio, voice
from mossjax.infer import chat as chat_lib
from mossjax.infer.chat import Chat
from mossjax.infer.codec import WholeMouth
from mossjax.infer.voice import Voice
from mossjax.models.lm.dialogue import Turn
from tests.terminal import END, INTERRUPT, Terminal
from tests.tiny_chat import CONFIG, decode, encode, write_model

POSITIONS = 64
TEXT = ('--reply', 'text', '--greedy')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('chat') / 'model'
    config = dataclasses.replace(CONFIG, max_position_embeddings=POSITIONS)
    write_model(directory, config=config, do_sample=True, temperature=2.0)
    return directory


def stand_in(*, mouth=None, listen=encode):
    """A codec that is opened."""
    ears, decoder = SimpleNamespace(encode=listen), SimpleNamespace(decode_many=decode)
    return SimpleNamespace(ears=ears, decoder=decoder, mouth=lambda: mouth or WholeMouth(decode))


@pytest.fixture
def codec(monkeypatch, tmp_path):
    monkeypatch.setattr(chat_lib, 'open_codec', lambda *_: stand_in())
    (tmp_path / 'codec').mkdir()
    return tmp_path / 'codec'


@pytest.fixture
def pipe(monkeypatch):
    """What is piped in."""

    def give(*lines):
        content = ''.join(f'{line}\n' for line in lines).encode(errors='surrogateescape')
        monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(content), 'utf-8'))

    return give


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / 'my question.wav'
    audio.save(path, np.repeat(np.float32([0.3, 0.7, 0.1]), 1280), 16000)
    return path


def run(*args):
    for name in command.FLAGS:  # a process runs one command; a test runs many
        command.FLAGS[name].unparse()
    return cli.main(['chat', *map(str, args)])


def grids(folder):
    """The grid files of a dialogue, in order."""
    count = len(list(folder.glob('grid-*.json')))
    return [json.loads((folder / f'grid-{i + 1}.json').read_text()) for i in range(count)]


def codes_in(grid):
    rows = np.array(grid['prompt'])
    return rows[rows[:, 0] == 13, 1].tolist()


def test_a_written_question_answered_in_writing(model, tmp_path, capsys):
    grid = tmp_path / 'new' / 'grid.json'
    args = ('--model', model, '--text', 'hello you', *TEXT, '--codec', tmp_path)  # which has none
    assert run(*args, '--grid', grid, '--max_new_tokens', 5, '--out', tmp_path / 'a.wav') == 0
    content = json.loads(grid.read_text())
    chat = Chat.open(model, longest=5)
    expected = chat.reply([Turn('user', 'hello you')], 'text', chat.settings.greedy())
    assert content['grid'] == expected.grid.tolist()
    assert content['prompt'] == expected.prompt.tolist()
    assert (content['text'], content['reason']) == (expected.text, 'length')
    shown = capsys.readouterr()
    assert shown.out == expected.text + '\n'
    assert 'cut at its limit of 5 rows; --max_new_tokens sets another' in shown.err
    assert '--out is left alone' in shown.err and not (tmp_path / 'a.wav').exists()


def test_a_spoken_dialogue(model, codec, tmp_path, recording, pipe, capsys):
    pipe('', recording, '  ', '', 'be brief', '')
    out = tmp_path / 'new' / 'answer.wav'
    args = ('--model', model, '--codec', codec, '--out', out, '--grid', tmp_path / 'grid.json')
    assert run(*args, '--seed', 3) == 0
    first, second = grids(tmp_path)
    # the second prompt goes on from the first one and its codes
    said = np.array([[12, 5], *([13, c] for c in first['codes']), [13, 10]])
    answered = np.array(second['prompt'])[len(first['prompt']) - 1 :][: len(said)]
    np.testing.assert_array_equal(answered, said)
    assert codes_in(first) == [3, 7, 1, 10]
    wav = audio.load(out.with_name('answer-2.wav'), 24000)
    np.testing.assert_allclose(wav, np.clip(decode([second['codes']])[0], -1, 1), atol=1 / 32768)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f'{out.with_name(f"answer-{i + 1}.wav")}: {0.08 * len(grid["codes"]):.2f} s'
        for i, grid in enumerate((first, second))
    ]
    reasons = [first['reason'], second['reason']]
    assert 'length' in reasons
    assert shown.err.count('cut at its limit of 10 rows') == reasons.count('length')


def test_a_long_dialogue_of_recordings_by_any_name_a_terminal_gives_them(
    model, codec, tmp_path, recording, pipe, monkeypatch, capsys
):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ('q.MP3', 'q.oga', 'noted', 'at home.wav'):
        shutil.copy(recording, tmp_path / name)  # the reader looks inside
    escaped = str(recording).replace(' ', '\\ ')
    url = f'file://{str(recording).replace(" ", "%20")}'
    pipe('q.MP3', 'q.oga', './noted', f"'{recording}' ", f'"{recording}"', recording, escaped, url,
         '~/at home.wav', "'~/at home.wav'")  # fmt: skip
    assert run('--model', model, '--codec', codec, *TEXT, '--grid', 'grid.json') == 0
    prompts = [len(grid['prompt']) for grid in grids(tmp_path)]
    heard = [codes_in(grid) for grid in grids(tmp_path)]
    # what is heard stays, as long as there is room
    assert [codes[:4] for codes in heard] == [[3, 7, 1, 10]] * 10
    assert heard[1] == 2 * heard[0] and max(map(len, heard)) < 4 * 10
    assert max(prompts) <= POSITIONS - 10
    shown = capsys.readouterr()
    assert shown.out.count('\n') == 10 and shown.err.count('outgrown the 64 positions') == 1


def test_a_reply_that_says_nothing_does_not_end_a_dialogue(model, codec, tmp_path, pipe, capsys):
    pipe('hello', 'you')
    args = ('--model', model, '--codec', codec, '--out', tmp_path / 'a.wav', '--max_new_tokens', 1)
    assert run(*args, '--grid', tmp_path / 'grid.json') == 1
    assert [grid['grid'] for grid in grids(tmp_path)] == [[[13, 10]]] * 2
    shown = capsys.readouterr()
    assert shown.out == '' and shown.err.count('cut at its limit of 1 rows') == 2
    assert not list(tmp_path.glob('a*.wav'))


@pytest.mark.parametrize('line', ['gone.wav', "'my gone.M4A'", '~/gone', 'file:///gone/q%20.mp3'])
def test_a_slip_in_piped_input_ends_it(line, codec, tmp_path, pipe, capsys, monkeypatch):
    """At once: the model, which is none, is not even looked at."""
    monkeypatch.chdir(tmp_path)
    pipe('', line, 'be brief')
    args = ('--model', tmp_path, '--codec', codec, '--out', tmp_path / 'a.wav')
    assert run(*args) == 2
    shown = capsys.readouterr()
    assert 'no such file' in shown.err and shown.out == ''
    assert not list(tmp_path.glob('a*'))


def test_words_that_are_no_text_are_refused(model, pipe, capsys):
    for args in (('--text', 'caf\udce9'), ('--text', 'hello', '--system', 'caf\udce9')):
        assert run('--model', model, *TEXT, *args) == 2
        assert f'{args[-2]} is not text in UTF-8' in capsys.readouterr().err
    pipe('caf\udce9')
    assert run('--model', model, *TEXT) == 2
    assert 'the question is not text in UTF-8' in capsys.readouterr().err


def test_sentences_about_files_and_a_system_prompt_of_ones_own(
    model, tmp_path, pipe, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'q.wav').touch()
    words = ['what is a .wav file', 'is mp3 better than wav', 'Open q.wav, please.', '/ and ~']
    pipe(*words)
    args = ('--model', model, *TEXT, '--grid', 'grid.json', '--rules', 'upstream')
    assert run(*args, '--system', 'speak hello you') == 0
    assert capsys.readouterr().out.count('\n') == 4
    for grid, sentence in zip(grids(tmp_path), words, strict=True):
        prompt = np.array(grid['prompt'])[:, 0].tolist()
        assert prompt[:6] == [10, 8, 3, 4, 5, 11]
        assert list(zip(prompt, prompt[1:], strict=False)).count((10, 8)) == 1  # system turns
        # none of the words is known; the reply opens right behind them
        assert prompt[-5 - len(sentence.split()) :] == [
            10, 6, *[0] * len(sentence.split()), 11, 10, 7
        ]  # fmt: skip


def test_a_voice_speaks_the_reply(model, tmp_path, monkeypatch, capsys):
    """It reaches the codec as it is in the file; in writing there is nobody to speak."""
    told = []
    monkeypatch.setattr(
        chat_lib, 'open_codec', lambda *args: told.append(args[-2]) or stand_in()
    )
    codec, ann = tmp_path / 'codec', tmp_path / 'ann.wav'  # by its content
    codec.mkdir()
    made = Voice(np.int32([3, 4]), np.ones((8, 80), np.float32), np.full(192, 0.5, np.float32))
    voice.save(ann, made)
    args = ('--model', model, '--codec', codec, '--text', 'hello', '--voice', ann)
    assert run(*args, '--out', tmp_path / 'a.wav') == 0
    for name in ('codes', 'mel', 'xvector'):
        np.testing.assert_array_equal(getattr(told[0], name), getattr(made, name))
    before = ann.read_bytes()
    for wrong, said in (
        (('--reply', 'text'), '--voice speaks, and the reply is to be written'),
        (('--out', ann), 'is also --voice'),
    ):
        assert run(*args, *wrong) == 2 and said in capsys.readouterr().err
    assert ann.read_bytes() == before


def test_a_recording_needs_a_codec(model, recording, pipe, capsys):
    pipe(recording)
    assert run('--model', model, *TEXT) == 2
    assert f'{recording} needs --codec to be heard' in capsys.readouterr().err


class Slow:
    """Says each code at once; the second time it is asked for more, somebody has heard enough."""

    def __init__(self):
        self.times = []

    def begin(self, voice):
        return self

    def feed(self, codes):
        self.times.append(len(codes))
        if len(self.times) == 2:
            raise KeyboardInterrupt
        return decode([codes])[0]

    def finish(self):
        return np.zeros(0, np.float32)


def test_an_interrupted_reply_stays_as_far_as_it_was_heard(
    model, codec, tmp_path, monkeypatch, capsys
):
    """In the file, which grows while it is spoken, and in the dialogue."""
    slow, asked = Slow(), ['hello', 'be brief']
    monkeypatch.setattr(chat_lib, 'open_codec', lambda *_: stand_in(mouth=slow))
    monkeypatch.setattr('mossjax.cli.lines.terminal', lambda: True)
    monkeypatch.setattr('mossjax.cli.lines.read', lambda: (line for line in asked))
    args = ('--model', model, '--codec', codec, '--out', tmp_path / 'a.wav', '--seed', 3)
    assert run(*args, '--grid', tmp_path / 'grid.json', '--max_new_tokens', 20) == 0
    first, second = grids(tmp_path)
    heard = slow.times[0]
    assert 0 < heard and first['reason'] == 'cut' and len(first['codes']) == heard
    wav = audio.load(tmp_path / 'a-1.wav', 24000)
    np.testing.assert_allclose(wav, np.clip(decode([first['codes']])[0], -1, 1), atol=1 / 32768)
    assert codes_in(second)[:heard] == first['codes'] and codes_in(second)[heard] == 10
    shown = capsys.readouterr()
    assert 'interrupted; the dialogue goes on from here' in shown.err
    assert shown.out.splitlines()[0] == f'{tmp_path / "a-1.wav"}: {0.08 * heard:.2f} s'
    slow.times.clear()
    # with one question there is nothing to go on with
    assert run(*args, '--text', 'hello', '--max_new_tokens', 20) == 130
    assert len(audio.load(tmp_path / 'a.wav', 24000)) == 1920 * slow.times[0]


# The stand-in hears by itself; at its first hearing it waits to be interrupted.
ON_A_TERMINAL = """
import signal, sys
from mossjax.cli.main import run
from mossjax.infer import chat
from tests.cli.test_chat import stand_in
from tests.tiny_chat import encode

heard = []

def listen(waves):
    heard.append(waves)
    if len(heard) == 1:
        print('listening', file=sys.stderr)
        signal.pause()
    return encode(waves)

chat.open_codec = lambda *_: stand_in(listen=listen)
run()
"""


def test_a_dialogue_on_a_terminal(model, codec, tmp_path, recording):
    args = ('chat', '--model', model, '--codec', codec, *TEXT, '--grid', tmp_path / 'grid.json')
    with Terminal(tmp_path, ON_A_TERMINAL, *args, JAX_PLATFORMS='cpu') as terminal:

        def answer(line):
            terminal.wait_for('you> ')
            terminal.type(f'{line}\r')

        answer('')
        assert 'Ctrl-D or /quit ends' in terminal.shown
        answer('gone.wav')
        terminal.wait_for('mossjax chat: recording gone.wav: no such file')
        answer(f"'{recording}' ")
        terminal.wait_for('listening')
        terminal.type(INTERRUPT)
        terminal.wait_for('mossjax chat: interrupted; the question is taken back')
        answer(f"'{recording}' ")
        answer('be brief')
        answer(' '.join(['hello'] * 70))
        terminal.wait_for('leaves no room for a reply in the 64 positions of the model')
        terminal.wait_for('you> ')
        terminal.type(END)
        assert terminal.end() == 0
        said = terminal.output.read_text()
    first, second = grids(tmp_path)
    assert said == f'{first["text"]}\n{second["text"]}\n'
    assert codes_in(first) == [3, 7, 1, 10]
    assert second['prompt'][: len(first['prompt'])] == first['prompt']


@pytest.fixture
def places(tmp_path, recording):
    """Folders and files by the names that calls below give them; none is a model."""
    for name in ('model', 'codec', 'folder', 'a.wav'):
        (tmp_path / name).mkdir()
    (tmp_path / 'file').touch()
    (tmp_path / 'q.wav').touch()
    (tmp_path / 'self.wav').symlink_to('self.wav')
    return tmp_path


@pytest.mark.parametrize(
    'args, word',
    [
        (['--text', 'x', '--wav', 'my question.wav'], 'both given'),
        (['--text', ' ', *TEXT], '--text is empty'),
        (['--text', 'x', *TEXT, '--system', ''], '--system is empty'),
        ([*TEXT, '--system', ' \t'], '--system is empty'),
        (['--text', 'x', '--out', 'b.wav'], '--codec and --out'),
        (['--text', 'x', '--codec', 'codec'], '--codec and --out'),
        (['--wav', 'my question.wav', *TEXT], '--wav needs --codec'),
        (['--wav', 'gone.wav', '--codec', 'codec', *TEXT], '--wav gone.wav: no such file'),
        (['--wav', 'self.wav', '--codec', 'codec', *TEXT], 'a symbolic link that leads to itself'),
        (['--wav', 'folder', '--codec', 'codec', *TEXT], '--wav folder is a folder'),
        (['--text', 'x', *TEXT, '--grid', '.'], '--grid . is a folder'),
        (['--text', 'x', *TEXT, '--grid', 'file/grid.json'], 'file is a file, not a folder'),
        ([*TEXT, '--grid', 'file/more/grid.json'], 'file is a file, not a folder'),
        (['--text', 'x', *TEXT, '--grid', 'gs://b/grid.json'], 'only local paths'),
        (['--text', 'x', *TEXT, '--grid', '/proc/grid.json'], '/proc takes no files'),
        (['--text', 'x', '--codec', 'codec', '--out', 'b.m4a'], '--out b.m4a: audio is writ'),
        (['--text', 'x', '--codec', 'codec', '--out', 'b'], 'the name must end so'),
        (['--codec', 'codec', '--out', 'b.WMA'], '--out b.WMA: audio is written as .wav'),
        (['--text', 'x', '--codec', 'codec', '--out', 'a.wav'], '--out a.wav is a folder'),
        (['--text', 'x', '--codec', 'codec', '--out', 'file/b.wav'], 'file is a file, not a'),
        (['--text', 'x', '--codec', 'codec', '--out', '/proc/b.wav'], '/proc takes no files'),
        (['--text', 'x', '--codec', 'codec', '--out', 'gs://b/b.wav'], 'only local paths'),
        (['--wav', 'q.wav', '--codec', 'codec', '--out', 'q.wav'], '--out q.wav is also --wav'),
        (['--text', 'x', '--codec', 'codec', '--out', 'b.wav', '--grid', 'b.wav'], 'also --grid'),
        (['--text', 'x', *TEXT, '--codec', 'gone'], '--codec gone: no such folder'),
        (['--text', 'x', *TEXT, '--codec', 'file'], '--codec file is a file'),
        (['--text', 'x', *TEXT, '--adapter', 'gone'], '--adapter gone: no such folder'),
        (['--text', 'x', *TEXT], 'model/config.json: no such file'),
        (['--text', 'x', '--reply', 'song'], 'song'),
        (['three', '--text', 'x', *TEXT], 'stray argument'),
        (['--questions', 'file', *TEXT], 'belong together'),
        (['--questions', 'file', '--answers', 'b', '--text', 'x', *TEXT], '--text is of one'),
        (['--questions', 'file', '--answers', 'b', '--codec', 'codec'], 'file has no lines'),
        (['--questions', 'file', '--answers', 'b'], 'spoken replies need --codec'),
        (['--questions', 'file', '--answers', 'b', '--voice', 'q.wav', *TEXT], '--voice speaks'),
    ],
)
def test_bad_calls_end_with_code_2(args, word, places, monkeypatch, capsys):
    """Before the model is opened, which is none."""
    monkeypatch.chdir(places)
    before = sorted(places.rglob('*'))
    assert run('--model', 'model', *args) == 2
    error = capsys.readouterr().err
    assert word in error and 'Traceback' not in error and error.count('mossjax chat: ') == 1
    assert sorted(places.rglob('*')) == before


@pytest.mark.parametrize(
    'rows, word', [(0, 'max_new_tokens'), (64, 'max_new_tokens = 64 leaves no room'),
                   (63, 'max_new_tokens = 63 exceed the 64 positions')],
)  # fmt: skip
def test_a_length_out_of_range_is_refused(rows, word, model, capsys):
    args = ('--model', model, '--text', 'x', '--reply', 'text')
    assert run(*args, '--max_new_tokens', rows) == 2
    assert word in capsys.readouterr().err
