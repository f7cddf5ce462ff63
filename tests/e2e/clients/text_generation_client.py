"""`text-generation`, TGI's own client, against a running server: `python text_generation_client.py URL`."""

import asyncio
import sys

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def check(condition, what):
    if not condition:
        raise SystemExit(f"failed: {what}")


def check_sync(url):
    client = Client(url, timeout=60)
    answer = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True)
    check(answer.generated_text, "generate gives text")
    check(answer.details.generated_tokens == len(answer.details.tokens), "details count the tokens")
    check(len(answer.details.prefill) > 0, "the prompt's tokens")
    sampled = client.generate(PROMPT, max_new_tokens=4, do_sample=True, best_of=2)
    check(len(sampled.details.best_of_sequences) == 1, "best_of")
    events = list(client.generate_stream(PROMPT, max_new_tokens=8))
    check("".join(event.token.text for event in events if not event.token.special) == answer.generated_text, "stream")
    check(events[-1].generated_text == answer.generated_text, "the last event has the text")
    try:
        client.generate(PROMPT, stop_sequences=["a"] * 9)
        check(False, "too many stop strings are refused")
    except ValidationError as error:
        check("stop" in str(error), "the refusal says why")
    chat = client.chat(messages=MESSAGES, max_tokens=8, temperature=0.0)
    check(chat.choices[0].message.content is not None, "chat")
    streamed = ""
    for chunk in client.chat(messages=MESSAGES, max_tokens=8, temperature=0.0, stream=True):
        streamed += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:
            break  # this client cannot read the [DONE] that follows
    check(streamed == chat.choices[0].message.content, "a streamed chat is the answer")
    return answer.generated_text


async def check_async(url, text):
    client = AsyncClient(url, timeout=60)
    check((await client.generate(PROMPT, max_new_tokens=8)).generated_text == text, "the async client gets the same")
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=8)]
    check(events[-1].generated_text == text, "an async stream")


if __name__ == "__main__":
    asyncio.run(check_async(sys.argv[1], check_sync(sys.argv[1])))
