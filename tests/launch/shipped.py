"""How the shipped real-size configs are launched, and the files that launching them gives.

    python -m tests.launch.shipped     # writes tests/launch/golden anew; read the diff
"""

import contextlib
import io
import pathlib
import shlex

from launch import jobset, queued

GOLDEN = pathlib.Path(__file__).parent / 'golden'
IMAGE = 'us-east5-docker.pkg.dev/my-project/mossjax/mossjax:1'
ROWS = '--config.data.rows'
# Name of the golden files -> flags of both launchers.
SHIPPED = {
    'stage1_v5p-128': (
        'stage1.py', f'--slice v5p-128 --init_from gs://b/Qwen3-8B {ROWS}.interleaved=gs://b/rows/int'
    ),
    'stage1_v5e-256': (
        'stage1.py:v5e-256', '--slice v5litepod-256 --init_from gs://b/Qwen3-8B'
    ),
    'stage1_2xv6e-256': (
        'stage1.py:2xv6e-256', '--slice v6e-256 --slices 2 --init_from gs://b/Qwen3-8B --spot '
        '--max_restarts 200',
    ),
    'stage2_v6e-256': (
        'stage2.py:v6e-256', '--slice v6e-256 --init_from gs://b/stage1 '
        f'{ROWS}.text=gs://b/rows/text',
    ),
    'sft_v5p-16': (
        'sft.py:v5p-16', '--slice v5p-16 --init_from gs://b/stage2 --name my-sft --grace 120 '
        f"""'{ROWS}.dialogues=gs://b/rows/it'"'"'s $5, "so"'""",
    ),
    'lora_v6e-8': ('lora.py:v6e-8', '--slice v6e-8 --init_from gs://b/MOSS-Speech'),
}  # fmt: skip
PLACE = {
    'stage1_2xv6e-256': '--reserved --network tpus --subnetwork tpus-east --valid_until 12h',
    'stage1_v5p-128': '--service_account mossjax@my-project.iam.gserviceaccount.com',
}


def argv(name: str) -> list[str]:
    """The words after `python -m launch.jobset`."""
    config, flags = SHIPPED[name]
    return [
        '--image', IMAGE, '--config', f'experiments/moss_9b/{config}',
        '--workdir', f'gs://b/{config.split(".")[0]}', *shlex.split(flags),
    ]  # fmt: skip


def queued_argv(name: str) -> list[str]:
    """The words after `python -m launch.queued`."""
    where = ['--project', 'my-project', '--zone', 'us-east5-a', *shlex.split(PLACE.get(name, ''))]
    return [*where, *argv(name)]


def printed(run, words: list[str]) -> str:
    """What a launcher prints; its flags are as at the start again afterwards.

    Raises:
      RuntimeError: it did not end with 0.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(words)
    reset()
    if code:
        raise RuntimeError(f'{words}: exit code {code}')
    return out.getvalue()


def reset() -> None:
    """A process runs one command; several in one process see the flags of those before."""
    for values in (jobset.FLAGS, queued.FLAGS):
        for name in values:
            values[name].unparse()


def golden(name: str) -> dict[pathlib.Path, str]:
    """The golden files of one launch, as the code writes them now."""
    return {
        GOLDEN / f'{name}.yaml': printed(jobset.run, argv(name)),
        GOLDEN / f'{name}.sh': printed(queued.run, [*queued_argv(name), '--dry_run']),
    }


if __name__ == '__main__':
    GOLDEN.mkdir(exist_ok=True)
    for each in SHIPPED:
        for path, content in golden(each).items():
            path.write_text(content)
            print(path)
