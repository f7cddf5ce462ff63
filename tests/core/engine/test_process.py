"""The engine as a process: messages in and out, and its end."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from tgi_core import messages
from tgi_core.config import EngineConfig
from tgi_core.engine.process import EngineProcess
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.testing.tiny import VOCABULARY

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
        socket_dir = tmp_path / f"sockets{len(fronts)}"
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


def test_what_was_loaded_is_not_looked_at_by_collections(checkpoint):
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    process = EngineProcess(inbox, outbox, give_up=pytest.fail)
    process._progress = lambda *_: None
    gc.unfreeze()  # what tests before this one have loaded
    try:
        process.load(EngineConfig(model_id=str(checkpoint), device="cpu"))
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        context.destroy(linger=0)


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


# ---- several ranks --------------------------------------------------------------------------------------------------

DIVIDED = {"num_shard": 2, "dtype": "float32", "max_batch_prefill_tokens": 16}


def ranks_of(front):
    """The processes that the engine has started."""
    return psutil.Process(front.process.pid).children()


def folder_of(rank):
    """Where it met the others."""
    return Path(rank.cmdline()[-1].removeprefix("file://")).parent


def answers(front):
    """What requests that join and leave at different steps are given."""
    front.receive(messages.Ready)
    found = {}
    for number in range(1, 7):
        params = SamplingParams(max_new_tokens=3 * number, ignore_eos=True, do_sample=number % 2 == 0, seed=number)
        prompt = [(number * j + 5) % VOCABULARY for j in range(9 * number)]
        front.send(messages.Add(Request(id=number, prompt_ids=prompt, params=params)))
        if number == 3:
            front.send(messages.Add(Request(id=99, prompt_ids=prompt, params=SamplingParams(max_new_tokens=200))))
        if number == 4:
            front.send(messages.Abort([99]))
        if number % 2 == 0:  # the rest of those before and after run beside it
            gather(front, found, until=number - 1)
    gather(front, found, until=6)
    gather(front, found, until=5)
    return {number: tokens for number, (tokens, _) in sorted(found.items()) if number != 99}


def gather(front, found, until):
    while not found.get(until, ([], ""))[1]:
        for output in front.receive(messages.StepDone).outputs:
            tokens, _ = found.get(output.request_id, ([], ""))
            assert not output.error
            found[output.request_id] = (tokens + output.token_ids, output.finish_reason)


def test_requests_join_and_leave_two_ranks_as_one(start, checkpoint):
    one, two = (start(model_id=str(checkpoint), **DIVIDED | {"num_shard": ranks}) for ranks in (1, 2))
    expected = answers(one)
    assert [len(tokens) for tokens in expected.values()] == [3, 6, 9, 12, 15, 18]
    assert answers(two) == expected
    (rank,) = ranks_of(two)
    two.send(messages.Shutdown())
    assert two.process.wait(PATIENCE_S) == 0
    assert not rank.is_running()


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_killed_rank_ends_the_engine_with_its_name(start, checkpoint, is_busy):
    front = start(model_id=str(checkpoint), **DIVIDED)
    ready = front.receive(messages.Ready)
    assert ready.info.num_shard == 2
    if is_busy:
        front.send(
            messages.Add(Request(id=1, prompt_ids=[5], params=SamplingParams(max_new_tokens=200, ignore_eos=True)))
        )
        assert not front.receive(messages.StepDone).outputs[0].error
    (rank,) = ranks_of(front)
    folder = folder_of(rank)
    rank.kill()
    failed = front.receive(messages.Failed)
    assert failed.kind == "RankLost"
    assert "rank 1 of 2 was killed by SIGKILL" in failed.error
    assert front.process.wait(PATIENCE_S) == 1
    assert not folder.exists()


@pytest.mark.slow
def test_an_engine_that_waits_for_a_rank_that_is_gone_ends(start, checkpoint):
    front = start(model_id=str(checkpoint), **DIVIDED | {"num_shard": 4})
    front.receive(messages.Ready)
    silent, *others = ranks_of(front)
    silent.suspend()  # so that rank 0 waits for it
    front.send(messages.Add(Request(id=1, prompt_ids=[5], params=SamplingParams(max_new_tokens=200, ignore_eos=True))))
    front.receive(messages.Heartbeat, lambda message: message.step_started_at > 0)
    others[0].kill()
    assert "was killed by SIGKILL" in front.receive(messages.Failed).error
    assert front.process.wait(PATIENCE_S) == 1
    silent.resume()
    assert not psutil.wait_procs([silent, *others], timeout=20)[1]


def test_the_end_of_an_engine_is_the_end_of_its_ranks(start, checkpoint):
    front = start(model_id=str(checkpoint), **DIVIDED)
    front.receive(messages.Ready)
    ranks = ranks_of(front)
    folder = folder_of(ranks[0])
    front.process.kill()
    assert not psutil.wait_procs(ranks, timeout=20)[1]
    assert not folder.exists()


def test_what_cannot_be_divided_is_reported(start, checkpoint):
    front = start(model_id=str(checkpoint), num_shard=3)
    assert "4 attention heads cannot be divided by 3 devices" in front.receive(messages.Failed).error
    assert front.process.wait(PATIENCE_S) == 1
