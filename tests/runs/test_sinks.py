import json
import logging
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from codeq import ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.runs.sinks import TensorboardSink, WandbSink, check_tensorboard, open_sinks, resolve_wandb_mode
from codeq.runs.sinks import wandb_sink as module
from codeq.runs.sinks.wandb_mode import wandb_api_key

KEY = "a" * 40
METRICS = {"epoch": 0, "eval/accuracy": 0.5, "compression/structured_bops_ratio": math.inf, "layers/conv1/bitwidth": 8}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No W&B variable and no netrc file from outside, and none left behind."""
    before = {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k != "WANDB_SERVICE"}
    for name in before:
        del os.environ[name]
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    yield
    for name in [k for k in os.environ if k.startswith("WANDB_") and k != "WANDB_SERVICE"]:
        del os.environ[name]
    os.environ.update(before)


def sink(folder, mode="offline"):
    folder.mkdir(exist_ok=True)
    return WandbSink(folder, "codeq", "demo", {"epochs": 3, "lr": 0.1}, {"git_commit": "abc"}, mode)


# --- which mode


@pytest.mark.parametrize(
    ("wanted", "environment", "key", "mode"),
    [
        (None, None, True, "disabled"),
        (None, "", True, "disabled"),
        (None, "offline", False, "offline"),
        (None, "online", True, "online"),
        (None, "run", True, "online"),
        (None, "dryrun", True, "offline"),
        (None, "online", False, "offline"),
        ("disabled", "online", True, "disabled"),
        ("offline", "disabled", True, "offline"),
        ("online", "disabled", True, "online"),
        ("online", None, False, "offline"),
    ],
)
def test_mode(monkeypatch, caplog, wanted, environment, key, mode):
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_wandb_mode(wanted) == mode
    fell_back = mode == "offline" and "online" in (wanted, environment)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * fell_back
    if fell_back:
        assert "wandb login" in caplog.text
        assert "wandb sync" in caplog.text
        assert ".env" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "environment", "key", "mode"),
    [
        (None, None, True, "online"),
        (None, None, False, "offline"),
        (None, "", False, "offline"),
        (None, "disabled", True, "disabled"),
        (None, "offline", True, "offline"),
        ("disabled", None, True, "disabled"),
        ("offline", "online", True, "offline"),
    ],
)
def test_a_named_project_is_followed_unless_a_mode_is_given(monkeypatch, caplog, wanted, environment, key, mode):
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_wandb_mode(wanted, "CoDeQ experiments") == mode
    assert not caplog.records  # the sink prints one line: where, or how to upload


def test_the_default_project_is_not_named(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_wandb_mode(None, ExperimentConfig("x").wandb_project) == "disabled"


def test_an_unknown_mode_is_one_error(monkeypatch):
    with pytest.raises(CodeqError, match=r"wandb_mode 'onlin' is unknown. Did you mean 'online'"):
        resolve_wandb_mode("onlin")
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(CodeqError, match=r"WANDB_MODE 'offlin' is unknown. Did you mean 'offline'"):
        resolve_wandb_mode(None)


def test_dotenv_fills_in_what_the_environment_lacks(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text(f'WANDB_API_KEY="{KEY}"\nexport WANDB_MODE=online\nWANDB_ENTITY=mine\nOTHER_KEY=x\n')
    monkeypatch.setenv("WANDB_ENTITY", "from outside")
    assert resolve_wandb_mode(None) == "online"
    assert wandb_api_key() == KEY
    assert os.environ["WANDB_ENTITY"] == "from outside"
    assert "OTHER_KEY" not in os.environ


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"WANDB_API_KEY\n= =\n'", b""])
def test_a_broken_dotenv_costs_nothing(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    assert resolve_wandb_mode("online") == "offline"


def test_the_netrc_file_has_the_key_of_its_server_only(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_api_key() == KEY
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_api_key() is None
    (tmp_path / "netrc").write_text("machine\n")
    assert wandb_api_key() is None
    monkeypatch.setenv("NETRC", "~no-such-user-here/netrc")
    assert wandb_api_key() is None


# --- W&B, offline


def test_an_offline_run_has_everything_in_its_file(tmp_path, capsys, monkeypatch):
    run = tmp_path / "a run"
    monkeypatch.setenv("WANDB_RUN_GROUP", "lambda-dz")  # as `codeq sweep` sets them
    monkeypatch.setenv("WANDB_TAGS", "lambda-dz,l2")
    first = sink(run)
    first.log_epoch(METRICS)
    figure = Figure(figsize=(2, 1), dpi=100)
    first.log_figure("channel_liveness", figure, epoch=0)
    first.log_summary({"accuracy_last": 0.5, "structured_mac_ratio": math.inf})
    first.close(0)

    records = read_records(run)
    rows = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert rows[0].items() >= METRICS.items()
    image = {key.split(".")[1]: value for key, value in rows[1].items() if key.startswith("viz/channel_liveness.")}
    assert (rows[1]["epoch"], image["width"], image["height"]) == (0, 200, 100)
    assert next(run.glob("wandb/offline-run-*/files/" + image["path"])).read_bytes()[1:4] == b"PNG"
    summary = {item.key: item.value_json for r in records for item in r.summary.update}
    assert json.loads(summary["accuracy_last"]) == 0.5
    config = {item.key: json.loads(item.value_json) for r in records for item in r.run.config.update}
    assert config["epochs"] == 3
    assert config["environment"] == {"git_commit": "abc"}
    [started] = [r.run for r in records if r.run.run_id]
    assert (started.run_id, started.project, started.display_name) == (first.id, "codeq", "demo")
    assert (started.run_group, list(started.tags)) == ("lambda-dz", ["lambda-dz", "l2"])
    assert not started.git.commit
    assert {r.metric.step_metric or r.metric.name for r in records if r.HasField("metric")} == {"epoch"}
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]

    printed = capsys.readouterr().out
    assert f"wandb sync '{run}/wandb/offline-run-" in printed
    assert printed.count("\n") == 1

    time.sleep(1.1)  # W&B names the folders of a run by the second in which they were made
    again = sink(run)
    again.close(1)
    assert again.id == first.id == (run / "wandb_id.txt").read_text().strip()
    assert f"share the id {first.id}" in capsys.readouterr().out
    assert len(list(run.glob("wandb/offline-run-*"))) == 2


def test_a_disabled_run_has_no_sinks_and_no_files(tmp_path):
    assert open_sinks(tmp_path, project="p", name="n", config={}, environment={}, wandb_mode="disabled") == []
    assert not list(tmp_path.iterdir())


# --- W&B that fails


class FakeRun:
    url, dir = "https://example.org", "/tmp/run/files"

    def __init__(self, failing=()):
        self.failing = failing
        self.summary = {}
        self.calls = []

    def define_metric(self, *_args, **_kwargs):
        self._call("define_metric")

    def log(self, _row):
        self._call("log")

    def finish(self, _exit_code):
        self._call("finish")

    def _call(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise OSError(f"no {name}\ntoday")


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_any_failure_is_one_warning(monkeypatch, caplog, tmp_path, failing):
    import wandb

    run = FakeRun(failing)

    def init(**kwargs):
        if failing == "init":
            raise OSError("no init\ntoday")
        return run

    monkeypatch.setattr(wandb, "init", init)
    followed = sink(tmp_path / "run")
    for epoch in range(3):
        followed.log_epoch({"epoch": epoch})
        followed.log_figure("bars", Figure(), epoch)
    followed.log_summary({"a": 1})
    followed.close(0)
    followed.close(0)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"W&B failed: no {failing} today. The run continues without it; its files are complete"
    ]
    assert run.calls.count(failing) == (0 if failing == "init" else 1 + (failing == "finish"))
    if failing != "init":
        assert run.calls[-1] == "finish"  # nothing stays open in W&B's helper process


def test_a_wandb_that_cannot_be_imported_is_one_warning(monkeypatch, caplog, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    followed = sink(tmp_path / "run")
    followed.log_epoch({"epoch": 0})
    followed.log_figure("bars", Figure(), 0)
    followed.close(0)
    assert caplog.text.count("W&B failed") == 1


def test_a_run_that_does_not_end_is_given_up(monkeypatch, caplog, tmp_path):
    import wandb

    forever, killed = threading.Event(), []
    run = FakeRun()
    run.finish = lambda _exit_code: forever.wait(20)
    monkeypatch.setattr(wandb, "init", lambda **_kwargs: run)
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.2)
    monkeypatch.setattr(module, "_kill_service", lambda: killed.append(True))
    followed = sink(tmp_path / "run")
    started = time.perf_counter()
    followed.close(0)
    assert time.perf_counter() - started < 5
    assert killed
    assert "no answer for 0.2 s" in caplog.text
    forever.set()


def test_training_does_not_wait_for_the_start(monkeypatch, tmp_path):
    import wandb

    go, run = threading.Event(), FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_kwargs: go.wait(20) and run)
    started = time.perf_counter()
    followed = sink(tmp_path / "run", mode="online")
    followed.log_epoch({"epoch": 0})
    assert time.perf_counter() - started < 5
    go.set()
    followed.close(0)
    assert run.calls == ["define_metric", "define_metric", "log", "finish"]


# --- W&B, online, with servers of our own

SCRIPT = """
import json, sys, time, logging
from pathlib import Path
import wandb
from codeq.runs.sinks import wandb_sink as module

logging.basicConfig()
for name, value in json.loads(sys.argv[2]).items():
    setattr(module, name, value)
began = time.time()
sink = module.WandbSink(Path(sys.argv[1]), "codeq", "demo", {"lr": 0.1}, {"seed": 1}, sys.argv[3])
sink.log_epoch({"epoch": 0, "ratio": float("inf")})
opened = time.time()
if len(sys.argv) > 4:  # wandb's helper process stops answering
    import os, signal
    from wandb.sdk import wandb_setup
    while not list(Path(sys.argv[1]).glob("wandb/*/*.wandb")):
        time.sleep(0.1)
    os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGSTOP)
sink.close(0)
print("TIMES", began, opened, time.time(), flush=True)
"""


def train(folder, port, mode="online", freeze=False, **constants):
    """Run a training without epochs in its own process; return its output, and the seconds until it is gone."""
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY, "HOME": str(folder)}
    arguments = [str(folder), json.dumps(constants), mode, *["freeze"] * freeze]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    end = time.time()
    assert result.returncode == 0, result.stderr
    times = next(line for line in result.stdout.splitlines() if line.startswith("TIMES"))
    began, opened, closed = map(float, times.split()[1:])
    print(f"opened in {opened - began:.2f} s, closed after {closed - began:.1f} s, gone after {end - began:.1f} s")
    assert opened - began < 10  # no server is waited for
    return result.stdout + result.stderr, end - began


def refusing():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def silent():
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def accept():
        while True:
            accepted.append(listener.accept())

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def server(answer):
    """Serve answer(path, body), a dictionary; `None` means error 500, and an exception silence."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode(errors="replace")
            found = answer(self.path, body)
            data = json.dumps(found or {}).encode()
            self.send_response(500 if found is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            pass

    serving = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    return serving.server_address[1]


def failing():
    return server(lambda _path, _body: None)


def as_wandb(path, body):
    """Answer the few queries of a run as W&B's server does; no file is wanted."""
    if "createRunFiles" in body:
        return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}}
    if "upsertBucket" not in body:
        return {"data": {}}
    name = json.loads(body)["variables"]["name"]
    project = {"name": "codeq", "entity": {"name": "me"}}
    bucket = {"id": "x", "name": name, "displayName": "demo", "description": "", "config": "{}", "project": project}
    return {"data": {"upsertBucket": {"inserted": True, "bucket": {**bucket, "historyLineCount": 0}}}}


def silent_after_start():
    def answer(path, body):
        if "upsertBucket" not in body and "RunResumeStatus" not in body:
            time.sleep(200)
        return as_wandb(path, body)

    return server(answer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [refusing, silent, failing, silent_after_start])
def test_a_bad_server_costs_at_most_30_seconds(tmp_path, kind):
    output, seconds = train(tmp_path / "run", kind())
    assert seconds < 30 + 5  # a busy machine ends processes slowly
    assert output.count("W&B failed: ") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_helper_process_that_hangs_does_not_keep_the_process(tmp_path):
    output, seconds = train(tmp_path / "run", refusing(), mode="offline", freeze=True, CLOSE_TIMEOUT=2)
    assert seconds < 20
    assert output.count("W&B failed: ") == 1


@pytest.mark.slow
def test_a_good_server_gets_the_run_and_its_continuation_under_one_id(tmp_path):
    seen = []

    def answer(path, body):
        seen.append((path, body))
        return as_wandb(path, body)

    port = server(answer)
    for _ in range(2):
        output, _ = train(tmp_path / "run", port)
        assert "W&B failed" not in output
    name = (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    assert f"W&B: online, http://127.0.0.1:{port}/me/codeq/runs/{name}" in output
    names = {json.loads(body)["variables"]["name"] for _, body in seen if "upsertBucket" in body}
    assert names == {name}
    sent = [body for path, body in seen if path.endswith(f"/{name}/file_stream") and '\\"ratio\\":Infinity' in body]
    assert len(sent) >= 2
    assert not any(KEY in body for _, body in seen)  # the key travels in the header alone


@pytest.mark.slow
def test_an_offline_run_is_uploaded_by_the_command_that_it_prints(monkeypatch, capsys, tmp_path):
    seen = []
    port = server(lambda path, body: seen.append((path, body)) or as_wandb(path, body))
    monkeypatch.setenv("WANDB_MODE", "offline")
    followed = sink(tmp_path / "run")
    for epoch, accuracy in enumerate((0.5, 0.25, 0.75)):
        followed.log_epoch({"epoch": epoch, "eval/accuracy": accuracy})
    followed.close(0)
    assert not seen
    monkeypatch.delenv("WANDB_MODE")
    _, command = capsys.readouterr().out.strip().split("to upload: ")
    program, *arguments = shlex.split(command)
    assert (program, arguments[0]) == ("wandb", "sync")
    there = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *arguments], env=os.environ | there | {"HOME": str(tmp_path)}, cwd=tmp_path,
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Finished syncing" in done.stdout + done.stderr
    sent = [json.loads(body) for path, body in seen if path.endswith(f"/me/codeq/{followed.id}/file_stream")]
    files = [message["files"] for message in sent if "files" in message]  # a slow upload sends signs of life between
    rows = [json.loads(row) for each in files for row in each.get("wandb-history.jsonl", {}).get("content", [])]
    assert [(row["epoch"], row["eval/accuracy"]) for row in rows] == [(0, 0.5), (1, 0.25), (2, 0.75)]


# --- TensorBoard


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_gets_numbers_pictures_and_the_summary(tmp_path):
    followed = TensorboardSink(tmp_path)
    followed.log_epoch({**METRICS, "eval/loss": None})
    followed.log_figure("sparsity_bars", Figure(figsize=(2, 1), dpi=100), epoch=0)
    followed.log_summary({"accuracy_last": 0.5, "structured_mac_ratio": math.inf})
    followed.close(0)
    events = read_events(tmp_path)
    for key in METRICS.keys() - {"epoch"}:
        [event] = events.Scalars(key)
        assert (event.step, event.value) == (0, METRICS[key])
    assert "eval/loss" not in events.Tags()["scalars"]
    [image] = events.Images("viz/sparsity_bars")
    assert (image.width, image.height) == (200, 100)
    [text] = events.Tensors("summary/text_summary")
    assert b"accuracy_last" in text.tensor_proto.string_val[0]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    for first, accuracies in ((0, [0.1, 0.2, 0.3]), (1, [0.7, 0.8])):
        followed = TensorboardSink(tmp_path, first)
        for epoch, accuracy in enumerate(accuracies, first):
            followed.log_epoch({"epoch": epoch, "eval/accuracy": accuracy})
        followed.close(0)
        time.sleep(1.1)  # TensorBoard reads the files by their names, which begin with the second they were made in
    events = read_events(tmp_path).Scalars("eval/accuracy")
    assert [event.step for event in events] == [0, 1, 2]
    assert [event.value for event in events] == pytest.approx([0.1, 0.7, 0.8])


def test_open_sinks_opens_what_is_asked_for(tmp_path):
    sinks = open_sinks(
        tmp_path, project="p", name="n", config={}, environment={}, wandb_mode="disabled", tensorboard=True
    )
    assert [type(s) for s in sinks] == [TensorboardSink]
    for opened in sinks:
        opened.close(0)


def test_a_missing_tensorboard_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CodeqError, match=r"pip install 'codeq\[tensorboard\]'"):
        check_tensorboard()
    with pytest.raises(CodeqError, match="tensorboard"):
        TensorboardSink(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def read_records(run):
    """Read W&B's own file back once its helper process has written the end, which on a busy machine takes a while."""
    for _ in range(300):
        records = decode_records(run)
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.1)
    return records


def decode_records(run):
    """Decode what there is so far: LevelDB's log format, blocks of 32 KiB with pieces of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = run.glob("wandb/offline-run-*/*.wandb")
    data, place, records, parts = path.read_bytes(), 7, [], b""
    assert data[:4] in (b"", b":W&B")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if place > len(data):  # half of a record
            break
        if kind in (1, 4):  # a whole record, or the last piece of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def test_a_failing_tensorboard_is_one_warning_and_ends_nothing(tmp_path, caplog):
    failing = TensorboardSink(tmp_path / "full")
    failing.log_epoch({"epoch": 0, "eval/accuracy": 0.5})
    failing._writer.file_writer.event_writer._async_writer._worker.exception = OSError(28, "No space left on device")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "tensorboard").write_text("a file in place of the folder")
    for sink, reason in ((failing, "No space left"), (TensorboardSink(tmp_path / "taken"), "tensorboard")):
        sink.log_epoch({"epoch": 1, "eval/accuracy": 0.75})
        sink.log_figure("liveness", Figure(), 1)
        sink.log_summary({"accuracy_last": 0.75})
        sink.close(0)
        assert sum("TensorBoard failed: " in line and reason in line for line in caplog.messages) == 1
