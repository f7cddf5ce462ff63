"""The engine as a process: messages in and out, and its end."""

import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import zmq

from tgi_core import messages
from tgi_core.config import EngineConfig
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams

PATIENCE_S = 60


class Front:
    """The other side of the sockets."""

    def __init__(self, socket_dir, config):
        self.socket_dir = socket_dir
        self.context = zmq.Context()
        self.inbox, self.outbox = self.context.socket(zmq.PUSH), self.context.socket(zmq.PULL)
        self.inbox.bind(f"ipc://{socket_dir}/inbox")
        self.outbox.bind(f"ipc://{socket_dir}/outbox")
        command = [sys.executable, "-m", "tgi_core.engine.process", str(socket_dir)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()

    def send(self, message):
        self.inbox.send(messages.encode(message))

    def receive(self, kind, until=lambda message: True):
        """The next message of a kind that satisfies `until`; all others are passed over."""
        deadline = time.monotonic() + PATIENCE_S
        while self.outbox.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            message = messages.decode_from_engine(self.outbox.recv())
            if isinstance(message, kind) and until(message):
                return message
        raise TimeoutError(f"no {kind.__name__} came")

    def outputs(self, request_id):
        """The output of a request, up to its end."""
        found = []
        while not found or not found[-1].finish_reason:
            step = self.receive(messages.StepDone)
            found += [output for output in step.outputs if output.request_id == request_id]
        return found

    def close(self):
        self.process.kill()
        self.process.stdin.close()
        self.process.wait()
        self.context.destroy(linger=0)


@pytest.fixture
def start(tmp_path):
    fronts = []

    def start(**wishes):
        socket_dir = tmp_path / "sockets"
        socket_dir.mkdir()
        fronts.append(Front(socket_dir, EngineConfig(device="cpu", **wishes)))
        return fronts[-1]

    yield start
    for front in fronts:
        front.close()


def test_requests_are_answered_until_shutdown(start, checkpoint):
    front = start(model_id=str(checkpoint))
    assert front.receive(messages.Loading).phase == "import"
    assert front.receive(messages.Loading, lambda m: m.phase == "weights").fraction > 0
    ready = front.receive(messages.Ready)
    assert ready.info.load_s > 0
    assert not front.socket_dir.exists()  # nobody needs it any more, and no death can leave it behind
    front.send(messages.Add(Request(id=7, prompt_ids=[5, 6, 7], params=SamplingParams(max_new_tokens=4))))
    outputs = front.outputs(7)
    assert sum(len(output.token_ids) for output in outputs) == 4
    assert outputs[-1].finish_reason == "length"
    front.send(messages.Add(Request(id=8, prompt_ids=[])))
    assert "cannot be empty" in front.outputs(8)[0].error
    front.send(messages.Abort([1, 2, 3]))
    front.inbox.send(b"no message at all")
    front.send(messages.Shutdown())
    assert front.process.wait(PATIENCE_S) == 0


def test_an_aborted_request_is_silent_and_frees_its_blocks(start, checkpoint):
    front = start(model_id=str(checkpoint))
    front.receive(messages.Ready)
    front.send(messages.Add(Request(id=1, prompt_ids=[5] * 64, params=SamplingParams(max_new_tokens=400))))
    front.receive(messages.StepDone, lambda m: any(output.request_id == 1 for output in m.outputs))
    front.send(messages.Abort([1]))
    front.send(messages.Add(Request(id=2, prompt_ids=[6], params=SamplingParams(max_new_tokens=1))))
    last = front.receive(messages.StepDone, lambda m: any(output.request_id == 2 for output in m.outputs))
    assert last.stats.held_blocks == 0


def test_heartbeats_come_while_idle(start, checkpoint):
    front = start(model_id=str(checkpoint))
    front.receive(messages.Ready)
    assert front.receive(messages.Heartbeat).step_started_at == 0


def test_a_model_that_cannot_be_loaded_is_reported_before_the_end(start, tmp_path):
    front = start(model_id=str(tmp_path / "nothing"))
    failed = front.receive(messages.Failed)
    assert failed.kind == "ModelNotFound"
    assert "nothing" in failed.error
    assert front.process.wait(PATIENCE_S) == 1


def test_the_end_of_the_front_is_the_end_of_the_engine(start, checkpoint):
    front = start(model_id=str(checkpoint))
    front.receive(messages.Loading)
    front.process.stdin.close()  # as when the front is killed; the engine is still loading
    assert front.process.wait(PATIENCE_S) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_parent_takes_the_engine_with_it(tmp_path, checkpoint):
    script = (
        "import subprocess, sys, time\n"
        f"engine = subprocess.Popen([sys.executable, '-m', 'tgi_core.engine.process', {str(tmp_path)!r}],"
        " stdin=subprocess.PIPE)\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
