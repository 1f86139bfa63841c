#!/bin/bash
# A job of labkit.parallel.jobs on several nodes of a SLURM cluster:
#     sbatch --nodes 2 slurm.sh hello
# Only the names here are the cluster's own: partition, account, environment.
#SBATCH --job-name=labkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=00:20:00
##SBATCH --partition=NAME
##SBATCH --account=NAME

set -euo pipefail
# source NAME/bin/activate

job="${1:-hello}"
shift || true
nodes="${SLURM_JOB_NUM_NODES:-1}"
ranks="${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
# The first node hosts the rendezvous. The port follows from the job's number, so that two jobs on a node do not meet.
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head="${hosts%%$'\n'*}"
port="$((20000 + SLURM_JOB_ID % 20000))"

# One torchrun on each node; srun ends them all if one fails.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$nodes" \
    --nproc-per-node "$ranks" \
    --max-restarts 0 \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:$port" \
    --rdzv-id "$SLURM_JOB_ID" \
    -m "labkit.parallel.jobs.$job" "$@"
