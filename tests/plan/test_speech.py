"""Planning the step that speaks: what fits by arithmetic, where weights lie, what is advised."""

import pytest

from experiments.proofs import tpu_decode_step
from mossjax.infer import fit
from mossjax.models.lm.config import LMConfig
from mossjax.parallel import chips
from mossjax.parallel.mesh import AXES
from mossjax.plan import account, search, speaking, speech, table
from mossjax.plan.estimate import Part

RELEASED = LMConfig.released()


def test_the_codec_beside_the_model_is_the_released_one():
    assert speech.CODEC == pytest.approx(tpu_decode_step.codec_bytes(), rel=1e-3)


def test_weights_are_held_and_divided_as_the_engine_does():
    """9.1 B of two bytes fit no 16 GB chip; eight chips share all but the norms."""
    made = speech.choices(RELEASED, ['v5e-1', 'v6e-1', 'v5e-8', 'v5p-8'], lanes=[1], rows=8192)
    found = {x.name: (x.speech.held, x.shared) for x in made}
    assert found == {
        'v5e-1': ('int8', 1), 'v6e-1': ('bfloat16', 1), 'v5e-8': ('bfloat16', 8),
        'v5p-8': ('bfloat16', 4),
    }  # fmt: skip
    mesh = chips.abstract_mesh('v6e', (1, 1, 8), AXES)
    for held in speaking.HELD:
        own = account.shards(speaking.weights(RELEASED, held, mesh))
        assert own == pytest.approx(fit.weights(RELEASED, held == 'int8') / 8, rel=0.01)


def test_what_the_text_branch_adds_is_spread_over_the_rows_between():
    step, more = (Part('HBM', name, '', '', 1, ms * 1e-3) for name, ms in (('a', 8), ('b', 2)))
    parts = list(speaking.averaged([step], [step, more]))
    assert sum(x.seconds for x in parts) == pytest.approx(8e-3 + 2e-3 / speaking.SPREAD)


def test_the_cheapest_change_that_compiles_is_named():
    """64 lanes of 8,192 rows take 80 GiB: the lanes go down until they fit; of what compiles the
    fewest chip-seconds of speech win."""
    [asked] = speech.choices(RELEASED, ['v6e-1'], lanes=[64], rows=8192)
    tried = []

    def compiled(sized):
        tried.append(sized)
        fits = len(tried) == 2
        found = {'seconds': sized.seconds} if fits else {'refused': 'no', 'needed': None}
        return search.Planned(sized, found)

    refused = search.Planned(speech.sized(RELEASED, asked), {'refused': 'no', 'needed': 1})
    assert refused.sized.memory > 2 * refused.sized.limit
    made = speech.change(RELEASED, [refused], compiled)
    assert made.sized is tried[1] and len(tried) == 2
    assert all(x.memory <= x.limit for x in tried)
    assert search.cost(tried[0]) <= search.cost(tried[1])
    row = speech.figures(made)
    per_row = made.sized.seconds / made.sized.choice.speech.lanes
    assert row['chip_hours_of_an_hour'] == pytest.approx(made.sized.choice.chips * per_row * 12.5)


def test_the_table_of_speech_has_a_cell_under_each_heading():
    gib = chips.GIB
    row = {
        'slice': 'v6e-1', 'held': 'int8', 'lanes': 8, 'rows': 4096, 'fits': True, 'seconds': 0.0123,
        'bytes': {'peak': 19.5 * gib, 'limit': 31.2 * gib, 'parameters': 9 * gib, 'cache': gib},
        'over_roofline': 1.38, 'binds': 'HBM', 'tokens_per_second': 650.0,
        'speech_seconds_per_second': 52.0, 'chip_hours_of_an_hour': 0.0192,
    }  # fmt: skip
    refused = {**row, 'fits': False, 'needed': 40 * gib}
    head, first, last = table.speech_table([row, refused]).splitlines()
    assert first.split() == [
        'v6e-1', 'int8', '8', '4096', '19.5', '31.2', '9.0', '1.0', '12.30', '1.38', 'HBM', '650',
        '52.0', '0.019',
    ]  # fmt: skip
    for name, cell in (('GiB', '19.5'), ('ms a row', '12.30'), ('binds', 'HBM')):
        assert head.index(name) == first.index(cell)
    assert '40.0' in last and head.index('binds') == last.index('does not fit')
