#!/usr/bin/env bash
# Ask for the slice.
gcloud compute tpus queued-resources create stage2-v6e-256 --project my-project --zone us-east5-a --accelerator-type v6e-256 --runtime-version v2-alpha-tpuv6e --node-id stage2-v6e-256

# Until it says ACTIVE.
gcloud compute tpus queued-resources describe stage2-v6e-256 --project my-project --zone us-east5-a --format 'value(state.state)'

# Start the run on every host.
gcloud compute tpus queued-resources ssh stage2-v6e-256 --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'set -e; gcloud auth print-access-token | sudo docker login --username oauth2accesstoken --password-stdin https://us-east5-docker.pkg.dev > /dev/null; sudo docker pull --quiet us-east5-docker.pkg.dev/my-project/mossjax/mossjax:1 > /dev/null; { sudo docker rm --force mossjax > /dev/null 2>&1 || true; }; sudo docker run --detach --name mossjax --privileged --network host --ulimit memlock=-1 --env JAX_COORDINATOR_PORT=8476 us-east5-docker.pkg.dev/my-project/mossjax/mossjax:1 mossjax train --pod --config experiments/moss_9b/stage2.py:v6e-256 --workdir gs://b/stage2 --config.init_from=gs://b/stage1 --config.data.rows.text=gs://b/rows/text > /dev/null'

# Until a host has ended. All with 0: done.
gcloud compute tpus queued-resources ssh stage2-v6e-256 --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'printf '"'"'%s %s %s %s\n'"'"' mossjax-host "$(hostname)" "$(sudo docker inspect --format '"'"'{{.State.Status}} {{.State.ExitCode}}'"'"' mossjax 2> /dev/null || echo missing 127)" "$(sudo docker logs --tail 1 mossjax 2>&1 | tail -n 1 | tr -d '"'"'\r'"'"' | cut -c 1-300)"'

# After any other end: the rest is told to save. After 75 or a lost host the run is
# started again, 30 times, on a new slice if this one is gone.
gcloud compute tpus queued-resources ssh stage2-v6e-256 --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'sudo docker stop -t 300 mossjax > /dev/null 2>&1 || true'

# In the end, however it comes.
gcloud compute tpus queued-resources delete stage2-v6e-256 --project my-project --zone us-east5-a --force --quiet
