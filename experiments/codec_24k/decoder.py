"""The released flow decoder's size, with voice prompts and both masks.

    mossjax train --config experiments/codec_24k/decoder.py --workdir WORKDIR \
        --config.init_from=MOSS-Speech-Codec
    mossjax convert WORKDIR my-codec --companions MOSS-Speech-Codec

codes.jsonl is what `mossjax tokenize` makes of the recordings, each of which names its "speaker";
vectors.jsonl, who that is to the codec's speaker encoder, is measured before the first step. Half
of the rows begin with another recording of their speaker, conditions are dropped in a fifth of them
(guidance), and half of the steps see blocks of 5 codes (streaming), by coin: one network decodes
whole utterances and streams.
"""

from mossjax.train.config import defaults


def get_config():
    config = defaults()
    config.task = 'flow'
    config.steps = 400_000
    config.save_every = 5000
    config.data.manifest = 'recordings/manifest.jsonl'
    config.data.codes = 'codes.jsonl'
    config.data.seconds = 640.0
    config.data.buckets = 8
    config.data.keep = 'disk'
    config.data.prompts = 0.5
    config.data.prompt_codes = 50
    config.data.vectors = 'vectors.jsonl'
    config.data.speaker = 'MOSS-Speech-Codec'
    config.loss.chunk = 5
    config.loss.chunk_share = 0.5
    config.optim.peak_lr = 1e-4
    config.optim.final_lr = 1e-5
    config.optim.warmup_steps = 2500
    config.optim.weight_decay = 0.01
    return config
