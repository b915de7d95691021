"""A finished nano run in miniature: untrained networks, eight facts, a few golden recordings."""

import json
import pathlib
import shutil

import jax
import numpy as np

from experiments.nano import render, text
from experiments.nano.ship import Run
from experiments.nano.world import NUMBERS, Fact, World
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.convert.codec_tokenizer import save_tokenizer, tokenizer_network
from mossjax.convert.directories import save_lm
from mossjax.models.flow.config import FlowConfig
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.models.tokenizer.config import TokenizerConfig

JUDGE = pathlib.Path(__file__).parent / 'golden' / 'judge'
CODES = 40
SUMS = [(3, 4), (4, 3), (2, 5), (5, 2), (5, 7), (7, 5), (3, 9), (4, 8)]
WITHHELD = {1, 4}  # facts never spoken: 4 + 3 and 5 + 7
WORLD = World(
    tuple(
        Fact(
            i, 'sums', f'what is {NUMBERS[a]} plus {NUMBERS[b]}', NUMBERS[a + b], i not in WITHHELD
        )
        for i, (a, b) in enumerate(SUMS)
    ),
    seed=0,
)
REPORT = {
    'stages': {
        'tokenizer': {'steps': 30, 'config_sha256': 'a' * 64},
        'vocoder_mel': {'steps': 35},
        'vocoder': {'steps': 36},
        'speaker': {'steps': 37},
        'decoder': {'steps': 40, 'config_sha256': 'b' * 64},
        'text_lm': {'steps': 50, 'text_accuracy': {'all': 1.0, 'never_spoken': 1.0}},
        'stage1': {
            'text_accuracy': {'all': 1.0, 'never_spoken': 1.0}, 'text_logits_identical': True,
        },
        'stage2': {'text_accuracy': {'all': 0.75, 'never_spoken': 0.5}},
        'sft': {'text_accuracy': {'all': 0.875, 'never_spoken': 0.5}, 'config_sha256': 'c' * 64},
    }
}  # fmt: skip
TOKENIZER = TokenizerConfig(
    d=16, heads=2, ffn=24, encoder_layers=1, layers=1, mels=80, codes=CODES, decoder_layers=1,
    decoder_heads=2, decoder_ffn=24,
)  # fmt: skip
FLOW = FlowConfig(
    vocab_size=CODES, input_size=16, width=16, heads=2, ff_width=24, blocks=1, up_blocks=1,
    channels=16, head_dim=8, estimator_heads=2, transformers=1, mid_blocks=1,
)  # fmt: skip


def write_run(root: pathlib.Path) -> Run:
    """Everything that `ship.pack` takes, under `root`."""
    write_lm(root / 'lm')
    save_tokenizer(root / 'codec', TOKENIZER, drawn(tokenizer_network(TOKENIZER), 0.1))
    save_flow(root / 'codec', FLOW, drawn(flow_network(FLOW), 0.1))
    write_recordings(root / 'recordings')
    (root / 'report.json').write_text(json.dumps(REPORT))
    return Run(root / 'lm', root / 'codec', root / 'recordings', root / 'report.json')


def write_lm(directory: pathlib.Path) -> None:
    tokenizer = text.train([*WORLD.words, 'in', 'text', 'speech'])
    text.save(tokenizer, directory.with_name('text'))
    config = LMConfig(
        vocab_size=tokenizer.get_vocab_size(), audio_vocab_size=CODES + 2, hidden_size=16,
        intermediate_size=24, num_hidden_layers=2, num_shared_layers=1, num_modality_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6,
        rope_theta=1e4, max_position_embeddings=400,
        sosp_token_id=tokenizer.token_to_id(text.SOSP),
        modality_pad_token_id=tokenizer.token_to_id(text.MODALITY_PAD), eosp_token_id=CODES,
        audio_pad_token_id=5, eos_token_id=tokenizer.token_to_id(text.IM_END), dtype='float32',
    )  # fmt: skip
    defaults = {
        'max_new_tokens': 12,
        'repetition_penalty': 1.0,
        'system_prompts': {'audio': 'answer in speech', 'text': 'answer in text'},
    }
    lm = jax.tree.map(lambda x: x.astype('bfloat16'), drawn(network(config), 0.5))
    names = ('tokenizer.json', 'tokenizer_config.json')
    files = {name: directory.with_name('text') / name for name in names}
    files['generation_config.json'] = json.dumps(defaults).encode()
    save_lm(directory, config, lm, files=files)


def drawn(net, scale: float) -> dict:
    """Random parameters, without the compilation that a network's own `init` costs."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(scale * rng.normal(size=x.shape)), net.shapes)


def write_recordings(root: pathlib.Path) -> None:
    """As `experiments.nano.render` lays them out; all questions sound the same."""
    lines = {split: [] for split in render.SPLITS}
    for answer in WORLD.answers:
        lines['train'].append(
            (f'answer/{answer}.flac', f'the answer is {answer}', 'slt', 1.0, 'answer', -1, answer)
        )
    for fact in WORLD.facts:
        split = 'heldout' if fact.spoken else 'never_spoken'
        for voice, rate in render.HELDOUT_RATES.items():
            path = f'question/{voice}_{rate:.2f}/{fact.id:04d}.flac'
            line = (path, fact.question, voice, rate, 'question', fact.id, 'question_kal16')
            lines[split].append(line)
    for split, entries in lines.items():
        manifest = []
        for *line, source in entries:
            path = root / split / line[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(JUDGE / f'{source}.flac', path)
            names = ('audio', 'text', 'speaker', 'rate', 'kind', 'fact')
            manifest.append(json.dumps(dict(zip(names, line, strict=True)) | {'seconds': 1.5}))
        (root / split / 'manifest.jsonl').write_text('\n'.join(manifest) + '\n')
    WORLD.save(root / 'world.json')
