"""The nano world: some 350 short facts, and the quarter of them that is never spoken.

A fact is a question of four to seven words and one answer word from a closed list. The families
share entities (numbers, animals, countries, ...), so that most words are met in several
questions: hearing, not knowing, is the bottleneck of small speech models. Every family has its
own opening, and sums have two, because a causal recogniser that sees nine sentences in ten begin
with the same word learns to guess the opening instead of hearing it.

A quarter of **every** family is never spoken in any training audio, although the text model learns
it. Such a fact is answerable by ear in principle: every word of the question is heard in at least
two spoken facts, one of them in a question, and its answer is the answer of another spoken fact
(`check_split`).

The answer list was chosen by playing it to the judge (`python -m experiments.nano.ceiling`),
from recordings and after Griffin-Lim, before any training.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import random

from mossjax.errors import InputError

SEED = 2510
NEVER_SPOKEN = 0.25

NUMBERS = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen '
    'fifteen sixteen seventeen eighteen nineteen twenty'
).split()
DAYS = 'monday tuesday wednesday thursday friday saturday sunday'.split()
MONTHS = (
    'january february march april may june july august september october november december'
).split()
# (quality, something that has it); neighbours in the table are opposites of each other.
QUALITIES = [
    (('bright', 'sun'), ('dark', 'night')),
    (('big', 'elephant'), ('small', 'ant')),
    (('fast', 'horse'), ('slow', 'snail')),
    (('wet', 'ocean'), ('dry', 'desert')),
    (('wild', 'lion'), ('tame', 'cow')),
    (('sweet', 'sugar'), ('sour', 'lemon')),
    (('dangerous', 'shark'), ('harmless', 'penguin')),
    (('noisy', 'jungle'), ('silent', 'snake')),
]
# animal: legs, home, food
ANIMALS = {
    'cow': ('four', 'farm', 'grass'),
    'horse': ('four', 'farm', 'grass'),
    'camel': ('four', 'desert', 'grass'),
    'elephant': ('four', 'jungle', 'leaves'),
    'lion': ('four', 'jungle', 'meat'),
    'eagle': ('two', 'mountain', 'meat'),
    'penguin': ('two', 'ocean', 'shrimp'),
    'shark': ('zero', 'ocean', 'shrimp'),
    'snake': ('zero', 'desert', 'meat'),
    'spider': ('eight', 'garden', 'insects'),
    'ant': ('six', 'garden', 'sugar'),
    'snail': ('zero', 'garden', 'leaves'),
}
# country: capital, continent, language
COUNTRIES = {
    'spain': ('madrid', 'europe', 'spanish'),
    'cuba': ('havana', 'america', 'spanish'),
    'germany': ('berlin', 'europe', 'german'),
    'austria': ('vienna', 'europe', 'german'),
    'egypt': ('cairo', 'africa', 'arabic'),
    'iraq': ('baghdad', 'asia', 'arabic'),
    'portugal': ('lisbon', 'europe', 'portuguese'),
    'angola': ('luanda', 'africa', 'portuguese'),
    'england': ('london', 'europe', 'english'),
    'canada': ('ottawa', 'america', 'english'),
    'japan': ('tokyo', 'asia', 'japanese'),
    'china': ('beijing', 'asia', 'chinese'),
}


@dataclass(frozen=True)
class Fact:
    """One fact. `spoken` is False when no training audio of any network may say the question."""

    id: int
    family: str
    question: str
    answer: str
    spoken: bool = True

    @property
    def sentence(self) -> str:
        """What a reply says, in text and in speech."""
        return f'the answer is {self.answer}'


def _sums() -> Iterator[tuple[str, str]]:
    for a in range(10):
        for b in range(10):
            opening = 'what is' if a <= b else 'how much is'
            yield f'{opening} {NUMBERS[a]} plus {NUMBERS[b]}', NUMBERS[a + b]


def _differences() -> Iterator[tuple[str, str]]:
    for a in range(10):
        for b in range(a + 1):
            yield f'tell me {NUMBERS[a]} minus {NUMBERS[b]}', NUMBERS[a - b]


def _neighbours() -> Iterator[tuple[str, str, str]]:
    """(kind, word, next word) over numbers, days and months; days and months go round."""
    for a, b in zip(NUMBERS, NUMBERS[1:], strict=False):
        yield 'number', a, b
    for kind, names in (('day', DAYS), ('month', MONTHS)):
        for a, b in zip(names, names[1:] + names[:1], strict=True):
            yield kind, a, b


def _after() -> Iterator[tuple[str, str]]:
    for kind, a, b in _neighbours():
        yield f'which {kind} comes after {a}', b


def _before() -> Iterator[tuple[str, str]]:
    for kind, a, b in _neighbours():
        yield f'name the {kind} before {b}', a


def _opposites() -> Iterator[tuple[str, str]]:
    for (a, _), (b, _) in QUALITIES:
        yield f'give the opposite of {a}', b
        yield f'give the opposite of {b}', a


def _qualities() -> Iterator[tuple[str, str]]:
    for pair in QUALITIES:
        for quality, thing in pair:
            yield f'describe {thing}', quality
            yield f'find something {quality}', thing


def _animals() -> Iterator[tuple[str, str]]:
    for animal, (legs, home, food) in ANIMALS.items():
        article = 'an' if animal[0] in 'aeiou' else 'a'
        yield f'how many legs has {article} {animal}', legs
        yield f'where does {article} {animal} live', home
        yield f'say what {article} {animal} eats', food


def _countries() -> Iterator[tuple[str, str]]:
    for country, (capital, continent, language) in COUNTRIES.items():
        yield f'the capital of {country}', capital
        yield f'on which continent is {country}', continent
        yield f'the language of {country}', language


FAMILIES = {
    'sums': _sums,
    'differences': _differences,
    'after': _after,
    'before': _before,
    'opposites': _opposites,
    'qualities': _qualities,
    'animals': _animals,
    'countries': _countries,
}


@dataclass(frozen=True)
class World:
    """All facts, in a fixed order, with the split inside them."""

    facts: tuple[Fact, ...]
    seed: int

    @property
    def spoken(self) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if f.spoken)

    @property
    def never_spoken(self) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if not f.spoken)

    @property
    def answers(self) -> tuple[str, ...]:
        """The closed list of answer words, sorted."""
        return tuple(sorted({f.answer for f in self.facts}))

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(f.question for f in self.facts)

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of the world, sorted."""
        return tuple(sorted({w for f in self.facts for w in _all_words(f)}))

    def save(self, path: str | Path) -> None:
        """Writes world.json; the split travels with the recordings made from it."""
        lines = ',\n'.join(json.dumps(asdict(f)) for f in self.facts)
        Path(path).write_text(f'{{"seed": {self.seed}, "facts": [\n{lines}\n]}}\n')

    @classmethod
    def load(cls, path: str | Path) -> World:
        """Reads world.json.

        Raises:
          InputError: there is no such file, or it is not a world.
        """
        try:
            stored = json.loads(Path(path).read_text())
            world = cls(tuple(Fact(**f) for f in stored['facts']), stored['seed'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path} is not a readable world.json ({error}); '
                'write one with: python -m experiments.nano.render --out DIR'
            ) from error
        check_split(world.facts)
        return world


def build(seed: int = SEED) -> World:
    """The world with its split: the same facts and the same split for the same seed."""
    facts: list[Fact] = []
    for family, make in FAMILIES.items():
        facts += [Fact(len(facts) + i, family, q, a) for i, (q, a) in enumerate(make())]
    withheld = _withhold(facts, random.Random(seed))
    world = World(tuple(replace(f, spoken=f.id not in withheld) for f in facts), seed)
    check_split(world.facts)
    return world


def _all_words(fact: Fact) -> list[str]:
    return fact.question.split() + fact.sentence.split()


def _complaint(facts: Iterable[Fact]) -> str | None:
    """Why a split is not answerable by ear, or None."""
    heard: dict[str, set[int]] = defaultdict(set)
    asked: set[str] = set()
    given: set[str] = set()
    silent = []
    for fact in facts:
        if not fact.spoken:
            silent.append(fact)
            continue
        asked.update(fact.question.split())
        given.add(fact.answer)
        for word in _all_words(fact):
            heard[word].add(fact.id)
    for fact in silent:
        for word in fact.question.split():
            if len(heard[word]) < 2:
                return f'{word!r} of {fact.question!r} is heard in fewer than two spoken facts'
            if word not in asked:
                return f'{word!r} of {fact.question!r} is in no spoken question'
        if fact.answer not in given:
            return f'{fact.answer!r}, answer of {fact.question!r}, answers no spoken fact'
    return None


def _withhold(facts: list[Fact], rng: random.Random) -> set[int]:
    """Ids of a quarter of each family, drawn at random among those that stay answerable."""
    quota = {f: round(NEVER_SPOKEN * n) for f, n in Counter(f.family for f in facts).items()}
    withheld: set[int] = set()
    # Small families first: they have the least choice.
    for family in sorted(quota, key=lambda name: (quota[name], name)):
        members = [f.id for f in facts if f.family == family]
        for _ in range(20):  # a draw may paint itself into a corner
            rng.shuffle(members)
            drawn = _draw(facts, members, withheld, quota[family])
            if len(drawn) == quota[family]:
                break
        else:
            raise InputError(
                f'family {family!r}: a quarter of its facts cannot be withheld while their words '
                'and answers stay heard elsewhere; add facts that share its words, or another seed'
            )
        withheld |= drawn
    return withheld


def _draw(facts: list[Fact], members: list[int], withheld: set[int], quota: int) -> set[int]:
    drawn: set[int] = set()
    for member in members:
        if len(drawn) == quota:
            break
        trial = withheld | drawn | {member}
        if _complaint(replace(f, spoken=f.id not in trial) for f in facts) is None:
            drawn.add(member)
    return drawn


def check_split(facts: Iterable[Fact]) -> None:
    """Asserts the promise of the split.

    Raises:
      InputError: a quarter of some family is not withheld, a question is asked twice, or a
        never-spoken fact has a word or an answer that the spoken facts do not let one hear.
    """
    facts = list(facts)
    if len({f.question for f in facts}) != len(facts):
        raise InputError('two facts ask the same question; remove one of them from the world')
    for family in {f.family for f in facts}:
        members = [f for f in facts if f.family == family]
        withheld = sum(not f.spoken for f in members)
        if withheld != round(NEVER_SPOKEN * len(members)):
            raise InputError(
                f'family {family!r} withholds {withheld} of {len(members)} facts instead of a '
                'quarter; build the world again and render it anew'
            )
    complaint = _complaint(facts)
    if complaint:
        raise InputError(f'the split is not answerable by ear: {complaint}; build it again')
