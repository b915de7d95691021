"""An independent judge: pocketsphinx listens to a reply with a closed grammar.

The grammar has two branches, "the answer is X" for a closed list of X, and everything else that
might be said (the questions, other words). The second branch is what makes the first one mean
something: with the answers alone, every spoken sentence comes back as some answer, so that a
model which parrots the question scores by luck.

Four settings are deliberate. The beams are pocketsphinx's own (wider ones hear worse), the
grammar has no optional parts, the running cepstral mean is put back to its first value before
each recording, so that a verdict does not depend on what was judged before, and the silence
around the speech is cut to one length: the mean is taken over it too, and 0.4 s more of it cost
up to four answers in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os

import numpy as np

from mossjax.errors import InputError
from mossjax.ops.resample import resample

RATE = 16_000
PEAK = 12_000  # of int16; levels the recordings
QUIET = 0.15  # seconds of the recording kept before and after the speech in it
PADDING = 0.05  # seconds of faint noise on both sides, so that the recogniser finds its silence
FLOOR = 0.01  # of the loudest 10 ms; what is below at the ends is no speech
SENTENCE = 'the answer is {}'
BATCH = 64  # below this many recordings a second process costs more than it brings


class Judge:
    """Hears replies. One instance holds one recogniser and is not shared between threads.

    Args:
      answers: closed list of answer words or phrases X of "the answer is X".
      others: sentences of the competing branch: all questions, and any other words.

    Raises:
      InputError: pocketsphinx is missing, a list is empty, or a word is not in its dictionary.
    """

    def __init__(self, answers: Sequence[str], others: Sequence[str]):
        self.answers = tuple(dict.fromkeys(answers))
        self.others = tuple(dict.fromkeys(others))
        if not self.answers or not self.others:
            raise InputError(
                'the judge needs answers and, to compete with them, other sentences such as the '
                'questions; without them anything spoken is heard as an answer'
            )
        self._sentences = {SENTENCE.format(a): a for a in self.answers}
        self._decoder = _open_decoder()
        _check_words([*self._sentences, *self.others], self._decoder)
        self._decoder.add_jsgf_string('reply', _grammar(self._sentences, self.others))
        self._decoder.activate_search('reply')
        self._first_mean = self._decoder.get_cmn(False)

    def hear(self, wav: np.ndarray, rate: int) -> str:
        """The sentence of the grammar that was said, '' if none.

        Args:
          wav: float32 (w,) in [-1, 1] or int16 (w,).
          rate: samples per second, any.
        """
        samples = _prepare(wav, rate)
        if samples is None:
            return ''
        decoder = self._decoder
        decoder.set_cmn(self._first_mean)
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return '' if hypothesis is None else hypothesis.hypstr

    def answer(self, wav: np.ndarray, rate: int) -> str | None:
        """The word X of "the answer is X", None if anything else (or nothing) was said."""
        return self._sentences.get(self.hear(wav, rate))

    def answers_of(self, wavs: Iterable[np.ndarray], rate: int) -> list[str | None]:
        """`answer` for many recordings, in two processes when there are enough of them.

        The processes import the calling script anew: it needs its `__main__` guard.
        """
        wavs = list(wavs)
        workers = min(2, os.cpu_count() or 1)
        if len(wavs) < BATCH or workers < 2:
            return [self.answer(wav, rate) for wav in wavs]
        jobs = [(wav, rate) for wav in wavs]
        # Spawned: forking a process that has started jax can deadlock.
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context('spawn'),
            initializer=_start_worker,
            initargs=(self.answers, self.others),
        ) as pool:
            return list(pool.map(_work, jobs, chunksize=16))


_worker: Judge | None = None


def _start_worker(answers: Sequence[str], others: Sequence[str]) -> None:
    global _worker
    _worker = Judge(answers, others)


def _work(job: tuple[np.ndarray, int]) -> str | None:
    assert _worker is not None
    return _worker.answer(*job)


def _open_decoder():
    try:
        import pocketsphinx
    except ImportError as error:
        raise InputError(
            'the judge needs pocketsphinx, which is not installed; '
            'run: pip install mossjax[eval]'
        ) from error
    return pocketsphinx.Decoder(samprate=RATE, loglevel='FATAL', lm=None)


def _check_words(sentences: Iterable[str], decoder) -> None:
    words = {word for sentence in sentences for word in sentence.split()}
    missing = sorted(word for word in words if decoder.lookup_word(word) is None)
    if missing:
        raise InputError(
            f'the judge does not know how to pronounce {", ".join(map(repr, missing))}; choose '
            'lower-case words of the CMU dictionary (no digits, no punctuation)'
        )


def _grammar(answers: Iterable[str], others: Iterable[str]) -> str:
    return (
        '#JSGF V1.0;\ngrammar reply;\n'
        f'<answer> = {_shared(answers)};\n'
        f'<other> = {_shared(others)};\n'
        'public <reply> = <answer> | <other>;\n'
    )


def _shared(sentences: Iterable[str]) -> str:
    """The sentences as one expression that says a common beginning once.

    Written side by side, 350 questions are 350 paths that the recogniser follows at once.
    """
    tree: dict = {}
    for sentence in sentences:
        node = tree
        for word in sentence.split():
            node = node.setdefault(word, {})
        node[''] = {}

    def write(node: dict) -> str:
        branches = [f'{word} {write(below)}'.strip() for word, below in node.items() if word]
        if '' in node and branches:  # a sentence that begins another: both ends, no optional part
            branches.append('<NULL>')
        return branches[0] if len(branches) == 1 else f'({" | ".join(branches)})' * bool(branches)

    return write(tree)


def _prepare(wav: np.ndarray, rate: int) -> np.ndarray | None:
    """16 kHz int16 at a standard level between two stretches of faint noise; None if silent."""
    wav = np.asarray(wav)
    if wav.ndim != 1:
        raise InputError(f'the judge hears mono recordings of shape (samples,), not {wav.shape}')
    samples = wav.astype(np.float64) / (32768.0 if wav.dtype == np.int16 else 1.0)
    if not np.isfinite(samples).all():
        raise InputError('the recording to judge holds NaN or infinity; its decoder diverged')
    if len(samples):
        samples = resample(samples, rate, RATE)
    peak = np.abs(samples).max(initial=0.0)
    if peak < 1e-4:  # raising silence to full level would only amplify rounding
        return None
    samples = _trim(samples)
    noise = np.random.default_rng(0).normal(0.0, 3.0, 2 * int(PADDING * RATE))
    before, after = np.split(noise, 2)
    return np.concatenate([before, samples * (PEAK / peak), after]).round().astype(np.int16)


def _trim(samples: np.ndarray) -> np.ndarray:
    """Keeps QUIET seconds before and after the part louder than FLOOR."""
    size = RATE // 100
    whole = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
    loudness = np.sqrt(np.mean(whole**2, axis=1))
    loud = np.flatnonzero(loudness > FLOOR * loudness.max())
    kept = round(QUIET * RATE)
    return samples[max(0, loud[0] * size - kept) : (loud[-1] + 1) * size + kept]
