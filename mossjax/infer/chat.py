"""A dialogue partner: turns of text or speech in, a reply in text or speech out.

    chat = Chat.open('model', 'codec')
    turns = [Turn('user', audio.load('question.wav', 16000))]
    reply = chat.reply(turns, 'audio', seed=0)      # reply.wav, reply.codes, reply.grid
    turns += [reply.turn, Turn('user', 'And in one word?')]

Generated codes are fed back as they are, without a detour through a waveform. A dialogue that may
outgrow the model's positions is an `infer.dialogue.Dialogue`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

from absl import logging
import numpy as np

from mossjax.convert import peft
from mossjax.convert.placement import Put, open_lm
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.infer import fit, generation_config
from mossjax.infer.buckets import room
from mossjax.infer.codec import Codec, Mouth, open_codec
from mossjax.infer.generate import Generation, Generator, Session
from mossjax.infer.sampling import Settings, row_keys
from mossjax.infer.voice import Voice
from mossjax.models.lm import dialogue, machine
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.dialogue import Style, SystemPrompts, Turn
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.machine import Rules
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
      longest: a limit of replies that somebody asked for, in grid rows; `settings` has it too.
        Without one, the limit of `settings` shrinks to what a prompt leaves of the positions.
      mouth: what speaks while codes come, see `infer.talk`; None unless it was opened to stream.
    """

    generator: Generator
    params: dict
    text: TextTokenizer
    encode: Callable[[list[np.ndarray]], list[np.ndarray]] | None
    decode: Callable[[list[np.ndarray]], list[np.ndarray]] | None
    style: Style
    settings: Settings
    longest: int | None = None
    mouth: Mouth | None = None

    @classmethod
    def open(
        cls, model_dir, codec_dir=None, *, hears: bool = True, speaks: bool = True,
        voice: Voice | None = None, longest: int | None = None, rules: Rules = machine.CLEAN,
        style: Style = dialogue.CLEAN, put: Put | None = None, adapter=None, streams: bool = False,
        **options,
    ) -> 'Chat':
        """Reads a model directory and, if given, a codec directory.

        generation_config.json of the model, if there is one, sets the default settings and, for
        prompts built the clean way, the system prompts.

        Args:
          hears, speaks: which halves of the codec are opened, the speech tokenizer and the flow
            decoder. A codec may lack the half that is not.
          voice: who speaks; by default the voice that the codec comes with.
          longest: limit of replies in grid rows instead of the checkpoint's own.
          rules, style: machine.UPSTREAM and dialogue.UPSTREAM reproduce upstream's code.
          put: how the language model's parameters are read, see `convert.placement`: as stored by
            default, `on_host('float32')`, `int8.int8('bfloat16')`, ...; then see `fit.placed`.
          adapter: directory of a LoRA adapter in PEFT's layout, to run the weights with.
          streams: for replies that are spoken while they are made, see `codec.open_codec`.
          options: see `engine.Programs`.

        Raises:
          InputError: a file is missing or does not fit the others.
        """
        model_dir = pathlib.Path(model_dir)
        text = TextTokenizer.open(model_dir)
        path = model_dir / 'config.json'
        config = LMConfig.from_hf(read_json(path), where=str(path))
        if text.size > config.vocab_size:
            raise InputError(
                f'{model_dir}: tokenizer.json has {text.size} tokens, the model only '
                f'{config.vocab_size} rows for them; the files are of different checkpoints'
            )
        ids = GridIds.of(config, text)
        defaults = generation_config.read(model_dir, ids.stops)
        if style is dialogue.CLEAN:
            style = dataclasses.replace(style, prompts=SystemPrompts.of(defaults))
        settings = Settings.of(defaults)
        if longest is not None:
            settings = settings.at_most(longest)
            _check_fits(longest, config.max_position_embeddings)
        codec = Codec(None, None)
        if codec_dir is not None and (hears or speaks):
            codec = open_codec(codec_dir, ids.eosp, hears, speaks, voice, streams)
        config, params = open_lm(model_dir, put)
        net = fit.lm(config)
        if adapter is not None:
            adapters = peft.load(adapter, net.shapes)
            params = attach(params, adapters.tree(), adapters.lora)
        generator = Generator(net, config, ids, rules, **options)
        return cls(
            generator, fit.placed(params), text, codec.ears and codec.ears.encode,
            codec.decoder and codec.decoder.decode_many, style, settings, longest,
            codec.mouth() if streams else None,
        )  # fmt: skip

    @property
    def positions(self) -> int:
        """Rows that prompt and reply may have together."""
        return self.generator.config.max_position_embeddings

    def prompt(self, turns: Sequence[Turn], reply: str = 'audio') -> np.ndarray:
        """The rows int32 (p, 2) that the model reads of a dialogue in text and codes.

        Raises:
          InputError: see `dialogue.build_prompt`.
        """
        return dialogue.build_prompt(turns, reply, self.text, self.generator.ids, self.style)

    def settings_for(self, prompt: int) -> Settings:
        """The settings, with a limit that a prompt of that many rows leaves room for.

        Raises:
          InputError: there is no room at all; that `longest` has none is left to the generator.
        """
        if self.longest is not None:
            return self.settings
        return self.settings.at_most(room(prompt, self.settings.max_new_tokens, self.positions))

    def hear(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The codes (n,) of each 16 kHz waveform (w,).

        Raises:
          InputError: no speech tokenizer was opened.
        """
        if self.encode is None:
            raise InputError('a turn holds a waveform, but no codec was opened; give its directory')
        return self.encode([np.asarray(wav, np.float32) for wav in waves])

    def reply(
        self, turns: Sequence[Turn], reply: str = 'audio', settings: Settings | None = None,
        seed: int = 0, session: Session | None = None,
    ) -> Reply:
        """The reply to one dialogue; see `replies`."""
        return self.replies([turns], reply, settings, seed, session)[0]

    def session(self, dialogues: int = 1) -> Session:
        """What remembers dialogues between calls of `replies`, so that no turn is read twice."""
        return self.generator.session(self.params, dialogues)

    def replies(
        self,
        dialogues: Sequence[Sequence[Turn]],
        reply: str = 'audio',
        settings: Settings | None = None,
        seed: int = 0,
        session: Session | None = None,
    ) -> list[Reply]:
        """Replies to several dialogues in one batch; the first equals `reply` with that seed.

        Args:
          dialogues: lists of turns; content is text, codes (integers) or a 16 kHz waveform
            (floats).
          reply: 'audio' or 'text', for all of them.
          settings: how to draw and how long; `settings_for` the longest prompt by default.
          seed: of the random draws.
          session: where as many dialogues were before; what they have in common with these is
            not read again. It changes no reply.

        Raises:
          InputError: a bad dialogue, a waveform without a codec, or more rows than fit.
        """
        prompts = [self.prompt(turns, reply) for turns in self._listen(dialogues)]
        settings = settings or self.settings_for(max(map(len, prompts), default=0))
        return self.answers(prompts, reply, settings, seed, session)

    def answers(
        self, prompts: Sequence[np.ndarray], reply: str, settings: Settings, seed: int,
        session: Session | None = None,
    ) -> list[Reply]:
        """As `replies`, to prompts (p, 2) that are built."""
        # Codes are all that is wanted of a spoken reply; a written one must not start to speak.
        allowed = [reply == 'audio'] * len(prompts)
        keys = row_keys(seed, len(prompts))
        session = session or self.session(len(prompts))
        made = session(prompts, settings, keys, allowed)
        return self._speak(
            [self.read(p, generation, reply) for p, generation in zip(prompts, made, strict=True)]
        )

    def _listen(self, dialogues) -> list[list[Turn]]:
        """The same dialogues with waveforms replaced by codes, all encoded together."""
        turns = [turn for turns in dialogues for turn in turns]
        spoken = [turn for turn in turns if _is_waveform(turn.content)]
        codes = self.hear([turn.content for turn in spoken]) if spoken else []
        heard = {id(turn): code for turn, code in zip(spoken, codes, strict=True)}
        return [
            [Turn(t.role, heard[id(t)]) if id(t) in heard else t for t in turns]
            for turns in dialogues
        ]

    def read(
        self, prompt: np.ndarray, generation: Generation, reply: str = 'audio', quiet: bool = False
    ) -> Reply:
        """What was said in answer to a prompt (p, 2), without its sound.

        Args:
          quiet: do not say that nothing was spoken where speech was wanted.
        """
        rules, ids = self.generator.rules, self.generator.ids
        text, codes = rules.decode(generation.grid, ids, self.text)
        if reply == 'text':
            codes = codes[:0]
        elif len(codes) == 0 and not quiet:
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


def _check_fits(longest: int, positions: int) -> None:
    if longest >= positions:
        raise InputError(
            f'max_new_tokens = {longest} leaves no room for a prompt in the {positions} positions '
            'of the model; lower it'
        )


def _is_waveform(content) -> bool:
    return isinstance(content, np.ndarray) and content.dtype.kind == 'f'
