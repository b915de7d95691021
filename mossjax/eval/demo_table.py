"""The figures of a tour: every line is computed from single answers and explains itself."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from mossjax.eval.demo import MODES, Answer
from mossjax.eval.spoken_qa import TOO_LONG, Row, row, shuffled
from mossjax.infer.assets import HELDOUT, NEVER_SPOKEN

ENOUGH = 100  # questions below which a gate on them is not judged
MET, NOT_MET, TOO_FEW = 'met', 'NOT MET', 'too few'
# Of report.json, that train: the codec, then the language model.
STAGES = (
    'tokenizer', 'vocoder_mel', 'vocoder', 'speaker', 'decoder', 'text_lm', 'stage1', 'stage2',
    'sft',
)  # fmt: skip
SECTIONS = {
    HELDOUT: 'Facts heard in training; questions in renderings that no training used',
    NEVER_SPOKEN: 'Facts that no training audio ever asked, known from text alone (not gated)',
    'judge': 'What the judge makes of recordings, of silence, of questions',
}
MEANINGS = {
    'speech to speech': 'spoken question, the judge hears the right answer',
    'speech to text': 'spoken question, exactly the right words',
    'text to speech': 'written question, the judge hears the right answer',
    'text to text': 'written question, exactly the right words',
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """A bound on a score, in the direction that `sign` says, over at least `enough` cases."""

    sign: str  # '>=' or '<='
    bound: float
    enough: int = ENOUGH

    def verdict(self, score: float, count: int) -> str:
        good = score >= self.bound if self.sign == '>=' else score <= self.bound
        return TOO_FEW if count < self.enough else MET if good else NOT_MET

    def __str__(self) -> str:
        return f'{self.sign} {100 * self.bound:g}%'


GATES = {
    (HELDOUT, 'speech to speech'): Gate('>=', 0.90),
    (HELDOUT, 'speech to text'): Gate('>=', 0.92),
    (HELDOUT, 'text to speech'): Gate('>=', 0.95),
    (HELDOUT, 'text to text'): Gate('>=', 0.98),
    (HELDOUT, 'shuffled'): Gate('<=', 0.10),
    ('judge', 'source'): Gate('>=', 0.98),
    ('judge', 'reconstructed'): Gate('>=', 0.95),
    ('judge', 'silence'): Gate('<=', 0.0, enough=1),
    ('judge', 'questions'): Gate('<=', 0.02),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table; gate and verdict are '' where there is none."""

    section: str
    row: Row
    gate: str
    verdict: str


def lines(answers: Sequence[Answer], controls: dict[str, list[dict]]) -> list[Line]:
    """Every figure of a tour."""
    found = []
    for split in (HELDOUT, NEVER_SPOKEN):
        own = [a for a in answers if a.split == split]
        found += [_line(split, r) for r in _rows(own, controls['source'])] if own else []
    return found + [_line('judge', r) for r in _control_rows(controls)]


def all_met(found: Sequence[Line]) -> bool:
    """Whether every gate is met; one that could not be judged is not."""
    return all(line.verdict == MET for line in found if line.gate)


def _line(section: str, r: Row) -> Line:
    gate = GATES.get((section, r.name))
    if gate is None:
        return Line(section, r, '', '')
    return Line(section, r, str(gate), gate.verdict(r.score, r.count))


def _rows(answers: list[Answer], sources: list[dict]) -> list[Row]:
    """Rows of one split: the modes, chance, and the form of spoken replies."""
    rows = []
    for mode in MODES:
        own = [a.right for a in answers if a.mode == mode]
        rows.append(row(mode, sum(own), len(own), MEANINGS[mode]))
    first = [a for a in answers if a.mode == 'speech to speech']
    chance = shuffled([a.heard for a in first], [a.expected for a in first]) * len(first)
    dealt = 'speech to speech, replies dealt to other questions'
    rows.append(row('shuffled', chance, len(first), dealt))
    seconds = {source['word']: source['seconds'] for source in sources}
    spoken = [a for a in answers if MODES[a.mode][1] == 'audio']
    ratios = [a.seconds / seconds[a.expected] for a in spoken]
    meaning = f'over {TOO_LONG} x the recorded answer; median {np.median(ratios):.2f} x'
    rows.append(row('too long', sum(r > TOO_LONG for r in ratios), len(ratios), meaning))
    endless = sum(a.reason == 'length' for a in answers)
    rows.append(row('unfinished', endless, len(answers), 'replies cut at the length limit'))
    return rows


def _control_rows(controls: dict[str, list[dict]]) -> list[Row]:
    rows = []
    for name, meaning in (
        ('source', 'recorded answers heard right'),
        ('reconstructed', 'the same after speech codes and back'),
    ):
        hits = sum(verdict['heard'] == verdict['word'] for verdict in controls[name])
        rows.append(row(name, hits, len(controls[name]), meaning))
    for name, meaning in (
        ('silence', 'silence taken for an answer'),
        ('questions', 'questions taken for an answer'),
    ):
        hits = sum(verdict['heard'] is not None for verdict in controls[name])
        rows.append(row(name, hits, len(controls[name]), meaning))
    return rows


def figures(found: Sequence[Line]) -> list[dict]:
    """The lines as plain data."""
    return [
        {'section': x.section, **dataclasses.asdict(x.row), 'gate': x.gate, 'verdict': x.verdict}
        for x in found
    ]


# -------------------------------------------------------------------------------------- as text


def table(found: Sequence[Line]) -> str:
    """The lines as text, section by section."""
    width = max(len(line.row.name) for line in found)
    head = f'{"":{width + 2}} score  95% interval   count  gate            meaning'
    text = []
    for section, title in SECTIONS.items():
        own = [line for line in found if line.section == section]
        text += ['', title, head] if own else []
        text += [_text(line, width) for line in own]
    return '\n'.join(text[1:])


def _text(line: Line, width: int) -> str:
    r = line.row
    interval = f'{100 * r.low:5.1f} - {100 * r.high:5.1f}'
    gate = f'{line.gate} {line.verdict}'
    return (
        f'  {r.name:{width}}{100 * r.score:5.1f}%  {interval}  {r.count:5d}  {gate:15} {r.meaning}'
    )


def stages(report: dict) -> str:
    """The training as its run recorded it, with the text accuracy before and after each stage."""
    recorded = {name: report['stages'][name] for name in STAGES if name in report['stages']}
    if not recorded:
        return ''
    width = max(map(len, recorded))
    text = [
        'Training as recorded: text to text over all facts, before and after each stage',
        f'{"":{width + 2}}before   after  never spoken   steps  minutes  config        ',
    ]
    before = None
    for name, facts in recorded.items():
        after = facts.get('text_accuracy', {})
        shares = (before if after else None, after.get('all'), after.get('never_spoken'))
        first, second, third = map(_share, shares)
        same = '  text logits unchanged to the bit' if facts.get('text_logits_identical') else ''
        config = str(facts.get('config_sha256', ''))[:12]
        minutes = f'{facts["seconds"] / 60:.0f}' if 'seconds' in facts else '-'
        text.append(
            f'  {name:{width}}{first:>6}  {second:>6}  {third:>12}  {facts.get("steps", "-"):>6}'
            f'  {minutes:>7}  {config}{same}'
        )
        before = after.get('all', before)
    return '\n'.join(line.rstrip() for line in text)


def _share(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f}%'
