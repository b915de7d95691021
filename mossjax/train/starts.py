"""Where a run's first parameters come from: `init_from` of its config."""

from collections.abc import Callable, Container, Mapping
import functools
from pathlib import Path
from typing import NamedTuple

from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
import jax
from ml_collections import ConfigDict
import numpy as np

from mossjax import buckets, checkpoint
from mossjax.convert import codec_directory, kinds
from mossjax.convert.lm_rules import LM_RULES
from mossjax.convert.placement import on_devices, place
from mossjax.convert.qwen3 import open_start
from mossjax.errors import InputError
from mossjax.files import read_json
from mossjax.models.lm.config import LMConfig
from mossjax.models.tokenizer import asr
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.tokenizer.quantizer import Codebook
from mossjax.nn.lora import AdaptedNetwork
from mossjax.nn.param import Network, describe
from mossjax.parallel.sharding import check_shapes
from mossjax.paths import in_bucket
from mossjax.steps import CHECKPOINTS, as_path
from mossjax.train.task import Task

Start = Callable[[dict], dict]  # the parameters' abstract tree -> parameters


class Run(NamedTuple):
    """What `train.loop.fit` needs beside the workdir; no start means fresh parameters.

    Attributes:
      config: complete, with the defaults of all keys.
    """

    task: Task
    config: ConfigDict
    init_from: Start | None


def from_workdir(workdir: str) -> Start | None:
    """Parameters of the last checkpoint of another run, as it is now; fresh ones for ''."""
    if not workdir:
        return None
    saved = _checkpoints(workdir)
    if saved is None:
        raise InputError(
            f'init_from: {workdir} is no workdir of a run (it has no checkpoints in it); give the '
            '--workdir of that run'
        )
    return _parameters(saved, checkpoint.find_step(saved))


def _checkpoints(directory: str):
    """The checkpoints of a run's workdir; None where there are none."""
    saved = as_path(directory) / CHECKPOINTS
    return saved if saved.is_dir() else None


def _parameters(saved, step: int) -> Start:
    return lambda abstract: checkpoint.restore_params(saved, abstract, step)[0]


def tokenizer(
    directory: str, config: TokenizerConfig, objectives: Mapping
) -> tuple[Start | None, Codebook | None]:
    """(parameters, codebook) of another run's workdir, or of a codec in either form.

    A codec without the upper half and the text decoder gives the encoder; the rest is fresh.

    Args:
      objectives: of the run, see `TokenizerTask`; heads that the codec does not have are fresh.

    Raises:
      InputError: the directory is neither.
    """
    if not directory:
        return None, None
    if saved := _checkpoints(directory):
        step = checkpoint.find_step(saved, items=('params', 'extra'))
        return _parameters(saved, step), _codebook(saved, step)
    path = _here(directory)
    if kinds.find_root(path) is None and not (path / 'config.json').is_file():
        raise InputError(
            f'init_from: {directory} is neither the workdir of a run nor a codec directory'
        )
    loaded, book = codec_directory.open_trained(path, config)

    def start(_: dict) -> dict:
        heads = {name: objective.make for name, objective in objectives.items()}
        network = describe(lambda rngs: asr.Recogniser(config, heads, rngs=rngs))
        fresh = network.init(jax.random.key(0))
        known = {name: x for name, x in loaded.get('heads', {}).items() if name in heads}
        return {**fresh, **loaded, 'heads': {**fresh['heads'], **known}}

    return start, book


def _codebook(checkpoints: Path, step: int) -> Codebook:
    """Codes and moving averages: they are no parameters, a run keeps them beside."""
    with checkpoint.array_errors(checkpoints):
        return Codebook(*(
            checkpoint.open_array(checkpoints, f'codebook/{name}', step, 'extra').read().result()
            for name in Codebook._fields
        ))


def decoder(directory: str) -> Start | None:
    """From the workdir of another run, or from a codec directory with flow/ in it.

    Raises:
      InputError: the directory is neither.
    """
    if not directory or _checkpoints(directory):
        return from_workdir(directory)
    _, params = codec_directory.open_flow(str(_here(directory)))
    return lambda _: params


def vocoder(directory: str, network) -> Start | None:
    """From the workdir of another run, or from a codec directory with a vocoder.

    Neither a codec nor a run without discriminators has any: these are fresh.

    Args:
      network: of the run, `train.vocoder.Players`.

    Raises:
      InputError: the directory is neither, or a run of another network.
    """
    if not directory:
        return None
    if saved := _checkpoints(directory):
        step = checkpoint.find_step(saved)
        has = checkpoint.read_shapes(saved, step)
        if 'generator' not in has:
            raise InputError(
                f'{directory} is a run of no vocoder, it has {", ".join(sorted(has))}; '
                'config.init_from names a vocoder run or a codec with flow/hift'
            )
        return lambda abstract: _fresh(network, abstract, has) | _parameters(saved, step)(
            {name: tree for name, tree in abstract.items() if name in has}
        )
    _, params = codec_directory.open_hift(str(_here(directory)))
    generator = network.networks['generator'].split(params)
    return lambda abstract: _fresh(network, abstract, {'generator'}) | {'generator': generator}


def speaker(directory: str, network: Network) -> Start | None:
    """From the workdir of another run of the same speakers, or from a codec's encoder.

    Norms begin with the averages that the encoder was used with; the directions of a codec's
    speakers are not known, so these are fresh.

    Raises:
      InputError: the directory is neither.
    """
    if not directory:
        return None
    if saved := _checkpoints(directory):
        step = checkpoint.find_step(saved, items=('params', 'extra'))
        return lambda abstract: _averaged(saved, step, abstract)
    _, params = codec_directory.open_campp(str(_here(directory)))
    return lambda _: network.init(jax.random.key(0)) | {'encoder': params}


def _averaged(saved, step: int, abstract: dict) -> dict:
    """Parameters of a speaker run, the moving averages beside them put in."""
    encoder = flatten(abstract['encoder'])
    averages = flatten(checkpoint.read_shapes(saved, step, 'extra'))
    wanted = unflatten({path: encoder[path] for path in averages})
    found, _ = checkpoint.restore(saved, {'params': abstract, 'extra': wanted}, step)
    encoder = flatten(found['params']['encoder']) | flatten(found['extra'])
    return found['params'] | {'encoder': unflatten(encoder)}


def _fresh(network, abstract: dict, having: Container) -> dict:
    """Initial parameters of the branches that `having` lacks."""
    missing = [name for name in abstract if name not in having]
    fresh = network.init(jax.random.key(0)) if missing else {}
    return {name: fresh[name] for name in missing}


def language_model(directory: str, config: LMConfig, network: Network, seed: int) -> Start | None:
    """From the workdir of another run, a MOSS-Speech directory (either form) or a Qwen3 directory.

    A Qwen3 text model gives trunk and text branch; the speech branch starts as a copy.

    Raises:
      InputError: the directory is none of these (when asked, not when the run starts).
    """
    if not directory:
        return None
    path = as_path(directory)
    if _checkpoints(directory):
        return from_workdir(directory)
    if in_bucket(directory):  # not copied before everything else is known to be good
        return lambda abstract: language_model(
            str(_here(directory)), config, network, seed
        )(abstract)
    kind = read_json(path / 'config.json').get('model_type')
    if kind == 'qwen3':
        start = open_start(path, config, jax.random.fold_in(jax.random.key(seed), 2**31))
        return lambda abstract: _placed(start, network, abstract)
    if kind == 'moss_speech':
        return functools.partial(_moss_speech, path, network)
    raise InputError(
        f'{path}/config.json is of model_type {kind!r}; init_from takes the workdir of a run, a '
        'MOSS-Speech directory or a Qwen3 directory'
    )


def _here(directory: str) -> Path:
    """A folder of weights on this machine: those of a bucket are copied, by each process."""
    if in_bucket(directory):
        return buckets.fetched(directory, 'config.init_from')
    return Path(as_path(directory))


def _moss_speech(path: Path, network: Network, abstract: dict) -> dict:
    source = kinds.open_source(path)
    check_shapes(source.kind.network.shapes, network.shapes, f'the weights in {path}')
    return _placed(source.tensors, network, abstract)


def _placed(tensors: kinds.Tensors, network: Network, abstract: dict) -> dict:
    """Every process reads what its own devices hold."""
    return place(LM_RULES, tensors, network.shapes, on_devices(abstract, np.float32))


def adapters(directory: str, config: LMConfig, network: AdaptedNetwork, seed: int) -> Start:
    """Weights as `language_model` finds them, and fresh adapters on them.

    Raises:
      InputError: no directory is given: there would be nothing to adapt.
    """
    if not directory:
        raise InputError(
            'config.model.lora adapts weights that are there; name them in config.init_from'
        )
    base = language_model(directory, config, network.inner, seed)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 + 1)
    return lambda abstract: {
        'base': base(abstract['base']), 'lora': network.init_adapters(key)
    }  # fmt: skip
