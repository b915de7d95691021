"""The base of the rotary frequencies, wherever a configuration file says it.

Three spellings are in use: `rope_theta` beside the other keys; `rope_scaling`, in which older
Transformers keep a change of the frequencies; `rope_parameters`, in which Transformers 5 keeps
everything, also once for each type of layer. Only the plain rotation is computed, so what is read
is one number, which all places that have it must agree on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mossjax import values
from mossjax.errors import InputError

NESTED = ('rope_parameters', 'rope_scaling')
THETA = values.Range(1, 1e12)
# What may stand beside the base of a plain rotation, and what it must be.
_PLAIN = {'rope_type': 'default', 'type': 'default', 'partial_rotary_factor': 1, 'factor': 1}


def theta(content: Mapping[str, Any]) -> float | None:
    """The base, None where no key gives one.

    Args:
      content: of a config.json.

    Raises:
      InputError: two places differ, one is no number, or the rotation is not the plain one.
    """
    found = {key: values.number(value, key, THETA) for key, value in _bases(content)}
    for key, value in found.items():
        first = next(iter(found))
        if value != found[first]:
            raise InputError(
                f'{first} is {found[first]:.12g}, but {key} is {value:.12g}. Leave the one that '
                'this checkpoint was trained with'
            )
    return float(next(iter(found.values()))) if found else None


def with_theta(content: Mapping[str, Any], base: float) -> dict[str, Any]:
    """The same file with another base, in every place that has one."""

    def changed(inner: Mapping) -> dict:
        return {
            key: base if key == 'rope_theta' else changed(value) if isinstance(value, Mapping)
            else value for key, value in inner.items()
        }

    nested = {key: changed(content[key]) for key in NESTED if isinstance(content.get(key), Mapping)}
    content = {**content, **nested}
    if 'rope_theta' in content or not list(_bases(nested)):
        content['rope_theta'] = base
    return content


def _bases(content: Mapping) -> Iterator[tuple[str, Any]]:
    """(name of the place, value there) of each base."""
    if content.get('rope_theta') is not None:
        yield 'rope_theta', content['rope_theta']
    for key in NESTED:
        inner = content.get(key)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise InputError(f'{key} is {values.shown(inner)}, expected an object or null')
        layered = {f'{key}.{k}': v for k, v in inner.items() if isinstance(v, Mapping)}
        for name, part in (layered or {key: inner}).items():
            _refuse_other(part, name, content)
            if part.get('rope_theta') is not None:
                yield f'{name}.rope_theta', part['rope_theta']
        if layered and (more := sorted(set(inner) - {name.partition('.')[2] for name in layered})):
            raise InputError(f'{key} holds {more} beside objects; take the file as published')
        if other := sorted(set(layered) - {f'{key}.full_attention'}):
            raise InputError(f"{other[0]} is for layers we do not have, only 'full_attention'")


def _refuse_other(part: Mapping, name: str, content: Mapping) -> None:
    """Refuses a rotation that is not plain, and says what is left to do."""
    kind = part.get('rope_type', part.get('type', 'default'))
    if kind != 'default':
        trained = part.get('original_max_position_embeddings')
        trained = trained or content.get('original_max_position_embeddings')
        length = f'{trained} positions' if trained in values.SIZE else 'its original context'
        how = f'leave only rope_theta in {name}' if 'rope_theta' in part else f'set {name} to null'
        raise InputError(
            f'{name} asks for {values.shown(kind)} rotation, only the plain one is implemented. A '
            f'checkpoint that was trained without it, and had it added for longer input, runs '
            f'up to {length}: {how} and set max_position_embeddings to that length; what is '
            f'computed then is the model before it was stretched. One that was trained with it '
            f'would compute something else: use another checkpoint'
        )
    for key, value in part.items():
        wrong = value not in (_PLAIN.get(key), None) or isinstance(value, bool)
        if key not in ('rope_theta', 'original_max_position_embeddings') and wrong:
            raise InputError(
                f'{name}.{key} is {values.shown(value)}, which a plain rotation does not have; '
                'remove it if the checkpoint was trained without it'
            )
