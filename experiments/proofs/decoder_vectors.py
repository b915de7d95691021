"""Our decoder against all recorded activations of upstream's, not only those the tests carry.

    python -m experiments.proofs.decoder_vectors DIR [--out FILE.json]

DIR holds the vectors as .safetensors: weights of small random networks (`flow_state`,
`hift_state`, `campplus_state`) and what upstream's torch modules computed with them on a CPU in
float32 (`flow_io`, `estimator_io`, `hift_io`, `e2e_offline`, `streaming_io`, `frontend_io`). Prints
the largest difference of each array beside what is allowed; exit code 1 if one is larger. The
recorded codes and the recorded recording also go through the commands: what `mossjax vocode` and
`mossjax voice` write. Two minutes of two cores. The vectors are not part of the project: they are
12 MB.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import shutil
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

from absl import app, flags
import jax
import numpy as np

from experiments.proofs import decoder_stages as stages
from experiments.proofs import record
from mossjax.cli import main as cli
from mossjax.convert import rules
from mossjax.convert.campp_rules import campp_rules, config_of
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.convert.codec_speaker import campp_network
from mossjax.convert.codec_vocoder import hift_network, save_hift, stored_network
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.hift_config import of_tensors
from mossjax.convert.hift_rules import hift_rules, spellings
from mossjax.convert.safetensors_io import TensorFile
from mossjax.infer import voice
from mossjax.models.flow.config import FlowConfig
from mossjax.models.flow.mel import log_mel
from mossjax.models.flow.solver import noise
from mossjax.models.speaker import blocks, fbank
from mossjax.models.vocoder.hift import source
from mossjax.nn.weight_norm import fold
from mossjax.ops.head_by_head import on_cpu
from mossjax.ops.resample import resample

# Of the small network that the flow decoder's vectors were made with.
FLOW = FlowConfig(
    vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
    channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
)  # fmt: skip
MODES = {'offline': (False, True), 'chunk': (True, True), 'chunk_ctx': (True, False),
         'full_ctx': (False, False)}  # fmt: skip


class Check(NamedTuple):
    name: str
    found: jax.Array | np.ndarray
    expected: np.ndarray
    allowed: float

    @property
    def difference(self) -> float:
        found, expected = np.asarray(self.found), np.asarray(self.expected, np.float32)
        if found.shape != expected.shape:
            return float('inf')
        return float(np.abs(found - expected).max())


def load(directory: Path, stem: str) -> dict[str, np.ndarray]:
    file = TensorFile(directory / f'{stem}.safetensors')
    return {name: np.array(file.read(name)) for name in file.shapes}


def parameters(table, tensors: dict, shapes) -> dict:
    rules.check(table, {name: x.shape for name, x in tensors.items()}, shapes)
    return jax.tree.map(jax.numpy.asarray, rules.to_params(table, tensors.__getitem__, shapes))


def turned(x: np.ndarray) -> np.ndarray:
    """(b, c, t) <-> (b, t, c)."""
    return np.swapaxes(x, 1, 2).astype(np.float32)


def flow(directory: Path) -> Iterator[Check]:
    io, network = load(directory, 'flow_io'), flow_network(FLOW, attend=on_cpu)
    model = network.bind(
        parameters(flow_rules(), load(directory, 'flow_state'), network.shapes)
    )
    codes = np.concatenate([io['prompt_codes'], io['codes']], axis=1)
    table = noise(124).T[None]
    yield Check('flow: rand_noise_head', table, io['rand_noise_head'], 1e-6)
    for mode, (streaming, finalize) in MODES.items():
        context = FLOW.context(streaming=streaming, finalize=finalize)

        @jax.jit
        def run(model, context=context):
            lengths, drawn = np.array([31]), noise(4 * (31 - context.held))
            mel = model(
                codes, lengths, io['xvector'], io['prompt_mel'], drawn, context=context
            )
            return stages.encoder(model, codes, context), model.mu(codes, lengths, context), mel

        inner, mu, mel = run(model)
        for name, value in inner.items():
            if f'{mode}/{name}' in io:
                yield Check(f'flow: {mode}/{name}', value, io[f'{mode}/{name}'], 1e-4)
        yield Check(f'flow: {mode}/mu', mu, io[f'{mode}/mu'], 1e-4)
        yield Check(f'flow: {mode}/mel_full', turned(mel), io[f'{mode}/mel_full'], 5e-4)
        yield Check(f'flow: {mode}/mel', turned(mel[:, 28:]), io[f'{mode}/mel'], 5e-4)
    yield Check('flow: offline/spk', model.speaker(io['xvector']), io['offline/spk'], 1e-4)
    run = jax.jit(lambda model: model(
        io['codes'], np.array([24]), np.zeros((1, 192), 'f'), np.zeros((1, 0, 80), 'f'), noise(96)
    ))  # fmt: skip
    yield Check('flow: noprompt/mel', turned(run(model)), io['noprompt/mel'], 5e-4)
    yield from estimator(directory, model)


def estimator(directory: Path, model) -> Iterator[Check]:
    io = load(directory, 'estimator_io')

    def rows(name):
        return np.concatenate([io[name], np.zeros_like(io[name])])

    inputs = (turned(rows('mu')), rows('spk'), turned(rows('cond')))
    x, everything = turned(np.repeat(io['x'], 2, axis=0)), np.ones((2, 124), bool)
    run = jax.jit(stages.estimator, static_argnames='chunk')
    for mask, chunk in (('offline', None), ('chunk', 20)):
        for name in ('t0', 't1', 't2', 't3'):
            time = np.repeat(io[name], 2)
            inner, out = run(model.estimator, x, everything, *inputs, time, chunk=chunk)
            expected = io[f'{name}/out_{mask}']
            yield Check(f'estimator: {name}/out_{mask}', turned(out), expected, 1e-4)
            for part, value in inner.items() if mask == 'offline' else ():
                if f'{name}/{part}' in io:
                    yield Check(f'estimator: {name}/{part}', value, io[f'{name}/{part}'], 1e-4)
        valid = io['masked/mask'][:, 0] > 0
        _, out = run(model.estimator, x, valid, *inputs, np.repeat(io['t1'], 2), chunk=chunk)
        yield Check(f'estimator: masked/out_{mask}', turned(out), io[f'masked/out_{mask}'], 1e-4)
    for name, value in stages.solver(model, io).items():
        yield Check(f'estimator: {name}', value, io[name], 5e-4 if '_x_' in name else 1e-6)


def vocoder(directory: Path) -> Iterator[Check]:
    tensors, io = load(directory, 'hift_state'), load(directory, 'hift_io')
    config = of_tensors({name: x.shape for name, x in tensors.items()})
    table = hift_rules(config, spellings(config, tensors))
    params = parameters(table, tensors, stored_network(config, tensors).shapes)
    model = hift_network(config).bind(fold(params))
    mel, drawn = turned(io['mel']), turned(io['noise_sine'])
    pitch = jax.jit(lambda m, x: m.pitch(x, np.array([x.shape[1]])))
    wave = jax.jit(lambda m, x, s: m.wave(x, s, np.array([x.shape[1]])))
    yield Check('hift: f0', pitch(model, mel), io['f0'], 5e-3)
    yield Check('hift: source', model.source(io['f0'], drawn), io['source'][:, 0], 2e-3)
    own = model.source(pitch(model, mel), drawn)
    yield Check('hift: source of its own f0', own, io['source'][:, 0], 2e-3)
    for name, value in stages.vocoder(model, mel, io['source'][:, 0], io['f0'], drawn).items():
        value = value[:, :, :600] if name == 'source_stft' else value
        yield Check(f'hift: {name}', value, io[name], 2e-3 if 'sine' in name else 1e-4)
    yield Check('hift: wav', wave(model, mel, io['source'][:, 0]), io['wav'], 1e-4)
    yield Check('hift: wav of its own source', wave(model, mel, own), io['wav'], 3e-2)
    # The last half frame of a cut holds its phase, so its pitch is that of the cut.
    found = model.source(pitch(model, mel[:, :12]), turned(io['cached/noise_sine']))
    cached = np.concatenate([io['cached/cache_source'][:, 0], found[:, 3840:]], axis=1)
    yield Check('hift: cached/source', cached, io['cached/source'][:, 0], 2e-3)
    found = wave(model, turned(io['cached/mel']), io['cached/source'][:, 0])
    yield Check('hift: cached/wav', found, io['cached/wav'], 1e-4)
    found = wave(model, mel[:, :8], np.zeros((1, 3840), np.float32))
    yield Check('hift: zerosource/wav', found, io['zerosource/wav'], 1e-4)

    whole, offline = load(directory, 'e2e_offline'), load(directory, 'flow_io')['offline/mel']
    own = model.source(pitch(model, turned(offline)), turned(whole['noise_sine']))
    yield Check('offline: source', own, whole['source'][:, 0], 2e-3)
    given = wave(model, turned(offline), whole['source'][:, 0])
    yield Check('offline: wav', given, whole['wav'], 1e-4)
    yield Check('offline: wav of its own source', wave(model, turned(offline), own),
                whole['wav'], 3e-2)  # fmt: skip
    yield from streamed(load(directory, 'streaming_io'), model, pitch, wave)


def streamed(io: dict, model, pitch, wave) -> Iterator[Check]:
    """The vocoder's calls of upstream's streaming driver, its cross-fade included."""
    window, held, before, emitted = np.hamming(7680), None, None, []
    for i, (_, _, count, final) in enumerate(io['ledger']):
        mel, given = turned(io[f'call{i}/hift_mel']), io[f'call{i}/source'][:, 0]
        source = np.array(model.source(pitch(model, mel), turned(io[f'call{i}/noise_sine'])))
        if before is not None:  # the start is what the call before made
            source[:, :3840] = before[:, -3840:]
        yield Check(f'streaming: call{i}/source', source, given, 2e-3)
        speech, before = np.array(wave(model, mel, given)), given
        if held is not None:
            speech[:, :3840] = speech[:, :3840] * window[:3840] + held * window[3840:]
        held = speech[:, -3840:]
        out = speech if final else speech[:, :-3840]
        assert out.shape[1] == count
        yield Check(f'streaming: call{i}/wav', out, io[f'call{i}/wav'], 1e-4)
        emitted.append(out)
    yield Check('streaming: wav', np.concatenate(emitted, axis=1), io['wav'], 1e-4)


def features(directory: Path) -> Iterator[Check]:
    io, tensors = load(directory, 'frontend_io'), load(directory, 'campplus_state')
    fine = io['wav24_int16'][0].astype(np.float32) / 32768
    heard = resample(fine, 24000, 16000)
    banks = np.asarray(fbank.fbank(heard))
    yield Check('features: mel24', np.asarray(log_mel(fine)).T[None], io['mel24'], 1e-3)
    yield Check('features: wav16', heard[None], io['wav16'], 1e-6)
    yield Check('features: fbank', banks, io['fbank'], 2e-3)
    bank = fbank.filters()[:256].T
    yield Check('features: fbank_mel_banks', bank, io['fbank_mel_banks_80x256'], 1e-4)
    config = config_of({name: x.shape for name, x in tensors.items()}, str(directory))
    network = campp_network(config)
    params = parameters(campp_rules(config), tensors, network.shapes)
    whole, cut = (x - x.mean(axis=0) for x in (banks, banks[:150]))
    for name, value in jax.jit(stages.speaker)(network.bind(params), whole[None]).items():
        value = value[:, :, :8] if name == 'head_first8' else value
        yield Check(f'features: camp/{name}', value, io[f'camp/{name}'], 1e-4)
    for ending, divisor in (('', blocks.own_frames), ('_ort_1_23_0', blocks.all_frames)):
        model = campp_network(config, divisor=divisor).bind(params)
        run = jax.jit(lambda model, x: model(x[None], np.array([len(x)])))
        for name, x in (('embedding', whole), ('embedding_150frames', cut)):
            expected = io[f'camp/{name}{ending}']
            yield Check(f'features: camp/{name}{ending}', run(model, x), expected, 1e-4)


def commands(directory: Path) -> Iterator[Check]:
    """The recorded offline decode by `mossjax vocode`, the recorded vector by `mossjax voice`."""
    import soundfile

    io, whole, heard = (
        load(directory, name) for name in ('flow_io', 'e2e_offline', 'frontend_io')
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        flow_params = parameters(
            flow_rules(), load(directory, 'flow_state'), flow_network(FLOW).shapes
        )
        save_flow(root / 'codec', FLOW, flow_params)
        tensors = load(directory, 'hift_state')
        config = of_tensors({name: x.shape for name, x in tensors.items()})
        table = hift_rules(config, spellings(config, tensors))
        save_hift(
            root / 'codec', config,
            parameters(table, tensors, stored_network(config, tensors).shapes),
        )
        shutil.copy(
            directory / 'campplus_state.safetensors', root / 'codec/flow/campplus.safetensors'
        )
        prompt = voice.Voice(io['prompt_codes'][0], io['prompt_mel'][0], io['xvector'][0])
        voice.save(root / 'prompt', prompt)
        (root / 'codes.jsonl').write_text(json.dumps({'codes': io['codes'][0].tolist()}) + '\n')
        soundfile.write(root / 'heard.wav', heard['wav24_int16'][0], 24000)
        with mock.patch.object(source, 'noise', lambda *_: turned(whole['noise_sine'])):
            run(
                'vocode', '--codec', root / 'codec', '--codes', root / 'codes.jsonl', '--out', root,
                '--voice', root / 'prompt',
            )
        run(
            'voice', root / 'heard.wav', '--codec', root / 'codec', '--out', root / 'vector',
            '--only', 'vector',
        )
        found, _ = soundfile.read(root / 'line-1.wav')
        vector = voice.load(root / 'vector', root / 'codec').xvector
    yield Check('mossjax vocode', found[None], whole['wav'], 3e-2)
    yield Check('mossjax voice', vector[None], heard['camp/embedding'], 1e-4)


def run(*args) -> None:
    if code := cli.main(list(map(str, args))):
        sys.exit(f'mossjax {args[0]} ended with {code}')


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    directory, failed, found = Path(argv[1]), 0, {}
    with jax.default_matmul_precision('highest'):
        for part in (flow, vocoder, features, commands):
            for check in part(directory):
                far = check.difference > check.allowed
                failed += far
                note = '  TOO FAR' if far else ''
                print(f'{check.name:46} {check.difference:8.1e} of {check.allowed:.0e}{note}')
                found[check.name] = [float(f'{check.difference:.2g}'), check.allowed]
    if flags.FLAGS.out:
        record.write(flags.FLAGS.out, 'python -m experiments.proofs.decoder_vectors DIR', {
            'too_far': failed, 'largest_difference_and_allowed': found,
        })  # fmt: skip
    sys.exit(f'{failed} arrays are too far off' if failed else 0)


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)
