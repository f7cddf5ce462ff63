"""Each kernel that is offered for the device against the reference on the host, in every dtype of the device."""

import pytest
import torch

from tgi_core.kernels.ops import Frequencies, GatedLinearKernel, LateFrequencies, Penalties, TokenTables
from tgi_core.kernels.reference.activation import silu_and_mul
from tgi_core.kernels.reference.affine import encode
from tgi_core.kernels.reference.linear import linear as plain_linear
from tgi_core.plugins.specs import resolve
from tgi_core.testing.vendor import reference_of

#: of the norm of what is wrong to that of what is right
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
QUANTISED_TOLERANCE = 2e-2  #: of products, whose inputs a kernel may round too
VOCABULARY = 5000
LINEAR = ("linear", "linear_int8", "linear_int4")


class Draw:
    """Random tensors of one dtype."""

    def __init__(self, dtype):
        self.dtype = getattr(torch, dtype)

    def __call__(self, *shape, dtype=None, scale=1.0):
        return (torch.randn(shape) * scale).to(dtype or self.dtype)


def norms(draw, biased, adds):
    for shape in ((1, 64), (7, 100), (3, 2048), *(() if adds else ((5, 4, 64),))):
        residual = [draw(*shape)] if adds else []
        bias = [draw(shape[-1])] if biased else []
        yield (draw(*shape), *residual, draw(shape[-1]), *bias, 1e-5)
        if biased:
            yield (draw(*shape), *residual, draw(shape[-1]), None, 1e-5)


def tables(draw):
    for count, *sizes in ((1, 1), (9, 64), (500, 4100), (300,)):
        for rows in (1, 40):
            yield draw(count, *sizes), torch.randint(0, count, (rows,))
    yield torch.arange(70), torch.randint(0, 70, (5,))


def turns(draw):
    """Of positions from the first one to those of the longest contexts."""
    for size, factor, first in ((4, 1.0, None), (64, 1.0, None), (80, 1.5, 4096)):
        inverse, later = (theta ** (-torch.arange(0, size, 2) / size) for theta in (1e4, 5e5))
        late = first and LateFrequencies(first, later)
        positions = torch.cat([torch.arange(5), torch.tensor([4095, 4096, 100_000, 1_000_000])])
        yield positions, Frequencies(inverse, factor, late)


def rotations(draw):
    for tokens, heads, kv_heads, size, rotated in ((1, 4, 4, 64, 64), (9, 6, 2, 80, 32), (3, 1, 1, 128, 128)):
        angles = draw(tokens, rotated // 2, dtype=torch.float32)
        yield draw(tokens, heads, size), draw(tokens, kv_heads, size), angles.cos(), angles.sin()


def activations(draw):
    for shape in ((1, 2), (3, 200), (17, 2816)):
        yield (draw(*shape, scale=3.0),)


def logits(draw, of=lambda x: ()):
    """Also what `of` makes of them."""
    for rows, size in ((1, 7), (5, VOCABULARY)):
        x = draw(rows, size, dtype=torch.float32, scale=4.0)
        yield x, *of(x)


def counts(x):
    return (torch.randint(1, x.shape[1] + 1, (len(x),)),)


def shares(x):
    """Halfway between two sums that tokens reach, the likeliest first, as a kernel's rounding may differ."""
    reached = torch.nn.functional.pad(x.double().softmax(-1).sort(descending=True).values.cumsum(-1), (1, 0))
    last = (reached[:, 1:] < 0.95 * torch.rand(len(x), 1)).sum(-1, keepdim=True)
    return (reached.gather(1, torch.cat([last, last + 1], dim=1)).mean(1).float(),)


def penalties(draw):
    for rows, size in ((1, 7), (5, VOCABULARY)):
        tables = TokenTables(*(torch.randint(0, 3, (rows + 2, size), dtype=torch.int32) for _ in range(2)))
        slots = torch.randperm(rows + 2)[:rows]
        strengths = Penalties(torch.rand(rows) + 0.5, torch.randn(rows), torch.randn(rows))
        yield draw(rows, size, dtype=torch.float32, scale=4.0), tables, slots, strengths


def scores_of_experts(draw):
    for tokens, experts, each, sums_to_one in ((1, 8, 2, True), (9, 60, 4, False), (5, 7, 7, True)):
        yield draw(tokens, experts, scale=2.0), each, sums_to_one


def bitmasks(draw):
    for rows, size in ((1, 7), (5, VOCABULARY)):
        allowed = torch.randint(-(2**31), 2**31, (rows, -(-size // 32)))
        yield draw(rows, size, dtype=torch.float32), allowed.int()


CASES = {
    "rms_norm": lambda draw: norms(draw, biased=False, adds=False),
    "add_rms_norm": lambda draw: norms(draw, biased=False, adds=True),
    "layer_norm": lambda draw: norms(draw, biased=True, adds=False),
    "add_layer_norm": lambda draw: norms(draw, biased=True, adds=True),
    "look_up": tables,
    "angles": turns,
    "rotary": rotations,
    **dict.fromkeys(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh"), activations),
    "greedy": logits,
    "top_k": lambda draw: logits(draw, counts),
    "top_p": lambda draw: logits(draw, shares),
    "penalize": penalties,
    "apply_bitmask": bitmasks,
    "choose_experts": scores_of_experts,
}


def to(value, device):
    """A copy on a device, of tensors in any nest of tuples."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, tuple):
        parts = [to(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def parts_of(value):
    return value if isinstance(value, tuple) else (value,)


def assert_near(found, expected, tolerance):
    found, expected = found.cpu().double(), expected.double()
    assert found.shape == expected.shape
    hidden = expected.isinf()
    assert torch.equal(found.isinf(), hidden), "not the same logits are hidden"
    error = (found - expected)[~hidden].norm() / expected[~hidden].norm().clamp(min=1e-30)
    assert error < tolerance, f"{error:.2e} wrong, more than {tolerance:.0e}"


def serving(vendor, kernel, dtype):
    """The kernel, or a skip with its reason."""
    if reason := vendor.why_not(kernel, vendor.query(dtype)):
        pytest.skip(reason)
    return resolve(kernel.target)


@pytest.mark.ops(*CASES)
def test_gives_the_numbers_of_the_reference(vendor, kernel, dtype):
    function, reference = serving(vendor, kernel, dtype), reference_of(vendor.plugins, kernel.op)
    for case in CASES[kernel.op](Draw(dtype)):
        expected = parts_of(reference(*to(case, "cpu")))
        found = parts_of(function(*to(case, vendor.backend.torch_device)))
        for one, other in zip(found, expected, strict=True):
            if other.is_floating_point():
                assert_near(one, other, TOLERANCE["float32" if other.dtype == torch.float32 else dtype])
            else:
                assert torch.equal(one.cpu(), other)


@pytest.mark.ops(*LINEAR)
def test_multiplies_as_the_reference(vendor, kernel, dtype):
    function, reference = serving(vendor, kernel, dtype), reference_of(vendor.plugins, kernel.op)
    draw, device = Draw(dtype), vendor.backend.torch_device
    for outputs, inputs in ((64, 64), (160, 96), (33, 1000), (512, 2048)):
        weight, bias = draw(outputs, inputs, scale=inputs**-0.5), draw(outputs)
        packed, expected_packed = function.pack(weight.to(device)), reference.pack(weight.float())
        for rows in (1, 3, 40):
            x = draw(rows, inputs)
            for added in (None, bias):
                expected = reference(x.float(), expected_packed, added if added is None else added.float())
                found = function(x.to(device), packed, added if added is None else added.to(device))
                assert found.dtype == x.dtype
                tolerance = TOLERANCE[dtype] if kernel.op == "linear" else QUANTISED_TOLERANCE
                assert_near(found, expected, tolerance)


@pytest.mark.ops(*LINEAR)
def test_does_not_keep_the_weight_that_it_packed(vendor, kernel, dtype):
    function, draw, device = serving(vendor, kernel, dtype), Draw(dtype), vendor.backend.torch_device
    weight, x = draw(64, 96).to(device), draw(2, 96).to(device)
    packed = function.pack(weight)
    before = function(x, packed, None).clone()
    weight.zero_()
    assert torch.equal(function(x, packed, None), before)


@pytest.mark.ops("linear_affine")
@pytest.mark.parametrize("group", [32, 128, 1024])
@pytest.mark.parametrize("order", ["in order", "any order"])
def test_multiplies_weights_as_a_checkpoint_stores_them(vendor, kernel, dtype, group, order):
    function, draw, device = serving(vendor, kernel, dtype), Draw(dtype), vendor.backend.torch_device
    outputs, inputs = 96, 1024
    groups = torch.arange(inputs) // group
    groups = groups if order == "in order" else groups[torch.randperm(inputs)]
    zeros = torch.randint(1, 16, (outputs, inputs // group)).int()[:, groups]
    scales = (draw(outputs, inputs // group, dtype=torch.float32) * 0.01).half()[:, groups]
    levels = torch.randint(0, 16, (outputs, inputs)).int()
    codes = encode(levels, zeros, scales)
    packed = function.pack(codes.to(device))
    weight = ((levels - zeros) * scales.double()).float()
    for rows in (1, 3, 40, 300):
        x, bias = draw(rows, inputs), draw(outputs)
        expected = torch.nn.functional.linear(x.float(), weight, bias.float())
        assert_near(function(x.to(device), packed, bias.to(device)), expected, TOLERANCE[dtype])


@pytest.mark.ops("linear")
@pytest.mark.parametrize("activation", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
def test_multiplies_and_activates_as_one_after_the_other(vendor, kernel, dtype, activation):
    function, draw, device = serving(vendor, kernel, dtype), Draw(dtype), vendor.backend.torch_device
    if not isinstance(function, GatedLinearKernel):
        pytest.skip("writes gate and up to memory")
    activate = reference_of(vendor.plugins, activation)
    for outputs, inputs in ((48, 64), (512, 1000)):
        weight = draw(2 * outputs, inputs, scale=inputs**-0.5)
        packed = function.pack(weight.to(device))
        for rows in (1, 3, 40, 70):
            x = draw(rows, inputs)
            found = function.gated(x.to(device), packed, None, activate)
            assert_near(found, activate(torch.nn.functional.linear(x, weight)), 2 * TOLERANCE[dtype])


@pytest.mark.ops("experts")
def test_mixes_experts_as_the_reference(vendor, kernel, dtype):
    make, reference = serving(vendor, kernel, dtype), reference_of(vendor.plugins, "experts")
    draw, device = Draw(dtype), vendor.backend.torch_device
    experts, each, hidden, size = 6, 2, 64, 48
    gate_up = [draw(2 * size, hidden, scale=hidden**-0.5) for _ in range(experts)]
    down = [draw(hidden, size, scale=size**-0.5) for _ in range(experts)]
    layer = make(plain_linear, silu_and_mul, *([w.to(device) for w in part] for part in (gate_up, down)))
    expected = reference(plain_linear, silu_and_mul, gate_up, down)
    for tokens in (1, 5, 100):
        x = draw(tokens, hidden)
        chosen = torch.stack([torch.randperm(experts)[:each] for _ in range(tokens)])
        weights = torch.rand(tokens, each)
        found = layer(*(t.to(device) for t in (x, chosen, weights)))
        assert_near(found, expected(x, chosen, weights), 2 * TOLERANCE[dtype])


@pytest.mark.ops("sample")
def test_samples_where_the_distribution_says(vendor, kernel, dtype):
    function, draw = serving(vendor, kernel, dtype), Draw(dtype)
    for rows, size in ((1, 7), (6, VOCABULARY)):
        x = draw(rows, size, dtype=torch.float32, scale=4.0)
        at = torch.linspace(0.0, 0.999, rows, dtype=torch.float64)
        at[-1] = -1.0 if rows > 1 else at[-1]
        ids, logprobs, totals = (t.cpu() for t in function(*(to(t, vendor.backend.torch_device) for t in (x, at))))
        probabilities = x.double().softmax(-1)
        below = probabilities.cumsum(-1).gather(1, ids[:, None])[:, 0]
        own = probabilities.gather(1, ids[:, None])[:, 0]
        for row in range(rows):
            if at[row] < 0:
                assert ids[row] == x[row].argmax()
            else:
                assert below[row] - own[row] - 1e-5 <= at[row] <= below[row] + 1e-5
        assert_near(logprobs, own.log(), 1e-4)
        assert_near(totals, x.double().logsumexp(-1), 1e-5)


@pytest.mark.ops("apply_bitmask")
def test_refuses_masks_that_lack_bits(vendor, kernel, dtype):
    function, device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    with pytest.raises(ValueError, match="mask"):
        function(torch.zeros(2, 64, device=device), torch.zeros(2, 1, dtype=torch.int32, device=device))


@pytest.mark.ops("greedy", "sample")
def test_says_that_logits_are_not_numbers(vendor, kernel, dtype):
    function, device = serving(vendor, kernel, dtype), vendor.backend.torch_device
    x = Draw("float32")(3, 50)
    x[1, 7] = float("nan")
    more = () if kernel.op == "greedy" else (torch.full((3,), 0.5, dtype=torch.float64).to(device),)
    ids, logprobs, *_ = function(x.to(device), *more)
    assert logprobs.isnan().tolist() == [False, True, False]
    assert ((ids >= 0) & (ids < 50)).all()
