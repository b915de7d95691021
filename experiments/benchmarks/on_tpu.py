"""For whoever has a TPU: are the kernels right there, and does a step take what is estimated?

    python -m experiments.benchmarks.on_tpu [--out on_tpu.json]

Four parts, on the chips of one host. The attention kernels against float64 on the host, and XLA's
attention on the chip beside them, output and every gradient. The kernels that read the cache, in
bfloat16 and in int8, likewise. Milliseconds of attention on a row of 8,192 positions beside its
bundles (`mossjax.plan.kernels`). A training step of the 9.1 B model's width, with as many layers as
the chips' memory holds and a small vocabulary: its time, memory and share of peak beside what
`mossjax plan` estimates of the very program that ran. Exit codes: 0; 1 if a kernel is wrong; 2
without a TPU.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import sys
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.on_tpu_cache import check_cache
from experiments.benchmarks.passes import (
    HEAD,
    HEADS,
    KV_HEADS,
    WITHIN,
    exact,
    median_seconds,
    passes,
)
from experiments.proofs import record
from mossjax.errors import InputError
from mossjax.models.lm import flops
from mossjax.models.lm.config import LMConfig
from mossjax.nn.flash import flash
from mossjax.ops.attention import Mask, attention
from mossjax.parallel import chips, options, rules
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.plan import account, arithmetic, hlo, kernels
from mossjax.train import lm, state, step
from mossjax.train.config import defaults
from mossjax.train.optim import OptimConfig

CONTEXT = 8192
POSITIONS = 1024  # of the comparison with float64
ROUNDS, WARM = 9, 2
VOCAB = 16384  # of the step's model: its tables are to leave room for layers
FULL = 0.8  # of a chip's memory that the step's model may take by arithmetic


def tpu() -> str:
    """The generation of the TPU at hand.

    Raises:
      InputError: there is none.
    """
    device = jax.devices()[0]
    if device.platform != 'tpu':
        raise InputError(
            f"no TPU here: the first device is {device.device_kind!r}. Run this on a TPU VM, with "
            "pip install 'jax[tpu]' and JAX_PLATFORMS unset; without a TPU see "
            'experiments/benchmarks/attention.py and mossjax plan'
        )
    return chips.KINDS.get(device.device_kind, device.device_kind)


def inputs(t: int, dtype, heads: int = HEADS, kv_heads: int = KV_HEADS):
    """(q, k, v, weights, Mask) of one packed row: causal, three examples."""
    keys = jax.random.split(jax.random.key(t), 4)
    q, k, v, weights = (
        jax.random.normal(key, (1, t, n, HEAD), dtype)
        for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    segments = (jnp.arange(t) * 3 // t)[None]
    return q, k, v, weights, Mask(causal=True, q_segments=segments, kv_segments=segments)


def off(attend: Callable, dtype: str, t: int = POSITIONS, **heads) -> dict[str, float]:
    """||difference|| / ||float64|| of the output and of each gradient."""
    *arrays, mask = inputs(t, jnp.dtype(dtype), **heads)
    with jax.default_matmul_precision('highest'):
        got = passes(attend)['forward_backward'](*arrays, mask)
    want = exact(*arrays, np.asarray(mask.visible(t, t))[0])
    return {
        name: float(np.linalg.norm(np.asarray(g, np.float64) - w) / np.linalg.norm(w))
        for name, g, w in zip(('out', 'dq', 'dk', 'dv'), got, want, strict=True)
    }


def check_kernels(attend: Callable = flash, **sizes) -> dict:
    """What `off` says of our kernels, beside XLA's attention, and whether that is within WITHIN."""
    found = {}
    for dtype, most in WITHIN.items():
        ours, xla = (off(road, dtype, **sizes) for road in (attend, attention))
        found[dtype] = {'ours': ours, 'xla': xla, 'within': max(ours.values()) <= most}
    return found


def attention_times(generation: str) -> dict[str, float]:
    """Milliseconds of a causal row of CONTEXT positions, measured beside estimated."""
    *arrays, _ = inputs(CONTEXT, jnp.bfloat16)
    mask = Mask(causal=True)
    found = {
        f'{name}_ms': 1e3 * median_seconds(functools.partial(run, *arrays, mask), ROUNDS, WARM)
        for name, run in passes(flash).items()
    }
    if generation in kernels.BUNDLES:
        clock = chips.CHIPS[generation].clock
        cost = kernels.cycles(generation, HEADS, KV_HEADS, 1, CONTEXT, 'bound')
        each = [cost[name] / clock * 1e3 for name in ('flash_forward', 'flash_backward')]
        found |= {'forward_estimated_ms': each[0], 'forward_backward_estimated_ms': sum(each)}
    return found


def model_of(layers: int) -> LMConfig:
    """The released width with a small vocabulary, so many shared layers and one for each branch."""
    return dataclasses.replace(
        LMConfig.released(), num_shared_layers=layers, num_modality_layers=1,
        num_hidden_layers=layers + 1, vocab_size=VOCAB, modality_pad_token_id=VOCAB - 1,
        sosp_token_id=VOCAB - 2, eos_token_id=VOCAB - 3,
    )  # fmt: skip


def task_of(model: LMConfig, remat: str) -> lm.LMTask:
    """Training of it with our kernels, as stage 2 does."""
    config = defaults()
    config.task, config.model.config, config.model.attention = 'lm', 'released', 'flash'
    config.model.remat, config.loss.chunk = remat, 1024
    return dataclasses.replace(lm.make_task(config, batches=None), config=model)


def fitting(memory: float, devices: int, remat: str, context: int = CONTEXT) -> LMConfig:
    """The model with the most layers, by arithmetic.

    Raises:
      InputError: not even one shared layer fits.
    """
    one, two = (
        sum(x.size for x in jax.tree.leaves(task_of(model_of(n), remat).network.shapes))
        for n in (1, 2)
    )

    def needed(layers: int) -> int:
        held = 12 * (one + (layers - 1) * (two - one))  # float32: weights and two moments
        return arithmetic.memory(model_of(layers), remat, held // devices, context, 1)

    best = max((n for n in range(1, 33) if needed(n) <= FULL * memory), default=0)
    if not best:
        raise InputError(
            f'{devices} chips of {memory / chips.GIB:.1f} GiB hold no layer of the 9.1 B model '
            'with its optimiser; take a slice with more chips'
        )
    return model_of(best)


def run_step(task: lm.LMTask, devices, context: int, dump: str | None = None) -> dict:
    """Seconds of a training step on these devices, a row on each; the compiler's account of it."""
    mesh = make_mesh(MeshConfig(), devices)
    layout = state.layout(task, OptimConfig(), 1000, mesh, rules.preset('fsdp'))
    rng = np.random.default_rng(0)
    grid = len(devices), context
    sizes = task.config.vocab_size - 3, task.config.eosp_token_id
    ids = np.stack([rng.integers(0, n, grid) for n in sizes], -1).astype(np.int32)
    batch = {
        'tokens': ids, 'labels': ids, 'segments': np.ones(grid, np.int32),
        'positions': np.tile(np.arange(context, dtype=np.int32), (len(devices), 1)),
    }  # fmt: skip
    batch = jax.device_put(batch, step.batch_shardings(batch, layout))
    jitted = step.compiled_step(task, layout, jnp.bfloat16, batch)
    key = jax.random.key(0)
    told = {'xla_dump_to': dump} if dump else None
    compiled = jitted.lower(layout.abstract, batch, key).compile(compiler_options=told)
    held = [state.init(task, layout, key)]

    def once():
        held[0], metrics = compiled(held[0], batch, key)
        return metrics['loss']

    seconds = median_seconds(once, ROUNDS, WARM)
    loss = float(once())
    if not np.isfinite(loss):
        raise RuntimeError(f'the loss of the step is {loss}')
    return {
        'layers': arithmetic.layers(task.config), 'context': context, 'chips': len(devices),
        'loss': loss, 'seconds': seconds,
        'peak_gib': compiled.memory_analysis().peak_memory_in_bytes / chips.GIB,
        'memory': chips.memory_in_use(devices[0]),
    }  # fmt: skip


def beside(found: Mapping, task: lm.LMTask, module: hlo.Module, generation: str) -> dict:
    """What was measured of a step, with the estimate of the program that ran."""
    chip, context = chips.CHIPS[generation], found['context']
    made = account.by_road(module, generation, task.config, 1, context, 1)
    work = flops.convention(task.config, context) * context / chip.flops
    return {
        **found,
        'estimated_seconds': {road: each.seconds for road, each in made.items()},
        'share_of_peak': work / found['seconds'],
        'estimated_share_of_peak': work / made['online'].seconds,
        'measured_over_estimated': found['seconds'] / made['online'].seconds,
        'estimated_ms': account.milliseconds(made['online'].parts),
    }


def measure_step(generation: str) -> dict:
    """The step on all chips of this host, beside its estimate where there is one."""
    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get('bytes_limit')
    if memory is None:
        memory = chips.CHIPS[generation].memory
    remat = 'attention'
    task = task_of(fitting(memory, len(devices), remat), remat)
    with tempfile.TemporaryDirectory() as dump:
        found = run_step(task, devices, CONTEXT, dump)
        found['compiler_options'] = options.options(generation, options.TRAIN)
        if generation in chips.CHIPS:
            return beside(found, task, hlo.read(dump), generation)
    return found


def shown(found: Mapping, indent: str = '  ') -> str:
    """Nested figures as lines."""
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            lines += [f'{indent}{name}:', shown(value, indent + '  ')]
        else:
            said = f'{value:.4g}' if isinstance(value, float) else str(value)
            lines.append(f'{indent}{name}: {said}')
    return '\n'.join(lines)


def main(argv: list[str]) -> None:
    del argv
    try:
        generation = tpu()
        found = {'device': jax.devices()[0].device_kind, 'generation': generation}
        for name, part in (
            ('kernels', check_kernels),
            ('cache', check_cache),
            ('attention', functools.partial(attention_times, generation)),
            ('step', functools.partial(measure_step, generation)),
        ):  # fmt: skip
            found[name] = part()
            print(f'{name}\n{shown(found[name])}', flush=True)
    except InputError as error:
        print(f'on_tpu: {error}', file=sys.stderr)
        sys.exit(2)
    if flags.FLAGS.out:
        record.write(flags.FLAGS.out, 'python -m experiments.benchmarks.on_tpu', found)
    checked = *found['kernels'].values(), *found['cache'].values()
    sys.exit(0 if all(x['within'] for x in checked) else 1)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)
