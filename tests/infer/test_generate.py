"""The decode loop against a plain-Python one that recomputes the whole grid at every step."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import sampling
from mossjax.infer.engine import computed
from mossjax.infer.generate import Generator
from mossjax.infer.sampling import Channel, Settings, row_keys
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds, concatenate, speech_rows, text_rows
from mossjax.models.lm.machine import CLEAN, UPSTREAM
from mossjax.models.lm.model import network
from mossjax.ops.attention import Mask

CONFIG = LMConfig(
    vocab_size=16, audio_vocab_size=14, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_shared_layers=2, num_modality_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, rms_norm_eps=1e-6, rope_theta=1e4, max_position_embeddings=200,
    modality_pad_token_id=12, sosp_token_id=11, eosp_token_id=10, audio_pad_token_id=5,
    eos_token_id=14, initializer_range=0.6,
)  # fmt: skip
IDS = GridIds(
    vocab=16, audio_vocab=14, sosp=11, speech=12, filler=5, eosp=10, pad=13, eos=14, stops=(13, 14)
)
NET = network(CONFIG)
GREEDY = Settings(Channel(repetition_penalty=1.3), Channel(repetition_penalty=1.2), 12, 3,
                  draw=sampling.greedy)  # fmt: skip
SAMPLED = dataclasses.replace(GREEDY, text=Channel(2.0, 9), audio=Channel(2.0, 9),
                              draw=sampling.sample)  # fmt: skip
RULES = pytest.mark.parametrize('rules', [CLEAN, UPSTREAM], ids=['clean', 'upstream'])


def random_params(net, stddev, seed):
    """Gaussian kernels from numpy: jax would compile a generator for each shape."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        scale = 1.0 if path[-1].key == 'scale' else stddev * rng.normal(size=x.shape)
        return jnp.broadcast_to(jnp.float32(scale), x.shape)

    return jax.tree_util.tree_map_with_path(draw, net.shapes)


@pytest.fixture(scope='module')
def params():
    return random_params(NET, 0.6, seed=7)


@pytest.fixture(scope='module')
def generators():
    return {rules: Generator(NET, CONFIG, IDS, rules) for rules in (CLEAN, UPSTREAM)}


def prompts(n=12, seed=0):
    """Text prompts and spoken ones, of different lengths, half of them asking for speech."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        parts = [text_rows(rng.integers(0, 11, rng.integers(1, 6)), IDS)]
        if i % 3:
            parts.append(speech_rows(rng.integers(0, 10, rng.integers(1, 6)), IDS))
            parts.append(text_rows(rng.integers(0, 11, 2), IDS))
        if i % 2:
            parts.append(text_rows([IDS.sosp], IDS))
        made.append(concatenate(parts))
    return made


@jax.jit
def forward(params, tokens):
    t = tokens.shape[1]
    return NET.bind(params)(tokens, jnp.arange(t)[None], Mask(causal=True))


def penalised(scores, history, penalty):
    for i in set(history):
        scores[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty


def recomputed(params, prompt, upstream, settings=GREEDY):
    """One greedy reply, written without the state machine: ifs, lists, float64."""
    rows = [tuple(map(int, row)) for row in prompt]
    start = len(rows)
    speaking = False  # no prompt here ends inside speech
    history = ([t for t, _ in rows], [a for _, a in rows]) if upstream else ([], [])
    for k in range(1, settings.max_new_tokens + 1):
        t, a = rows[-1]
        if upstream:
            if not speaking and t == 11:
                speaking = True
            if speaking and a == 10:
                speaking = False
        else:
            speaking = t == 11 or (t == 12 and a != 10)
        padded = np.zeros((1, 40, 2), np.int32)  # causal: what comes after is not seen
        padded[0, : len(rows)] = rows
        text, audio = (
            np.array(x[0, len(rows) - 1], np.float64) for x in forward(params, padded)
        )
        audio[11:] = -np.inf
        if k < settings.min_new_tokens:
            audio[10] = -np.inf
        if not upstream and not speaking:
            text[12] = -np.inf
        penalised(text, history[0], settings.text.repetition_penalty)
        penalised(audio, history[1], settings.audio.repetition_penalty)
        if k <= settings.min_new_tokens:
            text[[14] if upstream else [13, 14]] = -np.inf
        word, code = int(np.argmax(text)), int(np.argmax(audio))
        if speaking:
            word = 12
            if not upstream and k == settings.max_new_tokens:
                code = 10
        elif not upstream:
            code = 5
        rows.append((word, code))
        if word in (13, 14):
            return np.array(rows[start:]), 'stop'
        if upstream or (not speaking and word != 11):
            history[0].append(word)
        if upstream or (speaking and code != 10):
            history[1].append(code)
    return np.array(rows[start:]), 'length'


@RULES
def test_cached_loop_equals_recomputing_everything(params, generators, rules):
    asked = prompts()
    # upstream ends a batch with its first sample: one by one there
    groups = [asked] if rules is CLEAN else [[prompt] for prompt in asked]
    found = []
    for group in groups:
        found += generators[rules](params, group, GREEDY, row_keys(0, len(group)))
    expected = [recomputed(params, prompt, rules is UPSTREAM) for prompt in asked]
    for got, (grid, reason) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.grid, grid)
        assert got.reason == reason
    # the comparison went through all that can happen
    everything = np.concatenate([grid for grid, _ in expected])
    speech = everything[everything[:, 0] == 12]
    assert {reason for _, reason in expected} == {'stop', 'length'}
    assert {10} < set(speech[:, 1]) and (everything[:, 0] < 11).any()


def test_upstream_ends_the_batch_with_its_first_sample(params, generators):
    asked = prompts()
    alone = [recomputed(params, prompt, True) for prompt in asked]
    lengths = [len(grid) for grid, _ in alone]
    first = min((i for i in range(len(asked)) if alone[i][1] == 'stop'), key=lambda i: lengths[i])
    other = int(np.argmax(lengths))
    both = generators[UPSTREAM](params, [asked[first], asked[other]], GREEDY, row_keys(0, 2))
    assert lengths[first] < lengths[other]
    assert [g.reason for g in both] == ['stop', 'batch']
    np.testing.assert_array_equal(both[0].grid, alone[first][0])
    np.testing.assert_array_equal(both[1].grid, alone[other][0][: lengths[first]])


def test_a_sampled_row_of_a_batch_equals_the_row_alone(params, generators):
    settings = dataclasses.replace(SAMPLED, text=Channel(0.9, 9, 0.95, 1.1))
    asked, keys = prompts(4), row_keys(7, 4)
    together = generators[CLEAN](params, asked, settings, keys)
    for i, prompt in enumerate(asked):
        (alone,) = generators[CLEAN](params, [prompt], settings, keys[i : i + 1])
        np.testing.assert_array_equal(together[i].grid, alone.grid)
        assert together[i].reason == alone.reason
    other = generators[CLEAN](params, asked, settings, row_keys(8, 4))
    assert any(not np.array_equal(a.grid, b.grid) for a, b in zip(together, other, strict=True))


def test_steps_draw_independently(params, generators):
    """With every logit the same, a draw shared by the steps would repeat one word for ever."""
    flat = {**params, 'text_head': jax.tree.map(jnp.zeros_like, params['text_head'])}
    asked = [p for p in prompts() if p[-1, 0] != IDS.sosp][:4]
    settings = dataclasses.replace(SAMPLED, text=Channel(), min_new_tokens=12)
    for reply in generators[CLEAN](flat, asked, settings, row_keys(0, 4), [False] * 4):
        assert len(set(reply.grid[:, 0])) > 4  # of 12 draws from 12 words


@pytest.mark.parametrize('channel, spoken', [('text', False), ('audio', True)])
def test_each_channel_has_its_own_settings(params, generators, channel, spoken):
    """top_p near 0 on one channel makes that one greedy, the other one stays hot."""
    only_best = dataclasses.replace(SAMPLED, **{channel: Channel(2.0, 9, 1e-6)})
    greedy = dataclasses.replace(GREEDY, text=Channel(), audio=Channel())
    asked = [p for p in prompts() if (p[-1, 0] == IDS.sosp) == spoken]
    asked, keys = asked[:4], row_keys(0, 4)
    generate = generators[CLEAN]
    hot, cold, best = (
        [first_run(g.grid, spoken) for g in generate(params, asked, settings, keys, [False] * 4)]
        for settings in (SAMPLED, only_best, greedy)
    )
    for a, b in zip(cold, best, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(hot, best, strict=True))


def first_run(grid, spoken):
    """The rows before the channel changes."""
    changed = (grid[:, 0] == IDS.speech) != spoken
    return grid[: int(np.argmax(changed)) if changed.any() else len(grid)]


def test_speech_does_not_pass_through_text(params, generators):
    """With the text branch silenced, codes up to the end of speech are the same."""
    silent = {**params, 'text_branch': jax.tree.map(jnp.zeros_like, params['text_branch'])}
    silent['text_head'] = jax.tree.map(jnp.zeros_like, params['text_head'])
    asked = [prompt for prompt in prompts() if prompt[-1, 0] == IDS.sosp]
    keys = row_keys(0, len(asked))
    heard = [generators[CLEAN](p, asked, GREEDY, keys) for p in (params, silent)]
    for whole, without in zip(*heard, strict=True):
        n = int(np.argmin(whole.grid[:, 0] == IDS.speech)) or len(whole.grid)
        assert n > 2
        np.testing.assert_array_equal(whole.grid[:n], without.grid[:n])


def test_the_channel_that_is_not_chosen_does_not_matter(params, generators):
    asked = prompts()
    junk = [prompt.copy() for prompt in asked]
    for prompt in junk:
        text = prompt[:, 0] != IDS.speech
        prompt[text, 1] = np.arange(text.sum()) % 10
    keys = row_keys(0, len(asked))
    plain, changed = (generators[CLEAN](params, p, GREEDY, keys) for p in (asked, junk))
    for a, b in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(a.grid, b.grid)


def test_embedding_choice(params):
    """Speech rows (eosp too) use the audio table, all others (sosp too) the text table."""
    rows = jnp.array([[(3, 5), (IDS.sosp, 5), (IDS.speech, 5), (IDS.speech, IDS.eosp)]])
    text, audio = params['text_embed']['table'], params['audio_embed']['table']
    np.testing.assert_array_equal(
        NET.bind(params).embed(rows)[0], [text[3], text[IDS.sosp], audio[5], audio[IDS.eosp]]
    )


def test_text_replies_can_be_kept_from_speaking(params, generators):
    # a model that always wants to speak
    head = params['text_head']['kernel']
    loud = {**params, 'text_head': {'kernel': head.at[:, IDS.sosp].set(head[:, 3] * 9)}}
    asked, keys = prompts(), row_keys(0, 12)
    free = generators[CLEAN](loud, asked, GREEDY, keys)
    kept = generators[CLEAN](loud, asked, GREEDY, keys, [False] * 12)
    assert any((g.grid[:, 0] == IDS.sosp).any() for g in free)
    assert not any((g.grid[:, 0] == IDS.sosp).any() for g in kept)


def test_lengths_share_a_compilation(params):
    generator = Generator(NET, CONFIG, IDS)
    for prompt, settings in (
        (prompts(1)[0], GREEDY),
        (text_rows([1] * 60, IDS), dataclasses.replace(GREEDY, max_new_tokens=5)),
    ):
        generator(params, [prompt], settings, row_keys(0, 1))
    assert generator.programs.read._cache_size() == 1
    assert generator.programs.advance._cache_size() == 1


def test_replies_stay_within_the_positions_of_the_model(params, generators):
    settings = dataclasses.replace(GREEDY, max_new_tokens=30)
    (whole,) = generators[CLEAN](params, [text_rows([1] * 170, IDS)], settings, row_keys(0, 1))
    grid, _ = whole.grid, whole.reason
    assert len(grid) <= 30
    with pytest.raises(InputError, match='200 positions'):
        generators[CLEAN](params, [text_rows([1] * 171, IDS)], settings, row_keys(0, 1))


@pytest.mark.parametrize(
    'asked, keys, word', [([], 0, 'prompt'), ([np.zeros((0, 2), np.int32)], 1, 'at least one row')]
)
def test_bad_calls_are_refused(params, generators, asked, keys, word):
    with pytest.raises(InputError, match=word):
        generators[CLEAN](params, asked, GREEDY, row_keys(0, keys))


def test_one_key_a_prompt(params, generators):
    with pytest.raises(InputError, match='2 prompts need as many keys, got 1'):
        generators[CLEAN](params, prompts(2), GREEDY, row_keys(0, 1))


def test_the_released_ids_on_a_narrow_model():
    config = dataclasses.replace(
        LMConfig.released(), hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_shared_layers=1, num_modality_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8,
    )  # fmt: skip
    ids = GridIds(
        vocab=config.vocab_size, audio_vocab=config.audio_vocab_size, sosp=config.sosp_token_id,
        speech=config.modality_pad_token_id, filler=config.audio_pad_token_id,
        eosp=config.eosp_token_id, pad=151643, eos=config.eos_token_id, stops=(151643, 151645),
    )  # fmt: skip
    net = network(config)
    params = random_params(net, 0.02, seed=1)
    # the head is loudest on an id that no codec has
    kernel = params['audio_head']['kernel']
    params['audio_head']['kernel'] = kernel.at[:, 16400].set(kernel[:, 77] * 3)
    prompt = text_rows([151644, 77091, 198, 151646], ids)
    settings = dataclasses.replace(GREEDY, max_new_tokens=6, min_new_tokens=6)
    (reply,) = Generator(net, config, ids)(params, [prompt], settings, row_keys(0, 1))
    np.testing.assert_array_equal(reply.grid[:, 0], [151667] * 6)
    assert reply.grid[:5, 1].max() < 16384 and reply.grid[5, 1] == 16384


@pytest.fixture
def ctrl_c():
    """Raises, also in a suite that was started in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_waiting_for_a_reply_can_be_interrupted(ctrl_c):
    class Never:
        """A result that is not ready when Ctrl-C is typed, and never will be."""

        def is_ready(self):
            signal.raise_signal(signal.SIGINT)
            return False

    with pytest.raises(KeyboardInterrupt):
        computed([jnp.zeros(3), Never()])
    np.testing.assert_array_equal(computed(jnp.arange(3) + 1), [1, 2, 3])
