#!/usr/bin/env bash
# Trains on one machine of a Slurm cluster, on one GPU or several, across time limits and preemptions:
#
#   sbatch slurm/train.sh configs/x.yaml [--set key=value ...]
#   sbatch --gpus-per-node=4 --time=08:00:00 slurm/train.sh configs/x.yaml
#   sbatch --gpus-per-node=4 slurm/train.sh --resume RUN
#
# Submit from the project's folder. The run is in outputs/slurm/<name of the configuration>_<job id>. Two minutes before
# the time limit the training saves its state, and the job returns to the queue; started again, it resumes. `scancel`
# ends the job; `codeq train --resume RUN` or another job with `--resume RUN` can still resume from there.
#SBATCH --job-name=codeq
#SBATCH --output=outputs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
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
read_arguments train.sh "$@"

gpus=${SLURM_GPUS_ON_NODE:-1}
if ((gpus > 1)); then
  command=(torchrun --standalone "--nproc-per-node=$gpus" --no-python "${command[@]}")
fi

# torchrun must not get the signal, as it would give its workers no more than 30 seconds, so they get it directly.
signal_training() {
  if ((gpus > 1)); then
    pkill -USR1 -P "$training"
  else
    kill -USR1 "$training"
  fi
}

echo "$(date '+%F %T') job $SLURM_JOB_ID on $(hostname): ${command[*]}"
(
  trap '' USR1
  exec "${command[@]}"
) &
training=$!
finish
