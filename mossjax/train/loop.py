"""The training loop of every network, from a laptop to a pod, in the order things happen."""

from collections.abc import Callable
import contextlib
import signal
import sys
import time

from absl import logging
import jax
import jax.numpy as jnp

from mossjax import checkpoint, steps
from mossjax.checkpoint import Checkpoints
from mossjax.data.pipeline import prefetch
from mossjax.errors import InputError
from mossjax.files import available_memory
from mossjax.parallel import distributed, rules, sharding
from mossjax.parallel.mesh import MeshConfig, make_mesh
from mossjax.parallel.rows import Rows
from mossjax.steps import CHECKPOINTS, as_path
from mossjax.train import metrics, optim
from mossjax.train import state as state_lib
from mossjax.train.config import changes
from mossjax.train.optim import OptimConfig
from mossjax.train.state import Layout, TrainState
from mossjax.train.step import compiled_step
from mossjax.train.task import Batch, Task

AHEAD = 10_000  # steps whose sizes of batches are checked before the first
Params = dict | Callable[[dict], dict]


def saved_step(workdir) -> int | None:
    """Updates in the last whole checkpoint of a run, None if it has none.

    Raises:
      InputError: it has checkpoints, and none is whole.
    """
    return steps.newest(as_path(workdir) / CHECKPOINTS)


def fit(
    task: Task, config, workdir, *, init_from: Params | None = None, devices=None
) -> TrainState:
    """Trains a network to `config.steps` updates and returns the last state.

    Parameters come from, in this order: the last checkpoint of this workdir; `init_from`; the
    network's own initial law. On SIGTERM, or a preemption notice on a pod, the state is saved and
    the process exits with code 0; the same call resumes, bit for bit.

    Args:
      config: the ConfigDict of `train.config.defaults`.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      init_from: a nested dict of parameters, or a function that is given the parameters' abstract
        tree (shapes with shardings) and returns them.
      devices: of the mesh, in this order; all by default.

    Raises:
      InputError: config, batch, mesh, given parameters or checkpoint do not fit each other.
      FloatingPointError: loss or gradient is not finite; the state is not saved.
    """
    workdir = as_path(workdir)
    start = saved_step(workdir)
    done = start or 0

    # ---- Layout: mesh, shapes and shardings, nothing allocated yet.
    mesh = make_mesh(MeshConfig(**config.mesh), devices)
    layout = state_lib.layout(
        task, OptimConfig(**config.optim), config.steps, mesh, rules.preset(config.rules)
    )
    _describe(layout)
    _check_memory(layout)

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

    # ---- State: resume, or start from given parameters, or from scratch.
    if start is None:
        state = _begin(task, layout, workdir, config, init_from)
    else:
        state = _resume(layout, workdir, start, config)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=config.keep)
    if done >= config.steps:
        logging.info('%s has its %d steps already', workdir, config.steps)
        checkpoints.close()
        return state

    # ---- The step.
    step_fn = compiled_step(task, layout, jnp.dtype(config.compute_dtype), first)
    everywhere = layout.abstract.step.sharding
    key = jax.jit(jax.random.key, out_shardings=everywhere, static_argnums=0)(config.seed)
    meta = {'config': config.to_dict(), 'model': getattr(task, 'model', None)}

    def save(state, step):
        logging.info('saving step %d', step)
        checkpoints.save(step, state.items(), meta)

    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)  # last, and after a failure too: it ends the last save
        recorder = _Log(workdir, done, config, stack)
        batches = stack.enter_context(contextlib.closing(prefetch(read, done)))
        stopping = stack.enter_context(_termination())

        # ---- The loop. `step` counts finished updates.
        for step in range(done + 1, config.steps + 1):
            size, batch = next(batches)
            state, values = step_fn(state, rows.put(batch, size), key)
            recorder.add(step, values)
            stop = stopping() or distributed.preempted(step)
            last = step == config.steps
            # A state is saved only after its numbers were seen to be finite.
            if stop or last or step % config.log_every == 0 or step % config.save_every == 0:
                recorder.flush()
            if stop or last or step % config.save_every == 0:
                save(state, step)
            if stop:
                checkpoints.wait()
                logging.info('told to stop: saved step %d of %d', step, config.steps)
                sys.exit(0)
    return state


def _describe(layout: Layout) -> None:
    trainable, frozen = optim.split(layout.abstract.params, layout.frozen)
    logging.info(
        '%s parameters (%s frozen), mesh %s, bytes on each device: parameters %s, optimiser %s',
        f'{optim.count(layout.abstract.params):,}', f'{optim.count(frozen):,}',
        dict(layout.mesh.shape), f'{sharding.bytes_per_device(layout.abstract.params):,}',
        f'{sharding.bytes_per_device(layout.abstract.opt_state):,}',
    )
    logging.debug('%s', sharding.report(layout.abstract.params))


def _check_memory(layout: Layout) -> None:
    """
    Raises:
      InputError: parameters and optimiser alone are more than a device holds.
    """
    devices = layout.mesh.local_devices
    room = (devices[0].memory_stats() or {}).get('bytes_limit')
    if room is None and (free := available_memory()) is not None:  # CPU devices share the host's
        room = free // len(devices)
    needed = sharding.bytes_per_device(layout.abstract)
    if room is not None and needed > room:
        raise InputError(
            f'parameters and optimiser state take {needed / 1e9:,.1f} GB of each device, which has '
            f'{room / 1e9:,.1f} GB: take a smaller config.model or more devices (mesh '
            f'{dict(layout.mesh.shape)})'
        )


def _resume(layout: Layout, workdir, start: int, config) -> TrainState:
    """The state of a checkpoint; what has changed since it was written is said."""
    items, meta = checkpoint.restore(workdir / CHECKPOINTS, layout.abstract.items(), start)
    logging.info('resuming from step %d in %s', start, workdir)
    if meta['versions'] != (now := checkpoint.versions()):
        logging.warning('checkpoint was written with %s, this is %s: the rest of the run may '
                        'differ in the last digits', meta['versions'], now)
    changed = changes(meta.get('config', {}), config.to_dict())
    if changed:
        logging.warning('the config is another than when step %d was written: %s', start,
                        '; '.join(changed))  # fmt: skip
    return state_lib.from_items(items, start, layout)


def _begin(task, layout: Layout, workdir, config, init_from) -> TrainState:
    if lines := metrics.read(workdir / metrics.NAME):
        logging.warning(
            '%s has metrics up to step %d and no checkpoint: the run starts at step 0 again. If '
            'its folder %s is elsewhere, stop and put it back', workdir, lines[-1]['step'],
            CHECKPOINTS,
        )
    given = init_from(layout.abstract.params) if callable(init_from) else init_from
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)  # no step has this number
    return state_lib.init(task, layout, key, given)


@contextlib.contextmanager
def _termination():
    """Yields a function: has SIGTERM arrived? On a pod jax itself listens, see `preempted`."""
    received = []
    if jax.distributed.is_initialized():
        yield lambda: False
        return
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Log:
    """Gathers metrics on devices, fetches them once an interval, checks and writes them."""

    def __init__(self, workdir, start: int, config, stack: contextlib.ExitStack):
        self.total, self.began, self.pending = config.steps, time.monotonic(), []
        self.writer = self.bar = None
        # Waiting for each step: two virtual CPU devices in each of several processes deadlock
        # when steps pile up, and a laptop loses nothing by it.
        self.wait = jax.default_backend() == 'cpu'
        if distributed.is_first():
            self.writer = metrics.Recorder(workdir, start)
            stack.callback(self.writer.close)
            if sys.stderr.isatty():
                from tqdm import tqdm

                self.bar = tqdm(total=config.steps, initial=start, unit='step')
                stack.callback(self.bar.close)

    def add(self, step: int, values: dict) -> None:
        self.pending.append((step, values))
        if self.wait:
            jax.block_until_ready(values)
        if self.bar:
            self.bar.update()

    def flush(self) -> None:
        """Raises FloatingPointError, naming the step, if one of the interval was not finite."""
        steps, values = zip(*self.pending, strict=True)
        values = jax.device_get(list(values))
        now = time.monotonic()
        bad = [s for s, v in zip(steps, values, strict=True) if not v['finite']]
        summary = metrics.summarise(values, now - self.began)
        self.pending, self.began = [], now
        if self.writer:
            self.writer.write(steps[-1], summary)
            if self.bar:
                self.bar.set_postfix(loss=f'{summary["loss"]:.4f}')
            else:
                shown = ' '.join(f'{k}={v:.5g}' for k, v in summary.items())
                logging.info('step %d/%d %s', steps[-1], self.total, shown)
        if bad:
            raise FloatingPointError(
                f'loss or gradient is not finite at step {bad[0]} (of steps {steps[0]} to '
                f'{steps[-1]}); nothing was saved after step {steps[0] - 1}. Look at the data of '
                'that step, lower optim.peak_lr or lengthen optim.warmup_steps'
            )

