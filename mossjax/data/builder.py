"""Packed rows on disk: a TFDS data set in ArrayRecord files, written once, read by index.

TensorFlow is never imported. A data set is prepared in a folder of another name and renamed when
it is complete, so one that was interrupted is not opened but written anew. Its metadata holds
what was asked for (`config`), what came out (counts, padding) and a hash of all rows.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import functools
import hashlib
import io
import json
import tempfile
from typing import Any

from absl import logging
import numpy as np

from mossjax.data.rows import FIELDS, Assign, Example, Fill, Row, best_fit, pack
from mossjax.errors import InputError, check_all

NAME, VERSION = 'rows', '1.0.0'  # VERSION changes with the schema of rows.py
READERS = 8  # files that are opened at once


class RowSource:
    """Random access to the rows of a data set: `len(source)`, `source[i]` -> Row.

    Attributes:
      metadata: what `write_rows` recorded.
    """

    def __init__(self, source, metadata: Mapping[str, Any]):
        self._source = source
        self.metadata = dict(metadata)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Row:
        return {key: np.asarray(value, np.int32) for key, value in self._source[index].items()}


def write_rows(
    directory: str,
    examples: Iterable[Example],
    length: int,
    *,
    config: Mapping[str, Any],
    pad: tuple[int, int] = (0, 0),
    assign: Assign = best_fit,
    window: int = 4096,
    summary: Callable[[], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Packs examples into rows and writes them below `directory`; returns the metadata.

    A complete data set of the same config is left alone and `examples` is not consumed. One
    writer a directory.

    Args:
      directory: local path or bucket URL.
      length: positions of a row.
      config: JSON facts that decide the content: recipe, seed, manifest, tokenizer ids.
      pad, assign, window: see `rows.pack`.
      summary: called after the last example; JSON facts that the metadata keeps as 'summary'.

    Raises:
      InputError: the directory holds a data set made from another config; no examples; an
        example longer than a row.
    """
    if (found := kept(directory, length, config=config, pad=pad)) is not None:
        return found
    asked = _asked(config, length, pad)
    for stale in _stale(directory):
        logging.warning('removing an unfinished data set: %s', stale)
        stale.rmtree()
    fill, digest = Fill(), hashlib.sha256()
    rows = pack(examples, length, assign=assign, pad=pad, window=window, fill=fill)

    def generate(metadata):
        for i, row in enumerate(rows):
            for key in FIELDS:
                digest.update(row[key].tobytes())
            yield i, row
        if not fill.rows:
            raise InputError(f'{directory}: no examples to write; check the recipe and manifest.')
        counts = {key: getattr(fill, key) for key in ('rows', 'examples', 'tokens', 'supervised')}
        metadata |= {**counts, 'padding': fill.padding, 'sha256': digest.hexdigest()}
        metadata |= {'summary': summary()} if summary else {}

    builder = _builder_class()(
        data_dir=directory, file_format='array_record', length=length, asked=asked, make=generate
    )
    # TFDS announces downloads, and makes a folder for them.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as nowhere:
        builder.download_and_prepare(download_dir=nowhere)
    logging.info('%s: %d rows, %.1f %% padding', directory, fill.rows, 100 * fill.padding)
    return dict(open_rows(directory).metadata)


def open_rows(directory: str) -> RowSource:
    """Opens a complete data set.

    Raises:
      InputError: there is none, or its preparation was interrupted, its schema is another, or a
        file of it is damaged at either end.
    """
    import tensorflow_datasets as tfds

    path = _prepared(directory)
    if not path.exists():
        found = sorted(p.parent.name for p in path.parent.parent.glob('*/dataset_info.json'))
        why = 'its preparation was interrupted' if list(_stale(directory)) else 'there is none'
        why = f'it has schema version {found[0]}, expected {VERSION}' if found else why
        raise InputError(f'{directory}: no complete packed data set ({why}); write it anew.')
    builder = tfds.builder_from_directory(str(path.parent))
    source = RowSource(builder.as_data_source(split='train'), builder.info.metadata)
    _check_shards(source, builder.info.splits['train'])
    return source


def _check_shards(source: RowSource, split) -> None:
    """Each file is there in full length: its first and last row can be read.

    Raises:
      InputError: naming the files of which that is not so.
    """

    def check(shard: tuple[Any, int, int]) -> None:
        path, first, end = shard
        try:
            source[first], source[end - 1]
        except Exception as error:  # of several types, for a file that is cut, say
            said = str(error).split('; ')[0]
            raise InputError(f'{path}: damaged or cut short ({said}); copy it again.') from error

    ends = np.cumsum(split.shard_lengths).tolist()
    shards = zip(split.filepaths, [0, *ends], ends, strict=False)
    check_all(check, [shard for shard in shards if shard[2] > shard[1]], READERS)


def kept(
    directory: str, length: int, *, config: Mapping[str, Any], pad: tuple[int, int] = (0, 0)
) -> dict[str, Any] | None:
    """The metadata of a complete data set that `write_rows` would leave alone, None without one.

    Raises:
      InputError: there is one, made from another config.
    """
    if not _prepared(directory).exists():
        return None
    metadata, asked = open_rows(directory).metadata, _asked(config, length, pad)
    there, wanted = ({**x['config'], **{k: x[k] for k in asked}} for x in (metadata, asked))
    for key in sorted((there.keys() | wanted.keys()) - {'config'}):
        if there.get(key) != wanted.get(key):
            raise InputError(
                f'{directory} holds rows made with {key} = {_brief(there.get(key))}, asked for '
                f'{_brief(wanted.get(key))}; write to another directory or delete '
                f'{_prepared(directory).parent.parent}.'
            )
    return dict(metadata)


def _asked(config: Mapping[str, Any], length: int, pad: tuple[int, int]) -> dict[str, Any]:
    """What decides the content of a data set, as its metadata has it."""
    return {'config': json.loads(json.dumps(config)), 'length': length, 'pad': list(pad)}


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:60]}...'


def _prepared(directory: str):
    from etils import epath

    return epath.Path(directory) / NAME / VERSION / 'dataset_info.json'


def _stale(directory: str) -> list:
    return list(_prepared(directory).parent.parent.glob('*incomplete*'))


@functools.cache
def _builder_class():
    """The TFDS builder; made on first use because importing TFDS is slow."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Packed rows; the generator is given at construction."""

        VERSION = tfds.core.Version(VERSION)
        name = NAME
        # Nothing is downloaded. Looking for checksums beside this file would need
        # importlib_resources, which TFDS does not install.
        code_path = None

        def __init__(self, *, length, asked, make, **kwargs):
            self._length, self._asked, self._make = length, asked, make
            super().__init__(**kwargs)

        def _info(self):
            # dataset_info_from_configs would look for a package folder of this builder's own.
            shape = {k: (self._length, c) if c else (self._length,) for k, c in FIELDS.items()}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {k: tfds.features.Tensor(shape=s, dtype=np.int32) for k, s in shape.items()}
                ),
                metadata=tfds.core.MetadataDict(self._asked),
                disable_shuffling=True,  # the pipeline shuffles, by index
            )

        def _split_generators(self, download_manager):
            del download_manager
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            # The metadata is written after the rows, so the counts get into the same folder.
            yield from self._make(self.info.metadata)

    return Rows
