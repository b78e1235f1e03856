#!/usr/bin/env bash
# Trains on several machines of a Slurm cluster, across time limits and preemptions:
#
#   sbatch slurm/train_multi_node.sh configs/x.yaml [--set key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train_multi_node.sh configs/x.yaml
#
# Submit from the project's folder, which all machines must see at the same path. The run lies in
# outputs/slurm/<name of the configuration>_<job id>. Two minutes before the time limit the training saves itself, and the
# job goes back into the queue; started again, it resumes. `scancel` ends it for good; another job can still go on from
# there with `codeq train --resume RUN`.
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

if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: sbatch slurm/train_multi_node.sh CONFIG [--set key=value ...]" >&2
  exit 2
fi
config=$1
shift
name=$(basename "$config")
home=${CODEQ_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
run=$home/outputs/slurm/${name%.*}_$SLURM_JOB_ID
if [[ -d $home/.venv/bin ]]; then
  PATH=$home/.venv/bin:$PATH
fi

if [[ -e $run/status.json ]]; then
  command=(codeq train --resume "$run")
else
  command=(codeq train --config "$config" --set "run_dir=$run" "$@")
fi
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
  while :; do
    signalled=
    status=0
    wait "$torchrun" || status=$?
    [[ -n $signalled ]] || break
  done
  return "$status"
}
export -f start_workers

# Repeats USR1 until the training is gone, as it is ignored before the training can save itself.
pass_on() {
  while kill -0 "$training" 2>/dev/null; do
    kill -USR1 "$training" || true # srun hands it to every machine
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

echo "$(date '+%F %T') job $SLURM_JOB_ID on ${machines[*]}: ${command[*]}"
# The machine that ends first must not take down the one that still saves; `--wait` ends those that hang.
# shellcheck disable=SC2016 # the inner shell expands it
srun "--nodes=$SLURM_NNODES" --ntasks-per-node=1 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" \
  --kill-on-bad-exit=0 --wait=90 bash -c 'start_workers "$@"' start_workers "${command[@]}" &
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
