"""The Slurm scripts against stand-ins for Slurm, torchrun and codeq: what is started, signalled and requeued."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codeq.config.yaml import dump_yaml

FOLDER = Path(__file__).parent.parent / "slurm"
SCRIPTS = ("train.sh", "train_multi_node.sh")
JOB = "4711"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("pkill"), reason="Slurm's batch scripts run on Linux"
)

# Writes down how it was started, then ends with $CODEQ_STATUS, or waits for USR1 and ends as a saved training does.
CODEQ = """
import os, pathlib, signal, sys, time

def write(line):
    with open(os.environ["CALLS"], "a") as file:
        file.write(line + "\\n")

def stop(*_):
    write("codeq got USR1")
    status.write_text('{"status": "preempted"}')
    sys.exit(143)

write(" ".join(["codeq", *sys.argv[1:]]))
if "CODEQ_STATUS" in os.environ:
    sys.exit(int(os.environ["CODEQ_STATUS"]))
status = pathlib.Path(os.environ["RUN"], "status.json")
status.parent.mkdir(parents=True, exist_ok=True)
status.write_text('{"status": "running"}')
if "EARLY" in os.environ:
    write("waiting")
    time.sleep(1)
signal.signal(signal.SIGUSR1, stop)
write("waiting")
for _ in range(300):
    time.sleep(0.1)  # a signal just before a sleep is noticed after it
"""
# Like the real one it says 1 whenever a worker fails, and ends if it gets USR1 without being told to ignore it.
TORCHRUN = """
arguments="torchrun $*"
echo "${arguments%% --no-python*}" >> "$CALLS"
while [[ $1 != --no-python ]]; do shift; done
shift
"$@" || exit 1
"""
# Hands USR1 on to its task, as the real one does.
SRUN = """
echo "srun $1 $2" >> "$CALLS"
while [[ $1 == -* ]]; do shift; done
"$@" &
task=$!
forward() { kill -USR1 "$task"; forwarded=1; }
trap forward USR1
while :; do forwarded=; status=0; wait "$task" || status=$?; [[ -n $forwarded ]] || exit "$status"; done
"""
SCONTROL = """
case "$1 $2" in
  "show hostnames") printf 'first\\nsecond\\n' ;;
  "show job") echo "   JobState=$STATE Reason=None" ;;
  *) echo "scontrol $*" >> "$CALLS" ;;
esac
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a script as Slurm would; returns the process."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm").mkdir()
    shutil.copy(FOLDER / "lib.sh", tmp_path / "slurm")  # the scripts are started from elsewhere, as Slurm does
    texts = {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}
    texts = {name: f"#!/usr/bin/env bash\n{text}" for name, text in texts.items()}
    for name, text in (texts | {"codeq": f"#!{sys.executable}\n{CODEQ}"}).items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    run = tmp_path / "outputs" / "slurm" / f"x_{JOB}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = {
        **outside, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"),
        "RUN": str(run), "STATE": "RUNNING", "SLURM_JOB_ID": JOB, "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "3",
    }  # fmt: skip
    processes = []

    def begin(script, *arguments, **more):
        copied = shutil.copy(FOLDER / script, tmp_path / "slurm_script")
        process = subprocess.Popen(
            ["bash", str(copied), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment | more, cwd=tmp_path,
        )  # fmt: skip
        processes.append(process)
        return process

    begin.run, begin.calls = run, tmp_path / "calls"
    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def calls(start):
    return start.calls.read_text().splitlines() if start.calls.exists() else []


def signal_when_waiting(start, process, number, again=2):
    """Signal the script when its training waits, every `again` seconds until it ends; returns its output."""
    deadline = time.monotonic() + 30
    while "waiting" not in calls(start):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # bash loses a signal that comes just before its own `wait`, which it reaches while training starts
    deadline = time.monotonic() + 30
    while True:
        process.send_signal(number)
        try:
            return process.communicate(timeout=again)[0]
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline


def trained(start):
    return [line.removeprefix("codeq ") for line in calls(start) if line.startswith("codeq train")]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("gpus", ["1", "2"])
def test_a_first_start_trains_the_configuration_into_a_folder_of_the_job(start, script, gpus):
    arguments = ("configs/x.yaml", "--set", "epochs=3", "lr_scheduler=constant")
    process = start(script, *arguments, CODEQ_STATUS="0", SLURM_GPUS_ON_NODE=gpus)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert trained(start) == [
        f"train --config configs/x.yaml --set run_dir={start.run} --set epochs=3 lr_scheduler=constant"
    ]
    assert not any(line.startswith("scontrol") for line in calls(start))


@pytest.mark.parametrize("home", ["project", "~/project", "~"])
def test_the_project_may_be_given_as_codeq_takes_it(start, home):
    """A relative folder would start in itself, and the requeued job would not find its run."""
    folder = start.calls.parent
    run = folder / home.replace("~", ".") / "outputs" / "slurm" / f"x_{JOB}"
    given = {"CODEQ_HOME": home, "HOME": str(folder), "CODEQ_STATUS": "0"}
    assert start("train.sh", "x.yaml", **given).wait(timeout=30) == 0
    assert trained(start) == [f"train --config x.yaml --set run_dir={run}"]
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "preempted"}')
    assert start("train.sh", "x.yaml", **given).wait(timeout=30) == 0
    assert trained(start)[-1] == f"train --resume {run}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shared_part_is_found_in_a_project_that_begins_with_a_tilde(start, script):
    folder = start.calls.parent
    elsewhere = {"SLURM_SUBMIT_DIR": str(folder / "elsewhere"), "CODEQ_HOME": "~", "HOME": str(folder)}
    process = start(script, "x.yaml", CODEQ_STATUS="0", **elsewhere)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert trained(start) == [f"train --config x.yaml --set run_dir={start.run}"]


def test_a_task_of_an_array_is_requeued_alone_and_has_a_folder_of_its_own(start):
    run = start.run.with_name(f"x_{JOB}_3")  # the last task has the job id of the array
    array = {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": "3"}
    process = start("train.sh", "configs/x.yaml", CODEQ_STATUS="143", **array)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 143, output
    assert trained(start) == [f"train --config configs/x.yaml --set run_dir={run}"]
    assert f"scontrol requeue {JOB}_3" in calls(start)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_requeued_start_resumes(start, script):
    start.run.mkdir(parents=True)
    (start.run / "status.json").write_text('{"status": "preempted"}')
    process = start(script, "configs/x.yaml", "--set", "epochs=3", CODEQ_STATUS="0")
    assert process.wait(timeout=30) == 0
    assert trained(start) == [f"train --resume {start.run}"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_requeued_start_imports_what_the_run_has_imported(start, script):
    """Whether the configuration or the arguments named it; opening the run imports nothing."""
    start.run.mkdir(parents=True)
    (start.run / "status.json").write_text('{"status": "preempted"}')
    settings = {"name": "x", "imports": ["my_parts.py", "/data/of all/losses.py", "package.nets"], "loss_terms": []}
    (start.run / "config.yaml").write_text(dump_yaml(settings))
    process = start(script, "configs/x.yaml", "--import", "my_parts.py", CODEQ_STATUS="143", STATE="CANCELLED")
    output = process.communicate(timeout=30)[0]
    imports = "--import my_parts.py --import /data/of all/losses.py --import package.nets"
    assert trained(start) == [f"train --resume {start.run} {imports}"]
    if script == "train.sh":  # torchrun ends with 1
        quoted = imports.replace("of all", "of\\ all")
        assert f"to resume: codeq train --resume {start.run} {quoted}\n" in output


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("folder", ["", "outputs/slurm/x_12"])
def test_another_job_resumes_a_run(start, script, folder):
    run = start.calls.parent / "outputs" / "slurm" / "x_12"
    given = folder or str(run)
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "preempted"}')
    (run / "config.yaml").write_text(dump_yaml({"name": "x", "imports": ["my_parts.py"]}))
    shown = f"train --resume {given} --import my_parts.py"
    options = ("--set", "workers=1")
    for arguments, more in (((), ""), (options, " --set workers=1"), (("--device", "cpu"), " --device cpu")):
        assert start(script, "--resume", given, *arguments, CODEQ_STATUS="0").wait(timeout=30) == 0
        assert trained(start)[-1] == f"{shown}{more}"
    assert start(script, "x.yaml", "--resume", given, *options, CODEQ_STATUS="0").wait(timeout=30) == 0
    assert trained(start)[-1] == f"{shown} --config x.yaml --set workers=1"
    requeued = start(script, "x.yaml", "--resume", given, *options, CODEQ_STATUS="0", SLURM_RESTART_COUNT="1")
    assert requeued.wait(timeout=30) == 0
    assert trained(start)[-1] == f"{shown} --set workers=1"


@pytest.mark.parametrize(("script", "gpus"), [("train.sh", "2"), ("train_multi_node.sh", "2")])
def test_another_job_that_resumes_a_run_on_several_gpus_is_requeued(start, script, gpus):
    run = start.run.with_name("x_12")
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "preempted"}')
    process = start(script, "--resume", str(run), SLURM_GPUS_ON_NODE=gpus, RUN=str(run))
    signal_when_waiting(start, process, signal.SIGUSR1)
    assert calls(start)[-1] == f"scontrol requeue {JOB}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_the_folder_of_a_run_is_resumed(start, script):
    process = start(script, "--resume", "latest")
    assert "--resume latest: must be the folder of a run" in process.communicate(timeout=30)[0]
    assert process.returncode == 2


@pytest.mark.parametrize("arguments", [("--set", "epochs=3", "run_dir=/scratch/x"), ("--set=run_dir=/scratch/x",)])
def test_the_folder_of_a_job_cannot_be_chosen_as_a_requeued_one_would_not_find_it(start, arguments):
    process = start("train.sh", "x.yaml", *arguments, CODEQ_STATUS="0")
    assert "run_dir=/scratch/x: a job trains in outputs/slurm" in process.communicate(timeout=30)[0]
    assert process.returncode == 2
    assert not trained(start)


def test_several_gpus_of_a_machine_train_together(start):
    assert start("train.sh", "x.yaml", CODEQ_STATUS="0", SLURM_GPUS_ON_NODE="4").wait(timeout=30) == 0
    assert calls(start)[0].split() == ["torchrun", "--standalone", "--nproc-per-node=4"]


def test_several_machines_meet_at_the_first(start):
    process = start("train_multi_node.sh", "x.yaml", CODEQ_STATUS="0", SLURM_GPUS_ON_NODE="8")
    assert process.wait(timeout=30) == 0
    srun, torchrun, _ = calls(start)
    assert srun == "srun --nodes=2 --ntasks-per-node=1"
    assert torchrun.split() == [
        "torchrun", "--nnodes=2", "--nproc-per-node=8", f"--rdzv-id={JOB}", "--rdzv-backend=c10d",
        "--rdzv-endpoint=first:30211",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(("script", "gpus"), [("train.sh", "1"), ("train.sh", "2"), ("train_multi_node.sh", "2")])
def test_a_signal_reaches_the_training_and_the_job_is_requeued(start, script, gpus, number):
    process = start(script, "x.yaml", SLURM_GPUS_ON_NODE=gpus)
    output = signal_when_waiting(start, process, number)
    assert process.returncode == (143 if (script, gpus) == ("train.sh", "1") else 1)
    assert "codeq got USR1" in calls(start)
    assert calls(start)[-1] == f"scontrol requeue {JOB}"
    assert "back in the queue" in output


@pytest.mark.slow
@pytest.mark.parametrize("gpus", ["1", "2"])
def test_a_signal_that_comes_too_early_is_repeated(start, gpus):
    process = start("train.sh", "x.yaml", EARLY="1", SLURM_GPUS_ON_NODE=gpus)
    signal_when_waiting(start, process, signal.SIGUSR1, again=30)  # the script repeats it
    assert "codeq got USR1" in calls(start)
    assert calls(start)[-1] == f"scontrol requeue {JOB}"


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_cancelled_job_is_not_requeued(start, state):
    process = start("train.sh", "x.yaml", STATE=state)
    output = signal_when_waiting(start, process, signal.SIGTERM)
    assert f"scontrol requeue {JOB}" not in calls(start)
    assert f"to resume: codeq train --resume {start.run}" in output


def test_a_training_that_was_terminated_itself_is_requeued(start):
    process = start("train.sh", "x.yaml", CODEQ_STATUS="143")
    assert process.wait(timeout=30) == 143
    assert calls(start)[-1] == f"scontrol requeue {JOB}"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("gpus", ["1", "2"])
def test_a_mistake_is_not_requeued_even_after_a_preemption(start, script, gpus):
    """Else a job whose data has gone would start again and again."""
    start.run.mkdir(parents=True)
    (start.run / "status.json").write_text('{"status": "preempted"}')
    process = start(script, "x.yaml", CODEQ_STATUS="2", SLURM_GPUS_ON_NODE=gpus)
    assert process.wait(timeout=30) in (1, 2)
    assert not any(line.startswith("scontrol") for line in calls(start))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", ["", "--set epochs=3", "--resume", "x.yaml --set epochs=3 --resume x"])
def test_a_start_without_a_configuration_shows_the_usage(start, script, arguments):
    process = start(script, *arguments.split())
    assert f"usage: sbatch slurm/{script} CONFIG" in process.communicate(timeout=30)[0]
    assert process.returncode == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_asks_slurm_for_a_warning_and_requeueing(script):
    lines = (FOLDER / script).read_text("utf-8").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--requeue", "--signal=B:USR1@120", "--open-mode=append"} <= asked


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("script", [*SCRIPTS, "lib.sh"])
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        ["shellcheck", "-x", "-P", str(FOLDER.parent), str(FOLDER / script)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
