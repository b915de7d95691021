"""The decoder, first half: the encoder alone learns the mean mel of each code."""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'flow'
    # Steps are short, and what mu leaves out, such as the stop that a word begins with, the flow
    # does not find again.
    config.steps = 4400
    config.log_every = 50
    config.save_every = 300
    config.keep = 1
    config.model.update(
        vocab_size=512, input_size=128, width=128, heads=4, ff_width=384, blocks=2, up_blocks=2,
        dropout=0.0, channels=96, head_dim=32, estimator_heads=2, transformers=1, mid_blocks=1,
    )  # fmt: skip
    config.data.manifest = 'doubles.jsonl'
    config.data.codes = 'doubles_codes.jsonl'
    config.data.seconds = 32.0
    config.data.rows_multiple = 1  # for one device
    # Three rows in five are what replies are, in their voice; one in four is a double.
    config.data.weights = {
        'answer': 400, 'answer_other': 2,
        'question_double': 2, 'answer_double': 6, 'answer_other_double': 2,
    }  # fmt: skip
    config.loss.objective = 'mu'
    config.loss.scaled = True
    config.optim.peak_lr = 2e-3
    config.optim.final_lr = 2e-5
    config.optim.weight_decay = 0.01
    return config
