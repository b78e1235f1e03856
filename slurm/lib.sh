# The part that train.sh and train_multi_node.sh share; they source it.
# shellcheck shell=bash disable=SC2034,SC2317  # the scripts use the variables, traps call the functions

# A task of an array has a number of its own, but the number of its last task is that of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# Sets run and command, the training without its launcher, from the arguments of the script $1.
read_arguments() {
  local script=$1 home name argument config=
  shift
  if [[ $# -gt 0 && $1 != -* ]]; then
    config=$1
    shift
  fi
  home=${CODEQ_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
  # As codeq reads it, which would take a relative run_dir to start in this folder.
  case $home in
    \~ | \~/*) home=$HOME${home#\~} ;;
    [!/]*) home=$PWD/$home ;;
  esac
  if [[ -d $home/.venv/bin ]]; then
    PATH=$home/.venv/bin:$PATH
  fi
  if [[ $# -ge 2 && $1 == --resume ]]; then
    run=$2
    [[ -e $run/status.json ]] || run=$home/$2
    if [[ ! -e $run/status.json ]]; then
      echo "--resume $2: must be the folder of a run" >&2
      exit 2
    fi
    shift 2
    read_resume
    command=("${resume[@]}")
    # Back in the queue it resumes from the run: the configuration may have been edited meanwhile.
    if [[ -n $config ]] && ((${SLURM_RESTART_COUNT:-0} == 0)); then
      command+=(--config "$config")
    fi
    command+=("$@")
    return
  fi
  if [[ -z $config || " $* " == *" --resume"* ]]; then
    echo "usage: sbatch slurm/$script CONFIG [--set key=value ...], or [CONFIG] --resume RUN [--set key=value ...]" >&2
    exit 2
  fi
  for argument in "$@"; do
    if [[ ${argument#--set=} == run_dir=* ]]; then
      echo "${argument#--set=}: a job trains in outputs/slurm, where it finds its run again by its number" >&2
      exit 2
    fi
  done
  name=$(basename "$config")
  run=$home/outputs/slurm/${name%.*}_$job
  if [[ -e $run/status.json ]]; then
    read_resume
    command=("${resume[@]}")
  else
    command=(codeq train --config "$config" --set "run_dir=$run" "$@")
  fi
}

# Sets resume, the command that resumes the run. It names what the run has imported, as opening a run imports nothing; the
# rest is read from the run, so that the configuration may be edited for other jobs meanwhile.
read_resume() {
  local source
  resume=(codeq train --resume "$run")
  while IFS= read -r source; do
    resume+=(--import "$source")
  done < <(sed -n '/^imports:$/,/^[^-]/s/^- //p' "$run/config.yaml" 2>/dev/null)
}

# Repeats USR1 until the training has ended, as it is ignored before the training can save itself. signal_training is
# the script's.
pass_on() {
  while kill -0 "$training" 2>/dev/null; do
    signal_training || true
    sleep 5
  done
}

asked=
signalled=
note() {
  signalled=1
  if [[ -z $asked ]]; then
    asked=1
    echo "asked to stop; waiting for the training to save its state"
    pass_on >/dev/null 2>&1 &
  fi
}

# Waits for the process $1 and sets status to its exit status. A signal ends `wait`, but not the process; the trap that
# handles it sets signalled.
wait_through_signals() {
  while :; do
    signalled=
    status=0
    wait "$1" || status=$?
    [[ -n $signalled ]] || break
  done
}

# torchrun ends with 1 whatever its workers end with; then the run's status shows whether it can be resumed.
unfinished() { grep -Eq '"status": "(preempted|running)"' "$run/status.json" 2>/dev/null; }
# A cancelled job is completing by now and must not be requeued.
is_running() { [[ $(scontrol show job "$job") == *JobState=RUNNING* ]]; }

# Waits for the process training, requeues the job if the training can be resumed, and exits with its status.
finish() {
  trap note USR1 TERM
  wait_through_signals "$training"
  echo "$(date '+%F %T') the training ended with status $status"
  if ((status == 143)) || { ((status != 0)) && [[ -n $asked ]] && unfinished; }; then
    if is_running && scontrol requeue "$job"; then
      echo "back in the queue"
    else
      read_resume
      echo "not requeued; to resume:$(printf ' %q' "${resume[@]}")"
    fi
  fi
  exit "$status"
}
