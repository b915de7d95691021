"""The training loop of every network, from a laptop to a pod, in the order things happen."""

from collections.abc import Callable, Iterable
import contextlib
import sys

from absl import logging
import jax
import jax.numpy as jnp

from mossjax.checkpoint import Checkpoints
from mossjax.data.pipeline import prefetch
from mossjax.errors import InputError
from mossjax.exits import AGAIN
from mossjax.files import locked
from mossjax.parallel import chips, distributed, rules, sharding
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.steps import CHECKPOINTS, as_path
from mossjax.train import guard, metrics, optim, profile, resume
from mossjax.train import state as state_lib
from mossjax.train.clock import Clock
from mossjax.train.held_out import HeldOut
from mossjax.train.log import Log
from mossjax.train.optim import OptimConfig
from mossjax.train.resume import saved_step
from mossjax.train.skips import Skips
from mossjax.train.state import Layout, TrainState
from mossjax.train.step import Step, check_parts
from mossjax.train.task import Batch, Task

AHEAD = 10_000  # steps whose sizes of batches are checked before the first
LOCK = 'lock'  # in the workdir
Params = dict | Callable[[dict], dict]


def fit(
    task: Task, config, workdir, *, init_from: Params | None = None, devices=None,
    changed: Iterable[str] = (),
) -> TrainState:  # fmt: skip
    """Trains a network to `config.steps` steps and returns the last state.

    Parameters come from, in this order: the last checkpoint of this workdir; `init_from`; the
    network's own initial law. On SIGTERM, or a preemption notice on a pod, the state is saved and
    the process exits with `exits.AGAIN`; the same call resumes, bit for bit. A step whose loss or
    gradient is not finite is skipped.

    Args:
      config: the ConfigDict of `train.config.defaults`.
      workdir: gets checkpoints/, metrics.jsonl (in a bucket, parts of it in metrics/),
        tensorboard/, profile/ and a lock: one run at a time.
      init_from: a nested dict of parameters, or a function that is given the parameters' abstract
        tree (shapes with shardings) and returns them.
      devices: of the mesh, in this order; all by default.
      changed: dotted keys of the config whose change since the last checkpoint is meant.

    Raises:
      InputError: config, batch, mesh, given parameters or checkpoint do not fit each other, or
        another run has the workdir.
      FloatingPointError: too many steps were skipped, see `config.RunConfig.max_skips`; nothing
        more is saved, so that the run can go on from before them.
    """
    clock = Clock()
    workdir = as_path(workdir)
    start = saved_step(workdir)
    done = start or 0
    meta = resume.read_meta(workdir, start)
    resume.check_config(meta, config.to_dict(), changed)
    if meta.get('rows') is not None:  # the data go on from there, whatever the size of a batch
        task = task.at(done, meta['rows'])
    _use_cache(config.compilation_cache)

    # ---- Layout: mesh, shapes and shardings, nothing allocated yet.
    mesh = make_mesh(MeshConfig(**config.mesh), devices)
    layout = state_lib.layout(
        task, OptimConfig(**config.optim), config.steps, mesh, rules.preset(config.rules)
    )
    _describe(layout)
    resume.check_memory(layout)

    # ---- Data: this process reads the rows that its devices hold. The first are read before
    # anything is written.
    rows = Rows.of(mesh, layout.rules)

    def read(step: int) -> tuple[int, Batch]:
        size = task.size(step)
        return size, task.batch(step, rows.held(size))

    if done < config.steps:
        rows.check({task.size(step) for step in range(done, min(config.steps, done + AHEAD))})
        size, first = read(done)
        rows.check_batch(first, size)
        check_parts(task, size, rows.parts, config.accumulate)

    # ---- State: resume, or start from given parameters, or from scratch.
    if start is None:
        state = _begin(task, layout, workdir, config, init_from)
    else:
        state = resume.restore(layout, workdir, start, meta)

    with contextlib.ExitStack() as stack:
        if distributed.is_first():
            stack.enter_context(locked(workdir / LOCK, f'the workdir {workdir}'))
            if saved_step(workdir) != start:
                raise InputError(f'{workdir}: another run has saved a step there just now; run '
                                 'the same command again to go on from it')  # fmt: skip
        stack.callback(_tell, clock)
        checkpoints = Checkpoints(
            workdir / CHECKPOINTS, keep=config.keep, milestone_every=config.milestone_every
        )
        stack.callback(checkpoints.close)  # after a failure too: it ends the last save
        if done >= config.steps:
            logging.info('%s has its %d steps already', workdir, config.steps)
            return state

        # ---- The step.
        run = Step(
            task, layout, jnp.dtype(config.compute_dtype), config.accumulate, clock
        )  # fmt: skip
        everywhere = layout.abstract.step.sharding
        key = jax.jit(jax.random.key, out_shardings=everywhere, static_argnums=0)(config.seed)
        skips = Skips(config.max_skips, config.max_skip_share, _names(task),
                      meta.get('skipped', ()), done)  # fmt: skip
        log = Log(workdir, done, config, clock, skips, _speed(task, config, mesh, first), stack)
        held_out = None
        if config.held_out_every:
            held_out = HeldOut(task, layout, jnp.dtype(config.compute_dtype))

        def save(state, step):
            logging.info('saving step %d', step)
            clock.switch('save')
            checkpoints.save(step, state.items(), {
                'config': config.to_dict(), 'model': getattr(task, 'model', None),
                'rows': _consumed(task, step), 'skipped': list(skips.steps),
            })  # fmt: skip

        batches = stack.enter_context(contextlib.closing(prefetch(read, done)))
        stopping = stack.enter_context(guard.termination())
        progress = stack.enter_context(guard.watchdog(config.stall_after))
        profiled = stack.enter_context(profile.window(
            workdir / 'profile', max(config.profile_from, done + 2), config.profile_steps
        ))

        # ---- The loop. `step` counts finished steps.
        for step in range(done + 1, config.steps + 1):
            clock.switch('data')
            size, batch = next(batches)
            batch = rows.put(batch, size)
            clock.switch('step')
            state, values = run(state, batch, key)
            log.add(step, values)
            if jax.default_backend() == 'cpu':
                # Two virtual CPU devices in each of several processes deadlock when steps pile up,
                # and a laptop loses nothing by waiting.
                jax.block_until_ready(values)
            profiled(step, values)
            if held_out and step % config.held_out_every == 0:
                clock.switch('held_out')
                log.write(step, held_out(state))
            stop = stopping() or distributed.preempted(step)
            if stop or _due(step, config):
                log.settle()  # what is saved also says which steps were skipped
                save(state, step)
            progress()
            if stop:
                checkpoints.wait()
                logging.info('told to stop: saved step %d of %d', step, config.steps)
                sys.exit(AGAIN)
        log.flush()
    return state


def _tell(clock: Clock) -> None:
    clock.switch('save')
    logging.info('wall time: %s', ', '.join(
        f'{bucket} {seconds:.1f} s' for bucket, seconds in clock.total().items()
    ))


def _due(step: int, config) -> bool:
    """Whether the state after a step is saved."""
    milestone = config.milestone_every and step % config.milestone_every == 0
    return step == config.steps or step % config.save_every == 0 or bool(milestone)


def _speed(task, config, mesh, batch: Batch) -> metrics.Speed:
    peak = config.peak_flops or chips.peak_flops(mesh.devices.flat[0])
    flops = task.flops(batch, config.optim.frozen) if hasattr(task, 'flops') else (None, None)
    if flops[0]:
        logging.info('%.4g GFLOP a token by the convention, %.4g are done', *(
            x / 1e9 for x in flops
        ))
    return metrics.Speed(mesh.size, peak, *flops)


def _names(task) -> Callable[[int], list[str]]:
    return getattr(task, 'names', lambda step: [f'row {i}' for i in range(task.size(step))])


def _consumed(task, step: int) -> int | None:
    """Rows of all batches before a step, of tasks that can go on from any."""
    return task.consumed(step) if hasattr(task, 'consumed') else None


def _use_cache(folder: str) -> None:
    if not folder:
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update('jax_compilation_cache_dir', folder)
    compilation_cache.reset_cache()  # what was compiled before this has settled that there is none


def _describe(layout: Layout) -> None:
    trainable, frozen = optim.split(layout.abstract.params, layout.frozen)
    logging.info(
        '%s parameters (%s frozen), mesh %s, bytes on each device: parameters %s, optimiser %s',
        f'{optim.count(layout.abstract.params):,}', f'{optim.count(frozen):,}',
        dict(layout.mesh.shape), f'{sharding.bytes_per_device(layout.abstract.params):,}',
        f'{sharding.bytes_per_device(layout.abstract.opt_state):,}',
    )
    logging.debug('%s', sharding.report(layout.abstract.params))


def _begin(task, layout: Layout, workdir, config, init_from) -> TrainState:
    if (last := metrics.last_step(workdir)) is not None:
        logging.warning(
            '%s has metrics up to step %d and no checkpoint: the run starts at step 0 again. If '
            'its folder %s is elsewhere, stop and put it back', workdir, last, CHECKPOINTS,
        )
    given = init_from(layout.abstract.params) if callable(init_from) else init_from
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)  # no step has this number
    return state_lib.init(task, layout, key, given)
