"""The 9.1 B speaking step, compiled by the TPU compiler for single chips that are not there.

    JAX_PLATFORMS=cpu python -m experiments.proofs.tpu_decode_step \
        --out experiments/proofs/tpu_decode_step.json

One dialogue, a cache of 8,192 rows, 64 rows drawn in one compiled loop (temperature, top-k and
top-p as released): int8 weights on a v5e (15.75 GiB), bfloat16 on a v6e. Found: bytes by the
compiler's own account, below the chip's or the compilation fails. Not found: speed.
"""

import dataclasses
import importlib.metadata
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp

from experiments.proofs import record
from mossjax.convert import int8
from mossjax.infer import draws, generate, lanes
from mossjax.infer.sampling import Settings
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import CLEAN, RUNNING
from mossjax.models.lm.model import network
from mossjax.plan import compile as plan

SLOTS, ROWS = 8192, 64
CASES = {'int8@v5e:1x1': ('int8', 'v5e:1x1'), 'bfloat16@v6e:1x1': ('bfloat16', 'v6e:1x1')}


def weights(config: LMConfig, kind: str) -> dict:
    """Shapes of the parameters, held as int8 or bfloat16."""
    shapes = network(config).shapes
    if kind == 'int8':
        return int8.abstract(shapes, jnp.bfloat16)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes)


def lowered(kind: str, device=None):
    """The loop of ROWS rows, lowered for TPU; on the described device, or on none in particular."""
    config = LMConfig.released()
    net = network(config)
    ids = GridIds(
        vocab=config.vocab_size, audio_vocab=config.audio_vocab_size,
        speech=config.modality_pad_token_id, sosp=config.sosp_token_id, eosp=config.eosp_token_id,
        filler=config.audio_pad_token_id, pad=151643, eos=config.eos_token_id,
        stops=(151643, config.eos_token_id),
    )  # fmt: skip
    def speak(params, state, settings):
        model = net.bind(params)

        def unfinished(state):
            return jnp.any((state.made < ROWS) & (state.reason == RUNNING))

        def step(state):
            return lanes.advance(model, state, settings, CLEAN, ids, draws.narrow)

        return jax.lax.while_loop(unfinished, step, state)

    def start():
        cache = Cache.empty(config, 1, SLOTS, jnp.bfloat16, wait=generate.WAIT)
        return lanes.State.empty(config, ids, 1, cache, jnp.bfloat16)

    def settings():
        # Drawn as upstream's demo does.
        given = [Settings(max_new_tokens=ROWS)]
        return draws.LaneSettings.of(given, jax.random.split(jax.random.key(0), 1), [True])

    def put(x):
        if device is None:
            return x
        where = jax.sharding.SingleDeviceSharding(device)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    given = weights(config, kind), jax.eval_shape(start), jax.eval_shape(settings)
    traced = jax.jit(speak, donate_argnums=1).trace(*jax.tree.map(put, given))
    return traced.lower(lowering_platforms=('tpu',))


def prove(kind: str, topology: str) -> dict:
    program = lowered(kind, plan.devices(topology)[0])
    # Of the program on no device in particular, which can be lowered again anywhere.
    digest = plan.program_hash(lowered(kind))
    logging.info('%s on %s: program %s, compiling', kind, topology, digest[:12])
    memory, seconds = plan.compile_for(program, topology)
    return {
        'program_sha256': digest,
        'bytes': dataclasses.asdict(memory),
        'gib': round(memory.total / 2**30, 2),
        'compile_wall_seconds': round(seconds),
        'libtpu': importlib.metadata.version('libtpu'),
        'jax': jax.__version__,
    }


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        sys.exit('--out FILE.json is missing')
    cases = {name: prove(*case) for name, case in CASES.items()}
    command = 'JAX_PLATFORMS=cpu python -m experiments.proofs.run tpu_decode_step'
    record.write(flags.FLAGS.out, command, {'slots': SLOTS, 'rows': ROWS, 'cases': cases})
    for name, case in cases.items():
        logging.info('%s: %.2f GiB', name, case['gib'])


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)
