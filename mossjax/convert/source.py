"""An opened checkpoint, whichever side it is on: tensors under checkpoint names, and a kind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from pathlib import Path

import numpy as np

from mossjax.convert import codec_tokenizer, peft, rules, tokenizer_rules
from mossjax.convert.fingerprint import VOICE
from mossjax.convert.lm_rules import LM_RULES, module_order
from mossjax.convert.weight_files import Tensors
from mossjax.models.lm.config import LMConfig
from mossjax.models.lm.model import network
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.nn.param import Network

LANGUAGE_MODEL, TOKENIZER, CODEC = 'moss_speech', 'speech_tokenizer', 'codec'
ORBAX, HUGGING_FACE = 'Orbax', 'Hugging Face'
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
DECODER = 'flow'  # the folder of a codec that holds the decoder
# Of no use without the weights they belong to, or weights that are converted or named as left.
WEIGHTS = ('.safetensors', '.index.json', '.bin', '.pt', '.pth', '.ckpt', '.onnx')


@dataclasses.dataclass(frozen=True)
class Together:
    """Tensors of several places as one; no name is in two of them."""

    parts: Sequence

    @functools.cached_property
    def shapes(self) -> dict:
        return {name: shape for part in self.parts for name, shape in part.shapes.items()}

    @functools.cached_property
    def dtypes(self) -> dict:
        return {name: dtype for part in self.parts for name, dtype in part.dtypes.items()}

    def read(self, name: str) -> np.ndarray:
        return self._part(name).read(name)

    def write(self, name: str, tensor: np.ndarray) -> None:
        self._part(name).write(name, tensor)

    def _part(self, name: str):
        return next(part for part in self.parts if name in part.shapes)


@dataclasses.dataclass(frozen=True)
class Renamed:
    """Tensors of another place, some or all, under names of their own.

    Attributes:
      names: name here -> name there.
    """

    tensors: Tensors
    names: Mapping[str, str]

    @functools.cached_property
    def shapes(self) -> dict:
        return {name: self.tensors.shapes[there] for name, there in self.names.items()}

    @functools.cached_property
    def dtypes(self) -> dict:
        return {name: self.tensors.dtypes[there] for name, there in self.names.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors.read(self.names[name])

    def write(self, name: str, tensor: np.ndarray) -> None:
        self.tensors.write(self.names[name], tensor)


def prefixed(tensors: Tensors, front: str) -> Renamed:
    """With something in front of their names."""
    return Renamed(tensors, {front + name: name for name in tensors.shapes})


def without(tensors: Tensors, front: str) -> Renamed:
    """Those whose names do not begin so."""
    return Renamed(tensors, {n: n for n in tensors.shapes if not n.startswith(front)})


@dataclasses.dataclass(frozen=True)
class Networks:
    """Shapes and logical axes of several networks, as a `Network` has them of one."""

    shapes: dict
    axes: dict


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network, or several that belong together, and their names.

    Attributes:
      name: LANGUAGE_MODEL, TOKENIZER or CODEC (a tokenizer with its decoder, or a decoder).
      rules: tensor names <-> parameters.
      network: shapes and logical axes of the parameters.
      order: sort key of tensor names in files.
      configs: {file name: content} of the configuration files, as stored.
      config: what is in them; None for a decoder.
      parts: of a codec, the networks of its decoder (`codec_parts.Part`).
    """

    name: str
    rules: Sequence[rules.Rule]
    network: Network | Networks
    order: Callable[[str], object]
    configs: Mapping[str, dict]
    config: LMConfig | TokenizerConfig | None
    parts: Sequence = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened directory.

    Attributes:
      path: the directory. becomes: HUGGING_FACE or ORBAX, the form it is converted to.
      kind: what it holds.
      tensors: all that there are, by checkpoint name.
      unused: names of those that the network does not need; they are kept beside it.
      weights: files that hold the tensors (for hashes), relative to `path`.
      files: companions to copy (configuration, text tokenizer, README, files or all of a codec's
        folder of the decoder), relative to `beside`, and to the target.
      left: what stays behind, relative to `path`.
      step: of an Orbax checkpoint, None otherwise.
      adapters: of a LoRA run; `tensors` has them worked in.
      choices: how a start was made, {} for a plain conversion.
      other: where the companions lie if not in `path`.
    """

    path: Path
    becomes: str
    kind: Kind
    tensors: Tensors
    unused: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    step: int | None = None
    adapters: peft.Adapters | None = None
    choices: Mapping = dataclasses.field(default_factory=dict)
    other: Path | None = None

    @property
    def beside(self) -> Path:
        """Where the companions lie."""
        return self.other or self.path


def language_model(content: dict, where: str) -> Kind:
    """The kind of a config.json of a MOSS-Speech language model."""
    config = LMConfig.from_hf(content, where=where)
    return Kind(LANGUAGE_MODEL, LM_RULES, network(config), module_order, {CONFIG: content}, config)


def speech_tokenizer(content: dict, preprocessor: dict, prefix: str) -> Kind:
    """The kind of a codec directory; `prefix` is that of its tensor names."""
    config = TokenizerConfig.from_hf(content, preprocessor)
    configs = {CONFIG: content, PREPROCESSOR: preprocessor}
    return Kind(
        TOKENIZER, tokenizer_rules.tokenizer_rules(prefix),
        codec_tokenizer.tokenizer_network(config), str, configs, config,
    )


def listing(path: Path, weights: Iterable[Path]) -> dict:
    """Files of a directory by what becomes of them, see `Source`.

    Args:
      weights: the files that the tensors are read from.
    """
    own = {Path(file).name for file in weights}
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith('.'))
    companions = [
        n for n in names if n not in own and _goes_along(path / n) and n != 'certificate.json'
    ]
    kept = {*own, *companions, 'certificate.json'}
    left = [n for n in names if n not in kept and not n.isdigit()]
    return {
        'weights': tuple(n for n in names if n in own), 'files': tuple(companions),
        'left': tuple(left),
    }


def _goes_along(path: Path) -> bool:
    if path.is_dir():
        return path.name == DECODER
    return path.is_file() and (path.name == VOICE or not path.name.endswith(WEIGHTS))
