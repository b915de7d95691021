"""What `experiments.benchmarks.codec` measures of this project, one part a process.

    python -m experiments.benchmarks.codec_work PART

Prepares the part (random weights of the released sizes, compiled, run once), says `ready`, and runs
it once for every line it reads: the answer is a line of JSON, {name: seconds}.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.sides import answer
from mossjax.convert.codec_flow import flow_network, open_flow
from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.convert.codec_vocoder import hift_network
from mossjax.infer.assets import shipped
from mossjax.infer.layout import placed
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.speech_stream import SpeechSteps
from mossjax.infer.vocoder import HiftVocoder
from mossjax.infer.voice import Voice
from mossjax.models.flow.config import released
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.ops.head_by_head import on_cpu

SPEECH = 30  # seconds that the tokenizer hears
CODES, PROMPT = 50, 25  # that the decoder speaks, and of its voice: 4 s and 2 s
POSITIONS = {'early chunk': 62, 'late chunk': 3750}  # codes spoken before: 5 s, 5 minutes
NANO_HIFT = HiftConfig(channels=128, f0_width=128)


def random(shapes) -> dict:
    """Small random weights, norms of ones."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == 'scale':
            return jnp.ones(x.shape, jnp.float32)
        return jnp.asarray(0.03 * rng.standard_normal(x.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def voice(config) -> Voice:
    rng = np.random.default_rng(1)
    mel = rng.normal(-6, 2, (config.ratio * PROMPT, config.mels)).astype(np.float32)
    xvector = rng.normal(size=config.xvector_size).astype(np.float32)
    return Voice(rng.integers(0, config.vocab_size, PROMPT).astype(np.int32), mel, xvector)


def tokenizer():
    """A log-mel of SPEECH seconds to codes."""
    config = TokenizerConfig()
    network = tokenizer_network(config, attend=on_cpu)
    params = placed(random(network.shapes), network)
    mel = np.random.default_rng(0).normal(size=(1, 100 * SPEECH, config.mels)).astype(np.float32)

    @jax.jit
    def run(params, mel):
        with jax.default_matmul_precision('highest'):
            return network.bind(params)(mel)

    return lambda: {'tokenizer': clocked(run, params, mel)}


def decode():
    """Codes behind a voice's prompt to a mel, and that to a wave: offline decode."""
    config, hift = released(), HiftConfig()
    vocoder = HiftVocoder(hift, random(hift_network(hift).shapes))
    decoder = SpeechDecoder(
        config, random(flow_network(config).shapes), vocoder=vocoder, voice=voice(config)
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


def stream():
    """Codes to sound in steps at the released sizes: the first sound, chunks early and late."""
    config = released()
    return chain(config, random(flow_network(config).shapes), HiftConfig(), voice(config))


def nano():
    """The same with the shipped nano decoder, and a vocoder of its size: it comes without one."""
    config, params = open_flow(shipped() / 'codec')
    return chain(config, jax.tree.map(jnp.asarray, params), NANO_HIFT, None)


def chain(config, params: dict, hift: HiftConfig, speaker: Voice | None):
    vocoder = HiftVocoder(hift, random(hift_network(hift).shapes))
    steps = SpeechSteps(SpeechDecoder(config, params, vocoder=vocoder, voice=speaker))
    rng = np.random.default_rng(0)

    def clock(sessions, count):
        codes = rng.integers(0, config.vocab_size, count)
        began = time.perf_counter()
        sound = sessions.feed({0: codes})[0]
        assert len(sound)
        return time.perf_counter() - began

    def run():
        sessions = steps.sessions()
        first, second, long = steps.flow.hops
        found = {'first sound': clock(sessions, first + config.lookahead)}
        clock(sessions, second)
        for name, position in POSITIONS.items():
            # As after so many codes: the counters know it, and nothing else grows.
            for part, counter, units in zip(
                sessions.parts, ('codes', 'frames'), (1, config.ratio), strict=True
            ):
                now = jnp.full(1, units * position, jnp.int32)
                part.state = part.state._replace(**{counter: now})
            clock(sessions, long)  # what a step hands to the next one
            found[name] = clock(sessions, long)
        return found

    return run


def clocked(run, *given) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(*given))
    return time.perf_counter() - began


PARTS = {part.__name__: part for part in (tokenizer, decode, stream, nano)}

if __name__ == '__main__':
    answer(PARTS)
