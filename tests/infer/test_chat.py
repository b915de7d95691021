"""Chat on a tiny random model written to disk, with a stand-in codec computed by hand."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest

from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.rules import to_params
from mossjax.errors import InputError
from mossjax.infer import sampling
from mossjax.infer.chat import Chat
from mossjax.infer.sampling import Channel, Settings, row_keys
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.models.flow.config import FlowConfig
from mossjax.models.lm import dialogue, machine
from mossjax.models.lm.dialogue import SystemPrompts, Turn, build_prompt
from tests.tiny_chat import CONFIG, CONTROL, WORDS, decode, encode, tokenizer_json, write_model

HELLO = [Turn('user', 'hello you')]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('chat') / 'model'
    write_model(directory, system_prompts={'audio': 'speak', 'text': 'be brief'})
    return directory


@pytest.fixture(scope='module')
def chat(model):
    return dataclasses.replace(Chat.open(model), encode=encode, decode=decode)


def test_settings_and_system_prompts_come_from_the_checkpoint(chat):
    assert chat.settings == Settings(
        Channel(0.6, 0, 0.95, 1.1), Channel(0.6, 0, 0.95, 1.1), 10, 4, sampling.greedy
    )
    assert chat.style.prompts == SystemPrompts('speak', 'be brief')


@pytest.mark.parametrize('kind', ['audio', 'text'])
def test_a_reply_is_what_the_generator_says(chat, kind):
    system = 'speak' if kind == 'audio' else 'be brief'
    ids = chat.generator.ids
    words = {'speak': [3], 'be brief': [1, 2]}[system]
    opened = [12] if kind == 'audio' else []
    # whole words: the newlines of the format are no tokens here
    prompt = [10, 8, *words, 11, 10, 6, 4, 5, 11, 10, 7, *opened]
    expected = build_prompt([Turn('system', system), *HELLO], kind, chat.text, ids)
    np.testing.assert_array_equal(expected[:, 0], prompt)
    (made,) = chat.generator(
        chat.params, [expected], chat.settings, row_keys(0, 1), [kind == 'audio']
    )
    reply = chat.reply(HELLO, kind)
    np.testing.assert_array_equal(reply.grid, made.grid)
    assert reply.reason == made.reason
    if kind == 'text':
        assert len(reply.codes) == 0 and reply.wav is None
        names = [*WORDS, *CONTROL]
        assert reply.text.split() == [names[t] for t in made.grid[:, 0] if t < 9]
        assert reply.turn.content == reply.text
    else:
        codes = made.grid[made.grid[:, 0] == 13, 1]
        codes = codes[: list(codes).index(10)] if 10 in codes else codes
        np.testing.assert_array_equal(reply.codes, codes)
        assert len(codes) >= 3  # min_new_tokens keeps the end of speech away
        np.testing.assert_array_equal(reply.wav, decode([codes])[0])
        np.testing.assert_array_equal(reply.prompt, expected)
        np.testing.assert_array_equal(reply.turn.content, codes)


def test_waveforms_are_heard_as_their_codes(chat):
    wav = np.repeat(np.float32([0.3, 0.7, 0.1]), 1280)
    spoken = chat.reply([Turn('user', wav)], 'audio')
    coded = chat.reply([Turn('user', [3, 7, 1])], 'audio')
    other = chat.reply([Turn('user', [3, 7, 2])], 'audio')
    np.testing.assert_array_equal(spoken.grid, coded.grid)
    assert not np.array_equal(spoken.grid, other.grid)


def test_several_dialogues_in_one_batch(chat):
    settings = dataclasses.replace(chat.settings, draw=sampling.sample)
    wav = np.repeat(np.float32([0.3, 0.7]), 1280)
    first = chat.reply(HELLO, 'audio')
    longer = [*HELLO, first.turn, Turn('user', wav)]
    together = chat.replies([longer, HELLO], 'audio', settings, seed=5)
    alone = chat.reply(longer, 'audio', settings, seed=5)
    np.testing.assert_array_equal(together[0].grid, alone.grid)
    assert len(together) == 2


def test_a_waveform_without_a_codec_is_refused(model):
    with pytest.raises(InputError, match='no codec'):
        Chat.open(model).reply([Turn('user', np.zeros(1280, np.float32))], 'text')


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write_model(tmp_path / 'm', tokenizer_json([*WORDS, 'more', 'words', 'than', 'rows']))
    with pytest.raises(InputError, match='18 tokens'):
        Chat.open(tmp_path / 'm')


def test_upstream_rules_and_style(model):
    chat = Chat.open(model, rules=machine.UPSTREAM, style=dialogue.UPSTREAM)
    assert chat.style.prompts == dialogue.PROCESSOR_PROMPTS
    reply = chat.reply(HELLO, 'text')
    assert len(reply.codes) == 0 and reply.wav is None


@pytest.fixture(scope='module')
def codec_dir(golden, tmp_path_factory):
    """The small golden speech tokenizer (64 codes) and flow decoder (97)."""
    folder = tmp_path_factory.mktemp('codec')
    source = golden('tokenizer')
    shutil.copy(source / 'small_config.json', folder / 'config.json')
    shutil.copy(source / 'preprocessor_config.json', folder)
    shutil.copy(source / 'small_model.safetensors', folder / 'model.safetensors')
    config = FlowConfig(
        vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
        channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
    )  # fmt: skip
    tensors = golden('decoder/flow_state.safetensors')
    params = to_params(flow_rules(), tensors.__getitem__, flow_network(config).shapes)
    save_flow(folder, config, params)
    return folder


def test_speech_to_speech_with_the_halves_of_a_real_codec(golden, codec_dir, tmp_path):
    """A codec without decoder hears, one without tokenizer speaks, and both do as one."""
    config = dataclasses.replace(CONFIG, audio_vocab_size=66, eosp_token_id=64)
    write_model(tmp_path / 'm', config=config)
    ears, mouth = tmp_path / 'ears', tmp_path / 'mouth'
    shutil.copytree(codec_dir, ears, ignore=shutil.ignore_patterns('flow'))
    shutil.copytree(codec_dir / 'flow', mouth / 'flow')
    with pytest.raises(InputError, match='ears has no folder flow/, the decoder that spoken repli'):
        Chat.open(tmp_path / 'm', ears)
    with pytest.raises(InputError, match='mouth lacks the speech tokenizer'):
        Chat.open(tmp_path / 'm', mouth)
    speaker = Chat.open(tmp_path / 'm', mouth, hears=False)
    with pytest.raises(InputError, match='no codec was opened'):
        speaker.hear([np.zeros(1280, np.float32)])
    listener = Chat.open(tmp_path / 'm', ears, speaks=False)
    assert listener.decode is None
    chat = dataclasses.replace(listener, decode=speaker.decode)
    vectors = golden('tokenizer/small_speech_cn.npz')
    wav = (vectors['wav0_i16'] / 32768).astype(np.float32)
    reply = chat.reply([Turn('user', wav)], 'audio')
    heard = reply.prompt[reply.prompt[:, 0] == 13, 1]
    np.testing.assert_array_equal(heard, [*vectors['tokens0'], 64])  # upstream's codes
    assert len(reply.codes) >= 3 and reply.wav.shape == (1920 * len(reply.codes),)
    np.testing.assert_allclose(
        reply.wav, SpeechDecoder.open(codec_dir).decode(reply.codes), atol=1e-5
    )


@pytest.mark.parametrize(
    'halves, said',
    [
        ({}, 'tokenizer has 64 codes, the decoder 97, the language model 10; take'),
        ({'streams': True}, 'tokenizer has 64 codes, the decoder 97, the language model 10; take'),
        ({'speaks': False}, 'tokenizer has 64 codes, the language model 10; take'),
    ],
)
def test_a_codec_of_another_model_is_refused(halves, said, model, codec_dir):
    with pytest.raises(InputError, match=said):
        Chat.open(model, codec_dir, **halves)


def test_a_decoder_with_too_few_codes_is_refused(codec_dir, tmp_path):
    config = dataclasses.replace(CONFIG, audio_vocab_size=100, eosp_token_id=98)
    write_model(tmp_path / 'm', config=config)
    with pytest.raises(InputError, match=': the decoder 97, the language model 98; take'):
        Chat.open(tmp_path / 'm', codec_dir, hears=False)


def test_settings_without_effect_are_warned_about_when_the_model_is_opened(tmp_path, caplog):
    write_model(tmp_path / 'm', num_beams=3, typical_p=0.9, min_p=0.0, eos_token_id=[11, 9])
    logging.getLogger('absl').propagate = True
    with caplog.at_level(logging.WARNING, logger='absl'):
        Chat.open(tmp_path / 'm')
    (record,) = caplog.records
    # greedy by its settings, so typical_p would do nothing anywhere
    assert 'm/generation_config.json: num_beams has no effect here' in record.getMessage()


def test_no_codec_is_opened_where_none_is_needed(model, tmp_path):
    chat = Chat.open(model, tmp_path / 'nowhere', hears=False, speaks=False)
    assert chat.encode is None and chat.decode is None
