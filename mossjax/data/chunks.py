"""Stretches of speech and their words: cutting recordings at word borders, disturbing codes."""

import numpy as np

from mossjax.data.manifest import Labels

CODES_PER_SECOND = 12.5

Chunk = tuple[str, np.ndarray]  # the words of a stretch of speech and its codes


def chunks_at_words(
    words: Labels,
    codes: np.ndarray,
    rng: np.random.Generator,
    seconds: tuple[float, float] = (3.0, 6.0),
    offset: float = 0.0,
    text: str = '',
) -> list[Chunk]:
    """Cuts a recording at word borders into chunks for `interleaved`.

    Each chunk's length is drawn from `seconds` and ends at the first word border at or after it;
    the last may be shorter. The silence around words goes with its neighbours.

    Args:
      words: ((word, end in seconds), ...); a word may also be a phrase.
      codes: (n,) of the whole recording, 12.5 a second.
      offset: seconds of silence the codes have before the recording starts.
      text: of the recording; chunks are written as it has them where all words are found in it,
        and otherwise as the words with spaces between.
    """
    chunks: list[Chunk] = []
    written = _as_written(words, text)
    said: list[str] = []
    start = 0
    wanted = rng.uniform(*seconds)
    begin = 0.0
    for i, border in enumerate(word_borders(words, len(codes), offset)):
        said.append(written[i])
        end, last = words[i][1], i == len(words) - 1
        if border > start and (last or end - begin >= wanted):
            chunks.append((''.join(said).strip(), np.asarray(codes[start:border])))
            said, start, begin, wanted = [], border, end, rng.uniform(*seconds)
    return chunks


def word_borders(words: Labels, size: int, offset: float = 0.0) -> list[int]:
    """For each word, how many of `size` codes have passed at its end; all of them at the last."""
    ends = [round((end + offset) * CODES_PER_SECOND) for _, end in words]
    return [*(min(end, size - 1) for end in ends[:-1]), size][: len(words)]


def _as_written(words: Labels, text: str) -> list[str]:
    """Each word with what the text has around it (case, punctuation, spaces or none of them)."""
    lower = text.lower()
    starts, at = [], 0
    for word, _ in words:
        start = lower.find(word.strip().lower(), at)
        if start < 0 or any(x.isalnum() for x in lower[at:start]):
            break
        starts.append(start)
        at = start + len(word.strip())
    whole = len(starts) == len(words) and not any(x.isalnum() for x in lower[at:])
    if not words or not whole or len(lower) != len(text):
        return [f'{word.strip()} ' if word.strip() else '' for word, _ in words]
    stops = [*starts[1:], len(text)]
    return [text[a:b] for a, b in zip([0, *starts[1:]], stops, strict=True)]


def corrupt_codes(
    codes: np.ndarray, rng: np.random.Generator, fraction: float, size: int
) -> np.ndarray:
    """Replaces a fraction of codes (n,) by uniform draws from [0, size): noise for inputs."""
    codes = np.array(codes, np.int32)
    wrong = rng.random(len(codes)) < fraction
    codes[wrong] = rng.integers(0, size, int(wrong.sum()))
    return codes
