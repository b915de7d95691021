"""Tensor names as training tools leave them: wrappers between their parts, or more in front.

torch.compile puts `_orig_mod.` into every name, data parallelism `module.`, FSDP
`_fsdp_wrapped_module.`; a network saved as a part of another one has a prefix. All of it is taken
off again where the names that are wanted then appear, each once.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools

from absl import logging
import numpy as np

from mossjax import paths, values
from mossjax.convert.weight_files import Tensors
from mossjax.errors import InputError

# As parts of a name, wherever they stand.
WRAPPERS = (
    '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module', 'module',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Renamed:
    """Tensors under other names than they are stored by.

    Attributes:
      tensors: as stored. stored: {name: the one it is stored by}.
    """

    tensors: Tensors
    stored: Mapping[str, str]

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.tensors.shapes[old] for name, old in self.stored.items()}

    @functools.cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        return {name: self.tensors.dtypes[old] for name, old in self.stored.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors.read(self.stored[name])


def unwrapped(tensors: Tensors) -> Tensors:
    """The same tensors without wrappers in their names; as they are if two would become one."""
    stored = {without_wrappers(name): name for name in tensors.shapes}
    if len(stored) < len(tensors.shapes) or all(new == old for new, old in stored.items()):
        return tensors
    return Renamed(tensors, stored)


def without_wrappers(name: str) -> str:
    return '.'.join(part for part in name.split('.') if part not in WRAPPERS)


def fitted(tensors: Tensors, wanted: Iterable[str], where: str) -> Tensors:
    """The same tensors under names among which are the wanted ones, if these can be found.

    Where they cannot, the tensors are returned as they are, for the caller to say what is missing.

    Raises:
      InputError: the wanted names are there more than once, under different prefixes.
    """
    wanted = list(wanted)
    if not set(wanted) - set(tensors.shapes):
        return tensors
    plain = unwrapped(tensors)
    found = plain.shapes
    if not set(wanted) - set(found):
        return _told(plain, where, values.listed(_wrappers(tensors.shapes)))
    longest = max(wanted, key=len)
    fronts = {name.removesuffix(longest) for name in found if name.endswith(f'.{longest}')}
    fits = sorted(front for front in fronts if not {front + name for name in wanted} - set(found))
    if len(fits) > 1:
        raise InputError(
            f'{where}: the network is there {len(fits)} times, as {values.listed(fits)}; keep the '
            'tensors of one, without these letters in front'
        )
    if not fits:
        return tensors
    stored = {name.removeprefix(fits[0]): name for name in found}
    if len(stored) < len(found):
        return tensors
    return _told(Renamed(plain, stored), where, fits[0])


def _told(tensors: Tensors, where: str, what: str) -> Tensors:
    logging.info('%s: tensors are read without %r in their names', paths.printable(where), what)
    return tensors


def _wrappers(names: Iterable[str]) -> list[str]:
    return sorted({part for name in names for part in name.split('.') if part in WRAPPERS})
