"""Stage 2: everything learns, with a tenth of an epoch of text replayed.

    mossjax train --config experiments/moss_9b/stage2.py:v5p-128 --workdir WORKDIR --pod \
        --config.init_from=STAGE1_WORKDIR

Data: rows of 14,336 positions, speech for two epochs and text for a tenth of one, 3.6e11 tokens of
speech for the paper's hours: set the weights to those shares of your corpora. The paper's batch is
2.8 M tokens; ours:

    slice       rows of a batch     tokens   of the paper's     steps   s a step   at MFU
    v5p-128                 192     2.75 M            - 2 %   145,300       12.1     50 %
    v5e-256                 128     1.84 M           - 34 %   218,000        4.7     50 %
    v6e-256                 256     3.67 M           + 31 %   109,000        3.0     33 %
    2xv6e-256               256     3.67 M           + 31 %   109,000        1.5     33 %

The seconds are arithmetic, 64.5 GFLOP a token by the convention over peak and the utilisation
named; nothing here has been timed on a TPU by us. That steps fit their slices is checked by
`experiments/proofs/tpu_train_step.py`.
"""

from experiments.moss_9b.common import moss_9b, steps

ROWS = {'v5p-128': 192, 'v5e-256': 128, 'v6e-256': 256, '2xv6e-256': 256}


def get_config(slice='v5p-128'):
    rows = {'interleaved': 'rows/interleaved', 'text': 'rows/text'}
    config = moss_9b(rows, 14_336, ROWS, slice)
    config.init_from = 'stage1'
    config.data.weights = {'interleaved': 0.9, 'text': 0.1}
    config.steps = steps(3.6e11 / 0.9, config)
    config.optim.peak_lr = 6e-5
    config.optim.final_lr = 6e-6
    config.optim.warmup_steps = 1000
    return config
