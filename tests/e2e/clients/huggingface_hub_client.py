"""`huggingface_hub`, sync and async, against a running server: `python huggingface_hub_client.py URL`."""

import asyncio
import sys

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def check(condition, what):
    if not condition:
        raise SystemExit(f"failed: {what}")


def check_sync(url):
    client = InferenceClient(model=url)
    chat_client = InferenceClient(base_url=url + "/v1", api_key="-")
    endpoint = InferenceClient(model=url, provider="hf-inference", api_key="-")
    check(endpoint.health_check(), "health_check")
    check(endpoint.get_endpoint_info()["max_total_tokens"] > 0, "get_endpoint_info")
    text = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    check(isinstance(text, str) and text, "text_generation gives text")
    full = client.text_generation(PROMPT, max_new_tokens=8, details=True, return_full_text=True)
    check(full.generated_text == PROMPT + text, "the full text is prompt and text")
    check(full.details.generated_tokens == len(full.details.tokens) == 8, "details count the tokens")
    check(full.details.finish_reason == "length", "finish_reason")
    pieces = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True, return_full_text=False))
    check("".join(pieces) == text, "a stream is the text")
    events = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True))
    check(events[-1].details.input_length > 0, "the last event has details")
    check(events[-1].generated_text.endswith(text), "the last event has the text")
    best = client.text_generation(
        PROMPT, max_new_tokens=4, do_sample=True, best_of=2, top_n_tokens=2, decoder_input_details=True, details=True
    )
    check(len(best.details.best_of_sequences) == 1, "best_of")
    check([len(top) for top in best.details.top_tokens] == [2] * best.details.generated_tokens, "top_n_tokens")
    try:
        client.text_generation(PROMPT, temperature=-1.0)
        check(False, "a wrong temperature is refused")
    except ValidationError as error:
        check("temperature" in str(error), "the refusal names the field")
    answer = chat_client.chat_completion(MESSAGES, max_tokens=8, temperature=0)
    check(answer.usage.completion_tokens <= 8, "usage of a chat")
    chunks = list(chat_client.chat_completion(MESSAGES, max_tokens=8, temperature=0, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    check(streamed == answer.choices[0].message.content, "a streamed chat is the answer")
    check(chunks[-1].choices[0].finish_reason in ("stop", "length"), "a stream ends with a reason")
    return text


async def check_async(url, text):
    async with AsyncInferenceClient(model=url) as client:
        check(
            await client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False) == text,
            "the async client gets the same text",
        )
        pieces = [
            piece
            async for piece in await client.text_generation(
                PROMPT, max_new_tokens=8, stream=True, return_full_text=False
            )
        ]
        check("".join(pieces) == text, "an async stream is the text")
    async with AsyncInferenceClient(base_url=url + "/v1", api_key="-") as client:
        answer = await client.chat_completion(MESSAGES, max_tokens=8, temperature=0)
        stream = await client.chat_completion(MESSAGES, max_tokens=8, temperature=0, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        check(streamed == answer.choices[0].message.content, "an async streamed chat is the answer")


if __name__ == "__main__":
    asyncio.run(check_async(sys.argv[1], check_sync(sys.argv[1])))
