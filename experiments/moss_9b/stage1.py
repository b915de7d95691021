"""Stage 1: speech embedding, branch and head learn; every Qwen3-8B parameter is frozen.

    mossjax train --config experiments/moss_9b/stage1.py --workdir WORKDIR --pod \
        --config.init_from=Qwen3-8B

Data: rows of 14,336 positions at rows/interleaved (`mossjax.data`), interleaved and unsupervised
speech, about one epoch (8e4 steps for the paper's 4 million hours). Paper: 2.2 M tokens a batch;
here 192 rows, 2.75 M, the next multiple of the chips.
Hardware: 64 chips of v5p (v5p-128) or more. That the step fits is checked by
`experiments/proofs/tpu_train_step.py`; its time has not been measured on a TPU by us. Arithmetic:
at 50 % of peak about 14 s a step, 13 days.
"""

from experiments.moss_9b.common import moss_9b


def get_config():
    config = moss_9b({'interleaved': 'rows/interleaved'}, batch_size=192)
    config.init_from = 'Qwen3-8B'
    config.steps = 80_000
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
