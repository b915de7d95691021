"""The vocoder, first half: mels and pitch alone, without discriminators."""

from mossjax.train.config import defaults

# Log-mels of three resolutions: 160 bins tell the harmonics of a deep voice apart, 12 its pulses.
SCALES = ((1920, 480, 160), (512, 128, 40), (128, 32, 12))


def get_config():
    config = defaults()
    config.task = 'vocoder'
    config.steps = 4000
    config.log_every = 50
    config.save_every = 200
    config.keep = 1
    # Samples come of 3000 spectra a second where the released vocoder has 6000: half the work. 31
    # overtones, so that a source of 100 to 300 Hz reaches where the voice ends and filters remain
    # to be learnt.
    config.model.update(
        channels=128, f0_width=128, harmonics=31, rates=(12, 5), kernels=(24, 11), n_fft=32, hop=8,
        block_kernels=(3, 7), dilations=(1, 3), source_kernels=(7, 7),
    )  # fmt: skip
    config.data.manifest = 'vocoder.jsonl'
    config.data.f0 = 'f0.jsonl'
    config.data.frames = 20
    config.data.rows = 8
    config.loss.update(adversarial=0.0, feature=0.0, f0=0.1, scales=SCALES)
    config.optim.peak_lr = 1e-3
    config.optim.final_lr = 5e-5
    config.optim.b1, config.optim.b2 = 0.8, 0.99
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 100.0
    return config
