"""A running server over the scripted engine, on a loopback port, with its insides at hand."""

import asyncio
import contextlib
import json
import os
import threading
from functools import partial

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tgi_core.tokenizer.tokenizer import load_tokenizer
from tgi_core.weights.source import resolve_model
from tgi_server.engine_process import EngineProcess
from tgi_server.launch import listen
from tgi_server.serving import Serving
from tgi_server.settings import engine_config, load_settings

ENGINE = "tgi_core.testing.scripted_engine"
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A byte-level tokenizer (id = 2 + rank of the byte) and a configuration, but no weights."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, **{char: 2 + i for i, char in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder):
    return load_tokenizer(resolve_model(str(model_folder), download_weights=False))


class Running:
    """A server in a thread."""

    def __init__(self, folder, script, flags):
        arguments = ["--model-id", str(folder), "--hostname", "127.0.0.1", "--port", "0", *flags]
        self.loaded = load_settings(arguments, {})
        listener = listen(self.loaded.settings)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.script = script
        config = engine_config(self.loaded.settings)
        self.status = None
        self._spawn = partial(self._spawn_engine, config)
        self._listener = listener
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def _spawn_engine(self, config):
        os.environ["TGI_SCRIPT"] = json.dumps(self.script)
        return EngineProcess(config, ENGINE)

    async def _run(self):
        self.loop = asyncio.get_running_loop()
        self.serving = Serving(self.loaded, self._listener, self._spawn(), self._spawn)
        self._is_up.set()
        self.status = await self.serving.run()

    @property
    def service(self):
        return self.serving.service

    @property
    def supervisor(self):
        return self.serving.supervisor

    def start(self):
        self._thread.start()
        self._is_up.wait(10)

    def wait_for(self, state, timeout=10):
        wait_until(lambda: self.service.state == state, timeout)

    def stop(self):
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.serving.stop)
        self._thread.join(30)

    def client(self, **kwargs):
        return httpx.Client(base_url=self.url, timeout=20, **kwargs)


def wait_until(condition, timeout=10):
    import time

    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def serve(model_folder, tokenizer):
    """`with serve({"steps_per_s": 10}, "--max-best-of", "3") as server:` starts one and waits until it is ready."""

    @contextlib.contextmanager
    def start(script=None, *flags, text="Hello wörld! ", until="ready"):
        facts = {
            "token_ids": tokenizer.encode(text, add_special_tokens=False),
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_token_ids[0],
        }
        server = Running(model_folder, facts | (script or {}), flags)
        server.start()
        try:
            if until:
                server.wait_for(until)
            yield server
        finally:
            server.stop()

    return start


def events(response):
    """The JSON of every `data:` line, `[DONE]` as text."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture(name="events")
def events_fixture():
    return events


@pytest.fixture(name="wait_until")
def wait_until_fixture():
    return wait_until
