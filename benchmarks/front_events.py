"""How many stream events the front sends per second, with a scripted engine in place of a model.

    python benchmarks/front_events.py --streams 64 --tokens 500

The client runs in a process of its own and only counts.  `per core` divides by the share of one core that the front
used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SERVE = """
import sys
from tgi_server.launch import launch
from tgi_server.settings import load_settings
launch(load_settings(sys.argv[1:], {}), engine_module="tgi_core.testing.scripted_engine")
"""


def write_model(folder: Path) -> list[int]:
    """A tokenizer of single bytes; the ids of a text to emit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {"</s>": 0, **{char: 1 + i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return list(tokenizer.encode("The quick brown fox jumps over the lazy dog. ").ids)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def read_stream(port: int, path: str, body: bytes) -> int:
    """Run one request to its end; how many events came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    count = 0
    while chunk := await reader.read(65536):
        count += chunk.count(b"data: ")
    writer.close()
    return count


async def run_streams(port: int, path: str, body: bytes, streams: int) -> tuple[int, float]:
    """All streams at once; events and seconds."""
    started_at = time.perf_counter()
    counts = await asyncio.gather(*(read_stream(port, path, body) for _ in range(streams)))
    return sum(counts), time.perf_counter() - started_at


def main() -> None:
    """Start the server, run each route, print a line per route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--steps-per-s", type=float, default=0, help="of the engine; 0: as fast as it can")
    options = parser.parse_args()
    import uvloop

    with tempfile.TemporaryDirectory() as folder:
        ids = write_model(Path(folder))
        script = {"token_ids": ids, "vocab_size": 257, "steps_per_s": options.steps_per_s, "max_total_tokens": 10**6}
        flags = ["--model-id", folder, "--hostname", "127.0.0.1", "--port", "0", "--json-output"]
        flags += ["--max-concurrent-requests", str(options.streams)]
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *flags],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TGI_SCRIPT": json.dumps(script), "LOG_LEVEL": "info"},
        )
        try:
            lines = map(json.loads, process.stdout or ())
            ready = next(line for line in lines if line["message"] == "Ready")
            threading.Thread(target=list, args=(lines,), daemon=True).start()  # else its log fills the pipe
            port = int(ready["url"].rsplit(":", 1)[1])
            for path, body in requests(options.tokens):
                used = cpu_seconds(process.pid)
                events, seconds = uvloop.run(run_streams(port, path, json.dumps(body).encode(), options.streams))
                used = cpu_seconds(process.pid) - used
                per_core = events / used
                print(
                    f"{path:24} {events:8} events in {seconds:6.2f} s: {events / seconds:8.0f} /s, "
                    f"front at {100 * used / seconds:3.0f} % of a core, {per_core:8.0f} /s per core"
                )
        finally:
            process.terminate()
            process.wait()


def requests(tokens: int) -> list[tuple[str, dict[str, object]]]:
    """The streaming routes and a body for each."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": True}
    return [
        ("/generate_stream", {"inputs": "hi", "parameters": {"max_new_tokens": tokens}}),
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": "hi", "max_tokens": tokens, "stream": True}),
    ]


if __name__ == "__main__":
    main()
