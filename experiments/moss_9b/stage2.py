"""Stage 2: everything learns, with a tenth of an epoch of text replayed.

    mossjax train --config experiments/moss_9b/stage2.py --workdir WORKDIR --pod \
        --config.init_from=STAGE1_WORKDIR

Data: rows of 14,336 positions, speech for two epochs and text for a tenth of one: set the weights
to those shares of your corpora. Paper: 2.8 M tokens a batch; here 192 rows, 2.75 M.
Hardware: 64 chips of v5p (v5p-128) or more. That the step fits is checked by
`experiments/proofs/tpu_train_step.py`; its time has not been measured on a TPU by us. Arithmetic:
at 50 % of peak about 12 s a step, 18 days.
"""

from experiments.moss_9b.common import moss_9b


def get_config():
    rows = {'interleaved': 'rows/interleaved', 'text': 'rows/text'}
    config = moss_9b(rows, batch_size=192)
    config.init_from = 'stage1'
    config.data.weights = {'interleaved': 0.9, 'text': 0.1}
    config.steps = 130_000
    config.optim.peak_lr = 6e-5
    config.optim.final_lr = 6e-6
    config.optim.warmup_steps = 1000
    return config
