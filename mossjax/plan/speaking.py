"""The program that a model speaks with, on a slice: the engine's own step, from shapes alone."""

from collections.abc import Iterator, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from mossjax.convert import int8
from mossjax.infer import buckets, draws, fit, many_chips
from mossjax.infer.engine import Programs
from mossjax.infer.sampling import Settings
from mossjax.models.lm.cache import AXES
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.model import network
from mossjax.ops.quant import Int8
from mossjax.parallel import chips
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.sharding import place, shard
from mossjax.plan import cycles, kernels
from mossjax.plan.estimate import Part

ENDOFTEXT = 151643  # of the released tokenizer; also its padding
HELD = ('bfloat16', 'int8')
SPREAD = buckets.WAIT  # rows between two times that the text branch catches up


@dataclasses.dataclass(frozen=True)
class Speech:
    """What is asked of the engine.

    Attributes:
      held: one of HELD, the weights.
      lanes: dialogues side by side. rows: that each has room for.
      piece: rows of a prompt that are read at once; 0 to speak.
    """

    held: str
    lanes: int
    rows: int
    piece: int = 0


def ids_of(config: LMConfig) -> GridIds:
    """Special ids of a model whose tokenizer is the released one's, or has that one's stops."""
    end = ENDOFTEXT if ENDOFTEXT < config.vocab_size else config.eos_token_id
    return GridIds(
        vocab=config.vocab_size, audio_vocab=config.audio_vocab_size,
        speech=config.modality_pad_token_id, sosp=config.sosp_token_id,
        eosp=config.eosp_token_id, filler=config.audio_pad_token_id, pad=end,
        eos=config.eos_token_id, stops=(end, config.eos_token_id),
    )  # fmt: skip


def mesh_of(config: LMConfig, devices: Sequence) -> jax.sharding.Mesh:
    """The mesh on which the engine would lay the model, of one device where it takes one."""
    found = many_chips.mesh_for(config, devices)
    return found or make_mesh(MeshConfig(fsdp=1), devices[:1])


def weights(config: LMConfig, held: str, mesh: jax.sharding.Mesh | None = None) -> dict:
    """Shapes of the parameters; on a mesh with their shardings."""
    net = network(config)
    shapes = net.shapes
    if mesh is not None:
        shapes = shard(net.shapes, net.axes, mesh, many_chips.RULES)
    if held == 'int8':
        small = int8.abstract(net.shapes, jnp.bfloat16)
        return small if mesh is None else jax.tree.map(_like, small, shapes, is_leaf=_is_int8)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), shapes
    )


def _is_int8(x) -> bool:
    return isinstance(x, Int8)


def _like(x, placed: jax.ShapeDtypeStruct):
    """A weight that lies as `many_chips.put` would lay it, for the place of the whole one."""
    mesh, spec = placed.sharding.mesh, placed.sharding.spec

    def put(part):
        own = many_chips.divided(part.shape, spec)
        where = jax.sharding.NamedSharding(mesh, own)
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=where)

    return Int8(put(x.values), put(x.scale), x.dtype) if _is_int8(x) else put(x)


def lowered(
    config: LMConfig, ids: GridIds, speech: Speech, mesh: jax.sharding.Mesh | None = None
):
    """A program of the engine, lowered for TPU; on described devices, or on none."""
    divided = mesh if mesh is not None and mesh.size > 1 else None
    programs = Programs(fit.lm(config, 'tpu'), config, ids, mesh=divided)
    params = weights(config, speech.held, mesh)

    def settings():
        # Drawn as upstream's demo does.
        keys = jax.random.split(jax.random.key(0), speech.lanes)
        return draws.LaneSettings.of([Settings()] * speech.lanes, keys, [True] * speech.lanes)

    def put(x):
        if mesh is None:
            return x
        # Buffers are the only leaves of so many axes, as in `many_chips.cache_placed`.
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        cached = divided is not None and x.ndim == len(AXES)
        where = place('cache', x.shape, AXES, mesh, many_chips.RULES) if cached else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    state = jax.eval_shape(lambda: programs.empty(params, speech.lanes, speech.rows))
    if speech.piece:
        given = state, ints(1, speech.piece, 2), ints(1), ints(), ints(speech.lanes)
        traced = programs.read.trace(params, *jax.tree.map(put, given))
    else:
        given = state, jax.eval_shape(settings), ints(speech.lanes)
        traced = programs.advance.trace(params, *jax.tree.map(put, given), draw=draws.narrow)
    return traced.lower(lowering_platforms=('tpu',))


def roofline(config: LMConfig, speech: Speech, generation: str, parts: int = 1) -> float:
    """Seconds that the bytes of a step in speech take: trunk, one branch and head, their cache.

    Args:
      parts: chips that share them.
    """
    c = config
    heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    layer = c.hidden_size * (heads + 3 * c.intermediate_size)
    layers = c.num_shared_layers + c.num_modality_layers
    matrices = layers * layer + c.hidden_size * c.audio_vocab_size
    row = 2 * layers * c.num_key_value_heads * c.head_dim * 2
    held = {'int8': 1, 'bfloat16': 2}[speech.held]
    moved = matrices * held + speech.lanes * speech.rows * row
    return moved / parts / chips.CHIPS[generation].bandwidth


def parts(
    program: cycles.Program, generation: str, config: LMConfig, speech: Speech, shared: int = 1
) -> tuple[list[Part], list[Part]]:
    """Of a step in speech, and of one in which the text branch catches up too.

    Args:
      shared: chips that share the model.
    """
    body = program.longest_loop()
    heads = _heads(config, speech.lanes, shared)
    attention = kernels.decoding(generation, heads, speech.rows, itemsize=2)
    attention |= kernels.reading(generation, heads, speech.rows, buckets.WAIT, itemsize=2)

    def taken(text_branch: int):
        """A head runs where it is needed; of the branches one makes a row, one waits or reads."""
        branches = iter((text_branch, 2))

        def way(ways):
            if len(ways) == 3:
                return next(branches)
            return int(not any(_reads_text_head(program, name, config) for name in ways))

        return way

    return tuple(list(program.parts(body, generation, taken(way), attention)) for way in (0, 1))


def _heads(config: LMConfig, lanes: int, shared: int = 1) -> kernels.Heads:
    return kernels.Heads(
        lanes, config.num_key_value_heads // shared,
        config.num_attention_heads // config.num_key_value_heads, config.head_dim,
    )  # fmt: skip


def piece_seconds(
    program: cycles.Program, generation: str, config: LMConfig, speech: Speech
) -> float:
    """Of a piece of a prompt that is read behind a full lane: all that the program may do."""
    attention = kernels.reading(
        generation, _heads(config, 1), speech.rows, speech.piece, itemsize=2
    )

    def dearest(ways):
        costs = [program.seconds(name, generation, dearest, attention) for name in ways]
        return costs.index(max(costs))

    return program.seconds(program.entry, generation, dearest, attention)


def _reads_text_head(program: cycles.Program, name: str, config: LMConfig) -> bool:
    return any(str(config.vocab_size) in operation.shape for operation in program.below(name))


def step_seconds(
    program: cycles.Program, generation: str, config: LMConfig, speech: Speech
) -> dict[str, float]:
    """Of a step in speech, and of what the text branch adds when it catches up."""
    speaking, caught_up = (
        sum(part.seconds for part in each) for each in parts(program, generation, config, speech)
    )
    return {'speaking': speaking, 'catching_up': caught_up - speaking}


def averaged(step: Sequence[Part], caught_up: Sequence[Part]) -> Iterator[Part]:
    """The parts of a step on average: the text branch catches up every SPREAD rows."""
    yield from step
    more = sum(part.seconds for part in caught_up) - sum(part.seconds for part in step)
    yield Part('HBM', 'the text branch catching up', '', '', 1, more / SPREAD)
