"""The speech tokenizer: phones through a codebook of 512, learnt from nothing.

Frame labels are flite's own phone times; a real corpus has none and sets `loss.frames` to 0.
About 20 minutes.
"""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'tokenizer'
    config.steps = 2000
    config.log_every = 50
    config.save_every = 250
    config.keep = 1
    config.model.update(
        d=128, heads=4, ffn=512, layers=3, encoder_layers=4, mels=128, codes=512,
        commitment=1.0, loss_scale=1.0, decay=0.99, restart_interval=100,
        decoder_layers=1, decoder_heads=4, decoder_ffn=512,
    )  # fmt: skip
    config.data.manifest = 'recordings/train/manifest.jsonl'
    config.data.inventory = 'phones.json'
    config.data.seconds = 80.0
    config.data.rows_multiple = 1  # for one device
    config.data.room = 0.07
    config.data.weights = {'answer': 6, 'answer_other': 2}
    config.loss.frames = 1.0
    config.loss.ctc = 0.3
    config.loss.commitment = 'relative'
    config.loss.penalty = 3e-3
    config.loss.warmup = 250
    config.optim.peak_lr = 1.5e-3
    config.optim.final_lr = 5e-5
    config.optim.weight_decay = 0.01
    config.optim.b2 = 0.98
    return config
