"""adapter_config.json of Hugging Face's PEFT: what an adapter means, or why it cannot be read.

PEFT knows many ways to adapt a network under this one file. What is computed here is plain LoRA,
W + scale B A, with ranks and scales that may differ between modules. Every key is either computed,
known to change nothing once training is over (the reason is listed), or must be absent, null,
false or empty: an adapter is never read as something it is not.
"""

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from mossjax import paths, values
from mossjax.errors import InputError
from mossjax.files import read_json

MERGE = 'merge it with PEFT (merge_and_unload), save the whole model and convert that'
# Keys of which one value is implemented.
ONLY = {'peft_type': 'LORA', 'bias': 'none'}
COMPUTED = {
    'r', 'lora_alpha', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'target_modules',
    'exclude_modules', 'layers_to_transform', 'layers_pattern', 'init_lora_weights',
}  # fmt: skip
# Keys that change nothing in a finished adapter, and why.
INERT = {
    'auto_mapping': 'which class PEFT loads it with',
    'base_model_name_or_path': 'where the base model came from',
    'corda_config': 'of a start that init_lora_weights names',
    'eva_config': 'as above',
    'inference_mode': 'whether training goes on',
    'loftq_config': 'of a start that init_lora_weights names',
    'lora_dropout': 'in training only',
    'lora_ga_config': 'of a start that init_lora_weights names',
    'megatron_core': 'the name of a package; read with megatron_config only',
    'peft_version': 'provenance',
    'qalora_group_size': 'read with use_qalora only',
    'revision': 'where the base model came from',
    'runtime_config': 'where tensors are held',
    'task_type': 'which class PEFT loads it with',
}
# What is said of keys that are refused; of any other: MERGE.
REFUSED = {
    'alora_invocation_tokens': 'it acts on the tokens behind an invocation only, which no merged '
                               'weights can do: run it with PEFT',
    'arrow_config': 'it chooses among adapters token by token, which no merged weights can do: run '
                    'it with PEFT',
    'layer_replication': 'the network has more layers than the base model: ' + MERGE,
}  # fmt: skip
# Starts of training that leave the base weights as they are.
STARTS = (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica')
CHANGED_BASE = (
    'training changed the base weights when it started, so the adapter fits others than those of '
    'the base model; save it with path_initial_model_for_weight_conversion, or ' + MERGE
)
ALL_LINEAR, HEADS = 'all-linear', 'lm_head'


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What `read` makes of the file; the fields have PEFT's names.

    Modules are named as in the base model: 'model.layers.0.self_attn.q_proj'.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]

    def rank(self, module: str) -> int:
        return _of_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """What B A is multiplied by."""
        rank, alpha = self.rank(module), _of_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def adapts(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a linear module."""
        if self.exclude_modules and _matches(self.exclude_modules, module):
            return False
        if self.target_modules == ALL_LINEAR:
            return not module.endswith(HEADS)
        if not _matches(self.target_modules, module):
            return False
        # Indices narrow down names that are given without the way to them.
        named = isinstance(self.target_modules, str) or module in self.target_modules
        return named or not self.layers_to_transform or self._index(module) in (
            self.layers_to_transform
        )

    def _index(self, module: str) -> int | None:
        """The number behind the name of a list of layers, the first one in the module's name."""
        for pattern in self.layers_pattern or (r'[^.]*',):
            if found := re.match(rf'(?:^|.*?\.){pattern}\.(\d+)\.', module):
                return int(found[1])
        return None


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f'.{name}') for name in names)


def _of_pattern(patterns: Mapping, module: str, default):
    """The entry of the first key that matches the end of a module's name."""
    for key, value in patterns.items():
        if re.match(rf'(.*\.)?({key})$', module):
            return value
    return default


# ------------------------------------------------------------------------------------- reading


def read(path: str | Path) -> AdapterConfig:
    """Reads an adapter_config.json.

    Raises:
      InputError: the file is missing or damaged, or says something that is not computed here; the
        message names the key and what to do.
    """
    content, where = read_json(path), paths.printable(path)
    _refuse_others(content, where)
    lists = {
        key: _names(content.get(key), f'{where}: {key}', patterns=key == 'layers_pattern')
        for key in ('target_modules', 'exclude_modules', 'layers_pattern')
    }
    if not lists['target_modules']:
        raise InputError(f'{where}: target_modules is missing; it says which modules are adapted')
    for key in ('r', 'lora_alpha'):
        if content.get(key) is None:
            raise InputError(f'{where} has no {key!r}, so it is no LoRA adapter; give one')
    layers = content.get('layers_to_transform')
    layers = [layers] if not isinstance(layers, list) else layers
    return AdapterConfig(
        r=values.number(content['r'], f'{where}: r', values.SIZE),
        lora_alpha=values.number(content['lora_alpha'], f'{where}: lora_alpha', values.POSITIVE),
        use_rslora=_flag(content, 'use_rslora', where),
        rank_pattern=_patterns(content, 'rank_pattern', values.SIZE, where),
        alpha_pattern=_patterns(content, 'alpha_pattern', values.POSITIVE, where),
        layers_to_transform=tuple(
            values.number(i, f'{where}: layers_to_transform', values.COUNT)
            for i in layers if i is not None
        ),
        **{**lists, 'layers_pattern': _tuple(lists['layers_pattern'])},
    )


def _refuse_others(content: Mapping, where: str) -> None:
    for key, only in ONLY.items():
        if content.get(key, only) != only:
            raise InputError(
                f'{where}: {key} is {values.shown(content[key])}, only {only!r} is computed; '
                f'{MERGE}'
            )
    start = content.get('init_lora_weights')
    if not any(start is known or isinstance(start, str) and start == known for known in STARTS):
        raise InputError(f'{where}: init_lora_weights is {values.shown(start)}: {CHANGED_BASE}')
    for key in sorted(set(content) - COMPUTED - set(INERT) - set(ONLY)):
        value = content[key]
        if value is not None and value is not False and value not in ('', [], {}):
            raise InputError(
                f'{where}: {key} is {values.shown(value)}, which is not computed; '
                f'{REFUSED.get(key, MERGE)}'
            )


def _flag(content: Mapping, key: str, where: str) -> bool:
    value = content.get(key) or False
    if not isinstance(value, bool):
        raise InputError(f'{where}: {key} is {values.shown(value)}, expected true or false')
    return value


def _patterns(content: Mapping, key: str, accepted: values.Range, where: str) -> dict[str, Any]:
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f'{where}: {key} is {values.shown(found)}, expected an object')
    for name, value in found.items():
        _check_regular(name, f'{where}: {key}')
        values.number(value, f'{where}: {key}: {name}', accepted)
    return found


def _names(value: Any, what: str, patterns: bool) -> str | tuple[str, ...]:
    """A regular expression as text, or names (`patterns`: of them, too) as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str):
        _check_regular(value, what)
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f'{what} is {values.shown(value)}, expected names')
    for name in value if patterns else ():
        _check_regular(name, what)
    return tuple(value)


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) and names else tuple(names)


def _check_regular(text: str, what: str) -> None:
    try:
        re.compile(rf'({text})')
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f'{what}: {values.shown(text)} is no pattern ({error})') from None
