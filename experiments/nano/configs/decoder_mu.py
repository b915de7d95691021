"""The decoder, first half: the encoder alone learns the mean mel of each code. About 4 minutes."""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'flow'
    config.steps = 1200
    config.log_every = 50
    config.save_every = 300
    config.keep = 1
    config.model.update(
        vocab_size=512, input_size=128, width=128, heads=4, ff_width=384, blocks=2, up_blocks=2,
        dropout=0.0, channels=96, head_dim=32, estimator_heads=2, transformers=1, mid_blocks=1,
    )  # fmt: skip
    config.data.manifest = 'recordings/train/manifest.jsonl'
    config.data.codes = 'codes.jsonl'
    config.data.only = {'speaker': ['slt']}
    config.data.seconds = 32.0
    config.data.rows_multiple = 1  # for one device
    config.data.weights = {'answer': 20}  # four in ten
    config.data.undisturbed = 0.6
    config.loss.objective = 'mu'
    config.loss.scaled = True
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 2e-4
    config.optim.weight_decay = 0.01
    return config
