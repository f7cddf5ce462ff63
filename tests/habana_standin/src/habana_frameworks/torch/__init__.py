"""Stands in for Habana's software: the parts that optimum-habana and tgi-gaudi call, in the CPU's arithmetic.

Names and signatures are those of HabanaAI's gaudi-pytorch-bridge, which is public (Apache-2.0).
"""

import torch
from habana_standin.memory import take_over

take_over()

from . import operators, core, hpu, utils  # noqa: E402, F401, I001

torch.hpu = hpu
