"""Two roads to a flow decoder that streams at constant cost, beside the run that forgets nothing.

    JAX_PLATFORMS=cpu python -m experiments.proofs.flow_roads --out FILE.json

Road a keeps, per Euler step, what the attentions read of the last W seconds (`models.flow.stream`).
Road b runs the ordinary network on [voice | last W | chunk | look-ahead] with the mel that was sent
as known frames. Both speak the same codes with the same noise: recordings of four speakers, each
strung together to SECONDS, with a voice of the same speaker, through the shipped nano codec. The
measure is the mean distance of the log-mels, in nepers.
"""

import functools
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.proofs import record
from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.infer.assets import Assets, shipped
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.models.flow import mel as features
from mossjax.models.flow import solver
from mossjax.models.flow.config import Context, Window
from mossjax.models.flow.stream import FlowStream, Prompt, noise
from mossjax.models.stream import Piece

CODES, VOICE = 200, 40  # 16 s of speech, 3.2 s of voice
PASTS = {'1': 15, '2': 25, '4': 50, '8': 100}  # seconds: codes, whole chunks
HOPS = (5, 25)
CHUNK, LOOK = 5, 3


def material(codec):
    """(codes (4, VOICE + CODES), mels (4, 4 (VOICE + CODES), 80)): the voice first."""
    assets = Assets.open(shipped())
    tokenizer = SpeechTokenizer.open(codec)
    speakers: dict = {}
    for split in ('heldout', 'never_spoken'):
        for clip in assets.questions(split):
            speakers.setdefault(clip.speaker, []).append(clip)
    codes, mels = [], []
    for clips in list(speakers.values())[:4]:
        wave, count = [], 0
        for clip in clips:
            wave.append(assets.load(clip, 48000))
            count += len(wave[-1])
            if count > 48000 * 0.08 * (VOICE + CODES + 2):
                break
        wave = np.concatenate(wave)[: int(48000 * 0.08 * (VOICE + CODES))]
        codes.append(tokenizer.encode([wave[::3]])[0][: VOICE + CODES])
        mels.append(np.asarray(features.log_mel(wave[::2]))[: 4 * (VOICE + CODES)])
    return np.stack(codes), np.stack(mels)


def whole(net, params, codes, mels, chunk):
    """The run that forgets nothing."""
    n = codes.shape[1]
    run = jax.jit(lambda p: net.bind(p)(
        codes, np.full(len(codes), n), np.zeros((len(codes), 192), 'f'), mels[:, : 4 * VOICE],
        solver.noise(4 * n), context=Context(chunk)))  # fmt: skip
    return np.asarray(run(params))[:, 4 * VOICE :]


def road_a(net, params, codes, mels, past, hops):
    window = Window(CHUNK, past, VOICE)
    start = jax.jit(lambda p, prompt: FlowStream(net.bind(p), window).start(1, prompt))
    rows = [
        start(params, Prompt(c[:VOICE], m[: 4 * VOICE], np.int32(VOICE), np.zeros(192, 'f')))
        for c, m in zip(codes, mels, strict=True)
    ]  # fmt: skip
    first = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
    step = jax.jit(lambda p, s, x: FlowStream(net.bind(p), window).step(s, x))
    found = {}
    for hop in hops:
        state, frames = first, []
        for i in range(VOICE, VOICE + CODES, hop):
            last = np.full(len(codes), i + hop == VOICE + CODES)
            piece = Piece(codes[:, i : i + hop], np.full(len(codes), hop), last)
            state, out = step(params, state, piece)
            frames.append(np.asarray(out.values[:, : int(out.count[0])]))
        found[hop] = np.concatenate(frames, axis=1)
    return found


def road_b(net, params, codes, mels, past, hop, chunk):
    """The window slides; before it is full it is shorter, with padding behind."""
    size = VOICE + past + hop + LOOK
    context = Context(chunk, LOOK)

    @jax.jit
    def run(p, codes, length, cond, start):
        model = net.bind(p)
        mu = model.mu(codes, length, context)
        valid = model.valid(codes, length, context)
        velocity = solver.guided(model.velocity(context), model.config.guidance)
        head = noise(80, jnp.int32(0), 4 * VOICE)
        x = jnp.concatenate([head, noise(80, start, 4 * (past + hop))])
        x = jnp.broadcast_to(x, mu.shape)
        speaker = model.speaker(jnp.zeros((len(codes), 192)))
        return solver.integrate(velocity, x, valid, mu, speaker, cond)

    b, voice = len(codes), mels[:, : 4 * VOICE]
    sent = np.zeros((b, 0, 80), 'f')
    padded = np.pad(codes, ((0, 0), (0, LOOK)), mode='edge')
    for i in range(0, CODES, hop):
        kept = min(i, past)
        own = padded[:, VOICE + i - kept : VOICE + i + hop + LOOK]
        row = np.concatenate([codes[:, :VOICE], own], axis=1)
        length = np.full(b, row.shape[1])
        row = np.pad(row, ((0, 0), (0, size - row.shape[1])))
        cond = np.concatenate([voice, sent[:, 4 * (i - kept) :]], axis=1)
        cond = np.pad(cond, ((0, 0), (0, 4 * (size - LOOK) - cond.shape[1]), (0, 0)))
        mel = run(params, row, length, cond, 4 * (VOICE + i - kept))
        at = 4 * (VOICE + kept)
        sent = np.concatenate([sent, np.asarray(mel[:, at : at + 4 * hop])], axis=1)
    return sent


def figures(found, reference, truth, hop):
    """Distances, and jumps from frame to frame at joins beside those elsewhere."""
    late = slice(4 * 100, None)  # every past is full by then
    jumps = np.abs(np.diff(found, axis=1)).mean(axis=(2))
    joins = np.zeros(jumps.shape[1], bool)
    joins[4 * hop - 1 :: 4 * hop] = True
    percentile = lambda x: float(np.percentile(x, 95))  # noqa: E731
    return {
        'to_unlimited': round(float(np.abs(found - reference)[:, late].mean()), 4),
        'to_recording': round(float(np.abs(found - truth).mean()), 4),
        'jumps_at_joins_p95': round(percentile(jumps[:, joins]), 4),
        'jumps_elsewhere_p95': round(percentile(jumps[:, ~joins]), 4),
    }


def main(argv: list[str]) -> None:
    del argv
    jax.config.update('jax_default_matmul_precision', 'highest')
    codec = shipped() / 'codec'
    config, params = open_flow(codec)
    params, net = jax.tree.map(jnp.asarray, params), flow_network(config)
    codes, mels = material(codec)
    truth = mels[:, 4 * VOICE :]
    reference = whole(net, params, codes, mels, CHUNK)
    note = functools.partial(figures, reference=reference, truth=truth)
    table = {
        'unlimited, chunk 5': note(reference, hop=5),
        'unlimited, offline': note(whole(net, params, codes, mels, None), hop=5),
    }
    for seconds, past in PASTS.items():
        for hop, found in road_a(net, params, codes, mels, past, HOPS).items():
            table[f'a, {seconds} s, hop {hop}'] = note(found, hop=hop)
        logging.info('%s', table)
        for hop in HOPS:
            for name, chunk in (('chunk mask', CHUNK), ('no mask', None)):
                if name == 'no mask' and seconds not in ('2', '8'):
                    continue
                found = road_b(net, params, codes, mels, past, hop, chunk)
                table[f'b, {seconds} s, hop {hop}, {name}'] = note(found, hop=hop)
                logging.info('%s', table)
    record.write(flags.FLAGS.out, ' '.join(sys.argv), {'nano': table})


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'JSON file to write.')
    app.run(main)
