"""What `experiments.benchmarks.codec` measures of this project, one part a process.

    python -m experiments.benchmarks.codec_work PART

Prepares the part (random weights of the released sizes, compiled, run once), says `ready`, and runs
it once for every line it reads: the answer is a line of JSON, {name: seconds}.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.convert.codec_vocoder import hift_network
from mossjax.infer.assets import shipped
from mossjax.infer.flow_stream import FlowSteps
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.vocoder import HiftVocoder
from mossjax.infer.voice import Voice
from mossjax.models.flow.config import released
from mossjax.models.stream import Piece
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.vocoder.hift.config import HiftConfig

SPEECH = 30  # seconds that the tokenizer hears
CODES, PROMPT = 50, 25  # that the decoder speaks, and of its voice: 4 s and 2 s
POSITIONS = (62, 62 * 60)  # codes spoken before a chunk is timed: 5 s, 5 minutes


def random(network) -> dict:
    """Weights of the right shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.03 * rng.standard_normal(x.shape, np.float32)), network.shapes
    )


def voice(config) -> Voice:
    rng = np.random.default_rng(1)
    mel = rng.normal(-6, 2, (config.ratio * PROMPT, config.mels)).astype(np.float32)
    xvector = rng.normal(size=config.xvector_size).astype(np.float32)
    return Voice(rng.integers(0, 16384, PROMPT).astype(np.int32), mel, xvector)


def tokenizer():
    """A log-mel of SPEECH seconds to codes."""
    config = TokenizerConfig()
    network = tokenizer_network(config)
    params = random(network)
    mel = np.random.default_rng(0).normal(size=(1, 100 * SPEECH, config.mels)).astype(np.float32)

    @jax.jit
    def run(params, mel):
        with jax.default_matmul_precision('highest'):
            return network.bind(params)(mel)

    return lambda: {'tokenizer': clocked(run, params, mel)}


def decode():
    """Codes behind a voice's prompt to a mel, and that to a wave: offline decode."""
    config, hift = released(), HiftConfig()
    vocoder = HiftVocoder(hift, random(hift_network(hift)))
    decoder = SpeechDecoder(
        config, random(flow_network(config)), vocoder=vocoder, voice=voice(config)
    )
    codes = np.random.default_rng(0).integers(0, 16384, CODES)

    def run():
        began = time.perf_counter()
        mel = decoder.mel(codes)
        middle = time.perf_counter()
        np.asarray(vocoder(mel[None], np.array([len(mel)])))
        ended = time.perf_counter()
        return {'flow': middle - began, 'vocoder': ended - middle, 'decode': ended - began}

    return run


def stream(config=None, params=None):
    """Chunks of 25 codes early and late in a session, and the very first chunk of 5."""
    config = config or released()
    steps = FlowSteps(config, params or random(flow_network(config)))
    state = steps.start(1, voice(config) if config == released() else None)
    rng = np.random.default_rng(0)

    def clock(state, size):
        codes = rng.integers(0, config.vocab_size, (1, size)).astype(np.int32)
        piece = Piece(codes, np.array([size], np.int32), np.zeros(1, bool))
        return clocked(steps.step, state, piece)

    def run():
        found = {'first chunk': clock(jax.tree.map(jnp.copy, state), steps.hops[0] + 3)}
        for position in POSITIONS:
            # Every slot of the window is in use; what stands in them costs nothing.
            late = jax.tree.map(jnp.copy, state)._replace(
                codes=state.codes + position, waiting=jnp.full(1, 3, jnp.int32)
            )
            found[f'chunk at {0.08 * position:.0f} s'] = clock(late, steps.hops[-1])
        return found

    return run


def nano():
    """The same with the shipped nano codec."""
    config, params = open_flow(shipped() / 'codec')
    return stream(config, jax.tree.map(jnp.asarray, params))


def clocked(run, *given) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(*given))
    return time.perf_counter() - began


PARTS = {part.__name__: part for part in (tokenizer, decode, stream, nano)}


def main() -> None:
    run = PARTS[sys.argv[1]]()
    run()
    print('ready', flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


if __name__ == '__main__':
    main()
