"""Logical axes of weights and activations -> axes of the mesh, as tables.

A weight or activation names its axes ('embed', 'heads', ...); a table here says where each name
lives. A name that is not in the table is replicated only if it stands in WHOLE, else it is a
mistake and refused.
"""

from jax.sharding import PartitionSpec

from mossjax.errors import InputError

Rules = dict[str, str | tuple[str, ...]]

# Never divided: short axes, and 'layers', which the scan walks along.
WHOLE = frozenset(
    {'layers', 'norm', 'head_dim', 'kernel', 'conv_in', 'mel', 'code', 'embed_out', 'time',
     'rank', 'slots'}
)

# Parameters and rows over data and fsdp; every device computes whole layers.
FSDP: Rules = {'batch': ('data', 'fsdp'), 'embed': 'fsdp', 'conv_out': 'fsdp'}
FSDP_WHOLE = frozenset({'heads', 'kv_heads', 'mlp', 'vocab', 'positions'})

# The same, and each layer is divided as well: heads, hidden units, vocabulary.
FSDP_TENSOR: Rules = FSDP | {
    'heads': 'tensor', 'kv_heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor',
    'positions': 'tensor',  # of the loss, which has no layers to divide
}

PRESETS: dict[str, Rules] = {
    'fsdp': FSDP | {name: () for name in WHOLE | FSDP_WHOLE},
    'fsdp_tensor': FSDP_TENSOR | {name: () for name in WHOLE},
}


def preset(name: str) -> Rules:
    if name not in PRESETS:
        raise InputError(f'rules: {name!r} is not known; choose one of {", ".join(PRESETS)}')
    return PRESETS[name]


def mesh_axes(name: str | None, rules: Rules) -> tuple[str, ...]:
    """Mesh axes that one logical axis is divided over, () for none."""
    if name is None:
        return ()
    if name not in rules:
        raise InputError(
            f'no rule for the logical axis {name!r}; add it to mossjax/parallel/rules.py '
            f'(known: {", ".join(sorted(rules))})'
        )
    axes = rules[name]
    return (axes,) if isinstance(axes, str) else tuple(axes)


def spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Logical axes of one array -> PartitionSpec.

    Raises:
      InputError: an axis has no rule, or two axes want the same mesh axis.
    """
    entries = [mesh_axes(name, rules) for name in axes]
    used = [a for entry in entries for a in entry]
    twice = sorted({a for a in used if used.count(a) > 1})
    if twice:
        raise InputError(
            f'axes {axes}: two of them map to the mesh axis {", ".join(twice)}; '
            'name one of them differently or None'
        )
    return PartitionSpec(*[None if not e else e[0] if len(e) == 1 else e for e in entries])


def resolver(rules: Rules):
    """`spec` with the table filled in: what `nn.shard.sharding_scope` takes."""
    return lambda axes: spec(axes, rules)
