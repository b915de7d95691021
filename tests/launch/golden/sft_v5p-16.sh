#!/usr/bin/env bash
# Ask for the slice.
gcloud compute tpus queued-resources create my-sft --project my-project --zone us-east5-a --accelerator-type v5p-16 --runtime-version v2-alpha-tpuv5 --node-id my-sft

# Until it says ACTIVE.
gcloud compute tpus queued-resources describe my-sft --project my-project --zone us-east5-a --format 'value(state.state)'

# Start the run on every host.
gcloud compute tpus queued-resources ssh my-sft --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'set -e; gcloud auth print-access-token | sudo docker login --username oauth2accesstoken --password-stdin https://us-east5-docker.pkg.dev > /dev/null; sudo docker pull --quiet us-east5-docker.pkg.dev/my-project/mossjax/mossjax:1 > /dev/null; { sudo docker rm --force mossjax > /dev/null 2>&1 || true; }; sudo docker run --detach --name mossjax --privileged --network host --ulimit memlock=-1 --env JAX_COORDINATOR_PORT=8476 us-east5-docker.pkg.dev/my-project/mossjax/mossjax:1 mossjax train --pod --config experiments/moss_9b/sft.py:v5p-16 --workdir gs://b/sft --config.init_from=gs://b/stage2 '"'"'--config.data.rows.dialogues=gs://b/rows/it'"'"'"'"'"'"'"'"'s $5, "so"'"'"' > /dev/null'

# Until a host has ended. All with 0: done.
gcloud compute tpus queued-resources ssh my-sft --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'printf '"'"'%s %s %s %s\n'"'"' mossjax-host "$(hostname)" "$(sudo docker inspect --format '"'"'{{.State.Status}} {{.State.ExitCode}}'"'"' mossjax 2> /dev/null || echo missing 127)" "$(sudo docker logs --tail 1 mossjax 2>&1 | tail -n 1 | tr -d '"'"'\r'"'"' | cut -c 1-300)"'

# After any other end: the rest is told to save. After 75 or a lost host the run is
# started again, 30 times, on a new slice if this one is gone.
gcloud compute tpus queued-resources ssh my-sft --project my-project --zone us-east5-a --node all --worker all --batch-size all --quiet --command 'sudo docker stop -t 120 mossjax > /dev/null 2>&1 || true'

# In the end, however it comes.
gcloud compute tpus queued-resources delete my-sft --project my-project --zone us-east5-a --force --quiet
