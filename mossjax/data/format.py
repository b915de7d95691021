"""What every recipe needs to write rows of a model: its ids, its text tokenizer, its prompts."""

from collections.abc import Mapping
import dataclasses
import os
from pathlib import Path
from typing import Any

from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.dialogue import CLEAN, Style, SystemPrompts
from mossjax.models.lm.grid import GridIds
from mossjax.models.lm.text import TextTokenizer

# Encodes differently under most other tokenizers.
PROBE = 'what is three plus four? the answer is seven. 12 ABC'


@dataclasses.dataclass(frozen=True)
class Format:
    """What every recipe needs to write rows.

    Attributes:
      style: system prompts and text encoding of dialogues.
    """

    tokenizer: TextTokenizer
    ids: GridIds
    style: Style

    @classmethod
    def open(cls, directory: str | os.PathLike) -> 'Format':
        """That of a language model directory, with the system prompts a chat with it would take.

        Reads config.json, tokenizer.json and, if it is there, generation_config.json; no weights.

        Raises:
          InputError: a file is missing or bad, or they do not belong together.
        """
        directory = Path(directory)
        path, generation = directory / 'config.json', directory / 'generation_config.json'
        config = LMConfig.from_hf(read_json(path), where=str(path))
        tokenizer = TextTokenizer.open(directory)
        if tokenizer.size > config.vocab_size:
            raise InputError(
                f'{directory}: tokenizer.json has {tokenizer.size} tokens, the model only '
                f'{config.vocab_size} rows for them; the files are of different checkpoints'
            )
        prompts = SystemPrompts.of(read_json(generation) if generation.exists() else {})
        return cls(
            tokenizer, GridIds.of(config, tokenizer), dataclasses.replace(CLEAN, prompts=prompts)
        )

    @property
    def pad(self) -> tuple[int, int]:
        """Text and audio id for the padding of packed rows."""
        return self.ids.pad, self.ids.filler

    def facts(self) -> dict[str, Any]:
        """What decides the ids in rows, as JSON; goes into a data set's config as 'format'."""
        return {
            'ids': {**dataclasses.asdict(self.ids), 'stops': list(self.ids.stops)},
            'prompts': {'audio': self.style.prompts.audio, 'text': self.style.prompts.text},
            'asr_prompt': self.style.prompts.asr,
            'tts_prompt': self.style.prompts.tts,
            'probe': self.tokenizer.encode_plain(PROBE),
        }


def check_rows(
    metadata: Mapping[str, Any], name: str, config: LMConfig, tokenizer: TextTokenizer | None
) -> None:
    """Refuses rows whose ids mean something else to a model; rows that do not say so pass.

    Args:
      metadata: of a row data set, with `Format.facts` as 'format' in its config.
      tokenizer: of the model, if it is at hand.

    Raises:
      InputError: they were written for another model or tokenizer.
    """
    found = metadata['config'].get('format')
    if found is None:
        return
    mine = {
        'sosp': config.sosp_token_id, 'speech': config.modality_pad_token_id,
        'filler': config.audio_pad_token_id, 'eosp': config.eosp_token_id,
    }  # fmt: skip
    ids = found['ids']
    other = [f'{key} is {ids[key]}, here {v}' for key, v in mine.items() if ids[key] != v]
    if tokenizer and found['probe'] != tokenizer.encode_plain(PROBE):
        other.append('their text tokenizer is another')
    if other:
        raise InputError(
            f'rows {name} were written for another model ({"; ".join(other)}); write them anew '
            'with the config.json and tokenizer.json of this one'
        )
