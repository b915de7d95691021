"""What launch/README.md tells a newcomer to type and to expect."""

import re
import shlex

import pytest

from launch import jobset, local, queued
from launch.job import ROOT
from launch.slices import SLICES
from tests.launch import shipped

TEXT = (ROOT / 'launch' / 'README.md').read_text()
BLOCKS = re.findall(r'```\n(.*?)```', TEXT, re.DOTALL)
DOCS = [module.__doc__ for module in (jobset, local, queued)]
VARIABLES = {
    'PROJECT': 'my-project', 'REGION': 'us-east5', 'ZONE': 'us-east5-a', 'BUCKET': 'b',
    'ACCOUNT': 'a@my-project.iam.gserviceaccount.com', 'IMAGE': 'r-docker.pkg.dev/p/m/m:1',
}  # fmt: skip


def commands(texts):
    """The words after `python -m launch.NAME`, with the variables filled in."""
    for text in texts:
        for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
            for name, value in VARIABLES.items():
                line = line.replace(f'${name}', value)
            found = re.match(r'\s*python -m launch\.(\w+) (.*)', line)
            if found and not re.search(r'--help|SLICE|COMMAND|\.\.\.$', line):
                yield found.group(1), shlex.split(found.group(2).partition('|')[0])


README, HELP = list(commands(BLOCKS)), list(commands(DOCS))


@pytest.mark.parametrize('name, words', README + HELP)
def test_commands_are_understood(name, words, tmp_path):
    shipped.reset()
    if name == 'jobset':
        words = [*words, '--out', str(tmp_path / 'job.yaml')]
        assert jobset.run(words) == 0
    elif name == 'queued':
        assert queued.run([*words, '--dry_run']) == 0
    else:
        for each in local.FLAGS:
            local.FLAGS[each].unparse()
        _, *command = local.FLAGS(['local', *words])
        assert command[:3] == ['mossjax', 'train', '--pod']
        assert '--workdir' in command and not [word for word in command if word == '--kill']


def test_each_launcher_is_shown():
    for shown in (README, HELP):
        assert {name for name, _ in shown} == {'jobset', 'queued', 'local'}


def test_the_table_of_node_pools_is_that_of_the_launchers():
    rows = re.findall(r'^\| (v\S+) \| (\S+) \| (\S+) \| (\d+) \| (\d+) \|$', TEXT, re.MULTILINE)
    assert len(rows) == 6
    for name, *told in rows:
        one = SLICES[name]
        assert told == [one.machine, one.shape, str(one.hosts), str(one.chips)]


def test_the_cost_of_stage_1_is_its_arithmetic():
    steps, seconds, hours, chips, product = (
        float(number.replace(',', ''))
        for number in re.search(
            r'with ([\d,]+) steps of (\d+) s: (\d+) hours on (\d+) chips, ([\d,]+)', TEXT
        ).groups()
    )
    assert hours == round(steps * seconds / 3600)
    assert chips == SLICES['v5p-128'].chips
    assert product == round(steps * seconds / 3600 * chips, -2)


def test_the_image_gets_files_that_are_there():
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    kept = (ROOT / 'launch' / 'Dockerfile.dockerignore').read_text().splitlines()
    sources = [word for line in re.findall(r'^COPY (.*) \S+$', text, re.M) for word in line.split()]
    assert len(sources) == 6
    for source in sources:
        assert (ROOT / source).exists()
        assert f'!{source.split("/")[0]}' in kept
    extras = re.search(r"'\.\[(.*)\]'", text).group(1).split(',')
    setup = (ROOT / 'setup.py').read_text()
    assert extras == ['tpu', 'gcs'] and all(f"'{extra}': [" in setup for extra in extras)
