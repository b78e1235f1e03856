#!/usr/bin/env bash
# Trains on several machines of a Slurm cluster, across time limits and preemptions:
#
#   sbatch slurm/train_multi_node.sh configs/x.yaml [--set key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train_multi_node.sh configs/x.yaml
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train_multi_node.sh --resume RUN
#
# Submit from the project's folder, which all machines must see at the same path. The run is in
# outputs/slurm/<name of the configuration>_<job id>. Two minutes before the time limit the training saves its state, and
# the job returns to the queue; started again, it resumes. `scancel` ends the job; another job with `--resume RUN` can still
# resume from there.
#SBATCH --job-name=codeq
#SBATCH --output=outputs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# shellcheck disable=SC2317  # traps call the functions
set -euo pipefail

# Slurm runs a copy of this script, so the folder of the submission, or CODEQ_HOME, leads to the shared part.
home=${CODEQ_HOME:-.}
for lib in "${SLURM_SUBMIT_DIR:-$PWD}/slurm/lib.sh" "${home/#\~/"$HOME"}/slurm/lib.sh" "$(dirname "$0")/lib.sh"; do
  [[ ! -e $lib ]] || break
done
# shellcheck source=slurm/lib.sh
source "$lib"
read_arguments train_multi_node.sh "$@"

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
command=(
  torchrun "--nnodes=$SLURM_NNODES" "--nproc-per-node=${SLURM_GPUS_ON_NODE:-1}"
  "--rdzv-id=$SLURM_JOB_ID" --rdzv-backend=c10d "--rdzv-endpoint=${machines[0]}:$((29500 + SLURM_JOB_ID % 1000))"
  --no-python "${command[@]}"
)

# Runs on every machine. The workers get USR1 and torchrun does not: it would give them no more than 30 seconds.
start_workers() {
  local torchrun='' signalled status
  trap 'signalled=1; [[ -z $torchrun ]] || pkill -USR1 -P "$torchrun" || true' USR1
  (
    trap '' USR1
    exec "$@"
  ) &
  torchrun=$!
  wait_through_signals "$torchrun"
  return "$status"
}
export -f start_workers wait_through_signals

signal_training() { kill -USR1 "$training"; } # srun forwards it to every machine

echo "$(date '+%F %T') job $SLURM_JOB_ID on ${machines[*]}: ${command[*]}"
# The machine that ends first must not end the one that still saves; `--wait` ends those that hang.
# shellcheck disable=SC2016 # the inner shell expands it
srun "--nodes=$SLURM_NNODES" --ntasks-per-node=1 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" \
  --kill-on-bad-exit=0 --wait=90 bash -c 'start_workers "$@"' start_workers "${command[@]}" &
training=$!
finish
