"""The torch side of `experiments.benchmarks.codec`; runs in an environment of its own.

    PYTHON tests/torch_codec.py PART

Modules of the released sizes with random weights: Transformers' Whisper encoder for the tokenizer,
the flow and HiFT of chatterbox-tts (the same families as MOSS-Speech's) for the decoder. The
protocol is that of `experiments.benchmarks.codec_work`. Nothing of this project is imported.
"""

import importlib.util
import json
from pathlib import Path
import sys
import time
import types

import numpy as np
import torch

SPEECH, CODES, PROMPT = 30, 50, 25
PACKAGES = ('chatterbox', 'chatterbox.models', 'chatterbox.models.s3gen',
            'chatterbox.models.s3tokenizer')  # fmt: skip


def tokenizer():
    """Whisper's encoder of 16 layers on SPEECH seconds."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=1280, encoder_layers=16, encoder_attention_heads=20, encoder_ffn_dim=5120,
        num_mel_bins=128, max_source_positions=1500,
    )  # fmt: skip
    encoder = WhisperEncoder(config).eval()
    mel = torch.tensor(
        np.random.default_rng(0).normal(size=(1, 128, 100 * SPEECH)), dtype=torch.float32
    )
    return lambda: {'tokenizer': clocked(lambda: encoder(mel))}


def bare_packages():
    """chatterbox without what its top level imports and a decoder does not need."""
    found = importlib.util.find_spec(PACKAGES[0])
    if found is None:
        sys.exit('no chatterbox-tts in this environment: pip install chatterbox-tts')
    root = Path(found.origin).parents[1]
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split('.')))]
        sys.modules[name] = package
    sys.modules[PACKAGES[-1]].SPEECH_VOCAB_SIZE = 6561


def decode():
    """CODES behind a prompt of PROMPT to a mel (10 steps, guided), and that to a wave."""
    bare_packages()
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM
    from chatterbox.models.s3gen.hifigan import HiFTGenerator
    from chatterbox.models.s3gen.transformer.upsample_encoder import (
        Upsample1D,
        UpsampleConformerEncoder,
    )

    encoder = UpsampleConformerEncoder(
        input_size=512, output_size=512, attention_heads=8, linear_units=2048, num_blocks=6,
        input_layer='linear', pos_enc_layer_type='rel_pos_espnet',
        selfattention_layer_type='rel_selfattn', use_cnn_module=False, macaron_style=False,
    )  # fmt: skip
    encoder.up_layer = Upsample1D(512, 512, stride=4)
    estimator = ConditionalDecoder(
        in_channels=320, out_channels=80, causal=True, channels=[256], dropout=0.0,
        attention_head_dim=64, n_blocks=4, num_mid_blocks=12, num_heads=8, act_fn='gelu',
    )  # fmt: skip
    flow = CausalMaskedDiffWithXvec(
        vocab_size=20480, token_mel_ratio=4, encoder=encoder,
        decoder=CausalConditionalCFM(estimator=estimator),
    ).eval()  # fmt: skip
    vocoder = HiFTGenerator(
        sampling_rate=24000, upsample_rates=[8, 5, 3], upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5]] * 3,
        f0_predictor=ConvRNNF0Predictor(),
    ).eval()  # fmt: skip
    vocoder.remove_weight_norm()
    rng = np.random.default_rng(0)
    codes = torch.tensor(rng.integers(0, 16384, (1, CODES)))
    prompt = torch.tensor(rng.integers(0, 16384, (1, PROMPT)))
    known = torch.tensor(rng.normal(-6, 2, (1, 4 * PROMPT, 80)), dtype=torch.float32)
    xvector = torch.tensor(rng.normal(size=(1, 192)), dtype=torch.float32)

    def run():
        began = time.perf_counter()
        mel, _ = flow.inference(
            codes, torch.tensor([CODES]), prompt, torch.tensor([PROMPT]), known,
            torch.tensor([4 * PROMPT]), xvector, finalize=True,
        )  # fmt: skip
        middle = time.perf_counter()
        with torch.inference_mode():
            vocoder.inference(mel)
        ended = time.perf_counter()
        assert mel.shape[2] == 4 * CODES
        return {'flow': middle - began, 'vocoder': ended - middle, 'decode': ended - began}

    return run


def clocked(run) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        run()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(2)
    run = {'tokenizer': tokenizer, 'decode': decode}[sys.argv[1]]()
    run()
    print('ready', flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


if __name__ == '__main__':
    main()
