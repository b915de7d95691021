"""What `experiments.benchmarks.talk` measures of this project, one part a process.

    python -m experiments.benchmarks.talk_work PART [LANES]

Prepares the part and runs it once, says `ready`, and runs it once for every line it reads: the
answer is a line of JSON, {name: seconds}.
"""

from collections.abc import Callable
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.codec_work import random, voice
from experiments.benchmarks.sides import answer
from mossjax.convert.codec_flow import open_flow
from mossjax.convert.codec_vocoder import hift_network
from mossjax.infer import fit, sampling
from mossjax.infer.assets import Assets, shipped
from mossjax.infer.chat import Chat
from mossjax.infer.codec import StreamingMouth, open_codec
from mossjax.infer.dialogue import Dialogue
from mossjax.infer.engine import Engine, Programs
from mossjax.infer.sampling import Settings
from mossjax.infer.speech_decoder import SpeechDecoder
from mossjax.infer.talk import Talk
from mossjax.infer.vocoder import HiftVocoder
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.grid import GridIds, text_rows
from mossjax.models.vocoder.hift.config import HiftConfig

ROWS, SPOKEN = 256, 64
# 50.3 M parameters on the way of a word: 7 shared layers, 1 of the text branch, table and head.
QWEN = LMConfig(
    vocab_size=24576, audio_vocab_size=64, hidden_size=512, intermediate_size=1536,
    num_hidden_layers=8, num_shared_layers=7, num_modality_layers=1, num_attention_heads=8,
    num_key_value_heads=4, head_dim=64, rms_norm_eps=1e-6, rope_theta=1e6,
    max_position_embeddings=1024, modality_pad_token_id=24570, sosp_token_id=24571,
    eosp_token_id=60, audio_pad_token_id=5, eos_token_id=24572, dtype='float32',
)  # fmt: skip
QWEN_IDS = GridIds(
    vocab=24576, audio_vocab=64, sosp=24571, speech=24570, filler=5, eosp=60, pad=24573, eos=24572,
    stops=(24572, 24573),
)  # fmt: skip
VOCODER = HiftConfig(channels=64, f0_width=64)
PIECE = 1280  # samples of the question that come at once


def qwen() -> Callable[[], dict]:
    """Seconds of reading ROWS with the first row spoken, and of SPOKEN rows more."""
    net = fit.lm(QWEN)
    params = fit.placed(random(net.shapes))
    engine = Engine(Programs(net, QWEN, QWEN_IDS), params)
    prompt = text_rows(np.random.default_rng(1).integers(0, 24000, ROWS), QWEN_IDS)
    greedy = Settings(draw=sampling.greedy)
    lane = engine.open()

    def clock(rows: int) -> float:
        engine.cut(lane, 0)
        own = dataclasses.replace(greedy, max_new_tokens=rows, min_new_tokens=rows)
        began = time.perf_counter()
        engine.extend(lane, prompt)
        engine.speak(lane, own, jax.random.key(0), speak=False)
        made = sum(len(said.rows) for said in engine.run())
        assert made == rows
        return time.perf_counter() - began

    least = {rows: products(params, rows) for rows in (1, ROWS)}

    def run():
        first = clock(1)
        return {
            'prefill': first, 'decode': clock(1 + SPOKEN) - first,
            'prefill_products': least[ROWS](),
            'decode_products': sum(least[1]() for _ in range(SPOKEN)),
        }  # fmt: skip

    return run


def products(params: dict, rows: int) -> Callable[[], float]:
    """Seconds of the products alone that `rows` rows of QWEN need, none waiting for another; the
    head is multiplied with one."""
    d, f = QWEN.hidden_size, QWEN.intermediate_size
    stacks = jax.tree.leaves([params['trunk'], params['text_branch']])
    matrices = [
        x.reshape(d, -1) if x.shape[0] == d else x.reshape(-1, d) for x in stacks if x.ndim > 1
    ]
    head = params['text_head']['kernel']
    given = {n: jnp.asarray(np.random.default_rng(2).normal(size=(rows, n)), 'float32')
             for n in (d, f)}  # fmt: skip

    @jax.jit
    def multiply(given, matrices, head):
        return [given[len(w)] @ w for w in matrices], given[d][:1] @ head

    def run() -> float:
        began = time.perf_counter()
        jax.block_until_ready(multiply(given, matrices, head))
        return time.perf_counter() - began

    run()
    return run


def lanes(count: str = '1') -> Callable[[], dict]:
    """Seconds of one step of the nano model with so many lanes, all speaking."""
    chat = Chat.open(shipped() / 'lm')
    count, rows = int(count), 64
    settings = dataclasses.replace(chat.settings, max_new_tokens=rows, min_new_tokens=rows)
    engine = Engine(chat.generator.programs, chat.params, count)
    prompt = text_rows(np.arange(20), chat.generator.ids)
    own = [engine.open() for _ in range(count)]

    def run():
        for lane in own:
            engine.follow(lane, prompt)
        engine.read()
        jax.block_until_ready(engine._state)
        for i, lane in enumerate(own):
            engine.speak(lane, settings, jax.random.key(i))
        began = time.perf_counter()
        for _ in engine.run():
            pass
        return {'step': (time.perf_counter() - began) / rows}

    return run


def dialogue() -> Callable[[], dict]:
    """A question of the shipped recordings, piece by piece, and its answer."""
    assets = Assets.open(shipped())
    question = assets.load(assets.questions('heldout')[0], 16000)
    chat = Chat.open(assets.lm)
    chat = dataclasses.replace(chat, settings=chat.settings.greedy())
    config, params = open_flow(assets.codec)
    decoder = SpeechDecoder(
        config, jax.tree.map(jnp.asarray, params), voice=voice(config),
        vocoder=HiftVocoder(VOCODER, random(hift_network(VOCODER).shapes)),
    )  # fmt: skip
    mouth = StreamingMouth(decoder)
    ears = open_codec(assets.codec, chat.generator.ids.eosp, speaks=False).ears
    mouth.warm()

    def run():
        talk = Talk(Dialogue(chat), mouth, ears=ears)
        for at in range(0, len(question), PIECE):
            if at + PIECE >= len(question):
                last = time.perf_counter()
            talk.listen(question[at : at + PIECE])
        clock = Clock(talk, mouth)
        first = 0.0
        for part in talk.reply():
            if not first and len(part.wave):
                first = time.perf_counter() - last
        clock.end()
        work = time.perf_counter() - last
        sound = len(talk.last.wav) / decoder.rate
        return {
            'first_sound': first, **clock.until_first, 'answer': work, 'sound': sound,
            'real_time_factor': work / sound,
        }  # fmt: skip

    return run


class Clock:
    """What the parts of a talk take until the first sound."""

    def __init__(self, talk: Talk, mouth: StreamingMouth):
        self.until_first, self._sounded, self._before = {}, False, []
        for owner, name, called in (
            (talk, '_end_of_speech', 'hearing the end'), (talk.engine, 'read', 'reading'),
            (talk.engine, '_collect', 'rows'), (talk, '_voiced', 'flow and vocoder'),
            (mouth, 'begin', 'the voice'),
        ):
            self._before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._timed(getattr(owner, name), called))

    def end(self) -> None:
        """What was timed is as it was."""
        for before in self._before:
            setattr(*before)

    def _timed(self, call: Callable, name: str) -> Callable:
        def timed(*args):
            began = time.perf_counter()
            out = call(*args)
            if not self._sounded:
                taken = self.until_first.get(name, 0) + time.perf_counter() - began
                self.until_first[name] = taken
            self._sounded |= name == 'flow and vocoder' and len(out) > 0
            return out

        return timed


PARTS = {part.__name__: part for part in (qwen, lanes, dialogue)}

if __name__ == '__main__':
    answer(PARTS)
