"""Tokenizer and decoder runs from their configs; see `train.tasks`."""

from collections.abc import Mapping
import dataclasses
import functools
import os

from absl import logging
from ml_collections import ConfigDict
import numpy as np

from mossjax.data import speech
from mossjax.data.clips import Clips, clips_in_memory, clips_on_disk
from mossjax.data.codes import CodesStore
from mossjax.data.labels import Inventory, Transcripts
from mossjax.data.manifest import Recording, read_recordings
from mossjax.errors import InputError
from mossjax.models.flow.config import Context, FlowConfig
from mossjax.models.flow.loss import flow_loss, mu_loss
from mossjax.models.tokenizer import quantizer
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.train import flow_task, starts, tokenizer_task
from mossjax.train.config import options, path
from mossjax.train.flow_task import FlowTask
from mossjax.train.starts import Run
from mossjax.train.tokenizer_task import TokenizerTask
from mossjax.values import COUNT, NOT_NEGATIVE, SHARE, SIZE, Range, ranged

CLIPS = {'memory': clips_in_memory, 'disk': clips_on_disk}
COMMITMENT = {
    'absolute': quantizer.absolute_commitment, 'relative': quantizer.relative_commitment
}  # fmt: skip
INPUTS = {'distorted': tokenizer_task.distorted, 'plain': tokenizer_task.plain}


@dataclasses.dataclass(frozen=True)
class SpeechData:
    """`data` of a tokenizer or decoder run.

    Attributes:
      manifest: JSONL of recordings (`data.manifest`).
      seconds: padded audio in a global batch.
      rows_multiple: rows of a global batch are a multiple of it, and at least so many, whatever
        `seconds` says. Make it one of the devices that hold rows on every mesh the run is ever to
        use: the batches are then the same on all of them.
      only: manifest key -> allowed values, e.g. {'speaker': ['slt']}; all recordings by default.
      weights: value of the manifest key `kind` -> appearances in an epoch, 1 if not listed.
      buckets: padded lengths, so compilations.
      room: seconds kept free behind each recording, for distortions that delay it (tokenizer).
      keep: 'memory' or 'disk'.
      inventory: labels of the tokenizer's targets; made from the manifest and written there if
        the file does not exist.
      tokenizer: directory with the tokenizer.json of the texts (tokenizer runs with loss.text).
      codes: codes store of the recordings (decoder).
      undisturbed: share of recordings that are spoken from their undisturbed codes whatever else
        the store has (decoder).
    """

    manifest: str = path()
    seconds: float = ranged(Range(0, 1e6, above=True))
    rows_multiple: int = ranged(Range(1, 65536, whole=True), 8)
    only: Mapping[str, list] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, int] = ranged(COUNT, default_factory=dict)
    buckets: int = ranged(Range(1, speech.MOST_EDGES, whole=True), 4)
    room: float = ranged(Range(0, 3600), 0.0)
    keep: str = 'memory'
    inventory: str = path(default='')
    tokenizer: str = path(default='')
    codes: str = path(default='')
    undisturbed: float = ranged(SHARE, 0.0)

    def recordings(self) -> list[Recording]:
        found = [
            r for r in read_recordings(self.manifest)
            if all(_value(r, key) in allowed for key, allowed in self.only.items())
        ]
        if not found:
            raise InputError(
                f'{self.manifest}: no recording passes config.data.only = {dict(self.only)}'
            )
        return found

    def clips(self, rate: int) -> Clips:
        return _choose(CLIPS, self.keep, 'data.keep')(self.recordings(), rate)

    def batching(self, seed: int) -> dict:
        """Keyword arguments that both kinds of batches take."""
        return {
            'seconds': self.seconds, 'seed': seed, 'buckets': self.buckets,
            'weight': speech.by_key('kind', dict(self.weights)),
            'rows_multiple': self.rows_multiple,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerLoss:
    """`loss` of a tokenizer run, see `train.tokenizer_task`.

    Attributes:
      text: weight of the text decoder's cross-entropy (upstream's objective; needs data.tokenizer).
      ctc, frames: weights of the objectives on phones or characters.
      commitment: 'absolute' (upstream, from a trained encoder) or 'relative' (from nothing).
      penalty: weight of the mean square of the vectors.
      warmup: steps without a codebook. remembered: steps whose vectors then start it.
      threshold: see TokenizerTask.
      inputs: 'distorted' or 'plain'.
    """

    text: float = ranged(NOT_NEGATIVE, 0.0)
    ctc: float = ranged(NOT_NEGATIVE, 0.0)
    frames: float = ranged(NOT_NEGATIVE, 0.0)
    commitment: str = 'absolute'
    penalty: float = ranged(NOT_NEGATIVE, 0.0)
    warmup: int = ranged(COUNT, 0)
    remembered: int = ranged(SIZE, 32)
    threshold: float = ranged(NOT_NEGATIVE, 0.1)
    inputs: str = 'distorted'


@dataclasses.dataclass(frozen=True)
class FlowLoss:
    """`loss` of a decoder run.

    Attributes:
      objective: 'flow', or 'mu' for the encoder's warm start.
      mu_weight: of mu's distance from the mel beside the flow loss.
      chunk: codes per block of the attention mask (streaming); 0 sees everything.
      scaled: start from weights that know the mel's scale (small networks).
    """

    objective: str = 'flow'
    mu_weight: float = ranged(NOT_NEGATIVE, 0.0)
    chunk: int = ranged(COUNT, 0)
    scaled: bool = False


TOKENIZER = {'model': TokenizerConfig, 'data': SpeechData, 'loss': TokenizerLoss}
FLOW = {'model': FlowConfig, 'data': SpeechData, 'loss': FlowLoss}


def tokenizer(config: ConfigDict, fresh: bool) -> Run:
    """A tokenizer run; `model` has the fields of TokenizerConfig. See `tasks.make`."""
    data = options(config.data, SpeechData, 'data')
    loss = options(config.loss, TokenizerLoss, 'loss')
    model = options(config.model, TokenizerConfig, 'model')
    transcripts = None
    if loss.text:
        if not data.tokenizer:
            raise InputError(
                'config.loss.text needs the ids of the texts: name the directory of their '
                'tokenizer.json in config.data.tokenizer'
            )
        transcripts = Transcripts(data.tokenizer, model.vocab, model.target_positions)
    _check_targets(loss, data)
    clips = data.clips(16_000)
    inventory = _inventory(data, clips)
    batches = speech.TokenizerBatches(
        clips, inventory, transcripts, room=data.room, **data.batching(config.seed)
    )
    chosen = tokenizer_task.objectives(
        text=loss.text, ctc=loss.ctc, frames=loss.frames, phones=len(inventory)
    )
    start, book = starts.tokenizer(config.init_from if fresh else '', model, chosen)
    task = TokenizerTask(
        model,
        batches,
        chosen,
        inputs=_choose(INPUTS, loss.inputs, 'loss.inputs'),
        commitment=_choose(COMMITMENT, loss.commitment, 'loss.commitment'),
        penalty=loss.penalty,
        warmup=loss.warmup,
        remembered=loss.remembered,
        start=book,
        threshold=loss.threshold,
    )
    return Run(task, config, start)


def _check_targets(loss: TokenizerLoss, data: SpeechData) -> None:
    """Raises InputError for an objective that no recording has targets for: it would be silent."""
    recordings = data.recordings()
    for name, keys in (('text', ['text']), ('ctc', ['times', 'text']), ('frames', ['times'])):
        having = sum(any(getattr(r, key) for key in keys) for r in recordings)
        if not getattr(loss, name) or having == len(recordings):
            continue
        if not having:
            raise InputError(
                f'config.loss.{name} = {getattr(loss, name):g} would train nothing: no recording '
                f'of {data.manifest} has "{keys[0]}"; set it to 0, or write "{keys[0]}" into the '
                'manifest'
            )
        logging.info('loss.%s: %d of %d recordings have targets', name, having, len(recordings))


def flow(config: ConfigDict, fresh: bool) -> Run:
    """A decoder run; `model` has the fields of FlowConfig. See `tasks.make`."""
    data = options(config.data, SpeechData, 'data')
    loss = options(config.loss, FlowLoss, 'loss')
    model = options(config.model, FlowConfig, 'model')
    if not data.codes:
        raise InputError('config.data.codes is not set; tokenize the recordings and name the file')
    clips = data.clips(24_000)
    batches = speech.DecoderBatches(
        clips, CodesStore.open(data.codes), undisturbed=data.undisturbed,
        **data.batching(config.seed),
    )
    objectives = {
        'flow': functools.partial(flow_loss, mu_weight=loss.mu_weight), 'mu': mu_loss
    }  # fmt: skip
    task = FlowTask(
        model,
        batches,
        objective=_choose(objectives, loss.objective, 'loss.objective'),
        context=Context(chunk=loss.chunk or None),
        statistics=mel_statistics(batches, model) if loss.scaled and fresh else None,
    )
    return Run(task, config, starts.decoder(config.init_from if fresh else ''))


def mel_statistics(
    batches: speech.DecoderBatches, config: FlowConfig, count: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) per mel bin over the codes of a few batches."""
    frames = []
    for step in range(count):
        batch = batches.batch(step)
        mel = np.asarray(flow_task.aligned_mel(batch['audio'], batch['codes'].shape[1], config))
        frames += [
            row[: n * config.ratio] for row, n in zip(mel, batch['code_lengths'], strict=True)
        ]
    frames = np.concatenate(frames)
    return frames.mean(axis=0), frames.std(axis=0)


def _inventory(data: SpeechData, clips: Clips) -> Inventory:
    if not data.inventory:
        return Inventory.of(clips.recordings)
    if os.path.lexists(data.inventory):
        return Inventory.open(data.inventory)
    inventory = Inventory.of(clips.recordings)
    inventory.save(data.inventory)
    return inventory


def _value(recording: Recording, key: str):
    return recording.speaker if key == 'speaker' else recording.extra.get(key)


def _choose(table: Mapping, name: str, where: str):
    if name not in table:
        raise InputError(f'config.{where} is {name!r}; choose one of {", ".join(table)}')
    return table[name]
