"""What crosses from text to speech: the table of what was tried, from crossing.json.

    python -m experiments.nano.crossing

A quarter of the facts is never spoken in the training audio of any network; the text model knows
them. How many of them are answered aloud when they are asked aloud, after the same recipe with one
thing changed? Each run goes through all stages of the language model (text, stage 1, stage 2, SFT)
on codes of the shipped tokenizer. A reply counts if it is exactly the right one, as in `measure`:
its codes are those of the recorded answer, or its words are right.

Intervals are Wilson's over all questions of all seeds. Questions about one fact (four voices, two
rates) and seeds on one set of facts are not independent, so they are too narrow: read them beside
the seeds. What the record calls not finished was stopped in its last stage and says nothing.

Rows of 'all at once' that `examples` does not make; none has a withheld fact in speech:

    partly written  a question about a spoken fact, or a recording to be written down: a share of
                    words drawn from 0.2 to 0.9 is spoken, each word as the codes between its
                    borders, neighbours as one stretch; and replies that change between writing
                    and speech at one word
    silent targets  text targets on rows of speech: each word of the question one row after its
                    last code, and on every row of a reply the word of the code that comes next
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from mossjax.eval.spoken_qa import wilson
from mossjax.files import read_json

RECORD = Path(__file__).with_name('crossing.json')
ASKED = 's2s'  # what lines are sorted by
MODES = {
    's2s': 'speech to speech', 's2t': 'speech to text', 't2s': 'text to speech',
    'asr': 'transcribed',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Line:
    """One variant.

    Attributes:
      shares: 'split/mode' -> share right of each seed, the splits 'heldout' and 'never_spoken'.
      share, low, high: of never-spoken facts in speech to speech, all seeds together.
    """

    name: str
    change: str
    shares: dict[str, list[float]]
    share: float
    low: float
    high: float


def lines(record: dict) -> list[Line]:
    """The variants, best first."""
    found = []
    for variant in record['variants']:
        scores = variant['right']
        shares = {key: [hits / count for hits, count in each] for key, each in scores.items()}
        hits, count = map(sum, zip(*scores[f'never_spoken/{ASKED}'], strict=True))
        found.append(
            Line(variant['name'], variant['change'], shares, hits / count, *wilson(hits, count))
        )
    return sorted(found, key=lambda line: -line.share)


def table(found: Sequence[Line]) -> str:
    """The lines as Markdown, percent; seeds are separated by a slash."""
    text = [
        '| change | ' + ' | '.join(f'never spoken, {mode}' for mode in MODES.values())
        + ' | 95 % of the first | heldout, speech to speech |',
        '|' + ' --- |' * (len(MODES) + 3),
    ]  # fmt: skip
    for line in found:
        cells = [_each(line.shares[f'never_spoken/{mode}']) for mode in MODES]
        cells += [f'{100 * line.low:.0f} to {100 * line.high:.0f}']
        cells += [_each(line.shares[f'heldout/{ASKED}'])]
        text.append(f'| {line.change} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(text)


def _each(shares: Sequence[float]) -> str:
    return ' / '.join(f'{100 * share:.0f}' for share in shares)


if __name__ == '__main__':
    print(table(lines(read_json(RECORD))))
