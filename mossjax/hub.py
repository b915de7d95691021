"""Names of Hugging Face repositories, where the directory of a model or a codec is taken.

OWNER/NAME, or OWNER/NAME@REVISION, stands for the files of that repository. They are downloaded
once, into the cache that Hugging Face's own tools use (HF_HOME), and found there without a network.
"""

import os
from pathlib import Path
import re

from mossjax import paths
from mossjax.errors import InputError

_WORD = r'[A-Za-z0-9][\w.-]{0,95}'
_ID = re.compile(rf'({_WORD}/{_WORD})(?:@([\w./-]+))?')
_LEFT_OUT = ['*.md', '.gitattributes', '*.png', '*.jpg', '*.gif', '*.mp4', '*.pdf']


def names_repository(path: str | os.PathLike) -> bool:
    """Whether it has the form of a name and nothing here, nor its folder, has that path."""
    text = os.fspath(path)
    return bool(_ID.fullmatch(text)) and not (
        os.path.lexists(text) or os.path.lexists(os.path.dirname(text))
    )


def folder(path: str | os.PathLike, name: str) -> Path:
    """An existing folder, or the one that holds a repository's files.

    Args:
      name: what the path is for, e.g. '--model', as messages call it.

    Raises:
      InputError: there is no such folder, and no such repository either, or none that can be
        reached from here.
    """
    if not names_repository(path):
        return paths.folder_to_read(path, name)
    repository, revision = _ID.fullmatch(os.fspath(path)).groups()
    shown = f'{name} {repository}' + (f'@{revision}' if revision else '')
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            f'{shown}: no such folder; to take it from Hugging Face: pip install '
            "'mossjax[hub]'"
        ) from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, ignore_patterns=_LEFT_OUT
            )
        )
    except errors.GatedRepoError:
        raise InputError(
            f'{shown}: its owner lets in those who asked; ask on its page, then: hf auth login'
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f'{shown}: no such folder here, and no such repository on Hugging Face (or a private '
            'one: hf auth login); check the name'
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f'{shown}: the repository has no such revision; check it') from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise InputError(
            f'{shown}: no such folder here, and Hugging Face cannot be reached from here, nor has '
            'its cache the files; check the path, or download them where there is a network'
        ) from None
    except errors.HfHubHTTPError as error:
        raise InputError(f'{shown}: Hugging Face refused ({error}); try again later') from error
