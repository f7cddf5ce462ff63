"""What requests may ask of a device that cannot do all."""

import pytest

from tgi_core.errors import InvalidRequest
from tgi_core.request import Request
from tgi_core.sampling_params import SamplingParams
from tgi_core.scheduler.limits import Limits

LIMITS = Limits(
    max_input_tokens=8,
    max_total_tokens=16,
    max_batch_prefill_tokens=8,
    max_batch_size=2,
    vocab_size=100,
    refused_parameters={"logprobs": "it gives tokens only", "seed": "it draws by itself", "logit_bias": "no logits"},
    max_top_k=50,
)


def check(**params):
    LIMITS.check(Request(id=1, prompt_ids=[1], params=SamplingParams(max_new_tokens=2, **params)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": True}, "`logprobs` is not supported here: it gives tokens only"),
        ({"logit_bias": {1: 2.0}}, "`logit_bias` is not supported here: no logits"),
        ({"seed": 1, "do_sample": True}, "`seed` is not supported here: it draws by itself"),
        ({"top_k": 51, "do_sample": True}, "`top_k` must be <= 50 on this device. Given: 51"),
    ],
)
def test_what_a_device_cannot_do_is_refused_with_its_reason(params, message):
    with pytest.raises(InvalidRequest, match=message):
        check(**params)


def test_what_it_can_do_is_not():
    check(do_sample=True, top_k=50, temperature=2.0)
    check(seed=1, top_k=51)  # where the most likely token is taken, both mean nothing
