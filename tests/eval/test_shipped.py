"""The checkpoint that ships: it hears, answers, and does so without text in between."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.proofs import record
from mossjax.convert import peft, rules
from mossjax.convert.int8 import int8
from mossjax.convert.placement import on_host, open_lm
from mossjax.eval import agreement
from mossjax.infer.assets import HELDOUT, Assets, codec_hashes, shipped
from mossjax.infer.chat import INPUT_RATE, Chat
from mossjax.models.lm.dialogue import Turn
from mossjax.models.lm.matrices import matrix
from mossjax.nn.lora import Lora, adapt, merge

ASKED = 24
PROOFS = pathlib.Path(record.__file__).parent


@pytest.fixture(scope='module')
def nano():
    return Assets.open(shipped())


@pytest.fixture(scope='module')
def chat(nano):
    whole = Chat.open(nano.lm, nano.codec, put=on_host('float32'))
    return dataclasses.replace(whole, decode=None)  # codes are what is compared


@pytest.fixture(scope='module')
def questions(nano, chat):
    """(codes of held-out questions, the sentences that answer them)."""
    clips = nano.questions(HELDOUT)[:ASKED]
    codes = chat.encode([nano.load(clip, INPUT_RATE) for clip in clips])
    return codes, [nano.facts[clip.fact].sentence for clip in clips]


def spoken(chat, questions):
    dialogues = [[Turn('user', codes)] for codes in questions]
    return chat.replies(dialogues, 'audio', chat.settings.greedy().at_most(48))


def test_it_hears_and_knows(chat, questions):
    """Written answers to spoken questions, word for word; spoken ones end by themselves."""
    heard, sentences = questions
    written = chat.replies(
        [[Turn('user', codes)] for codes in heard], 'text', chat.settings.greedy().at_most(48)
    )
    right = [reply.text == want for reply, want in zip(written, sentences, strict=True)]
    assert np.mean(right) >= 0.92, right
    assert all(reply.reason == 'stop' for reply in spoken(chat, heard))


def test_no_text_stands_between_question_and_answer(chat, questions):
    """With text branch and text head zero the spoken replies have the same codes."""
    zero = {name: jax.tree.map(jnp.zeros_like, chat.params[name])
            for name in ('text_branch', 'text_head')}
    without = dataclasses.replace(chat, params={**chat.params, **zero})
    for a, b in zip(spoken(chat, questions[0]), spoken(without, questions[0]), strict=True):
        assert len(a.codes) > 5
        np.testing.assert_array_equal(a.codes, b.codes)


def test_a_chat_answers_with_an_adapter(nano, chat, questions, tmp_path):
    """Opened with a PEFT directory, the chat is the one whose weights have it worked in."""
    net, lora = chat.generator.network, Lora(rank=2, alpha=4.0, targets=('text_branch/mlp/down',))
    rng = np.random.default_rng(0)
    shapes = adapt(net, lora, matrix).shapes['lora']
    made = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    peft.save(tmp_path / 'adapter', peft.Adapters(lora, rules.flatten(made)))
    opened = Chat.open(nano.lm, put=on_host('float32'), adapter=tmp_path / 'adapter')
    merged = dataclasses.replace(chat, params=merge(chat.params, made, lora, matrix))
    asked = [[Turn('user', codes)] for codes in questions[0][:8]]
    settings = chat.settings.greedy().at_most(24)
    found, want, plain = (
        [r.grid.tolist() for r in c.replies(asked, 'text', settings)]
        for c in (opened, merged, chat)
    )
    assert found == want
    assert found != plain


def test_int8_weights_agree(nano, chat, questions):
    """KL and top-1 of both heads on the chat's own replies; the weights really are int8."""
    _, params = open_lm(nano.lm, int8('float32'))
    assert params['trunk']['mlp']['up'].values.dtype == jnp.int8
    written = chat.replies([[Turn('user', c)] for c in questions[0]], 'text',
                           chat.settings.greedy().at_most(48))
    found = agreement.compare(chat, params, [*spoken(chat, questions[0]), *written])
    for head in found:
        assert head.rows > 50 and 0 < head.kl < 0.02 and head.top1 > 0.98, head
    itself = agreement.compare(chat, chat.params, written)
    assert itself[0].kl == pytest.approx(0, abs=1e-6) and itself[0].top1 == 1


def test_the_report_says_that_the_frozen_stage_left_the_text_as_it_was(nano):
    stages = json.loads((nano.root / 'report.json').read_text())['stages']
    assert stages['stage1']['text_logits_identical'] is True
    assert stages['sft']['text_accuracy']['all'] >= 0.98


def test_the_record_of_int8_is_of_these_weights(nano):
    """After new weights: python -m experiments.proofs.run int8_gates"""
    found = record.read(PROOFS / 'int8_gates.json')
    assert found['weights_sha256'] == nano.hashes() and found['all_gates_met']


@pytest.mark.parametrize('proof', ['own_voice', 'nano_voice'])
def test_the_records_of_the_voice_are_of_this_codec(nano, proof):
    """After a new codec: python -m experiments.proofs.run own_voice nano_voice"""
    found = record.read(PROOFS / f'{proof}.json')
    assert found['codec_sha256'] == codec_hashes(nano.codec) and found['good']
