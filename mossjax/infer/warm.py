"""What a session will run, compiled beforehand: by name, so that it can be listed, and in parallel.

Programs go where jax keeps compiled ones; the session then finds them there. The language model's
are compiled from the shapes of its weights, which are not read.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import functools
import itertools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert import int8
from mossjax.convert.placement import open_lm
from mossjax.errors import InputError
from mossjax.infer import buckets, draws, fit, generation_config
from mossjax.infer.chat import INPUT_RATE
from mossjax.infer.codec import Codec
from mossjax.infer.draws import LaneSettings
from mossjax.infer.engine import Programs
from mossjax.infer.sampling import Settings, row_keys
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.model import network
from mossjax.models.lm.text import TextTokenizer


class Work(NamedTuple):
    """Something to compile: what it is for, and what compiles it."""

    name: str
    run: Callable[[], object]


def model_work(
    model_dir, *, lanes: int = 1, rows: int = buckets.LANE, quantised: bool = False
) -> list[Work]:
    """The programs of `infer.engine` for a model directory.

    Args:
      lanes: dialogues side by side. rows: of the longest of them.
      quantised: for the model in int8.

    Raises:
      InputError: files missing or damaged, or more rows than the model has positions.
    """
    config = fit.read_config(model_dir)
    if rows > config.max_position_embeddings:
        raise InputError(
            f'{model_dir}: a dialogue of {rows} rows, the model has '
            f'{config.max_position_embeddings} positions; warm for fewer'
        )
    ids = GridIds.of(config, TextTokenizer.open(model_dir))
    settings = Settings.of(generation_config.read(model_dir, ids.stops))
    config, params = open_lm(model_dir, lambda _, x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    if quantised:
        params = int8.abstract(network(config).shapes, jnp.dtype('bfloat16'))
    params = fit.placed(params)
    programs, found = Programs(fit.lm(config), config, ids), []
    sizes = buckets.lane_sizes(rows, config.max_position_embeddings)
    for slots in sizes:
        found += _lane_work(programs, params, settings, lanes, slots)
    for two in itertools.pairwise(sizes):
        states = [_state(programs, params, lanes, slots) for slots in two]
        grow = functools.partial(_compile, programs.grow, *states)
        found.append(Work(f'lanes of {two[0]} rows grow to {two[1]}', grow))
    return found


def _state(programs: Programs, params: dict, lanes: int, slots: int):
    dtype = programs.dtype(params)
    return jax.eval_shape(functools.partial(programs.fresh, lanes, slots, dtype))


def _lane_work(
    programs: Programs, params: dict, settings: Settings, lanes: int, slots: int
) -> Iterator[Work]:
    """What lanes of one size run."""
    dtype, state = programs.dtype(params), _state(programs, params, lanes, slots)
    lengths = np.zeros(lanes, np.int32)
    yield Work(f'lanes of {slots} rows', lambda: programs.new.lower(lanes, slots, dtype).compile())
    for count in {1, lanes}:
        for size in buckets.PIECES:
            tokens, counts = np.zeros((count, size, 2), np.int32), np.zeros(count, np.int32)
            given = (params, state, tokens, counts, np.int32(0), lengths)
            yield Work(
                f'{count} x {size} rows read, lanes of {slots}',
                functools.partial(_compile, programs.read, *given),
            )
    own = LaneSettings.of([settings] * lanes, jnp.stack(list(row_keys(0, lanes))), [True] * lanes)
    draw = draws.fitting([settings])
    yield Work(
        f'{buckets.STEPS} rows spoken, lanes of {slots}',
        functools.partial(_compile, programs.advance, params, state, own, lengths, draw=draw),
    )


def _compile(program, *args, **options) -> None:
    program.lower(*args, **options).compile()


def codec_work(codec: Codec) -> list[Work]:
    """What hearing and speaking need, of a codec that streams with both halves open."""
    found = [Work('speaking', codec.mouth().warm)]
    for codes in buckets.HEARING:
        wave = np.zeros(codes * codec.ears.config.stride, np.float32)
        heard = functools.partial(codec.ears.encode, [wave])
        found.append(Work(f'{len(wave) / INPUT_RATE:.2f} s heard', heard))
    return found


def compile_all(work: Sequence[Work], threads: int | None = None) -> Iterator[Work]:
    """Runs all of it, as many at once as there are cores; yields what is done."""
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        futures = {pool.submit(piece.run): piece for piece in work}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
