"""writes a job for Kubernetes: a JobSet that trains on TPU slices of GKE.

  python -m launch.jobset --slice SLICE --image IMAGE --config FILE.py --workdir gs://DIR
      [--init_from gs://DIR] [--config.KEY=VALUE ...] [--out FILE.yaml]

Prints the YAML, or writes it to --out; nothing is started. `kubectl apply -f FILE.yaml` starts it,
`kubectl delete -f FILE.yaml` tells every host to save and ends it; applied again, the run goes on.
The cluster needs a node pool of the slice's topology and the JobSet controller, 0.6 or newer:
launch/README.md sets both up.

A host that ends with 75 (saved), by a signal, or with its machine restarts the job on all hosts,
--max_restarts times; one that ends with 1, 2 or 3 ends the job at once (launch/restart.py).

Examples:
  python -m launch.jobset --slice v5p-128 --image $IMAGE \\
      --config experiments/moss_9b/stage1.py:v5p-128 --workdir gs://$BUCKET/stage1 \\
      --init_from gs://$BUCKET/Qwen3-8B \\
      --config.data.rows.interleaved=gs://$BUCKET/rows/interleaved | kubectl apply -f -
  python -m launch.jobset --slice v6e-256 --slices 2 --image $IMAGE \\
      --config experiments/moss_9b/stage1.py:2xv6e-256 --workdir gs://$BUCKET/stage1 \\
      --init_from gs://$BUCKET/Qwen3-8B
"""

import shlex
import sys

from absl import flags
import yaml

from launch import command, job
from launch.job import Job
from launch.restart import FINAL, UNCAUGHT
from mossjax.cli.common import WRITE_FILE, path_flag
from mossjax.exits import AGAIN
from mossjax.files import replacing

FLAGS = flags.FlagValues()
job.define(FLAGS)
path_flag('out', None, 'File to write; standard output if not given.', WRITE_FILE, FLAGS)

CONTAINER, REPLICATED = 'mossjax', 'slice'
# How long a host may be out of reach before the job is restarted without it.
UNREACHABLE_S = 60


def main(arguments: list[str], overrides: list[str], argv: list[str]) -> int:
    content = text(job.from_flags(FLAGS, arguments, overrides), argv)
    if FLAGS.out:
        with replacing(FLAGS.out) as temporary:
            temporary.write_text(content)
    else:
        print(content, end='')
    return 0


def text(job_: Job, argv: list[str]) -> str:
    """The file: the command that made it, and the JobSet."""
    made = shlex.join(['python', '-m', 'launch.jobset', *argv]).replace('\n', ' ')
    return f'# {made}\n' + yaml.safe_dump(render(job_), sort_keys=False, width=100)


def render(job_: Job) -> dict:
    """The JobSet as nested dicts: one Job a slice, one pod a host."""
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': job_.name,
            # All pods of a Job on one node pool, which is one slice, and no other Job there.
            'annotations': {
                'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
            },
        },
        'spec': {
            # The headless service under whose names the hosts find each other; GKE writes the
            # names into TPU_WORKER_HOSTNAMES (and MEGASCALE_*), from which jax takes the first
            # host as coordinator.
            'network': {
                'enableDNSHostnames': True,
                'publishNotReadyAddresses': True,
                'subdomain': job_.name,
            },
            'failurePolicy': _job_failures(job_),
            'replicatedJobs': [
                {
                    'name': REPLICATED,
                    'replicas': job_.slices,
                    'template': {'spec': _job(job_)},
                }
            ],
        },
    }


def _job_failures(job_: Job) -> dict:
    """A Job that its pods' policy has failed ends all; any other failed Job restarts all.

    Old pods are gone before new ones start, so no slice meets another's past.
    """
    return {
        'maxRestarts': job_.max_restarts,
        'restartStrategy': 'BlockingRecreate',
        'rules': [
            {
                'name': 'wentWrong',
                'action': 'FailJobSet',
                'onJobFailureReasons': ['PodFailurePolicy'],
            },
            {
                'name': 'savedOrLost',
                'action': 'RestartJobSet',
                'onJobFailureReasons': ['BackoffLimitExceeded'],
            },
        ],
    }


def _job(job_: Job) -> dict:
    return {
        'completionMode': 'Indexed',
        'completions': job_.slice.hosts,
        'parallelism': job_.slice.hosts,
        # The first failed pod fails the Job: with no hosts to spare it could not go on.
        'backoffLimit': 0,
        'podFailurePolicy': {
            'rules': [
                {'action': 'FailJob', 'onExitCodes': _exits(*sorted((*FINAL, UNCAUGHT)))},
                {'action': 'Count', 'onExitCodes': _exits(AGAIN)},
                {
                    'action': 'Count',
                    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
                },
            ]
        },
        'template': {'spec': _pod(job_)},
    }


def _exits(*codes: int) -> dict:
    return {'containerName': CONTAINER, 'operator': 'In', 'values': list(codes)}


def _pod(job_: Job) -> dict:
    selector = {
        'cloud.google.com/gke-tpu-accelerator': job_.slice.accelerator,
        'cloud.google.com/gke-tpu-topology': job_.slice.shape,
    }
    tolerations = [
        {
            'key': f'node.kubernetes.io/{state}',
            'operator': 'Exists',
            'effect': 'NoExecute',
            'tolerationSeconds': UNREACHABLE_S,
        }
        for state in ('not-ready', 'unreachable')
    ]
    if job_.spot:
        selector['cloud.google.com/gke-spot'] = 'true'
        tolerations.append({
            'key': 'cloud.google.com/gke-spot',
            'operator': 'Equal',
            'value': 'true',
            'effect': 'NoSchedule',
        })
    chips = {'google.com/tpu': job_.slice.chips_per_host}
    return {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': job_.grace_s,
        'nodeSelector': selector,
        'tolerations': tolerations,
        # The network of the machine itself: between slices all gradients cross it.
        'hostNetwork': True,
        'dnsPolicy': 'ClusterFirstWithHostNet',
        'containers': [
            {
                'name': CONTAINER,
                'image': job_.image,
                # args, not command: the image's entry point passes signals on.
                'args': [word.replace('$', '$$') for word in job_.train],  # $$ is a dollar there
                'env': [{'name': k, 'value': v} for k, v in job_.environment.items()],
                'securityContext': {'privileged': True},  # locked memory for the TPU driver
                'resources': {'requests': chips, 'limits': dict(chips)},
            }
        ],
    }


def run(argv: list[str]) -> int:
    return command.run(
        'launch.jobset', __doc__, FLAGS, lambda args, overrides: main(args, overrides, argv), argv
    )


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
