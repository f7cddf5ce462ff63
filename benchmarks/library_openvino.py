"""Drives OpenVINO GenAI, a library, for serving.py: runs in its environment, and talks JSON lines.

A line in: `{"prompts": [text, ...], "new_tokens": n}`; they come at once, as users' messages, and do not stop early.
A line out: for each prompt `[sent, first token, last token, tokens]`, in seconds of the clock that all processes share.
"""

from __future__ import annotations

import json
import sys
import time

import openvino_genai

CACHE_GIB = 1


class Library:
    """A model in this very process."""

    def __init__(self, model: str, threads: int) -> None:
        schedule = openvino_genai.SchedulerConfig()
        schedule.cache_size, schedule.enable_prefix_caching, schedule.max_num_seqs = CACHE_GIB, True, 16
        properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, schedule, "CPU", properties)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.requests = 0

    def run(self, prompts: list[str], new_tokens: int) -> list[tuple[float, float, float, int]]:
        """When each was sent, began and ended, and its tokens."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = new_tokens, False, True
        sent, handles = time.perf_counter(), []
        for prompt in prompts:
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], True)
            self.requests += 1
            handles.append(self.pipeline.add_request(self.requests, text, config))
        first, last, tokens = [0.0] * len(handles), [0.0] * len(handles), [0] * len(handles)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    last[i] = time.perf_counter()
                    first[i] = first[i] or last[i]
                    tokens[i] += sum(len(output.generated_ids) for output in handle.read().values())
        return [(sent, *row) for row in zip(first, last, tokens, strict=True)]


def main() -> None:
    """Answer until standard input ends."""
    library = Library(sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(library.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
