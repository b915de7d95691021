"""moves weights between Hugging Face and Orbax, and proves that nothing was lost.

  mossjax convert SRC DST              the other form of SRC, found from its files
  mossjax convert --verify DIR [SRC]   checks DIR (and SRC) against the certificate in DIR, and the
                                       logits of DIR against those of SRC where torch is installed

SRC holds one of
  - the MOSS-Speech language model (config.json, model.safetensors or shards with their index),
  - a Qwen3 text model: becomes the start of a speech model (trunk, text branch, copied speech
    branch, fresh speech embedding and head),
  - a codec: the speech tokenizer (config.json, preprocessor_config.json, model.safetensors), the
    decoder (flow/: flow.pt, flow-chunk-*.pt, hift.pt, campplus.onnx), or both; the graph of
    campplus.onnx is kept and gets its numbers back (extra [onnx]),
  - an Orbax checkpoint of any of these: what this command wrote, or the workdir of a training run
    of the language model (adapters of a LoRA run are worked into the weights), of the tokenizer or
    of a network of the decoder.
Tensors go through memory one at a time; each is read back and compared, and certificate.json says
what every tensor was. An interrupted conversion goes on when the same command is run again. Code
that comes with a checkpoint is copied, never run. What is in a bucket (gs://) is copied to TMPDIR
first, and what is to be there is written to TMPDIR, and copied when it is whole.

Examples:
  mossjax convert MOSS-Speech moss-orbax
  mossjax convert moss-orbax MOSS-Speech-again
  mossjax convert --verify moss-orbax MOSS-Speech
  mossjax convert Qwen3-8B start
  mossjax convert --text_side moss-orbax text-model
  mossjax convert runs/sft exported --dtype bfloat16 --companions MOSS-Speech
  mossjax convert runs/decoder my-codec --companions MOSS-Speech-Codec
  mossjax convert --adapter runs/lora adapter
"""

import pathlib

from absl import flags

from mossjax import paths, values
from mossjax.cli.common import READ_FILE, READ_FOLDER, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_VERIFY = flags.DEFINE_bool(
    'verify', False, 'Check a converted directory instead of converting.', flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
    'dtype', '', ['', 'float32', 'bfloat16', 'float16'],
    'Store floating tensors so; by default each keeps its own.', flag_values=FLAGS,
)  # fmt: skip
_CONFIG = path_flag(
    'config', None, 'JSON file with keys of config.json that a start from Qwen3 is to have, e.g. '
    '{"num_modality_layers": 2}; the others are those of Qwen3 and of the released model.',
    READ_FILE, FLAGS,
)  # fmt: skip
_COMPANIONS = path_flag(
    'companions', None, 'Directory with the files that belong beside the weights (tokenizer.json, '
    'generation_config.json, the other networks of a codec, ...), for checkpoints of training '
    'runs, which have none.',
    READ_FOLDER, FLAGS,
)  # fmt: skip
_TEXT_SIDE = flags.DEFINE_bool(
    'text_side', False, 'Write trunk and text branch of a language model, in either form, as a '
    'Qwen3 text model that Transformers loads.', flag_values=FLAGS,
)  # fmt: skip
_ADAPTER = flags.DEFINE_bool(
    'adapter', False, 'Write the adapters of a LoRA run alone, as a PEFT directory; with '
    '--text_side those of the text side, under the names of the Qwen3 model.', flag_values=FLAGS,
)  # fmt: skip
_CERTIFICATE = flags.DEFINE_bool(
    'certificate', True, 'Hash, describe and read back every tensor; --nocertificate is quicker.',
    flag_values=FLAGS,
)  # fmt: skip
_SHARD_GB = number_flag(
    'shard_gb', 5.0, 'Largest file of a Hugging Face directory, in 10^9 bytes.',
    values.Range(0.001, 1e6), FLAGS,
)


def main(args: list[str]) -> int | None:
    from mossjax import buckets
    from mossjax.convert import certificate

    if _VERIFY.value:
        return _verify(args)
    if len(args) != 2:
        raise InputError(f'takes two directories, SRC and DST; got {len(args)} arguments')
    target = _target(args[1])
    _convert(str(_source(args[0], 'SRC')), str(target))
    if paths.in_bucket(args[1]):
        buckets.stored(target, args[1], last=certificate.NAME)
        print(f'{args[1]}: it is there')
    return None


def _convert(*args: str) -> None:
    from mossjax.convert import kinds, transfer
    from mossjax.convert.source import DECODER, PREPROCESSOR, TOKENIZER
    from mossjax.files import read_json

    changes = read_json(_CONFIG.value) if _CONFIG.value else None
    source = kinds.open_source(args[0], changes)
    if _ADAPTER.value:
        return _export_adapter(source, args[1])
    if _COMPANIONS.value:
        source = kinds.with_companions(source, _COMPANIONS.value)
    if _TEXT_SIDE.value:
        source = kinds.text_side(source)
    options = transfer.Options(
        dtype=_DTYPE.value, certify=_CERTIFICATE.value, shard_bytes=round(_SHARD_GB.value * 1e9)
    )
    start = ', as the start of a speech model' if source.choices.get('start') else ''
    count = len(source.tensors.shapes)
    parts = [part.name.removeprefix(f'{DECODER}/') for part in source.kind.parts]
    if parts and source.kind.configs:
        parts.insert(0, 'speech tokenizer')
    of = f' ({", ".join(parts)})' if parts else ''
    print(f'{args[0]}: {source.kind.name}{of}, {count} tensors{start} -> {source.becomes}')
    paper = transfer.convert(source, args[1], options, progress_bar)
    if source.left:
        print(f'left behind: {", ".join(source.left)}')
    if source.kind.name == TOKENIZER and not any(
        pathlib.PurePath(name).parts[0] == DECODER for name in source.files
    ):
        print(
            f'{args[1]} has no {DECODER}/ and can hear, not speak; --companions CODEC takes '
            'the decoder of another codec along'
        )
    if parts and not source.kind.configs and PREPROCESSOR not in source.files:
        print(
            f'{args[1]} has no speech tokenizer and cannot hear; --companions CODEC takes the rest '
            'of a codec along'
        )
    proved = f', all read back equal; {args[1]}/certificate.json' if paper else ''
    print(f'{args[1]}: {count} tensors{proved}')
    return None


def _source(path: str, name: str) -> pathlib.Path:
    """SRC on a disk. Of a run in a bucket only what is converted is copied."""
    if not paths.in_bucket(path):
        return paths.folder_to_read(path, name)
    from mossjax import buckets, steps

    paths.need_buckets(path, name)
    saved = steps.as_path(path) / steps.CHECKPOINTS
    if not saved.is_dir():
        return buckets.fetched(path, name)
    step = steps.find(saved)
    inside = (f'{steps.CHECKPOINTS}/{step}/', f'{steps.CHECKPOINTS}/{step}/opt_state/')
    return buckets.fetched(
        path, name, lambda key: key.startswith(inside[0]) and not key.startswith(inside[1])
    )


def _target(path: str) -> pathlib.Path:
    """DST, or for one in a bucket a folder here: what is written is read back, many times."""
    if not paths.in_bucket(path):
        return paths.folder_to_write(path, 'DST')
    from mossjax import buckets

    if list(buckets.listed(path, 'DST')):
        raise InputError(f'DST {path}: already exists and is not empty. Remove it or name another.')
    return buckets.scratch() / (path.rstrip('/').rsplit('/', 1)[1] or 'converted')


def _export_adapter(source, target: str) -> None:
    from mossjax.convert import peft, qwen3

    if source.adapters is None:
        raise InputError(f'{source.path} has no adapters; give the workdir of a LoRA run')
    config = source.kind.config
    rename = (lambda name: qwen3.text_name(name, config)) if _TEXT_SIDE.value else (lambda n: n)
    peft.save(target, source.adapters, rename)
    lora = source.adapters.lora
    print(f'{target}: adapters of rank {lora.rank}, alpha {lora.alpha:g}')


def _verify(args: list[str]) -> int | None:
    from mossjax.convert import transfer

    if len(args) not in (1, 2):
        raise InputError('--verify takes the converted directory and, if wanted, its source')
    names = ('DIR', 'SRC')[: len(args)]
    args = [str(_source(arg, n)) for arg, n in zip(args, names, strict=True)]
    faults, logits = transfer.verify(*args, progress=progress_bar), None
    if len(args) == 2 and not faults:
        logits = transfer.compare_logits(*args)
        faults = logits.faults
    if faults:
        shown = '\n  '.join(faults[:20]) + ('\n  ...' if len(faults) > 20 else '')
        print(f'{args[0]}: {len(faults)} faults:\n  {shown}\nConvert again from the source.')
        return 1
    print(f'{args[0]}: every tensor is the one of the certificate')
    if logits:
        heads = ', '.join(f'{head} head {error:.1e}' for head, error in logits.errors.items())
        print(
            f'logits were not compared: {logits.skipped}' if logits.skipped else
            f'logits in float32 against torch, largest difference over largest logit: {heads}'
        )
    return None


def progress_bar(total: int, done: int):
    """A bar in bytes, on a terminal only."""
    import tqdm

    bar = tqdm.tqdm(
        total=total, initial=done, unit='B', unit_scale=True, unit_divisor=1000, disable=None
    )

    def advance(size: int) -> None:
        bar.update(size)
        if bar.n >= total:
            bar.close()  # what is printed next starts on a line of its own

    return advance
