"""A dialogue partner: turns of text or speech in, a reply in text or speech out.

    chat = Chat.open('model', 'codec')
    turns = [Turn('user', audio.load('question.wav', 16000))]
    reply = chat.reply(turns, 'audio', seed=0)      # reply.wav, reply.codes, reply.grid
    turns += [reply.turn, Turn('user', 'And in one word?')]

Generated codes are fed back as they are, without a detour through a waveform.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

from absl import logging
import jax
import numpy as np

from mossjax.convert import peft
from mossjax.convert.placement import Put, open_lm
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.infer.generate import Generation, Generator
from mossjax.infer.sampling import Settings, row_keys
from mossjax.models.lm import dialogue, machine
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.dialogue import Style, SystemPrompts, Turn
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import Rules
from mossjax.models.lm.model import network
from mossjax.models.lm.text import TextTokenizer
from mossjax.nn.lora import attach

INPUT_RATE = 16000  # Hz, of waveforms in turns
OUTPUT_RATE = 24000  # Hz, of replies


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """One reply.

    Attributes:
      text: its words ('' if it only speaks).
      codes: int32 (n,) codec codes, empty for a written reply.
      wav: float32 (w,) at 24 kHz, None for a written reply, without a codec, or without codes.
      grid: int32 (t, 2) generated rows.
      prompt: int32 (p, 2) rows they answer.
      reason: why it ended: 'stop', 'length' or (upstream's rules) 'batch'.
    """

    text: str
    codes: np.ndarray
    wav: np.ndarray | None
    grid: np.ndarray
    prompt: np.ndarray
    reason: str

    @property
    def turn(self) -> Turn:
        """The reply as a turn of the dialogue that goes on."""
        return Turn('assistant', self.codes if len(self.codes) else self.text)


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """A model, its text tokenizer and its codec.

    Attributes:
      generator, params: the language model.
      text: its text tokenizer.
      encode: list of (w,) 16 kHz waveforms -> list of codes, or None (no spoken turns then).
      decode: list of codes -> list of (w,) 24 kHz waveforms, or None (replies have no wav then).
      style: how prompts are built.
      settings: how replies are drawn unless a call says otherwise.
    """

    generator: Generator
    params: dict
    text: TextTokenizer
    encode: Callable[[list[np.ndarray]], list[np.ndarray]] | None
    decode: Callable[[list[np.ndarray]], list[np.ndarray]] | None
    style: Style
    settings: Settings

    @classmethod
    def open(
        cls, model_dir, codec_dir=None, *, rules: Rules = machine.CLEAN,
        style: Style = dialogue.CLEAN, put: Put | None = None, adapter=None,
    ) -> 'Chat':
        """Reads a model directory and, if given, a codec directory.

        generation_config.json of the model, if there is one, sets the default settings and, for
        prompts built the clean way, the system prompts.

        Args:
          rules, style: machine.UPSTREAM and dialogue.UPSTREAM reproduce upstream's code.
          put: how the language model's parameters are held, see `convert.placement`: as stored by
            default, `on_host('float32')`, `int8.int8('bfloat16')`, ...
          adapter: directory of a LoRA adapter in PEFT's layout, to run the weights with.

        Raises:
          InputError: a file is missing or does not fit the others.
        """
        model_dir = pathlib.Path(model_dir)
        text = TextTokenizer.open(model_dir)
        path = model_dir / 'generation_config.json'
        defaults = read_json(path) if path.exists() else {}
        if style is dialogue.CLEAN:
            style = dataclasses.replace(style, prompts=SystemPrompts.of(defaults))
        settings = Settings.of(defaults)
        path = model_dir / 'config.json'
        config = LMConfig.from_hf(read_json(path), where=str(path))
        if text.size > config.vocab_size:
            raise InputError(
                f'{model_dir}: tokenizer.json has {text.size} tokens, the model only '
                f'{config.vocab_size} rows for them; the files are of different checkpoints'
            )
        ids = GridIds.of(config, text)
        encode, decode = (None, None) if codec_dir is None else open_codec(codec_dir, ids.eosp)
        config, params = open_lm(model_dir, put)
        net = network(config)
        if adapter is not None:
            adapters = peft.load(adapter, net.shapes)
            params = attach(params, adapters.tree(), adapters.lora)
        generator = Generator(net, config, ids, rules)
        return cls(generator, jax.device_put(params), text, encode, decode, style, settings)

    def reply(
        self, turns: Sequence[Turn], reply: str = 'audio', settings: Settings | None = None,
        seed: int = 0,
    ) -> Reply:
        """The reply to one dialogue; see `replies`."""
        return self.replies([turns], reply, settings, seed)[0]

    def replies(
        self,
        dialogues: Sequence[Sequence[Turn]],
        reply: str = 'audio',
        settings: Settings | None = None,
        seed: int = 0,
    ) -> list[Reply]:
        """Replies to several dialogues in one batch; the first equals `reply` with that seed.

        Args:
          dialogues: lists of turns; content is text, codes (integers) or a 16 kHz waveform
            (floats).
          reply: 'audio' or 'text', for all of them.
          settings: how to draw and how long, `self.settings` by default.
          seed: of the random draws.

        Raises:
          InputError: a bad dialogue, a waveform without a codec, or more rows than fit.
        """
        ids = self.generator.ids
        prompts = [
            dialogue.build_prompt(turns, reply, self.text, ids, self.style)
            for turns in self._listen(dialogues)
        ]
        # Codes are all that is wanted of a spoken reply; a written one must not start to speak.
        allowed = [reply == 'audio'] * len(prompts)
        made = self.generator(
            self.params, prompts, settings or self.settings, row_keys(seed, len(prompts)), allowed
        )
        return self._speak(
            [self._read(p, generation, reply) for p, generation in zip(prompts, made, strict=True)]
        )

    def _listen(self, dialogues) -> list[list[Turn]]:
        """The same dialogues with waveforms replaced by codes, all encoded together."""
        turns = [turn for turns in dialogues for turn in turns]
        spoken = [turn for turn in turns if _is_waveform(turn.content)]
        if spoken and self.encode is None:
            raise InputError('a turn holds a waveform, but no codec was opened; give its directory')
        codes = self.encode([np.asarray(t.content, np.float32) for t in spoken]) if spoken else []
        heard = {id(turn): code for turn, code in zip(spoken, codes, strict=True)}
        return [
            [Turn(t.role, heard[id(t)]) if id(t) in heard else t for t in turns]
            for turns in dialogues
        ]

    def _read(self, prompt: np.ndarray, generation: Generation, reply: str) -> Reply:
        rules, ids = self.generator.rules, self.generator.ids
        text, codes = rules.decode(generation.grid, ids, self.text)
        if reply == 'text':
            codes = codes[:0]
        elif len(codes) == 0:
            logging.warning('the model ended its reply without speaking; try another seed')
        return Reply(text, codes, None, generation.grid, prompt, generation.reason)

    def _speak(self, replies: list[Reply]) -> list[Reply]:
        """The same replies, those with codes with their waveforms, all decoded together."""
        spoken = [i for i, reply in enumerate(replies) if len(reply.codes)]
        if spoken and self.decode is not None:
            waves = self.decode([replies[i].codes for i in spoken])
            for i, wav in zip(spoken, waves, strict=True):
                replies[i] = dataclasses.replace(replies[i], wav=wav)
        return replies


def open_codec(codec_dir, codes: int) -> tuple[Callable, Callable]:
    """(encode, decode) of a codec directory, see `Chat`, for a model that knows `codes` codes.

    Raises:
      InputError: files missing or damaged, or a codec with other codes.
    """
    from mossjax.infer.speech_decoder import SpeechDecoder
    from mossjax.infer.speech_tokenizer import SpeechTokenizer

    tokenizer, decoder = SpeechTokenizer.open(codec_dir), SpeechDecoder.open(codec_dir)
    # A flow decoder may have rows to spare, a tokenizer may not say what the model cannot read.
    if tokenizer.config.codes > codes or decoder.config.vocab_size < codes:
        raise InputError(
            f'{codec_dir}: the speech tokenizer has {tokenizer.config.codes} codes, the decoder '
            f'{decoder.config.vocab_size}, the language model {codes}; take the codec it was '
            'trained with'
        )
    return tokenizer.encode, decoder.decode_many


def _is_waveform(content) -> bool:
    return isinstance(content, np.ndarray) and content.dtype.kind == 'f'
