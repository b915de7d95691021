"""`verify_contract`: what holds for everything that streams, proven for one stream.

A stream passes if what it gives piece by piece is what its network gives in one go, whatever the
pieces, the neighbours and the padding; and if no step can cost more than another.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.stream import Piece, Stream


def verify_contract(
    stream: Stream, rows: Sequence[np.ndarray], whole: Callable[[np.ndarray], np.ndarray], *,
    atol: float, start: Callable | None = None,
) -> None:  # fmt: skip
    """Fails where the stream breaks the contract of `models.stream`.

    Args:
      rows: what three or more sessions send, (places, ...), of different lengths; one of several
        blocks and a rest, one of whole blocks, one of less than a block.
      whole: a row -> all that comes of it, from the network in one go under the same mask.
      atol: between floats. Integers must be equal.
      start: [indices of rows] -> the state their sessions start in, where that depends on them.
    """
    start = start or (lambda indices: stream.start(len(indices)))
    lengths = [len(row) for row in rows]
    block = stream.block
    assert max(lengths) > 2 * block and min(lengths) < block
    assert any(n % block == 0 for n in lengths) and any(n % block for n in lengths)
    step = jax.jit(stream.step)
    wanted = [np.asarray(whole(row)) for row in rows]

    def check(found, wanted, what):
        assert found.shape == wanted.shape, f'{what}: {found.shape}, not {wanted.shape}'
        if np.issubdtype(wanted.dtype, np.integer):
            np.testing.assert_array_equal(found, wanted, err_msg=what)
        else:
            np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=what)

    for i, (row, one) in enumerate(zip(rows, wanted, strict=True)):
        for late in (False, True):  # the end is known with the last block, or only after it
            sizes = [1] * (len(row) // block + 1)
            found = run(step, start([i]), block, [row], [sizes], late=late)[0]
            check(found, one, f'{len(row)} places, block by block, end {"after" if late else "in"}')
    longest = int(np.argmax(lengths))
    sizes = [2, 1] * lengths[longest]
    found = run(step, start([longest]), block, [rows[longest]], [sizes])[0]
    check(found, wanted[longest], 'pieces of one and of two blocks')
    # Side by side, each at its own pace: some wait, some are over, all paddings are rubbish.
    rng = np.random.default_rng(0)
    paces = [list(rng.integers(0, 3, 4 * n // block + 8)) for n in lengths]
    together = run(step, start(range(len(rows))), block, rows, paces, late=True, wide=2)
    for n, found, one in zip(lengths, together, wanted, strict=True):
        check(found, one, f'{n} places among others')
    _two_blocks_are_one_after_another(step, start([longest]), block, rows[longest], check)
    _every_step_costs_the_same(stream, start, rows[longest])


def run(
    step, state, block: int, rows, paces, *, late: bool = False, wide: int = 1
) -> list[np.ndarray]:
    """All that comes out of sessions that send paces[i][j] blocks in step j.

    Args:
      late: a session of whole blocks ends with an empty piece, not with its last block.
      wide: blocks of a piece at least, however few are in it.
    """
    at, over = [0] * len(rows), [False] * len(rows)
    outs: list[list] = [[] for _ in rows]
    for j in range(max(map(len, paces))):
        blocks = max([wide] + [int(pace[j]) for pace in paces if j < len(pace)])
        parts, last = [], np.zeros(len(rows), bool)
        for i, (row, pace) in enumerate(zip(rows, paces, strict=True)):
            size = int(pace[j]) * block if j < len(pace) and not over[i] else 0
            parts.append(row[at[i] : at[i] + size])
            at[i] += len(parts[i])
            ends = at[i] == len(row) and (not late or len(parts[i]) < size or not len(parts[i]))
            last[i] = ends and size > 0 and not over[i]
            over[i] |= last[i]
        if not any(map(len, parts)) and not last.any():
            continue
        state, out = step(state, piece(parts, last, blocks * block))
        assert not np.any(np.asarray(out.last) != last), 'the end is not passed on'
        for i, n in enumerate(np.asarray(out.count)):
            assert n == 0 or len(parts[i]) or last[i], 'a waiting session gave something'
            outs[i].append(np.asarray(out.values[i, :n]))
    assert all(over), 'the test sent too little'
    return [np.concatenate(parts) for parts in outs]


def piece(parts, last, places: int) -> Piece:
    """Padded to `places` with NaN, or with a number that no table has."""
    kind = parts[0].dtype
    rubbish = np.nan if np.issubdtype(kind, np.floating) else np.iinfo(kind).min
    values = np.full((len(parts), places, *parts[0].shape[1:]), rubbish, kind)
    for row, part in zip(values, parts, strict=True):
        row[: len(part)] = part
    return Piece(values, np.array([len(part) for part in parts], np.int32), np.array(last))


def _two_blocks_are_one_after_another(step, state, block, row, check):
    """The states too."""
    no = np.zeros(1, bool)
    one, first = step(state, piece([row[:block]], no, block))
    one, second = step(one, piece([row[block : 2 * block]], no, block))
    two, both = step(state, piece([row[: 2 * block]], no, 2 * block))
    parts = [np.asarray(out.values[0, : out.count[0]]) for out in (first, second)]
    check(np.asarray(both.values[0, : both.count[0]]), np.concatenate(parts), 'two blocks')
    for x, y in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        check(np.asarray(x), np.asarray(y), 'the state after two blocks')


def _every_step_costs_the_same(stream: Stream, start, row):
    """The shapes of the state come out as they went in, and no loop's length is a value.

    One program then serves every position, with the same operations and the same memory.
    """
    given = piece([row[: stream.block]] * 2, np.zeros(2, bool), stream.block)
    before = start([0, 0])
    after = jax.eval_shape(stream.step, before, given)[0]
    kind = [(x.shape, x.dtype) for x in jax.tree.leaves(before)]
    assert kind == [(x.shape, x.dtype) for x in jax.tree.leaves(after)]
    assert all(shape[0] == 2 for shape, _ in kind), 'the first axis must be the session'
    assert jax.tree.structure(before) == jax.tree.structure(after)
    open_ended = {'while', 'cond'} & set(operations(jax.make_jaxpr(stream.step)(before, given)))
    assert not open_ended, f'{open_ended}: a step\'s cost depends on values'


def operations(program) -> list[str]:
    """The names of all operations of a jaxpr, those inside others included.

    A choice between platforms, `jax.lax.platform_dependent`, is made when the program is compiled:
    it is called so, and not 'cond', as which it stands in a jaxpr.
    """
    program = getattr(program, 'jaxpr', program)
    names = []
    for equation in program.eqns:
        by_platform = equation.params.get('branches_platforms') is not None
        names.append('platform_dependent' if by_platform else equation.primitive.name)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
        ):
            if hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns'):
                names += operations(value)
    return names


def verify_gradients(
    make: Callable[[dict], Stream], params: dict, row: np.ndarray,
    whole: Callable[[dict, jax.Array], jax.Array], *, rtol: float, state=None,
) -> None:  # fmt: skip
    """Gradients through the steps are those through the network in one go.

    Args:
      make: params -> stream. row: of whole blocks.
      whole: (params, row) -> all that comes of it.
      rtol: of each parameter's largest gradient, and of the input's.
      state: that the session starts in, the stream's own by default.
    """
    block = make(params).block
    blocks = len(row) // block
    assert blocks * block == len(row)

    last = jnp.arange(blocks)[:, None] == blocks - 1

    def stepwise(params, row):
        stream = make(params)

        def one(now, given):
            values, last = given
            return stream.step(now, Piece(values[None], jnp.array([block], jnp.int32), last))

        now = stream.start(1) if state is None else state
        return jax.lax.scan(one, now, (row.reshape(blocks, block, *row.shape[1:]), last))[1]

    # How much each step gives does not depend on what is learned.
    counts = [int(n) for n in jax.jit(stepwise)(params, row).count[:, 0]]

    def weighted(values):
        """A different weight for every number, so that no error cancels."""
        return jnp.sum(values * jnp.cos(jnp.arange(values.size)).reshape(values.shape))

    def of_steps(params, row):
        values = stepwise(params, row).values
        parts = [values[i, 0, :n] for i, n in enumerate(counts)]
        return weighted(jnp.concatenate(parts))

    def of_whole(params, row):
        return weighted(whole(params, row))

    found = jax.jit(jax.grad(of_steps, (0, 1)))(params, row)
    wanted = jax.jit(jax.grad(of_whole, (0, 1)))(params, row)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        largest = float(np.abs(y).max())
        np.testing.assert_allclose(
            x, y, rtol=0, atol=rtol * largest, err_msg=jax.tree_util.keystr(path)
        )
