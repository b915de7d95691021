"""The logits of a converted language model beside those of its source, which torch computes.

The one module that uses torch, and only where it is installed: the reference is built of
Transformers' own Qwen3 layers (a Qwen3 checkpoint is opened by Transformers itself), wired as the
released model is. Both sides read the same grid in float32 on the host.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
import types

import jax
import numpy as np

from mossjax.convert import kinds, qwen3
from mossjax.convert.placement import on_host, place
from mossjax.convert.source import LANGUAGE_MODEL, Source
from mossjax.files import available_memory
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import AUDIO, TEXT
from mossjax.ops.attention import Mask

TOLERANCE = 1e-4  # max |difference| / max |logit|, float32 on both sides, at any depth
ROWS = 64
SPARE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
      errors: {head: max |difference| / max |logit|}; empty if nothing was compared.
      skipped: why nothing was, '' otherwise.
    """

    errors: dict[str, float]
    skipped: str = ''

    @property
    def faults(self) -> list[str]:
        return [
            f'{head} head: logits differ by {error:.1e} of the largest, allowed is {TOLERANCE:g}'
            for head, error in self.errors.items() if not error <= TOLERANCE
        ]  # fmt: skip


def compare(original: Source, made: Path, cast: bool = False) -> Comparison:
    """Logits of a converted directory against those of its source, one of them by torch.

    Args:
      original: the source, with the tensors that were to be written.
      made: the directory they were written to.
      cast: those tensors are in another dtype than the files of `original`.
    """
    if original.kind.name != LANGUAGE_MODEL:
        return Comparison({}, f'a {original.kind.name} has none')
    try:
        torch, layers = _torch()
    except ImportError as error:
        return Comparison({}, f"{error}; install them with: pip install 'mossjax[parity]'")
    needed = 8 * sum(math.prod(s) for s in original.tensors.shapes.values()) + SPARE_BYTES
    free = available_memory()
    if free is not None and needed > free:
        return Comparison(
            {}, f'in float32 that takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free'
        )
    config = original.kind.config
    text_side = kinds.is_qwen3(made)
    if text_side or kinds.is_qwen3(original.path) and not cast:
        grid = _grid(config, speech=False)
        want = {'text': _qwen3_logits(torch, made if text_side else original.path, grid)}
    else:
        grid = _grid(config, speech=True)
        want = _speech_logits(torch, layers, config, original, grid)
    got = _our_logits(original if text_side else kinds.open_source(made), grid)
    return Comparison({head: _error(got[head], logits) for head, logits in want.items()})


def speech_model(torch: types.ModuleType, layers: types.ModuleType, config: LMConfig):
    """Trunk, two branches on its un-normalised output, two norms, two heads, in torch.

    Args:
      torch, layers: torch and Transformers' modeling_qwen3.

    Returns:
      A torch module from ids (b, t, 2) to (text logits, audio logits); its parameters bear the
      released checkpoint's names.
    """
    nn, d, eps = torch.nn, config.hidden_size, config.rms_norm_eps
    qwen = layers.Qwen3Config(**qwen3.qwen_config(config, 'float32'))
    qwen._attn_implementation = 'eager'

    def stack(count):
        block = nn.Module()
        block.layers = nn.ModuleList([layers.Qwen3DecoderLayer(qwen, i) for i in range(count)])
        return block

    class SpeechModel(nn.Module):
        def __init__(self):
            super().__init__()
            model = self.model = nn.Module()
            model.embed_tokens = nn.Embedding(config.vocab_size, d)
            model.audio_embed = nn.Embedding(config.audio_vocab_size, d)
            model.shared_block = stack(config.num_shared_layers)
            model.text_block = stack(config.num_modality_layers)
            model.audio_block = stack(config.num_modality_layers)
            model.text_norm = layers.Qwen3RMSNorm(d, eps)
            model.audio_norm = layers.Qwen3RMSNorm(d, eps)
            self.text_lm_head = nn.Linear(d, config.vocab_size, bias=False)
            self.audio_lm_head = nn.Linear(d, config.audio_vocab_size, bias=False)

        @torch.no_grad()
        def forward(self, tokens):
            model, (text, audio) = self.model, tokens.unbind(-1)
            speech = (text == config.modality_pad_token_id)[..., None]
            x = torch.where(speech, model.audio_embed(audio), model.embed_tokens(text))
            t = tokens.shape[1]
            rotation = layers.Qwen3RotaryEmbedding(qwen)(x, torch.arange(t)[None])
            hidden = torch.full((t, t), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)

            def run(block, x):
                for layer in block.layers:
                    x = layer(x, attention_mask=hidden[None, None], position_embeddings=rotation)
                return x

            h = run(model.shared_block, x)
            text = model.text_norm(run(model.text_block, h))
            audio = model.audio_norm(run(model.audio_block, h))
            return self.text_lm_head(text), self.audio_lm_head(audio)

    return SpeechModel()


def _torch() -> tuple[types.ModuleType, types.ModuleType]:
    """torch and Transformers' Qwen3, if they are there and of the version we know."""
    try:
        import torch
        import transformers
        from transformers.models.qwen3 import modeling_qwen3
    except ImportError:
        raise ImportError('torch and transformers 5 are not both installed') from None
    if transformers.__version__.split('.')[0] != '5':
        raise ImportError(f'transformers is {transformers.__version__}, not 5')
    return torch, modeling_qwen3


def _grid(config: LMConfig, speech: bool) -> np.ndarray:
    """(1, t, 2) ids: three text rows and three speech rows in turn, or text rows only."""
    rng = np.random.default_rng(0)
    t = min(ROWS, config.max_position_embeddings)
    text, audio = (rng.integers(0, n, (1, t)) for n in (config.vocab_size, config.audio_vocab_size))
    pad = config.modality_pad_token_id
    text = np.where(text == pad, (pad + 1) % config.vocab_size, text)
    if speech:
        text = np.where(np.arange(t) // 3 % 2 == 1, pad, text)
    return np.stack([text, audio], axis=-1)


def _speech_logits(torch, layers, config, source, grid) -> dict[str, np.ndarray]:
    with torch.device('meta'):  # nothing is drawn that the weights would replace
        model = speech_model(torch, layers, config)
    weights = {
        name: torch.from_numpy(source.tensors.read(name).astype(np.float32))
        for name in source.tensors.shapes
    }
    model.load_state_dict(weights, assign=True)
    text, audio = model(torch.from_numpy(grid))
    return {'text': text.numpy(), 'audio': audio.numpy()}


def _qwen3_logits(torch, path: Path, grid) -> np.ndarray:
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(grid[..., TEXT])).logits.numpy()


def _our_logits(source: Source, grid) -> dict[str, np.ndarray]:
    net = source.kind.network  # with the settings that stand beside these weights
    positions = np.arange(grid.shape[1])[None]
    with jax.default_device(jax.devices('cpu')[0]), jax.default_matmul_precision('highest'):
        params = place(source.kind.rules, source.tensors, net.shapes, on_host('float32'))
        forward = jax.jit(lambda params, *args: net.bind(params)(*args))
        logits = forward(params, grid.astype(np.int32), positions, Mask(causal=True))
    return {'text': np.asarray(logits[TEXT]), 'audio': np.asarray(logits[AUDIO])}


def _error(got: np.ndarray, want: np.ndarray) -> float:
    want = want[..., : got.shape[-1]]  # Qwen3 may have more words than were taken over
    return float(np.abs(got - want).max() / np.abs(want).max())
