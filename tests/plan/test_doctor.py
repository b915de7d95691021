"""The doctor on machines that are described: each failure is found and its remedy named."""

import importlib.metadata
import json
import subprocess
import types

import pytest

from mossjax.cli import doctor as command
from mossjax.cli import main as cli
from mossjax.plan import doctor
from mossjax.plan.doctor import BAD, GOOD, NOTE


def states(findings):
    return [(f.state, f.name) for f in findings]


@pytest.mark.parametrize(
    'version, state',
    [((3, 11, 7), GOOD), ((3, 12, 1), GOOD), ((3, 10, 0), BAD), ((3, 13, 0), BAD)],
)
def test_python(version, state):
    assert [f.state for f in doctor.python(version)] == [state]


def test_packages_that_do_not_go_together_are_named():
    wanted = ['jax<0.11,>=0.10', 'flax<0.13,>=0.12.8', 'numpy', "tomli; python_version < '3'"]
    versions = {'jax': '0.11.2', 'flax': '0.12.8'}

    def installed(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    jax, numpy = doctor.packages(wanted, installed)
    assert (jax.state, jax.found) == (BAD, '0.11.2')
    assert "pip install 'jax<0.11,>=0.10'" in jax.remedy
    assert (numpy.name, numpy.found) == ('numpy', 'missing')
    versions |= {'jax': '0.10.2', 'numpy': '2.0'}
    (good,) = doctor.packages(wanted, installed)
    assert good.state == GOOD and 'jax 0.10.2, flax 0.12.8' in good.found


def test_this_environment_is_as_setup_py_wants_it():
    assert states(doctor.packages()) == [(GOOD, 'packages')]


def finished(stdout='', code=0, stderr=''):
    return lambda: types.SimpleNamespace(stdout=stdout, returncode=code, stderr=stderr)


def test_devices():
    found = {'platform': 'tpu', 'kind': 'TPU v5 lite', 'count': 1, 'memory': 16_909_336_576,
             'processes': 1}  # fmt: skip
    chip, fits = doctor.devices(finished('a warning\n' + json.dumps(found)))
    assert chip.state == GOOD and chip.found == '1 x TPU v5 lite, 15.7 GiB each'
    assert '--int8' in fits.remedy
    found |= {'memory': 33_000_000_000}
    assert len(doctor.devices(finished(json.dumps(found)))) == 1
    found |= {'platform': 'cpu', 'memory': None}
    assert states(doctor.devices(finished(json.dumps(found)))) == [(NOTE, 'devices')]
    (broken,) = doctor.devices(finished(code=1, stderr='Trace\nlibtpu version mismatch'))
    assert broken.state == BAD and broken.found == 'libtpu version mismatch'

    for asked, brings in (('cuda', 'jax[cuda12]'), ('tpu', 'mossjax[tpu]'), ('x', 'one of cpu')):
        (finding,) = doctor.devices(finished(code=1), environment={'JAX_PLATFORMS': asked})
        assert finding.state == BAD and asked in finding.found
        assert 'unset JAX_PLATFORMS' in finding.remedy and brings in finding.remedy

    def stuck():
        raise subprocess.TimeoutExpired('python', 1)

    assert 'another process holds' in doctor.devices(stuck)[0].remedy


def test_the_real_devices():
    (cpu,) = doctor.devices()
    assert cpu.found.endswith('x cpu')


def test_memory_and_disk():
    text = 'MemTotal: 99 kB\nMemAvailable: {} kB\n'
    assert doctor.memory(text.format(3 * 2**20))[0].state == BAD
    assert doctor.memory(text.format(5 * 2**20))[0].found == '5.0 GiB free'
    for free, state in ((1e9, BAD), (10e9, NOTE), (60e9, GOOD)):
        usage = types.SimpleNamespace(free=free)
        assert doctor.disk('.', lambda _, u=usage: u)[0].state == state


def test_hosts_and_what_earlier_jobs_leave():
    assert states(doctor.hosts({})) == [(GOOD, 'hosts')]
    found = doctor.hosts({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '2'})
    assert states(found) == [(NOTE, 'hosts'), (BAD, 'environment')]
    assert 'MEGASCALE_NUM_SLICES' in found[1].found


def test_a_port_that_is_held():
    import socket

    with socket.socket() as holder:
        holder.bind(('', 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert doctor.ports(port)[0].state == BAD
    assert doctor.ports(0)[0].state == GOOD


def test_the_command(monkeypatch, capsys):
    for name in command.FLAGS:
        command.FLAGS[name].unparse()
    good = [doctor.Finding(GOOD, 'a', 'b')]
    bad = [doctor.Finding(BAD, 'port', 'held', 'end the process')]
    monkeypatch.setattr(doctor, 'CHECKS', (lambda: good, lambda: bad))
    assert cli.main(['doctor']) == 1
    out = capsys.readouterr().out
    assert '-> end the process' in out and '1 to mend.' in out
    asked = [doctor.Finding(BAD, 'devices', 'none for JAX_PLATFORMS=cuda', 'unset it')]
    monkeypatch.setattr(doctor, 'CHECKS', (lambda: asked,))
    assert cli.main(['doctor']) == 2
    monkeypatch.setattr(doctor, 'CHECKS', (lambda: good,))
    assert cli.main(['doctor']) == 0
