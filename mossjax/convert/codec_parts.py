"""The networks of a codec's decoder beside each other: what is in `flow/`, as parts of one whole.

    flow/flow, flow/flow-chunk-5, ...   flow decoders (offline, streaming)
    flow/hift                           the vocoder
    flow/campplus                       the speaker encoder

A part's name is that of its file without the suffix. It stands before the names of its tensors,
and before the paths of its parameters where several networks are in one checkpoint.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
import re

from absl import logging

from mossjax.convert import codec_flow, codec_speaker, codec_vocoder, rules
from mossjax.convert.campp_rules import campp_rules
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.hift_rules import hift_rules
from mossjax.convert.source import CODEC, DECODER, Kind, Networks
from mossjax.convert.weight_files import Tensors
from mossjax.models.flow.config import FlowConfig
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from mossjax.nn.param import Network

TORCH, SAFETENSORS, ONNX = '.pt', '.safetensors', '.onnx'
GRAPH = f'{DECODER}/{codec_speaker.STEM}{ONNX}'  # what the speaker encoder's numbers are put into
FLOW = re.compile(rf'{codec_flow.STEM}(-chunk-[1-9]\d*)?')


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a codec's decoder.

    Attributes:
      name: as above. suffix: of its file in a codec directory.
      config: its configuration, of the class that goes with the name.
      spelled: of a vocoder, how each convolution is spelled, see `hift_rules`.
      trained: it comes of a training run: its settings are in no file yet.
    """

    name: str
    suffix: str
    config: FlowConfig | HiftConfig | CamppConfig
    spelled: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    trained: bool = False

    @property
    def file(self) -> str:
        return self.name + self.suffix

    @property
    def front(self) -> str:
        """What stands before the names of its tensors."""
        return f'{self.name}/'

    @functools.cached_property
    def rules(self) -> list[rules.Rule]:
        """Its own, without what stands before names and paths."""
        if isinstance(self.config, FlowConfig):
            return flow_rules()
        if isinstance(self.config, HiftConfig):
            return hift_rules(self.config, self.spelled)
        return campp_rules(self.config)

    @functools.cached_property
    def network(self) -> Network:
        if isinstance(self.config, FlowConfig):
            return codec_flow.flow_network(self.config)
        if isinstance(self.config, HiftConfig):
            return codec_vocoder.spelled_network(self.config, self.spelled)
        return codec_speaker.campp_network(self.config)


def open_parts(codec_dir: Path) -> list[tuple[Part, Tensors]]:
    """The networks in `flow/` of a codec directory with their tensors, by name.

    Raises:
      InputError: one of them is damaged or does not fit its configuration.
    """
    return [_open(codec_dir, stem) for stem in _stems(codec_dir / DECODER)]


def _stems(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    found = {p.stem for p in folder.iterdir() if p.suffix in (TORCH, SAFETENSORS)}
    stems = sorted(s for s in found if FLOW.fullmatch(s) or s == codec_vocoder.STEM)
    if codec_speaker.can_read(folder.parent):
        return [*stems, codec_speaker.STEM]
    if codec_speaker.has_speaker(folder.parent):
        logging.warning(
            '%s/%s.onnx goes along as it is, unchecked: reading it needs the package onnx (pip '
            "install 'mossjax[onnx]')", folder, codec_speaker.STEM,
        )  # fmt: skip
    return stems


def _open(codec_dir: Path, stem: str) -> tuple[Part, Tensors]:
    spelled = {}
    if stem == codec_vocoder.STEM:
        path, config, spelled, tensors = codec_vocoder.open_files(codec_dir)
    elif stem == codec_speaker.STEM:
        path, config, tensors = codec_speaker.open_files(codec_dir)
    else:
        path, config, tensors = codec_flow.open_files(codec_dir, stem)
    return Part(f'{DECODER}/{stem}', path.suffix, config, spelled), tensors


def codec(tokenizer: Kind | None, parts: Sequence[Part]) -> Kind:
    """The kind of a codec with these networks in its decoder; without a tokenizer perhaps.

    Parameters of a part that comes of a run stand for themselves, it is the only one.
    """
    table, shapes, axes = [], {}, {}
    if tokenizer is not None:
        table, network = list(tokenizer.rules), tokenizer.network
        shapes, axes = rules.flatten(network.shapes), rules.flatten(network.axes)
    for part in parts:
        inside = '' if part.trained else part.front
        table += [
            dataclasses.replace(rule, name=part.front + rule.name, path=inside + rule.path)
            for rule in part.rules
        ]
        for own, whole in ((part.network.shapes, shapes), (part.network.axes, axes)):
            whole.update({inside + path: x for path, x in rules.flatten(own).items()})
    networks = Networks(rules.unflatten(shapes), rules.unflatten(axes))
    return Kind(
        CODEC, table, networks, str, tokenizer.configs if tokenizer else {},
        tokenizer.config if tokenizer else None, tuple(parts),
    )
