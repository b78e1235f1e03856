#!/usr/bin/env bash
# Trains on one machine of a Slurm cluster, on one GPU or several, across time limits and preemptions:
#
#   sbatch slurm/train.sh configs/x.yaml [--set key=value ...]
#   sbatch --gpus-per-node=4 --time=08:00:00 slurm/train.sh configs/x.yaml
#
# Submit from the project's folder. The run lies in outputs/slurm/<name of the configuration>_<job id>. Two minutes before
# the time limit the training saves itself, and the job goes back into the queue; started again, it resumes. `scancel`
# ends it for good; `codeq train --resume RUN` or another job can still go on from there.
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

if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: sbatch slurm/train.sh CONFIG [--set key=value ...]" >&2
  exit 2
fi
config=$1
shift
name=$(basename "$config")
home=${CODEQ_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
run=$home/outputs/slurm/${name%.*}_$SLURM_JOB_ID
gpus=${SLURM_GPUS_ON_NODE:-1}
if [[ -d $home/.venv/bin ]]; then
  PATH=$home/.venv/bin:$PATH
fi

if [[ -e $run/status.json ]]; then
  command=(codeq train --resume "$run")
else
  command=(codeq train --config "$config" --set "run_dir=$run" "$@")
fi
if ((gpus > 1)); then
  command=(torchrun --standalone "--nproc-per-node=$gpus" --no-python "${command[@]}")
fi

# Repeats USR1 until the training is gone: before it can save itself, the signal is ignored. torchrun must not see it, as
# it would give its workers no more than 30 seconds, so they get it themselves.
pass_on() {
  while kill -0 "$training" 2>/dev/null; do
    if ((gpus > 1)); then
      pkill -USR1 -P "$training" || true
    else
      kill -USR1 "$training" || true
    fi
    sleep 5
  done
}

asked=
signalled=
note() {
  signalled=1
  if [[ -z $asked ]]; then
    asked=1
    echo "asked to stop; waiting for the training to save itself"
    pass_on >/dev/null 2>&1 &
  fi
}

echo "$(date '+%F %T') job $SLURM_JOB_ID on $(hostname): ${command[*]}"
(
  trap '' USR1
  exec "${command[@]}"
) &
training=$!
trap note USR1 TERM

# A signal ends `wait`, but not the training.
while :; do
  signalled=
  status=0
  wait "$training" || status=$?
  [[ -n $signalled ]] || break
done
echo "$(date '+%F %T') the training ended with status $status"

# torchrun says 1 whatever its workers say; then the run's own files tell whether it can go on.
unfinished() { grep -Eq '"status": "(preempted|running)"' "$run/status.json" 2>/dev/null; }
# A cancelled job is completing by now, and what it was told to do may not be undone.
may_go_on() { [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; }

if ((status == 143)) || { ((status != 0)) && [[ -n $asked ]] && unfinished; }; then
  if may_go_on && scontrol requeue "$SLURM_JOB_ID"; then
    echo "back in the queue"
  else
    echo "not requeued; to go on: codeq train --resume $run"
  fi
fi
exit "$status"
