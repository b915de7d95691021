"""Stage 1: speech embedding, branch and head learn; every Qwen3-8B parameter is frozen.

    mossjax train --config experiments/moss_9b/stage1.py:v5p-128 --workdir WORKDIR --pod \
        --config.init_from=Qwen3-8B

Data: rows of 14,336 positions at rows/interleaved (`mossjax rows`), interleaved and unsupervised
speech, about one epoch: 1.8e11 tokens for the paper's 4 million hours. The paper's batch is 2.2 M
tokens, of which no number of chips is a divisor; ours:

    slice       rows of a batch     tokens   of the paper's    steps   s a step   at MFU
    v5p-128                 128     1.84 M           - 17 %   98,100        8.1     50 %
    v5e-256                 128     1.84 M           - 17 %   98,100        4.7     50 %
    v6e-256                 256     3.67 M           + 67 %   49,000        3.0     33 %
    2xv6e-256               128     1.84 M           - 17 %   98,100        0.8     33 %

The seconds are arithmetic, 64.5 GFLOP a token by the convention over peak and the utilisation
named; nothing here has been timed on a TPU by us. Stage 1 does a fifth less than the convention
counts. That steps fit their slices is checked by `experiments/proofs/tpu_train_step.py`.
"""

from experiments.moss_9b.common import moss_9b, steps

ROWS = {'v5p-128': 128, 'v5e-256': 128, 'v6e-256': 256, '2xv6e-256': 128}


def get_config(slice='v5p-128'):
    config = moss_9b({'interleaved': 'rows/interleaved'}, 14_336, ROWS, slice)
    config.init_from = 'Qwen3-8B'
    config.steps = steps(1.8e11, config)
    config.optim.peak_lr = 4e-4
    config.optim.final_lr = 4e-5  # not in the paper
    config.optim.warmup_steps = 1000
    # No text loss: the text side is frozen, so it would train the speech embedding alone, and run
    # the text branch and its head for that. Another weight does just this.
    config.loss.text_weight = 0.0
    # The speech embedding lies below the frozen trunk, so gradients still cross all layers: what
    # freezing saves is weight gradients and optimiser state.
    config.optim.frozen = ('trunk/.*', 'text_.*')
    return config
