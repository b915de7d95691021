"""Chunks are written as the text has them: case, punctuation, spaces or none."""

import numpy as np
import pytest

from mossjax.data.chunks import chunks_at_words, word_borders


def written(text, *words, rng=None):
    """The chunks of one word each."""
    ends = tuple((word, 0.16 * (i + 1)) for i, word in enumerate(words))
    codes = np.arange(2 * len(words))
    rng = rng or np.random.default_rng(0)
    found = chunks_at_words(ends, codes, rng, (0.1, 0.1), text=text)
    assert [len(c) for _, c in found] == [2] * len(words)
    return [text for text, _ in found]


@pytest.mark.parametrize('text, words, want', [
    ('"Oh, is it?" she said.', ['oh', 'is', 'it', 'she', 'said'],
     ['"Oh,', 'is', 'it?"', 'she', 'said.']),
    ('今天天气', ['今天', '天气'], ['今天', '天气']),  # no spaces come in
    ('It is', [' It', ' is'], ['It', 'is']),  # words as recognisers write them
    ('twenty-one', ['twenty', 'one'], ['twenty-', 'one']),
    # Not the same words: the words it is.
    ('it was', ['it', 'is'], ['it', 'is']),
    ('it really is', ['it', 'is'], ['it', 'is']),
    ('it is not', ['it', 'is'], ['it', 'is']),
    ('', ['it', 'is'], ['it', 'is']),
])  # fmt: skip
def test_chunks_as_the_text_has_them(text, words, want):
    assert written(text, *words) == want


def test_borders_are_codes_and_the_last_word_takes_the_rest():
    words = (('a', 0.16), ('b', 9.0), ('c', 9.1))
    assert word_borders(words, 10) == [2, 9, 10]
    assert word_borders(words, 10, offset=0.08) == [3, 9, 10]
    assert word_borders((), 10) == []
