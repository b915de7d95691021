"""The stages of the nano recipe but those of its voice (`voice_stages`); `run.py` has the order.

Each takes (workdir, effort), leaves its results in the workdir and returns facts for the report.
All of them go on where they were stopped. Training runs are the files in `configs/`.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import importlib
import json
import os
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments.nano import clock, examples, measure, render, text, world
from mossjax.convert.codec_tokenizer import save_tokenizer
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import on_host
from mossjax.convert.qwen3 import start_speech_side
from mossjax.data.builder import write_rows
from mossjax.data.codes import CodesStore, tokenize_recordings
from mossjax.data.format import Format
from mossjax.data.manifest import Recording, read_recordings
from mossjax.infer.chat import Chat
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer
from mossjax.train import loop, tasks
from mossjax.train.config import check

CODES = 512
VERSIONS = 8  # of each recording, as the language model hears it
ROW_LENGTH = 256
# Row data sets that need codes.
SPEECH_ROWS = {
    make.__name__: make for make in (
        examples.asr, examples.tts, examples.mixed, examples.s2s, examples.s2t, examples.t2s
    )
}  # fmt: skip
# Every other number of the language model is upstream's.
LANGUAGE_MODEL = {
    'hidden_size': 128, 'intermediate_size': 384, 'num_hidden_layers': 4, 'num_shared_layers': 3,
    'num_modality_layers': 1, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 32,
    'max_position_embeddings': 1024, 'initializer_range': 0.05,
}  # fmt: skip


# ---------------------------------------------------------------------------- what stages share


def train(workdir: Path, name: str, effort: float):
    """Runs configs/<name>.py in workdir/<name>; returns (config, task, last state)."""
    os.chdir(workdir)  # paths in the configs are relative to it
    config = importlib.import_module(f'experiments.nano.configs.{name}').get_config()
    config.steps = max(1, round(config.steps * effort))
    check(config)
    run = tasks.make(config)
    return config, run.task, loop.fit(
        run.task, run.config, workdir / name, init_from=run.init_from
    )


def facts_of(config, state) -> dict:
    """What the report says about a training run; the hash is the same however long it runs."""
    plain = json.dumps(config.to_dict() | {'steps': None}, sort_keys=True, default=list)
    sizes = [x.size for x in jax.tree.leaves(state.params)]
    return {
        'steps': config.steps,
        'config_sha256': hashlib.sha256(plain.encode()).hexdigest(),
        'parameters': int(sum(sizes)),
    }


def bfloat16(params: dict) -> dict:
    """What is shipped: half the bytes. Rounded before anything is derived from the weights."""
    return jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def language_model_config(workdir: Path) -> tuple[LMConfig, TextTokenizer]:
    tokenizer = TextTokenizer.open(workdir / 'text')
    return LMConfig.from_hf(json.loads((workdir / 'start' / 'config.json').read_text())), tokenizer


def save_model(workdir: Path, name: str, params: dict, dtype=None) -> Path:
    """A Hugging Face directory workdir/<name> from parameters, written anew."""
    config, _ = language_model_config(workdir)
    target = workdir / name
    shutil.rmtree(target, ignore_errors=True)
    prompts = dataclasses.asdict(examples.PROMPTS)
    generation = {
        'do_sample': False, 'max_new_tokens': 64, 'repetition_penalty': 1.0,
        'system_prompts': prompts,
    }  # fmt: skip
    files = {n: workdir / 'text' / n for n in ('tokenizer.json', 'tokenizer_config.json')}
    files['generation_config.json'] = (json.dumps(generation, indent=2) + '\n').encode()
    params = jax.tree.map(np.asarray, params) if dtype is None else bfloat16(params)
    save_lm(target, config, params, files=files)
    return target


def form_of(workdir: Path) -> Format:
    config, tokenizer = language_model_config(workdir)
    return examples.format_of(tokenizer, GridIds.of(config, tokenizer))


def load_world(workdir: Path) -> world.World:
    return world.World.load(workdir / 'recordings' / 'world.json')


def manifest(workdir: Path, split: str) -> list[Recording]:
    return read_recordings(workdir / 'recordings' / split / 'manifest.jsonl')


def codes_path(workdir: Path, split: str) -> Path:
    return workdir / ('codes.jsonl' if split == 'train' else f'{split}.jsonl')


def open_codes(workdir: Path, split: str) -> CodesStore:
    return CodesStore.open(codes_path(workdir, split))


def write(workdir: Path, name: str, make: Callable, form: Format, source: str) -> dict:
    """One row data set, its examples in random order (packing puts like lengths together)."""
    directory = workdir / 'rows' / name
    config = {'source': name, 'made_from': source, 'format': form.facts()}

    def shuffled():
        found = list(make())
        np.random.default_rng(0).shuffle(found)
        yield from found

    metadata = write_rows(str(directory), shuffled(), ROW_LENGTH, config=config, pad=form.pad)
    return {key: metadata[key] for key in ('rows', 'examples', 'padding')}


# ------------------------------------------------------------------------------------- the stages


def recordings(workdir: Path, effort: float) -> dict:
    """Renders the world."""
    del effort
    render.render(world.build(), workdir / 'recordings')
    lines = {split: manifest(workdir, split) for split in render.SPLITS}
    hours = sum(r.extra['seconds'] for r in lines['train']) / 3600
    return {'recordings': {k: len(v) for k, v in lines.items()}, 'training_hours': round(hours, 2)}


def text_lm(workdir: Path, effort: float) -> dict:
    """The text tokenizer, the text model, and the speech side that starts as its copy."""
    facts = world.build()
    text.save(text.train([*facts.words, *examples.PROMPT_WORDS]), workdir / 'text')
    tokenizer = TextTokenizer.open(workdir / 'text')
    content = LMConfig.released().to_hf() | LANGUAGE_MODEL | {
        'vocab_size': -(-tokenizer.size // 64) * 64,
        'audio_vocab_size': CODES + 64,
        'modality_pad_token_id': tokenizer.id(text.MODALITY_PAD),
        'sosp_token_id': tokenizer.id(text.SOSP),
        'eosp_token_id': CODES,
        'audio_pad_token_id': 0,
        'eos_token_id': tokenizer.im_end,
        'pad_token_id': tokenizer.endoftext,
        'dtype': 'float32',
    }
    (workdir / 'start').mkdir(exist_ok=True)
    (workdir / 'start' / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    form = form_of(workdir)
    for name, make in (('text', examples.text), ('repeat', examples.repeat)):
        write(workdir, name, functools.partial(make, facts, form), form, 'world')
    config, task, state = train(workdir, 'text_lm', effort)
    params = start_speech_side(state.params, task.config, jax.random.key(1))
    directory = save_model(workdir, 'text_model', params)
    accuracy = measure.text_accuracy(Chat.open(directory), facts)
    return facts_of(config, state) | {'text_accuracy': accuracy}


def tokenizer(workdir: Path, effort: float) -> dict:
    """The speech tokenizer; its rounded weights are the ones everything after hears with."""
    config, task, state = train(workdir, 'tokenizer', effort)
    params = task.tokenizer(state.params, state.extra)
    save_tokenizer(workdir / 'codec', task.config, bfloat16(params))
    return facts_of(config, state) | {'last': last_metrics(workdir / 'tokenizer')}


def codes(workdir: Path, effort: float) -> dict:
    """Codes of all recordings: several versions for training, the plain one for evaluation."""
    del effort
    from mossjax.infer.speech_tokenizer import SpeechTokenizer

    hears = SpeechTokenizer.open(workdir / 'codec')
    mark = fingerprint(workdir / 'codec' / 'model.safetensors')
    counts = {}
    for split in render.SPLITS:
        found = tokenize_recordings(
            hears, manifest(workdir, split), codes_path(workdir, split),
            versions=VERSIONS if split == 'train' else 1, fingerprint=mark, batch_size=64,
        )  # fmt: skip
        counts[split] = len(found)
    return {'recordings': counts, 'versions': VERSIONS}


def rows(workdir: Path, effort: float) -> dict:
    """The row data sets of the three speech stages."""
    del effort
    form = form_of(workdir)
    corpus = examples.Corpus(
        load_world(workdir), manifest(workdir, 'train'), open_codes(workdir, 'train'), form
    )
    source = fingerprint(workdir / 'codes.jsonl')
    return {
        name: write(workdir, name, lambda make=make: make(corpus), form, source)
        for name, make in SPEECH_ROWS.items()
    }


def stage1(workdir: Path, effort: float) -> dict:
    """Frozen text model; afterwards its text logits must be the same to the last bit."""
    config, task, state = train(workdir, 'stage1', effort)
    directory = save_model(workdir, 'stage1_model', state.params)
    before = Chat.open(workdir / 'text_model')
    after = Chat.open(directory)
    return facts_of(config, state) | {
        'text_logits_identical': text_logits_identical(workdir, task.network, before, after),
        'text_accuracy': measure.text_accuracy(after, load_world(workdir)),
    }


def text_logits_identical(workdir: Path, network, before: Chat, after: Chat) -> bool:
    """Compares the text logits of every question in writing, bit for bit."""
    form = form_of(workdir)
    run = jax.jit(lambda params, tokens: _text_logits(network, params, tokens))
    for example in examples.text(load_world(workdir), form):
        padded = np.zeros((1, 64, 2), np.int32)
        padded[0, : len(example.tokens)] = example.tokens
        a, b = (np.asarray(run(chat.params, padded)) for chat in (before, after))
        if a.tobytes() != b.tobytes():
            return False
    return True


def _text_logits(network, params, tokens):
    from mossjax.ops.attention import Mask

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
    return network.bind(params)(tokens, positions, Mask(causal=True)).text


def stage2(workdir: Path, effort: float) -> dict:
    config, _, state = train(workdir, 'stage2', effort)
    chat = Chat.open(save_model(workdir, 'stage2_model', state.params))
    return facts_of(config, state) | {
        'text_accuracy': measure.text_accuracy(chat, load_world(workdir))
    }


def sft(workdir: Path, effort: float) -> dict:
    """The last stage; `lm` is what is shipped, and what is measured."""
    config, _, state = train(workdir, 'sft', effort)
    chat = Chat.open(save_model(workdir, 'lm', state.params, 'bfloat16'), put=on_host('float32'))
    return facts_of(config, state) | exact_scores(workdir, chat)


def exact_scores(workdir: Path, chat: Chat) -> dict:
    """All four modes on unseen renderings and on facts never spoken."""
    facts = load_world(workdir)
    corpus = examples.Corpus(
        facts, manifest(workdir, 'train'), open_codes(workdir, 'train'), form_of(workdir)
    )
    scores: dict = {'text_accuracy': measure.text_accuracy(chat, facts)}
    for split, about in (('heldout', facts.spoken), ('never_spoken', facts.never_spoken)):
        found = manifest(workdir, split)
        scores[split] = measure.by_ear(
            chat, facts, found, open_codes(workdir, split), corpus.answers
        ) | {'t2s': measure.in_speech(chat, about, corpus.answers), 'questions': len(found)}
    return scores


def last_metrics(run: Path) -> dict:
    """The last line of a run's log."""
    return json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])


def report(workdir: Path, effort: float) -> dict:
    """Gathers what every stage found into report.json."""
    records = sorted((workdir / 'done').glob('*.json'))
    found = {path.stem: json.loads(path.read_text()) for path in records}
    del effort  # each stage has its own
    ran = [clock.spans_of(clock.file(workdir, name)) for name in found]
    content = {
        'seconds': round(sum(stage['seconds'] for stage in found.values()), 1),
        # Stages that run at the same time counted once; None if some were made without a clock.
        'seconds_by_the_clock': round(clock.passed(sum(ran, [])), 1) if all(ran) else None,
        'hardware': f'{os.cpu_count()} CPU cores',
        'stages': found,
    }
    (workdir / 'report.json').write_text(json.dumps(content, indent=1) + '\n')
    return {'report': 'report.json'}
