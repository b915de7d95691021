"""The folder `flow/` of a codec: which files are in it, and its settings beside trained weights."""

from collections.abc import Sequence
import os
from pathlib import Path

from mossjax.convert import flow_config, hift_config, rules
from mossjax.convert.codec_parts import ONNX, SAFETENSORS, TORCH, Part
from mossjax.convert.decoder_yaml import plain_root
from mossjax.convert.source import DECODER
from mossjax.errors import InputError
from mossjax.models.flow.config import FlowConfig
from mossjax.models.vocoder.hift.config import HiftConfig

SETTINGS = f'{DECODER}/config.yaml'


def files(directory: Path, without: Sequence[str] = ()) -> list[str]:
    """Every file in `flow/` by its path in the codec directory, hidden ones left out.

    Args:
      without: paths to leave out.
    """
    found = []
    for root, folders, names in os.walk(directory / DECODER):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [Path(root, n).relative_to(directory).as_posix() for n in sorted(names)
                  if not n.startswith('.')]  # fmt: skip
    return [name for name in found if name not in set(without)]


def forms(part: Part) -> list[str]:
    """The files that a part may be in."""
    return [part.name + suffix for suffix in (TORCH, SAFETENSORS, ONNX)]


def check_settings(directory: Path, part: Part) -> None:
    """Whether a trained part can stand in a codec directory with the settings that are there.

    Raises:
      InputError: they are those of another network, or of a decoder of another mel.
    """
    path = directory / SETTINGS
    ours = {FlowConfig: flow_config, HiftConfig: hift_config}.get(type(part.config))
    if ours is None or not os.path.lexists(path):
        return
    if ours is hift_config and flow_config.described(path):
        mels = flow_config.read_config(path).mels
        if mels != part.config.mels:
            raise InputError(
                f'{path}: describes a flow that makes {mels} mel bins, the vocoder of the run '
                f'reads {part.config.mels}; name a codec of the mel that it was trained on'
            )
    if not ours.described(path):
        plain_root(path)  # an entry will be written into it
        return
    differing = ours.differing
    if ours is flow_config:
        found = flow_config.read_config(path)
    else:
        shapes = rules.expected_tensors(part.rules, part.network.shapes)
        found = hift_config.read(path, shapes)
    if names := differing(found, part.config):
        said = ', '.join(
            f'{n} is {getattr(found, n)}, {getattr(part.config, n)} in the run' for n in names
        )
        raise InputError(
            f'{path}: describes another {part.name.removeprefix("flow/")} than was trained '
            f'({said}); name the codec that the run began with, or one without {DECODER}/'
        )


def write_settings(directory: Path, part: Part) -> None:
    """Puts the settings of a trained part where the codec has none; `check_settings` first."""
    path = directory / SETTINGS
    if isinstance(part.config, FlowConfig) and not flow_config.described(path):
        flow_config.write_config(path, part.config)
    if isinstance(part.config, HiftConfig) and not hift_config.described(path):
        hift_config.write(path, part.config)
