"""One step of the shipped nano model with one lane, as a version of this project takes it.

    PYTHONPATH=TREE python experiments/benchmarks/talk_before.py step

What it uses of `mossjax` has been there since replies are generated, so that TREE may be an early
version: this one may have none of the benchmark. A side of `experiments.benchmarks.sides`.
"""

import dataclasses
import time

import numpy as np
from sides import answer

from mossjax.infer.assets import shipped
from mossjax.infer.chat import Chat
from mossjax.infer.sampling import row_keys
from mossjax.models.lm.grid import text_rows

FIRST, ROWS = 2, 64  # of a reply; those that are timed come behind the first


def step():
    """Seconds of one of ROWS rows: what a longer reply takes beyond a short one."""
    chat = Chat.open(shipped() / 'lm')
    prompt = text_rows(np.arange(20), chat.generator.ids)

    def clock(rows: int) -> float:
        settings = dataclasses.replace(chat.settings, max_new_tokens=rows, min_new_tokens=rows)
        began = time.perf_counter()
        reply = chat.generator(chat.params, [prompt], settings, row_keys(0, 1))[0]
        assert len(reply.grid) == rows
        return time.perf_counter() - began

    def run():
        short = clock(FIRST)
        return {'step': (clock(FIRST + ROWS) - short) / ROWS}

    return run


if __name__ == '__main__':
    answer({'step': step})
