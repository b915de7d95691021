"""Recordings to codes: recorded ids, counts, and independence of batch and padding."""

import pathlib
import shutil

import numpy as np
import pytest

from mossjax.errors import InputError
from mossjax.infer import fit
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.models.tokenizer import quantizer
from mossjax.nn.param import Apart

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/tokenizer'
CASES = ('synth', 'speech_cn', 'batch', 'edge_silence', 'edge_one_sample', 'edge_loud_then_quiet',
         'edge_clip')  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    root = tmp_path_factory.mktemp('codec')
    for source, name in (
        ('small_config.json', 'config.json'), ('small_model.safetensors', 'model.safetensors'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
    ):
        shutil.copyfile(GOLDEN / source, root / name)
    return SpeechTokenizer.open(root)


def recordings(golden):
    """(wavs, ids) of all recorded cases, one list."""
    wavs, ids = [], []
    for case in CASES:
        recorded = golden(f'tokenizer/small_{case}.npz')
        for i in range(len(recorded['wav_lengths'])):
            wavs.append(recorded[f'wav{i}_i16'].astype(np.float32) / 32768)
            ids.append(recorded[f'tokens{i}'])
    return wavs, ids


@pytest.fixture(scope='module')
def encoded(tokenizer, golden):
    """Everything at once, the 37 s recording included: (wavs, upstream's ids, ours)."""
    wavs, ids = recordings(golden)
    long = golden('tokenizer/small_long.npz')
    wavs.append(long['wav_i16'].astype(np.float32) / 32768)
    ids.append(long['tokens'])
    return wavs, ids, tokenizer.encode(wavs)


def test_all_ids_equal_upstreams(encoded):
    for wav, wanted, ours in zip(*encoded, strict=True):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, wanted, err_msg=f'{len(wav)} samples')


def test_layers_held_apart_are_the_same_layers(tokenizer, golden, monkeypatch):
    recorded = golden('tokenizer/small_speech_cn.npz')
    wav, wanted = recorded['wav0_i16'].astype(np.float32) / 32768, recorded['tokens0']
    monkeypatch.setattr(fit, 'APART', 0)
    held = SpeechTokenizer(tokenizer.config, tokenizer.params)
    kernel = held.params['encoder']['layers']['up']['kernel']
    assert isinstance(kernel, Apart) and len(kernel.layers) == tokenizer.config.layers
    np.testing.assert_array_equal(held.encode([wav])[0], wanted)
    known = [held.maxima(wav)]
    codes = held.stream(known=known).feed({0: wav}, ending=[0])[0]
    np.testing.assert_array_equal(codes, wanted)


def test_a_changed_distance_is_noticed(tokenizer, golden, monkeypatch):
    """The recorded ids tell squared distance from its relatives."""
    recorded = golden('tokenizer/small_speech_cn.npz')
    wav, wanted = recorded['wav0_i16'].astype(np.float32) / 32768, recorded['tokens0']
    right = quantizer.distances
    wrong = {
        'inner product': lambda p, codes: -(p @ codes.T),
        'no code norm': lambda p, codes: -2.0 * (p @ codes.T) + (p**2).sum(-1, keepdims=True),
        'half the product': lambda p, codes: right(p, codes) + p @ codes.T,
        'absolute': lambda p, codes: abs(p[..., None, :] - codes).sum(-1),
    }
    for name, distance in wrong.items():
        monkeypatch.setattr(quantizer, 'distances', distance)
        ours = SpeechTokenizer(tokenizer.config, tokenizer.params).encode([wav])[0]
        assert (ours != wanted).any(), name


def test_ids_do_not_depend_on_the_batch(encoded, tokenizer):
    """Alone, in another order, and in another batch: the same ids."""
    wavs, _, together = encoded
    order = [11, 3, 7, 4]
    mixed = tokenizer.encode([wavs[i] for i in order])
    for i, ids in zip(order, mixed, strict=True):
        np.testing.assert_array_equal(ids, together[i])
    for i in (3, 5):
        np.testing.assert_array_equal(tokenizer.encode([wavs[i]])[0], together[i])


def test_the_loudest_frame_at_the_very_end(tokenizer, rng):
    """Where the dynamic range hangs on the last frame, padding must not change what it sees."""
    wav = 1e-4 * rng.normal(size=10 * 1280).astype(np.float32)
    wav[-60:] = rng.normal(size=60)
    alone = tokenizer._run(tokenizer.params, wav[None], np.array([10], np.int32))[0]
    np.testing.assert_array_equal(tokenizer.encode([wav])[0], np.asarray(alone))


def test_counts(tokenizer, rng):
    """Exactly ceil(samples / 1280), around every border; also two pieces and nothing."""
    lengths = [0, 1, 1279, 1280, 1281, 2561, *rng.integers(1, 20000, 4), 480001]
    noise = 0.1 * rng.normal(size=480001).astype(np.float32)
    codes = tokenizer.encode([noise[:n] for n in lengths])
    assert [len(c) for c in codes] == [-(-n // 1280) for n in lengths]
    assert all(c.dtype == np.int32 and (c >= 0).all() and (c < 64).all() for c in codes)
    # One sample behind the cut is a piece of its own.
    np.testing.assert_array_equal(codes[-1][375:], tokenizer.encode([noise[480000:]])[0])
    assert tokenizer.encode([]) == []


@pytest.mark.parametrize(
    'bad', [np.zeros((2, 1280), np.float32), np.zeros(1280, np.int16), np.full(9, np.nan)]
)
def test_refuses_what_is_not_mono_float_audio(tokenizer, bad):
    with pytest.raises(InputError, match='recording 1'):
        tokenizer.encode([np.zeros(1280, np.float32), bad])


def arrivals(rng, wav):
    """The same sound in pieces of 1 to 5000 samples, some of none."""
    cuts = np.cumsum(rng.integers(0, 5001, 2 * len(wav) // 2500))
    return np.split(wav, cuts[cuts < len(wav)])


def test_codes_of_a_stream_whose_maxima_are_known_are_upstreams(encoded, tokenizer, rng):
    """Two sessions side by side: 37 s at once, and 6 s in pieces of any length."""
    wavs, wanted, _ = encoded
    other = max(range(len(wavs) - 1), key=lambda i: len(wavs[i]))
    known = [tokenizer.maxima(wavs[i]) for i in (-1, other)]
    assert [len(peaks) for peaks in known] == [2, 1]
    sessions = tokenizer.stream(2, known=known)
    whole = sessions.feed({0: wavs[-1]}, ending=[0])[0]
    np.testing.assert_array_equal(whole, wanted[-1])
    parts = [sessions.feed({1: piece})[1] for piece in arrivals(rng, wavs[other])]
    at = np.cumsum([len(part) for part in parts])
    sent = np.cumsum([len(piece) for piece in arrivals(np.random.default_rng(0), wavs[other])])
    np.testing.assert_array_equal(at, sent // 1280)  # every code as soon as its 80 ms are there
    found = np.concatenate([*parts, sessions.feed({}, ending=[1])[1]])
    np.testing.assert_array_equal(found, wanted[other])


def test_codes_of_a_stream_with_a_running_maximum(encoded, tokenizer, rng):
    """As many, the same for any arrival, and most of them those of the whole recording.

    Speech that gets louder all the time, the worst case.
    """
    wav = encoded[0][-1][: 12 * 16000]
    wav = wav * np.geomspace(1e-4, 1, len(wav), dtype=np.float32)
    wanted = tokenizer.encode([wav])[0]
    sessions = tokenizer.stream(2)
    whole = sessions.feed({0: wav}, ending=[0])[0]
    parts = [sessions.feed({1: piece})[1] for piece in arrivals(rng, wav)]
    found = np.concatenate([*parts, sessions.feed({}, ending=[1])[1]])
    assert len(found) == len(wanted) == 150
    np.testing.assert_array_equal(found, whole)
    share = np.mean(found == wanted)
    print(f'{share:.0%} of the codes are those of the whole recording')
    assert 0.5 < share < 1
