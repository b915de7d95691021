"""A training run on TPU slices: what is run, where, and the flags that say so.

`jobset` and `queued` describe the same job to two services.
"""

import dataclasses
import pathlib
import re

from absl import flags

from launch.restart import MAX_RESTARTS
from launch.slices import Slice, find
from mossjax import paths
from mossjax.errors import InputError
from mossjax.plan.doctor import COORDINATOR_PORT

ROOT = pathlib.Path(__file__).parent.parent
# A step that waits for a slice that is gone would wait for ever; ended, it is restarted.
MEGASCALE = '--megascale_abort_on_hangs=true --megascale_abort_on_errors=true'
LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: of everything made for it.
      slice: one TPU slice. slices: how many of them train together.
      image: the container image, built of launch/Dockerfile.
      train: the command line of `mossjax train`, the same on every host.
      spot: on machines that may be taken away at any time.
      max_restarts: the job has failed after as many.
      grace_s: seconds a host has from SIGTERM on, to save.
    """

    name: str
    slice: Slice
    slices: int
    image: str
    train: tuple[str, ...]
    spot: bool
    max_restarts: int
    grace_s: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables of each host; the platforms add which host it is."""
        known = {'JAX_COORDINATOR_PORT': str(COORDINATOR_PORT)}
        return known | ({'LIBTPU_INIT_ARGS': MEGASCALE} if self.slices > 1 else {})


def define(values: flags.FlagValues) -> None:
    """Defines the flags that describe a job."""
    required = {'required': True, 'flag_values': values}
    flags.DEFINE_string('slice', None, 'TPU slice: v5p-128, v5e-256, v6e-256, ...', **required)
    flags.DEFINE_integer(
        'slices', 1, 'Slices that train together.', lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        'image', None, 'Container image built of launch/Dockerfile, '
        'e.g. us-central1-docker.pkg.dev/PROJECT/mossjax/mossjax:1.', **required,
    )
    flags.DEFINE_string('config', None, 'Config file, relative to the repository.', **required)
    flags.DEFINE_string('workdir', None, 'Directory of the run, gs://BUCKET/FOLDER.', **required)
    flags.DEFINE_string(
        'init_from', None, 'What the run starts from, gs://BUCKET/FOLDER: config.init_from.',
        flag_values=values,
    )
    flags.DEFINE_list(
        'changed', [], 'Keys of the config that were changed on purpose since the last checkpoint.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'name', None, 'Name of the job; made of config and slice if not given.', flag_values=values
    )
    flags.DEFINE_bool(
        'spot', False, 'Use spot capacity: cheaper, taken away at any time.', flag_values=values
    )
    flags.DEFINE_integer(
        'max_restarts', MAX_RESTARTS, 'Restarts after which the job has failed.', lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        'grace', 300, 'Seconds a host that is told to stop has to save.', lower_bound=1,
        flag_values=values,
    )


def from_flags(values: flags.FlagValues, arguments: list[str], overrides: list[str]) -> Job:
    """The job that the flags describe.

    Args:
      overrides: '--config.KEY=VALUE' for the run.

    Raises:
      InputError: a flag is at fault.
    """
    if arguments:
        raise InputError(f'unexpected argument {arguments[0]!r}; --help lists the flags')
    where = find(values.slice)
    if values.slices > 1 and where.hosts == 1:
        raise InputError(
            f'--slices {values.slices}: slices of one host cannot be joined; take a larger --slice'
        )
    config = _config(values.config)
    train = ['mossjax', 'train', '--pod', '--config', config]
    train += ['--workdir', _in_bucket(values.workdir, '--workdir')]
    if values.init_from:
        train += [f'--config.init_from={_in_bucket(values.init_from, "--init_from")}']
    if values.changed:
        train += [f'--changed={",".join(values.changed)}']
    if re.search(r'\s', values.image) or not values.image:
        raise InputError(f'--image {values.image!r} is no image; write HOST/PROJECT/NAME:TAG')
    return Job(
        _name(values.name or _default_name(config, where, values.slices)), where, values.slices,
        values.image, (*train, *overrides), values.spot, values.max_restarts, values.grace,
    )


def _config(given: str) -> str:
    """The path as it is found in the image, which holds what the repository holds."""
    file, colon, argument = given.partition(':')
    path = pathlib.Path(file)
    inside = path.resolve() if path.is_file() else (ROOT / path).resolve()
    if not inside.is_file():
        raise InputError(f'--config {file} does not exist; check the path')
    if not inside.is_relative_to(ROOT / 'experiments'):
        raise InputError(
            f'--config {file} is not in the image, which holds experiments/ of this repository: '
            'put the file there and build the image again'
        )
    return inside.relative_to(ROOT).as_posix() + colon + argument


def _in_bucket(path: str, name: str) -> str:
    if not paths.in_bucket(path):
        raise InputError(
            f'{name} {path}: a slice keeps no files of its own; name a place in a bucket, gs://...'
        )
    return paths.expand(path, name)


def _default_name(config: str, where: Slice, slices: int) -> str:
    file, _, argument = config.partition(':')
    place = f'{slices}x' * (slices > 1) + where.name
    words = [pathlib.Path(file).stem, argument * (argument != place), place]
    return re.sub(r'[^a-z0-9]+', '-', '-'.join(filter(None, words)).lower()).strip('-')


def _name(name: str) -> str:
    if len(name) > LONGEST_NAME or not re.fullmatch(r'[a-z]([a-z0-9-]*[a-z0-9])?', name):
        raise InputError(
            f'--name {name}: a name has at most {LONGEST_NAME} small letters, digits and hyphens, '
            'a letter first and no hyphen last'
        )
    return name
