import json
import signal
import subprocess
import sys
import time

import pytest

from experiments.nano import clock, run, stages

# A stage that is at work until it is killed.
WORKS = """
import pathlib, sys, time
from experiments.nano import clock
clock.BEAT = 0.02
with clock.at_work(pathlib.Path(sys.argv[1])):
    time.sleep(3600)
"""


def test_seconds_by_hand():
    spans = [[10.0, 14.0], [0.0, 3.0], [12.0, 13.0], [2.0, 5.0], [13.5, 20.0]]
    assert clock.worked(spans) == 4 + 3 + 1 + 3 + 6.5
    assert clock.passed(spans) == 5 + 10
    assert clock.worked([]) == clock.passed([]) == 0


def test_a_killed_process_counts_until_it_was_last_seen(tmp_path):
    path = clock.file(tmp_path, 'any')
    process = subprocess.Popen([sys.executable, '-c', WORKS, path])
    while not (found := clock.spans_of(path)) or found[0][0] == found[0][1]:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = clock.spans_of(path)
    assert killed[1] > killed[0]
    with pytest.raises(KeyError), clock.at_work(path):
        raise KeyError  # a stage that fails has worked, too
    first, second = clock.spans_of(path)
    assert first == killed and killed[1] <= second[0] <= second[1]


def test_a_stage_reports_what_all_its_processes_took(monkeypatch, tmp_path):
    """And made anew, it begins at nothing."""
    monkeypatch.setattr(run, 'STAGES', {
        'one': run.Stage(lambda workdir, effort: {}),
        'two': run.Stage(lambda workdir, effort: {}),
        'report': run.Stage(stages.report, ('one', 'two')),
    })  # fmt: skip
    for name, spans in {'one': [[0, 1e5], [2e5, 3e5]], 'two': [[5e4, 1.5e5]]}.items():
        path = clock.file(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(spans))
        run.run_stage(tmp_path, name, 1.0)
    seconds = {
        name: json.loads(run.done(tmp_path, name).read_text())['seconds'] for name in ('one', 'two')
    }
    assert seconds['one'] >= 2e5 and 1e5 <= seconds['two'] < 2e5  # these took next to nothing
    run.run_stage(tmp_path, 'report', 1.0)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['seconds'] == pytest.approx(sum(seconds.values()))
    spans = sum((clock.spans_of(clock.file(tmp_path, name)) for name in seconds), [])
    assert report['seconds_by_the_clock'] == pytest.approx(clock.passed(spans), abs=0.05)
    assert report['seconds_by_the_clock'] >= 2.5e5  # [0, 1.5e5] and [2e5, 3e5]
    run.forget(tmp_path, 'one')
    assert not clock.file(tmp_path, 'one').exists() and clock.file(tmp_path, 'two').exists()
    run.run_stage(tmp_path, 'one', 1.0)
    assert json.loads(run.done(tmp_path, 'one').read_text())['seconds'] < 1e5


def test_a_report_of_stages_without_a_clock_does_not_invent_one(tmp_path):
    run.done(tmp_path, 'one').parent.mkdir()
    run.done(tmp_path, 'one').write_text('{"seconds": 5.0}')
    stages.report(tmp_path, 1.0)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['seconds'] == 5 and report['seconds_by_the_clock'] is None
