"""When a sequence ends by itself.  Stop strings are looked for where text is made, and end it by abort."""

from __future__ import annotations

from tgi_core.sampling_params import SamplingParams


class FinishRule:
    """Order as TGI's: length, then end of sequence, then stop ids.

    Args:
        eos_token_ids: of the model's generation config.
    """

    def __init__(self, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self.eos_token_ids = eos_token_ids

    def reason(self, params: SamplingParams, token_id: int, generated: int) -> str:
        """The finish reason after `token_id`, the output's `generated`-th token; "" to go on."""
        if generated >= params.max_new_tokens:
            return "length"
        if generated < params.min_new_tokens:
            return ""
        if token_id in self.eos_token_ids and not params.ignore_eos:
            return "eos_token"
        return "stop_sequence" if token_id in params.stop_token_ids else ""
