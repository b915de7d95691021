"""JobSets against the published schemas, and their policies against the restart rule."""

import os
import subprocess
import sys

from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
import kubernetes_validate
import pytest
import yaml

from launch import job, jobset
from launch.restart import LOST, Decision, decision
from launch.slices import SLICES
from tests.launch import shipped

# Job controllers fail a Job for these reasons (Kubernetes, "Handling Pod and container failures").
BY_POLICY, BY_BACKOFF = 'PodFailurePolicy', 'BackoffLimitExceeded'


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    shipped.reset()


@pytest.mark.parametrize('name', shipped.SHIPPED)
def test_files_are_golden(name):
    for path, content in shipped.golden(name).items():
        assert content == path.read_text(), 'python -m tests.launch.shipped writes them anew'


def test_every_shipped_config_has_a_golden_file_and_no_file_is_left_over():
    configs = {config.split('.')[0] for config, _ in shipped.SHIPPED.values()}
    folder = job.ROOT / 'experiments' / 'moss_9b'
    assert configs == {p.stem for p in folder.glob('*.py') if 'def get_config' in p.read_text()}
    expected = {f'{name}{suffix}' for name in shipped.SHIPPED for suffix in ('.sh', '.yaml')}
    assert {path.name for path in shipped.GOLDEN.iterdir()} == expected


@pytest.mark.parametrize('name', shipped.SHIPPED)
def test_the_schemas_know_every_key(name):
    made = _golden(name)
    # Reading drops keys the schema does not have.
    assert JobsetV1alpha2JobSet.from_dict(made).to_dict() == made
    inner = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'inner'}}
    inner |= made['spec']['replicatedJobs'][0]['template']
    for version in ('1.30', '1.37'):
        kubernetes_validate.validate(inner, version, strict=True)


def test_the_schemas_refuse_a_misspelt_key():
    made = _golden('stage1_v5p-128')
    made['spec']['failurePolicy']['maxRestart'] = 3
    assert JobsetV1alpha2JobSet.from_dict(made).to_dict() != made
    inner = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'inner'}}
    inner |= made['spec']['replicatedJobs'][0]['template']
    inner['spec']['template']['spec']['containers'][0]['argz'] = []
    with pytest.raises(kubernetes_validate.ValidationError, match='argz'):
        kubernetes_validate.validate(inner, '1.37', strict=True)


@pytest.mark.parametrize('slices', [1, 2])
def test_a_pod_for_each_host_with_all_its_chips(slices):
    for one in SLICES.values():
        made = jobset.render(_job(one, slices))['spec']['replicatedJobs'][0]
        spec = made['template']['spec']
        pod = spec['template']['spec']
        limits = pod['containers'][0]['resources']['limits']['google.com/tpu']
        assert made['replicas'] == slices
        assert spec['completions'] == spec['parallelism']
        assert spec['completions'] * limits == one.chips
        assert pod['nodeSelector'] == {
            'cloud.google.com/gke-tpu-accelerator': one.accelerator,
            'cloud.google.com/gke-tpu-topology': one.shape,
        }


def test_policies_are_the_restart_rule():
    made = jobset.render(_job(SLICES['v5p-128'], 1))['spec']
    inner = made['replicatedJobs'][0]['template']['spec']
    for code in [*range(1, 4), 75, 126, 127, 134, 137, 139, 143, LOST]:
        reason = _job_fails_for(inner, code)
        action = next(
            rule['action'] for rule in made['failurePolicy']['rules']
            if reason in rule['onJobFailureReasons']
        )  # fmt: skip
        ends = {Decision.FAILED: 'FailJobSet', Decision.AGAIN: 'RestartJobSet'}
        assert action == ends[decision([code])], code
    assert made['failurePolicy']['maxRestarts'] == 30


def _job_fails_for(spec, code):
    """Why a Job fails when a pod ends so, by the first rule that matches it."""
    for rule in spec['podFailurePolicy']['rules']:
        exits = rule.get('onExitCodes')
        conditions = [each['type'] for each in rule.get('onPodConditions', [])]
        by_code = exits and exits['operator'] == 'In' and code in exits['values']
        if by_code or code is LOST and 'DisruptionTarget' in conditions:
            if rule['action'] == 'FailJob':
                return BY_POLICY
            assert rule['action'] == 'Count'
            break
    assert spec['backoffLimit'] == 0
    return BY_BACKOFF


def test_words_reach_the_run_as_they_were_given():
    words = ('mossjax', 'train', '--config.a=$(HOME) $$ "it\'s"', '--config.b=\u00e4\n- x: 1')
    made = yaml.safe_load(jobset.text(_job(SLICES['v6e-8'], 1, words), ['--a=\n- x', 'b']))
    (container,) = made['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'][
        'containers'
    ]
    assert '$(HOME)' not in container['args'][2].replace('$$', '')
    assert tuple(_expanded(word, {'HOME': 'wrong'}) for word in container['args']) == words


def _expanded(word, environment):
    """Kubernetes' expansion of args: $$ is a dollar, $(NAME) a variable if there is one."""
    out, at = '', 0
    while at < len(word):
        if word[at : at + 2] == '$$':
            out, at = out + '$', at + 2
        elif word[at : at + 2] == '$(' and (end := word.find(')', at)) > 0:
            name = word[at + 2 : end]
            out, at = out + environment.get(name, word[at : end + 1]), end + 1
        else:
            out, at = out + word[at], at + 1
    return out


def test_several_slices_end_where_they_would_wait_for_ever():
    one, two = (_job(SLICES['v6e-256'], slices).environment for slices in (1, 2))
    assert one == {'JAX_COORDINATOR_PORT': '8476'}  # open between hosts, unlike jax's default
    # libtpu itself says whether it knows the flags; one it does not know ends the process.
    script = (
        'from jax.experimental import topologies as t; '
        "print(len(t.get_topology_desc(platform='tpu', topology_name='v6e:2x2').devices))"
    )
    environment = {
        **os.environ, **two, 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
        'TPU_WORKER_HOSTNAMES': 'localhost', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.split() == ['4'], ran.stderr


def test_the_file_is_written_and_standard_output_stays_empty(tmp_path, capsys):
    out = tmp_path / 'new' / 'job.yaml'
    assert jobset.run([*shipped.argv('lora_v6e-8'), '--out', str(out)]) == 0
    assert capsys.readouterr().out == ''
    made = yaml.safe_load(out.read_text())
    assert made['metadata']['name'] == 'lora-v6e-8'


@pytest.mark.parametrize('change, said', [
    ({'--slice': 'v5p-100'}, 'no such slice'),
    ({'--config': 'experiments/none.py'}, 'experiments/none.py does not exist'),
    ({'--config': 'setup.py'}, 'not in the image'),
    ({'--workdir': 'runs/x'}, '--workdir runs/x: a slice keeps no files of its own'),
    ({'--init_from': 'Qwen3-8B'}, '--init_from Qwen3-8B'),
    ({'--name': 'Stage1'}, '--name Stage1'),
    ({'--name': 'a' * 41}, 'at most 40'),
    ({'--image': 'two words'}, '--image'),
    ({'--slices': '2'}, 'slices of one host cannot be joined'),
    ({'--slices': '0'}, 'slices'),
    ({'--config.steps': None}, 'write --config.steps=VALUE'),
    ({'stray': None}, "unexpected argument 'stray'"),
    ({'--out': '/'}, '--out / is a folder'),
])  # fmt: skip
def test_bad_input_is_named_before_anything_is_written(change, said, capsys):
    given = {
        '--slice': 'v6e-8', '--image': 'i', '--config': 'experiments/moss_9b/lora.py',
        '--workdir': 'gs://b/x', **change,
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair if word is not None]
    assert jobset.run(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count('\n') <= 2 and printed.out == ''


def test_what_was_changed_on_purpose_reaches_the_run(capsys):
    words = [*shipped.argv('lora_v6e-8'), '--changed', 'optim.peak_lr,data.batch_size']
    assert jobset.run(words) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    (container,) = made['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'][
        'containers'
    ]
    said = [*container.get('command', []), *container.get('args', [])]
    assert '--changed=optim.peak_lr,data.batch_size' in said  # one word


def test_a_flag_that_is_missing_is_named(capsys):
    assert jobset.run(['--slice', 'v6e-8']) == 2
    said = capsys.readouterr().err
    assert 'flag --image is required' in said and 'python -m launch.jobset --help' in said


def _golden(name):
    return yaml.safe_load((shipped.GOLDEN / f'{name}.yaml').read_text())


def _job(one, slices, words=('mossjax', 'train')):
    return job.Job('name', one, slices, 'image', words, False, 30, 300)
