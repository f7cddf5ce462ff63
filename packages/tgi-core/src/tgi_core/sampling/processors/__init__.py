"""Changes to logits before a token is chosen, in TGI's order: one file each, one line each here."""

from __future__ import annotations

from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling.processors.bias import LogitBias, MinimumLength
from tgi_core.sampling.processors.filters import MinP, TopK, TopP, TypicalP
from tgi_core.sampling.processors.penalties import FrequencyPenalty, PresencePenalty, RepetitionPenalty
from tgi_core.sampling.processors.temperature import Temperature
from tgi_core.sampling.processors.watermark import Watermark

#: order -> processor; 500 is the place of grammar masks
PROCESSORS: dict[int, type[LogitsProcessor]] = {
    100: Watermark,
    200: RepetitionPenalty,
    300: FrequencyPenalty,
    400: PresencePenalty,
    600: MinimumLength,
    700: LogitBias,
    800: Temperature,
    900: TopK,
    1000: TopP,
    1100: MinP,
    1200: TypicalP,
}
