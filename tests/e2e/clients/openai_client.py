"""`openai`, sync and async, against a running server: `python openai_client.py URL`."""

import asyncio
import sys

import openai

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def check(condition, what):
    if not condition:
        raise SystemExit(f"failed: {what}")


def check_sync(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="-", max_retries=0)
    [model] = client.models.list().data
    check(client.models.retrieve(model.id).id == model.id, "the model is found by its id")
    answer = client.chat.completions.create(
        model=model.id, messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    [choice] = answer.choices
    check(choice.finish_reason in ("stop", "length"), "finish_reason")
    check(len(choice.logprobs.content) == answer.usage.completion_tokens, "a log-probability per token")
    if choice.finish_reason == "length":
        joined = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        check(joined.decode().startswith(choice.message.content), "the bytes of the tokens are the message")
    chunks = list(
        client.chat.completions.create(
            model=model.id,
            messages=MESSAGES,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    check(chunks[-1].choices == [], "the last chunk has no choices")
    check(chunks[-1].usage.total_tokens == answer.usage.total_tokens, "the last chunk has the usage")
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    check(streamed == choice.message.content, "a stream is the answer")
    several = client.chat.completions.create(model=model.id, messages=MESSAGES, max_tokens=4, n=3, seed=1, top_p=1)
    check([c.index for c in several.choices] == [0, 1, 2], "several choices")
    again = client.chat.completions.create(model=model.id, messages=MESSAGES, max_tokens=4, n=3, seed=1, top_p=1)
    same = [a.message.content == b.message.content for a, b in zip(several.choices, again.choices, strict=True)]
    check(all(same), "a seed gives the same texts")
    text = client.completions.create(model=model.id, prompt="The capital of France is", max_tokens=8, temperature=0)
    pieces = client.completions.create(
        model=model.id, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
    )
    check("".join(piece.choices[0].text for piece in pieces) == text.choices[0].text, "a streamed completion")
    scored = client.completions.create(model=model.id, prompt="Paris is", max_tokens=1, echo=True, logprobs=1)
    table = scored.choices[0].logprobs
    check(table.token_logprobs[0] is None or table.token_logprobs[0] <= 0, "the first prompt token")
    check(all(value <= 0 for value in table.token_logprobs[1:]), "the prompt is scored")
    ids = client.completions.create(model=model.id, prompt=[[5, 6, 7]], max_tokens=1, echo=True, logprobs=2)
    check(len(ids.choices[0].logprobs.tokens) == 4, "a prompt of ids is echoed with its tokens")
    try:
        client.models.retrieve("nobody/nothing")
        check(False, "an unknown model is refused")
    except openai.NotFoundError as error:
        check(error.code == "model_not_found", "the refusal has a code")
    try:
        client.chat.completions.create(model=model.id, messages=MESSAGES, temperature=-1)
        check(False, "a wrong temperature is refused")
    except openai.APIStatusError as error:
        check("temperature" in error.message and error.type == "invalid_request_error", "the refusal says why")


async def check_async(url):
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="-", max_retries=0) as client:
        requests = [
            client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8, temperature=0) for _ in range(4)
        ]
        answers = await asyncio.gather(*requests)
        check(len({answer.choices[0].message.content for answer in answers}) == 1, "equal requests, equal answers")


if __name__ == "__main__":
    check_sync(sys.argv[1])
    asyncio.run(check_async(sys.argv[1]))
