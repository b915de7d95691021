"""The loss of the replies, logged beside a loss on whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.data.rows import IGNORE
from mossjax.models.lm.model import TEXT
from mossjax.train.lm import reply_positions, row_fault
from tests.tiny_lm import tiny_params
from tests.train.tiny_task import tiny_task

TURN, ASSISTANT, USER = 7, 8, 9


def dialogues(task):
    """The task's rows with turns written over them, some cut off by the end of a segment."""
    batch = task.batch(0)
    text = batch['tokens'][..., TEXT]
    text[np.isin(text, (TURN, ASSISTANT, USER))] = 10
    for row in range(text.shape[0]):
        text[row, 1 + row % 3], text[row, 2 + row % 3] = TURN, (ASSISTANT, USER)[row % 2]
        text[row, 7], text[row, 8] = TURN, (USER, ASSISTANT)[row % 2]
    text[0, 11] = TURN
    return batch


def by_hand(tokens, segments):
    """Walks along each row."""
    found = np.zeros(segments.shape, bool)
    for row, (ids, owners) in enumerate(zip(tokens[..., TEXT], segments, strict=True)):
        speaker = None
        for t in range(len(ids)):
            if t and owners[t] != owners[t - 1]:
                speaker = None
            if ids[t] == TURN:
                speaker = 'next'
            elif speaker == 'next':
                speaker = ids[t]
            found[row, t] = speaker == ASSISTANT
    return found


def test_reply_positions():
    batch = dialogues(tiny_task())
    got = reply_positions(batch, TURN, ASSISTANT)
    want = by_hand(batch['tokens'], batch['segments'])
    np.testing.assert_array_equal(got, want)
    assert 10 < want.sum() < want.size / 2


def test_logged_reply_loss_is_the_loss_with_only_replies_supervised():
    task = tiny_task(reply=(TURN, ASSISTANT))
    params, batch = tiny_params(task.config), dialogues(task)

    @jax.jit
    def run(batch):
        loss, (metrics, _) = task.loss(params, {}, batch, None)
        return loss, metrics

    whole, metrics = run(batch)
    where = by_hand(batch['tokens'], batch['segments'])[..., None]
    only = batch | {'labels': np.where(where, batch['labels'], -100)}
    masked, alone = run(only)
    for kind in ('text', 'audio'):
        assert alone[f'{kind}_count'] > 3
        np.testing.assert_allclose(
            metrics[f'reply_{kind}_loss'], alone[f'{kind}_loss'], rtol=1e-6
        )
    assert abs(float(whole - masked)) > 1e-3
    assert metrics['tokens'] == (batch['segments'] > 0).sum()
    plain, (_, _) = tiny_task().loss(jax.tree.map(jnp.asarray, params), {}, batch, None)
    np.testing.assert_allclose(plain, whole, rtol=1e-6)  # watching trains nothing


@pytest.mark.parametrize('name, at, channel, value, said', [
    ('tokens', 2, 0, 64, 'tokens[2, 0] is 64, the vocabulary 64'),
    ('tokens', 0, 1, -1, 'tokens[0, 1] is -1, the vocabulary 40'),
    ('labels', 5, 1, 40, 'labels[5, 1] is 40, the vocabulary 40'),
    ('labels', 5, 0, -99, 'labels[5, 0] is -99, the vocabulary 64'),
    ('labels', 5, 0, IGNORE, None),
])  # fmt: skip
def test_rows_with_ids_outside_the_vocabulary(name, at, channel, value, said):
    task = tiny_task()
    row = {key: x[0].copy() for key, x in task.batch(0).items()}
    assert row_fault(task.config, row) is None
    row[name][at, channel] = value
    assert row_fault(task.config, row) == said
