"""The two ways to stream the flow decoder, judged on the trained nano voice.

    JAX_PLATFORMS=cpu python -m experiments.proofs.flow_roads [NAME...] [--codec DIR] --out F.json

Recorded answers, strung together to about 16 s (`nano_voice.Strings`), behind the codec's own
voice: words that the judge hears right, DNSMOS, and jumps of the log-mel from frame to frame (95th
percentile, in nepers) where two pieces of speech join and elsewhere. `at once` and `chunk 5` forget
nothing. What stands in F.json already is not made again.

a: the streaming decoder (`FlowStream`), which keeps per Euler step what attentions and convolutions
   read of the last seconds.
b: the ordinary decoder on a window that slides: [voice, last seconds, the new codes, look-ahead],
   with the mel that was sent already as known frames.
"""

from collections.abc import Callable
import json
from pathlib import Path
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.proofs import nano_voice
from experiments.proofs.flow_stream import CHUNK, PASTS
from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.convert.fingerprint import VOICE
from mossjax.infer import voice as voices
from mossjax.infer.assets import Assets, shipped
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_tokenizer import SpeechTokenizer
from mossjax.models.flow import solver
from mossjax.models.flow.config import Context, Window
from mossjax.models.flow.stream import FlowStream, Prompt, noise
from mossjax.models.stream import Piece
from mossjax.ops.head_by_head import on_cpu

HOPS = (25, 5)  # codes of a piece of speech
LISTENED = 7  # every so manieth answer is judged by DNSMOS, which takes seconds
LOOK = 3  # codes that the decoder's encoder looks ahead


class Roads:
    """Mels (strings, 4 codes, 80) of the strings by each way."""

    def __init__(self, root: str, codes: list[np.ndarray]):
        config, params = open_flow(root)
        self.params = jax.tree.map(jnp.asarray, params)
        self.net = flow_network(config, attend=on_cpu)
        own = voices.load(Path(root) / VOICE, root)
        self.lengths = [len(c) for c in codes]
        size = -(-max(self.lengths) // HOPS[0]) * HOPS[0]
        self.codes = np.stack([np.pad(c, (0, size - len(c)), mode='edge') for c in codes])
        self.batch, self.voice = len(codes), len(own.codes)
        self.prompt = np.asarray(own.codes), np.asarray(own.mel), np.asarray(own.xvector)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, (self.batch, *x.shape))

    def whole(self, chunk: int | None) -> np.ndarray:
        codes, mel, speaker = map(self._rows, self.prompt)
        rows = np.concatenate([codes, self.codes], 1)
        lengths = np.array(self.lengths) + self.voice

        @jax.jit
        def run(params):
            return self.net.bind(params)(
                rows, lengths, speaker, mel, solver.noise(4 * rows.shape[1]), context=Context(chunk)
            )

        return np.asarray(run(self.params))[:, 4 * self.voice :]

    def a(self, past: int, hop: int) -> np.ndarray:
        window = Window(CHUNK, past, -(-self.voice // CHUNK) * CHUNK)
        more = window.voice - self.voice
        codes, mel, speaker = self.prompt
        prompt = Prompt(
            np.pad(codes, (0, more)), np.pad(mel, ((0, 4 * more), (0, 0))), np.int32(self.voice),
            speaker,
        )  # fmt: skip
        state = jax.jit(lambda p: FlowStream(self.net.bind(p), window).start(self.batch, prompt))(
            self.params
        )
        step = jax.jit(lambda p, s, x: FlowStream(self.net.bind(p), window).step(s, x))
        frames, end = [], self.codes.shape[1]
        for i in range(0, end, hop):
            last = np.full(self.batch, i + hop == end)
            piece = Piece(self.codes[:, i : i + hop], np.full(self.batch, hop), last)
            state, out = step(self.params, state, piece)
            frames.append(np.asarray(out.values[:, : int(out.count[0])]))
        return np.concatenate(frames, 1)

    def b(self, past: int, hop: int) -> np.ndarray:
        voice, mel, speaker = map(self._rows, self.prompt)
        size = self.voice + past + hop + LOOK
        context = Context(CHUNK, LOOK)

        @jax.jit
        def run(params, codes, lengths, known, first):
            model = self.net.bind(params)
            mu = model.mu(codes, lengths, context)
            valid = model.valid(codes, lengths, context)
            velocity = solver.guided(model.velocity(context), model.config.guidance)
            start = jnp.concatenate([
                noise(80, jnp.int32(0), 4 * self.voice), noise(80, first, 4 * (past + hop))
            ])  # fmt: skip
            start = jnp.broadcast_to(start, mu.shape)
            return solver.integrate(velocity, start, valid, mu, model.speaker(speaker), known)

        sent = np.zeros((self.batch, 0, 80), np.float32)
        ahead = np.pad(self.codes, ((0, 0), (0, LOOK)), mode='edge')
        for i in range(0, self.codes.shape[1], hop):
            kept = min(i, past)
            row = np.concatenate([voice, ahead[:, i - kept : i + hop + LOOK]], 1)
            lengths = np.full(self.batch, row.shape[1])
            row = np.pad(row, ((0, 0), (0, size - row.shape[1])))
            known = np.concatenate([mel, sent[:, 4 * (i - kept) :]], 1)
            known = np.pad(known, ((0, 0), (0, 4 * (size - LOOK) - known.shape[1]), (0, 0)))
            out = run(self.params, row, lengths, known, 4 * (self.voice + i - kept))
            at = 4 * (self.voice + kept)
            sent = np.concatenate([sent, np.asarray(out[:, at : at + 4 * hop])], 1)
        return sent

    def jumps(self, mel: np.ndarray, hop: int) -> dict:
        size = np.abs(np.diff(mel, axis=1)).mean(axis=2)
        joins = (np.arange(size.shape[1]) + 1) % (4 * hop) == 0
        inside = np.arange(size.shape[1]) < 4 * np.array(self.lengths)[:, None] - 1
        at, other = size[inside & joins], size[inside & ~joins]
        return {
            'jumps_at_joins_p95': round(float(np.percentile(at, 95)), 4),
            'jumps_elsewhere_p95': round(float(np.percentile(other, 95)), 4),
        }


def main(argv: list[str]) -> None:
    jax.config.update('jax_default_matmul_precision', 'highest')
    assets = Assets.open(shipped())
    root = flags.FLAGS.codec or str(assets.codec)
    codec = nano_voice.Opened(
        assets, root, SpeechDecoder.open(root), SpeechTokenizer.open(root)
    )  # fmt: skip
    strings = nano_voice.Strings(codec)
    roads = Roads(root, strings.codes)
    ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        'at once': (HOPS[0], lambda: roads.whole(None)),
        f'chunk {CHUNK}': (HOPS[0], lambda: roads.whole(CHUNK)),
    }
    for name, past in PASTS.items():
        for hop in HOPS:
            ways[f'a, {name}, hop {hop}'] = hop, lambda p=past, h=hop: roads.a(p, h)
            ways[f'b, {name}, hop {hop}'] = hop, lambda p=past, h=hop: roads.b(p, h)
    out = Path(flags.FLAGS.out)
    found = json.loads(out.read_text()) if out.exists() else {}
    for name in argv[1:] or ways:
        if name in found:
            continue
        hop, make = ways[name]
        began = time.monotonic()
        mel = make()
        seconds = round(time.monotonic() - began)
        spoken = nano_voice.spoken_by(
            codec.decoder.vocoder, [m[: 4 * n] for m, n in zip(mel, roads.lengths, strict=True)]
        )
        found[name] = strings.judged(spoken, every=LISTENED) | roads.jumps(mel, hop)
        found[name]['seconds'] = seconds
        logging.info('%s: %s', name, found[name])
        out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    app.run(main)
