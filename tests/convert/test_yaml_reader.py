"""YAML: what PyYAML's safe loader reads, and files made to hurt a reader."""

import datetime

import pytest
import yaml

from mossjax.convert.yaml_reader import read_yaml
from mossjax.errors import InputError


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / 'x.yaml'
        path.write_text(text)
        return path

    return write


PLAIN = """
a: 1
b: [1.5, -2, 0x1F, 1_000, true, no, null, ~, 'no', "x y", 1e-06, 1.0e-6, .5]
c: {d: &x [1, 2], e: *x}
3: three
text: |
  two
  lines
"""


def test_plain_yaml_is_read_as_the_safe_loader_reads_it(file):
    assert read_yaml(file(PLAIN)) == yaml.safe_load(PLAIN)
    assert read_yaml(file('')) is None and read_yaml(file('- 1')) == [1]
    # A date stays text: nothing here has one.
    assert yaml.safe_load('2024-01-02') == datetime.date(2024, 1, 2)
    assert read_yaml(file('a: 2024-01-02')) == {'a': '2024-01-02'}


def test_tags_are_handed_on_with_the_plain_value(file):
    seen = []

    def tagged(tag, value):
        seen.append((tag, value))
        return len(seen)

    text = 'a: !ref <x>\nb: !new:some.Class {c: [1]}\nd: !name:f\n'
    assert read_yaml(file(text), tagged) == {'a': 1, 'b': 2, 'd': 3}
    assert seen == [('!ref', '<x>'), ('!new:some.Class', {'c': [1]}), ('!name:f', '')]


BOMB = 'a: &a [x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 8)}]\n'
    for a, b in zip('abcdefghijkl', 'bcdefghijklm', strict=True)
)
MERGES = 'a: &a {x0: 1}\n' + ''.join(
    f'{b}: &{b} {{<<: [{", ".join([f"*{a}"] * 9)}]}}\n'
    for a, b in zip('abcdefghijkl', 'bcdefghijklm', strict=True)
)
REFUSED = {
    'itself': ('&a {b: *a}', 'line 1: contains itself'),
    'itself, deeper': ('x: &a [1, {c: [*a]}]', 'contains itself'),
    'a bomb of aliases': (BOMB, 'more than 100000 entries'),
    'a bomb of merges': (MERGES, 'a key that is no word'),
    'nested': ('[' * 3000, 'nested too deep'),
    'nested, closed': ('[' * 200 + ']' * 200, 'nested too deep'),
    'python': ("!!python/object/apply:os.system ['true']", 'names Python code'),
    'python name': ('a: !!python/name:os.system', 'names Python code .python/name:os.system'),
    'not a number': ('a: [1, .nan]', r'a\[1\] is nan'),
    'endless': ('a: -.inf', 'a is -inf'),
    'digits': ('a: ' + '9' * 5000, 'not readable as YAML'),
    'hexadecimal': ('a: 0x' + 'F' * 5000, 'a is a number of more than 40 digits'),
    'twice': ('a: 1\nb: 2\na: 3', "line 3: key 'a' is given twice"),
    'a list as key': ('? [1, 2]\n: 3', 'a key that is no word'),
    'no bool': ('a: !!bool maybe', "'maybe' is no bool"),
    'no int': ('a: !!int x', 'not readable'),
    'nothing': ('a: !!int ""', "'' is no int"),
    'a merge as value': ('a: <<', '<< stands for nothing'),
    'a default as value': ('a: [1, =]', '= stands for nothing'),
    'two documents': ('a: 1\n---\nb: 2', 'expected a single document'),
    'open': ('a: [1, 2', 'not readable as YAML'),
    'no anchor': ('a: *b', 'undefined alias'),
    'control characters': ('a: \x01', 'not readable as YAML'),
    'large': ('#' * 300_000, 'has more than 262144 bytes'),
}


@pytest.mark.parametrize('text, said', REFUSED.values(), ids=REFUSED.keys())
def test_what_could_hurt_is_refused_in_one_line(text, said, file):
    with pytest.raises(InputError, match=said) as refused:
        read_yaml(file(text))
    message = str(refused.value)
    assert 'x.yaml' in message and '\n' not in message and len(message) < 500


def test_a_folder_bytes_and_nothing(tmp_path):
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe\x00')
    for name, said in (('.', 'is a folder'), ('no', 'no such file'), ('bytes', 'not text')):
        with pytest.raises(InputError, match=said):
            read_yaml(tmp_path / name)
