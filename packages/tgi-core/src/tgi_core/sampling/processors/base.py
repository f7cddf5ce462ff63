"""The interface of a logits processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from tgi_core.sampling.state import SamplingContext, SlotState
from tgi_core.sampling_params import SamplingParams


class LogitsProcessor(ABC):
    """Changes the rows of a batch that want it.

    Built once per composition of the batch, then called each step; what changes from step to step is in `states`.
    """

    #: what a row becomes is, bit by bit, the same in every batch; others are given one row where that is asked for
    batch_invariant: ClassVar[bool] = False

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        self.states, self.context = states, context

    @classmethod
    @abstractmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        """Whether a request uses this processor."""

    @abstractmethod
    def __call__(self, logits: Tensor) -> Tensor:
        """logits [rows, V] float32, one row per state -> the same; may be overwritten."""

    def column(self, value: Callable[[SamplingParams], float], dtype: torch.dtype = torch.float32) -> Tensor:
        """One parameter of all rows: [rows, 1]."""
        return self.upload([value(state.params) for state in self.states], dtype).unsqueeze(1)

    def upload(self, values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        """Numbers on the device, which is not waited for."""
        return self.context.upload(torch.tensor(values, dtype=dtype).numpy())

    @cached_property
    def slots(self) -> Tensor:
        """The slots of all rows: [rows]."""
        return self.upload([state.slot for state in self.states])

    @cached_property
    def hidden(self) -> Tensor:
        """The logit of a token that cannot be chosen, where an operator takes no plain number: []."""
        return torch.full((), float("-inf"), device=self.context.device)


class ParameterProcessor(LogitsProcessor):
    """A processor with one number per row."""

    parameter: ClassVar[str]  #: field of SamplingParams
    neutral: ClassVar[float]  #: its value that changes nothing

    def __init__(self, states: Sequence[SlotState], context: SamplingContext) -> None:
        super().__init__(states, context)
        self.values = self.column(self.value)

    @classmethod
    def value(cls, params: SamplingParams) -> Any:
        """The number of one request."""
        return getattr(params, cls.parameter)

    @classmethod
    def wanted(cls, params: SamplingParams, context: SamplingContext) -> bool:
        return bool(cls.value(params) != cls.neutral)
