from collections import Counter
import fcntl
import importlib
import json
import os
from pathlib import Path
import sys
import time

import pytest

from experiments.nano import configs, run, voice_stages
from mossjax.data.manifest import Recording
from mossjax.errors import InputError

# Runs of the recipe, as their configs are called.
TRAINED = {
    'tokenizer', 'text_lm', 'stage1', 'stage2', 'sft', 'speaker', 'decoder_mu', 'decoder',
    'vocoder_mel', 'vocoder',
}  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    """A diamond of four stages that run here, in threads of none: `started` is their order."""
    started = []

    class Finished:
        returncode = 0

        def poll(self):
            return 0

        def send_signal(self, signal):
            raise AssertionError('it is finished')

        def wait(self):
            pass

    def spawn(workdir, name, effort, cores):
        started.append(name)
        run.run_stage(workdir, name, effort)
        return Finished()

    def stage(name):
        return lambda workdir, effort: {'found': name}

    monkeypatch.setattr(run, '_spawn', spawn)
    monkeypatch.setattr(run, 'STAGES', {
        'last': run.Stage(stage('last'), ('left', 'right')),
        'left': run.Stage(stage('left'), ('first',), ('left', '*.left')),
        'right': run.Stage(stage('right'), ('first',)),
        'first': run.Stage(stage('first')),
    })  # fmt: skip
    return started


def test_stages_run_after_what_they_need(toy, tmp_path):
    run.run_all(tmp_path, 2.0)
    assert toy == ['first', 'left', 'right', 'last']
    facts = json.loads(run.done(tmp_path, 'right').read_text())
    assert facts['found'] == 'right' and facts['effort'] == 2.0


def test_finished_stages_are_not_run_again(toy, tmp_path):
    run.run_stage(tmp_path, 'first', 1.0)
    run.run_stage(tmp_path, 'left', 1.0)
    run.run_all(tmp_path, 1.0)
    assert toy == ['right', 'last']


def test_a_stage_made_anew_takes_along_what_was_made_from_it(toy, tmp_path):
    run.run_all(tmp_path, 1.0)
    (tmp_path / 'left').mkdir()
    for name in ('left/step', 'codes.left', 'codes.right'):
        (tmp_path / name).write_text('')
    assert run.forget(tmp_path, 'left') == {'left', 'last'}
    assert not (tmp_path / 'left').exists() and not (tmp_path / 'codes.left').exists()
    assert (tmp_path / 'codes.right').exists()
    del toy[:]
    run.run_all(tmp_path, 1.0)
    assert toy == ['left', 'last']


def test_two_processes_never_run_one_stage(toy, tmp_path):
    lock = tmp_path / 'logs' / 'first.lock'
    lock.parent.mkdir()
    with open(lock, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match='stage first .* is run by another process'):
            run.run_stage(tmp_path, 'first', 1.0)
    run.run_stage(tmp_path, 'first', 1.0)


def test_each_process_has_cores_of_its_own(monkeypatch, tmp_path):
    """Real processes, which write down what they may run on."""
    cores = os.sched_getaffinity(0)
    parts = run.shares(len(cores))
    assert sorted(core for part in parts for core in part) == sorted(cores)
    assert run.shares(len(cores) + 1)[-1] == cores
    monkeypatch.setattr(run, 'AT_ONCE', len(cores))
    names = [f'stage{i}' for i in range(len(cores) + 2)]
    monkeypatch.setattr(run, 'STAGES', dict.fromkeys(names, run.Stage(None)))
    real = run.subprocess.Popen
    code = ('import os, pathlib, sys; path = pathlib.Path(sys.argv[1]); path.parent.mkdir('
            'exist_ok=True); path.write_text(\'{"seconds": 0, "cores": %s}\' % '
            'sorted(os.sched_getaffinity(0)))')  # fmt: skip

    def popen(command, **options):
        path = run.done(tmp_path, command[-1].split('=')[1])
        return real([sys.executable, '-S', '-c', code, path], **options)

    monkeypatch.setattr(run.subprocess, 'Popen', popen)
    run.run_all(tmp_path, 1.0)
    found = [json.loads(run.done(tmp_path, name).read_text())['cores'] for name in names]
    assert [set(x) in parts for x in found] == [True] * len(names)
    assert {tuple(x) for x in found} == {tuple(sorted(x)) for x in parts}


def test_every_stage_needs_stages_that_exist():
    for name, stage in run.STAGES.items():
        assert set(stage.needs) <= set(run.STAGES) - {name}


def test_every_run_begins_with_one_that_is_there_by_then():
    """What a config takes parameters from is made by its own stage or by one that it waits for."""
    makes = {path: name for name, stage in run.STAGES.items() for path in stage.makes}
    makes['text_model'] = 'text_lm'
    found = {}
    for file in Path(configs.__file__).parent.glob('*.py'):
        module = importlib.import_module(f'{configs.__name__}.{file.stem}')
        if file.stem in makes:
            found[file.stem] = module.get_config().init_from
    assert found['decoder'] == 'decoder_mu' and found['vocoder'] == 'vocoder_mel'
    assert found.keys() == TRAINED
    for name, start in found.items():
        assert not start or makes[start] in {makes[name], *before(makes[name])}, (name, start)
    assert before('report') == run.STAGES.keys() - {'report'}


def before(name: str) -> set[str]:
    """Stages that are finished when this one starts."""
    needs = set(run.STAGES[name].needs)
    return needs.union(*map(before, needs))


def test_a_stage_made_anew_removes_its_own_stores_alone(tmp_path):
    for name in ('codes.jsonl', 'codes.jsonl.settings.json', 'heldout.jsonl', 'f0.jsonl',
                 'vocoder.jsonl', 'vectors.jsonl'):  # fmt: skip
        (tmp_path / name).write_text('')
    assert 'vocoder' not in run.forget(tmp_path, 'codes')
    assert {path.name for path in tmp_path.iterdir()} == {'f0.jsonl', 'vocoder.jsonl'}


def test_the_vocoder_learns_from_some_of_each_voice():
    kinds = {'question': 200, 'words': 80, 'answer': 103, 'answer_other': 50}
    all_ = [
        Recording(f'{speaker}/{kind}/{i}', '', speaker, extra={'kind': kind})
        for speaker in ('slt', 'rms') for kind, count in kinds.items() for i in range(count)
        if kind != 'answer' or speaker == 'slt'
    ]  # fmt: skip
    some = voice_stages.some(all_)
    assert Counter((r.speaker, r.extra['kind']) for r in some) == {
        ('slt', 'answer'): 103,
        **{(s, k): n for s in ('slt', 'rms')
           for k, n in (('question', 80), ('words', 70), ('answer_other', 34))},
    }  # fmt: skip
    assert len({r.audio for r in some}) == len(some) and some == voice_stages.some(all_)


def test_a_stage_that_fails_names_its_log_and_stops_the_others(monkeypatch, tmp_path):
    """Real processes: one fails, the other, which would sleep, is told to stop."""
    monkeypatch.setattr(run, 'STAGES', {'bad': run.Stage(None), 'slow': run.Stage(None)})
    real = run.subprocess.Popen

    def popen(command, **options):
        bad = command[-1] == '--stage=bad'
        return real(['false'] if bad else ['sleep', '60'], **options)

    monkeypatch.setattr(run.subprocess, 'Popen', popen)
    began = time.monotonic()
    with pytest.raises(InputError, match=f'stage bad ended with code 1.*logs{os.sep}bad.log'):
        run.run_all(tmp_path, 1.0)
    assert time.monotonic() - began < 30
