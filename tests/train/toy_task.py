"""The smallest task that uses everything a task may use, and a program that trains it.

    python -m tests.train.toy_task WORKDIR STEPS [signal=STEP@NUMBER@FILE] [file_limit=BYTES]
        [hang=STEP] [process=INDEX/COUNT@PORT] [order=DEVICE,DEVICE,...] [dotted.key=value ...]

A linear map learns a fixed one from noisy rows: the noise needs the step's random key, a running
mean of the inputs is state that no gradient trains, and the rows are a function of the step.
"""

import ast
import os
import resource
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.nn.linear import Linear
from mossjax.nn.param import describe
from mossjax.parallel import distributed
from mossjax.train.config import defaults

D = 8


class ToyTask:
    """`poison` are the steps whose rows are NaN."""

    def __init__(self, poison=()):
        self.network = describe(lambda rngs: Linear(D, D, rngs=rngs))
        self.poison = poison

    def init_extra(self, params):
        return {'mean': jnp.zeros((D,))}

    def loss(self, params, extra, batch, key):
        x = batch['x'] + 0.1 * jax.random.normal(key, batch['x'].shape)
        y = self.network.bind(params)(x.astype(params['kernel'].dtype))
        loss = jnp.mean(jnp.square(y.astype(jnp.float32) - batch['y']))
        extra = {'mean': 0.9 * extra['mean'] + 0.1 * jnp.mean(batch['x'], axis=0)}
        return loss, ({'tokens': jnp.float32(x.size)}, extra)

    def size(self, step):
        return 8

    def batch(self, step, rows=None):
        rng = np.random.default_rng([7, step])
        x = rng.normal(size=(8, D)).astype(np.float32)
        y = 2 * x[:, ::-1]
        if step in self.poison:
            x = x * np.nan
        rows = slice(None) if rows is None else rows
        return {'x': x[rows], 'y': np.ascontiguousarray(y)[rows]}


def toy_config(steps: int = 6, **changes):
    config = defaults()
    config.steps, config.log_every, config.save_every = steps, 1, 2
    config.optim.warmup_steps = 2
    config.update_from_flattened_dict(changes)
    return config


class Signalling(ToyTask):
    """Sends this process a signal once a file exists and the loss of a step has been written."""

    def __init__(self, workdir, step, number, file='metrics.jsonl'):
        super().__init__()
        self.workdir, self.at, self.number = workdir, int(step), int(number)
        self.file = os.path.join(workdir, file)

    def batch(self, step, rows=None):
        # Batches are made ahead by other threads, so this one can wait for the log.
        if step == self.at + 1:
            lines = os.path.join(self.workdir, 'metrics.jsonl')
            while not os.path.exists(self.file) or f'"step": {self.at},' not in open(lines).read():
                time.sleep(0.01)
            os.kill(os.getpid(), self.number)
            if self.number == signal.SIGKILL:
                time.sleep(60)
        return super().batch(step, rows)


class Hanging(ToyTask):
    """Gives no batch from one step on."""

    def __init__(self, step):
        super().__init__()
        self.at = step

    def batch(self, step, rows=None):
        while step >= self.at:
            time.sleep(1)
        return super().batch(step, rows)


class Limited(ToyTask):
    """Once it trains, this process can write no file longer than `limit` bytes.

    The first batch is read before a workdir is looked at, the second when all is open.
    """

    def __init__(self, limit):
        super().__init__()
        self.limit, self.read = limit, 0

    def batch(self, step, rows=None):
        self.read += 1
        if self.read > 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        return super().batch(step, rows)


def main():
    from mossjax.train.loop import fit

    # As tests/conftest.py has it: its bits are compared with those of runs in the suite's process.
    jax.config.update('jax_disable_most_optimizations', True)
    workdir, steps, *pairs = sys.argv[1:]
    changes = dict(pair.split('=', 1) for pair in pairs)
    if place := changes.pop('process', None):
        place, port = place.split('@')
        index, count = map(int, place.split('/'))
        distributed.start(f'localhost:{port}', count, index, timeout_s=60)
    order = changes.pop('order', None)
    stop = changes.pop('signal', None)
    task = ToyTask()
    limit = int(changes.pop('file_limit', 0))
    if limit:
        task = Limited(limit)
    if hang := int(changes.pop('hang', 0)):
        task = Hanging(hang)
    if stop:
        task = Signalling(workdir, *stop.split('@'))
    values = {key: ast.literal_eval(value) for key, value in changes.items()}
    devices = order and [jax.devices()[int(i)] for i in order.split(',')]
    fit(task, toy_config(int(steps), **values), workdir, devices=devices)


if __name__ == '__main__':
    main()
