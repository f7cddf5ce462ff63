"""Every kernel as it is compiled for a target: with the tiles that fit there, and with what changes its code."""

from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from tgi_core.triton import (
    activation,
    bitmask,
    chip,
    decode,
    expert_rows,
    expert_tiles,
    experts,
    filters,
    in_order,
    linear,
    linear_tiles,
    look_up,
    many_rows,
    norm,
    overlap,
    penalties,
    prefill,
    rotary,
    rounded,
    rounded_expert_rows,
    rounded_expert_tiles,
    rounded_experts,
    rounded_tiles,
    routing,
    sample,
    sorted_experts,
    store,
    sums,
    tiles,
)

SHARED = {
    "sm_75": 65536,
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "gfx90a": 65536,
    "gfx942": 65536,
}
MULTIPROCESSORS = 100
#: that a KV cache can be of
FLOAT8 = {
    "sm_75": (),
    "sm_80": ("fp8e5",),
    "sm_86": ("fp8e5",),
    "sm_89": ("fp8e5", "fp8e4nv"),
    "sm_90": ("fp8e5", "fp8e4nv"),
    "gfx90a": (),
    "gfx942": ("fp8e5", "fp8e4nv"),
}
#: sizes of heads, and what else an attention with such a cache has
FLOAT8_HEADS = ((80, {"HAS_WINDOW": True}), (128, {}))
POINTERS = {
    "keys", "values", "output", "out", "x", "weight", "bias", "residual", "q", "k", "v", "gate_up", "logits"
}  # fmt: skip
FLOATS = {"cos", "sin", "inverse", "late", "partial", "sums", "bests", "totals", "slopes", "logprobs", "tops", "masses"}
INTEGERS = {
    "tile_sequence", "tile_start", "tile_part", "tile_parts", "query_starts", "lens", "key_starts", "tables", "info",
    "members", "slots", "arrived", "firsts",
}  # fmt: skip
#: what the programs of tiles whose keys are not divided leave to none
OF_PARTS = ("partial", "bests", "totals", "arrived", "tile_part", "tile_parts")
FLOAT_VALUES = {"eps", "factor", "scale", "soft_cap"}
SUMS = {"inboxes": "*i64", "numbers": "*i32"}
TOTALS = dict.fromkeys(("logits", "totals", "repetition", "frequency", "presence"), "*fp32")  #: of sampling


def target_of(name):
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64)


def signature(kernel, constants, dtype, known):
    types = {}
    for parameter in kernel.params:
        name = parameter.name
        if name in known:
            types[name] = known[name]
        elif name in constants or parameter.is_constexpr:
            types[name] = "constexpr"
        elif name in INTEGERS:
            types[name] = "*i32"
        elif name in ("ids", "positions"):
            types[name] = "*i64"
        elif name in FLOATS or (name == "bias" and kernel is not norm._norm):
            types[name] = "*fp32"
        elif name in POINTERS:
            types[name] = f"*{dtype}"
        else:
            types[name] = "fp32" if name in FLOAT_VALUES else "i32"
    return types


class Variant(NamedTuple):
    """A kernel, and all that its code depends on."""

    kernel: Any
    constants: tuple[tuple[str, Any], ...]
    types: tuple[tuple[str, str], ...]
    warps: int
    stages: int
    contracts: bool

    @property
    def has_float8(self):
        return any("fp8" in kind for _, kind in self.types)


def variant(kernel, constants, target, dtype, warps=4, stages=3, known=(), *, contracts=True):
    constants = {**constants, "OVERLAP": target == f"sm_{overlap.FIRST_ARCHITECTURE}"}
    types = signature(kernel, constants, dtype, known)
    return Variant(kernel, tuple(constants.items()), tuple(types.items()), warps, stages, contracts)


def attention(target, dtype, size, cache=None, *, group=4, gathered=(), in_order_splits=(), **options):
    """Of decodes and of prompts; `gathered`: of keys that lie beside each other too, causal and not."""
    known = {"keys": f"*{cache}", "values": f"*{cache}"} if cache else {}
    padded = max(16, triton.next_power_of_2(size))
    flags = {"HAS_WINDOW": False, "HAS_SOFT_CAP": False, "HAS_SLOPES": False, "HAS_BIAS": False, **options}
    absent = {name for name, flag in (("slopes", "HAS_SLOPES"), ("bias", "HAS_BIAS")) if not flags[flag]}
    shape = {
        "H": 32,
        "HKV": 32 // group,
        "G": group,
        "P": group,
        "D": size,
        "DP": padded,
        "BLOCK_SIZE": 32,
        "WIDTH_AT": 0,
        "UPCAST": False,
    }
    shape |= {"q_token": 6144, "k_token": 6144, "v_token": 6144, "columns": 32, "origin": 31, "window": 64}
    copies = target == "sm_90"
    kinds = tiles.kinds(target_of(target).warp_size, copies=copies)
    itemsize, most_rows = (4, tiles.FLOAT32_ROWS) if dtype == "fp32" else (2, None)
    limits = padded, itemsize, SHARED[target]
    many, few, beside = (tiles.fitting(kind, *limits, most_rows) for kind in kinds[:3])
    rows = tiles.rows_of_decodes(shape["P"], target_of(target).warp_size)
    singles = [
        (tiles.fitting(kind.tiles, *limits, biased=flags["HAS_BIAS"])._replace(rows=rows), kind.early)
        for kind in (*kinds.decodes, *kinds.alone_of(padded * itemsize).decodes)
    ]
    alone = singles[len(kinds.decodes) :]
    is_plain = not (options or cache or dtype == "fp32")
    common = {**shape, **flags, **dict.fromkeys(absent)}
    decodes = dict.fromkeys(singles[::-1])
    if target.startswith("sm_") and not is_plain:  # registers are not looked at
        decodes = [max(singles, key=lambda one: (one[0].rows + 2 * one[0].keys * one[0].stages, one[1]))]
    for single, early in decodes:
        splits = 16 if single == singles[0][0] or (single, early) in alone else 1
        gone = dict.fromkeys(("partial", "sums") if splits == 1 else ())
        for half in (size // 2,) if options or cache else (0, size // 2):
            still = {} if half else {"cos": None, "sin": None}
            tile = {"M": single.rows, "N": single.keys, "S": splits, "HAS_NEW": True}
            tile |= {"HALF": half, "SETTLED": early and target == f"sm_{overlap.FIRST_ARCHITECTURE}"}
            constants = {**common, **gone, **still, **tile}
            yield variant(decode.decode, constants, target, dtype, single.warps, single.stages, known)
    for other in (1,) if options or cache else (1, 16):
        rows = tiles.rows_of_decodes(other, target_of(target).warp_size)
        heads = {"HKV": shape["H"] // other, "G": other, "P": other, "M": rows}
        yield variant(decode.decode, constants | heads, target, dtype, single.warps, single.stages, known)
    where = {"PAGED": True, "COPIED": False, "CAUSAL": True, "key_starts": None}
    parts = {"DIVIDED": False, **dict.fromkeys(OF_PARTS)}
    is_asked = target == "sm_90" or is_plain or (size == 256 and target != "sm_75")
    if target.startswith("sm_") and is_asked:  # AMD's keys are not divided
        constants = {**common, **where, "DIVIDED": True, "M": few.rows, "N": few.keys}
        yield variant(prefill.prefill, constants, target, dtype, few.warps, few.stages, known)
    constants = {**common, **where, **parts, "M": many.rows, "N": many.keys}
    yield variant(prefill.prefill, constants, target, dtype, many.warps, many.stages, known)
    tile = f"tensordesc<{dtype}[{beside.keys}, 1, {padded}]>"
    if target == "sm_75" and not options.keys() & {"HAS_SOFT_CAP", "HAS_SLOPES"}:
        gathered = [causal for causal in gathered if not causal]  # these prompts are PyTorch's
    for causal, copied in product(gathered, (True, False) if copies and is_plain else (copies,)):
        where = {"PAGED": False, "COPIED": copied, "CAUSAL": causal}
        read = dict.fromkeys(("keys", "values"), tile) if copied else ()
        constants = {**common, **where, **parts, "M": beside.rows, "N": beside.keys}
        yield variant(prefill.prefill, constants, target, dtype, beside.warps, beside.stages, read)
    if in_order_splits:
        yield from attention_in_order(target, dtype, common, itemsize, most_rows, known, in_order_splits)
    constants = {
        "window": 64,
        "H": 32,
        "D": size,
        "DP": padded,
        "N": single.keys,
        "S": 16,
        "HAS_WINDOW": flags["HAS_WINDOW"],
    }
    yield variant(decode.combine, constants, target, dtype, 2)


def attention_in_order(target, dtype, common, itemsize, most_rows, known, in_order_splits):
    tile = tiles.fitting_in_order(common["DP"], itemsize, SHARED[target], most_rows)
    common = {**common, "M": tile.rows, "N": tile.keys, "SPLIT": in_order.SPLIT, "PAGED": True, "CAUSAL": True}
    common["key_starts"] = None
    known = {**known, **dict.fromkeys(("bests", "totals"), "*fp32")}
    for splits in in_order_splits:
        gone = dict.fromkeys(("partial", "bests", "totals") if splits == 1 else ())
        constants = {**common, **gone, "S": splits}
        more = {name: kind for name, kind in known.items() if name not in gone}
        yield variant(
            in_order.attend_in_order, constants, target, dtype, tile.warps, tile.stages, more, contracts=False
        )
        if splits > 1:
            names = ("window", "H", "D", "DP", "S", "SPLIT", "CAUSAL", "HAS_WINDOW")
            combining = {name: constants[name] for name in names}
            yield variant(in_order.combine_in_order, combining, target, dtype, 2, known=known, contracts=False)


def sampling(target, size):
    """Of float32 logits, whatever the model's dtype."""
    warps = chip.ROW_LANES // target_of(target).warp_size
    rows = {"size": size, "row_stride": size}
    known = TOTALS | {"at": "*fp64", "slots": "*i64"} | dict.fromkeys(("in_prompt", "in_output"), "*i32")
    yield variant(sample._survey, {"BLOCK": sample.BLOCK, **rows}, target, "fp32", known=known)
    constants = {**sample.parts_of(size), "BLOCK": sample.BLOCK, **rows}
    yield variant(sample._draw, constants, target, "fp32", warps, known=known)
    yield variant(penalties._penalize, {"BLOCK": penalties.BLOCK, **rows}, target, "fp32", known=known)
    masked = {"words": triton.cdiv(size, bitmask.WORD), "WORD": bitmask.WORD, "BLOCK": bitmask.BLOCK, **rows}
    yield variant(bitmask._apply_bitmask, masked, target, "fp32", known=known | {"allowed": "*i32"})
    for by_mass, kind in ((True, "*fp32"), (False, "*i64")):
        constants = {**filters.CONSTANTS, "BY_MASS": by_mass, **rows}
        yield variant(filters._filter, constants, target, "fp32", warps, known=known | {"wanted": kind})


def products(target, dtype):
    """Of one row and of a few, with an activation and without."""
    whole = {"SPLITS": 1, "partial": None, "arrived": None, "UPCAST": False}
    few = slice(2) if dtype == "fp32" else slice(None)
    for kind in ("", "silu"):
        shape = {"M": 4096, "N": 4096, "KIND": kind, "HAS_BIAS": False, "bias": None}
        for outputs, inputs in ((4096, 4096), (576, 576), (6144, 2048), (28672, 4096))[few]:
            rows, columns, warps = linear_tiles.row_tile(outputs, inputs)
            lone = {**shape, "M": outputs, "N": inputs, "ROWS": rows // 2 if kind else rows, "COLUMNS": columns}
            yield variant(linear._row_product, lone, target, dtype, warps)
        for outputs in (4096, 576, 28672)[few]:
            rows, tile = linear_tiles.fixed_tile(outputs, 4 if dtype == "fp32" else 2, SHARED[target])
            fixed = {**shape, **whole, "x_row": 4096, "M": outputs, "ROWS": rows, "INPUTS": tile.inputs}
            fixed["OUTPUTS"] = tile.outputs // 2 if kind and tile.outputs > 16 else tile.outputs
            fixed["LATE"] = linear_tiles.is_late(outputs, 4096, kind)
            yield variant(linear._few_rows_product, fixed, target, dtype, tile.warps, tile.stages, {"rows": "i32"})
        if target == "sm_90" and dtype != "fp32":  # where few rows are not PyTorch's
            for outputs, inputs in ((2048, 2048), (576, 1536), (3072, 576), (896, 4864)):
                tile = linear_tiles.held_tile(linear_tiles.MOST_HELD, outputs, inputs)
                own = {**shape, "x_row": inputs, "M": outputs, "N": inputs, "EACH": linear_tiles.MOST_HELD}
                own |= {"COLUMNS": tile.columns, "WARPS": tile.warps, "UPCAST": False}
                own["ROWS"] = tile.rows // 2 if kind else tile.rows
                own["LATE"] = linear_tiles.is_held_late(outputs, inputs, kind)
                yield variant(linear._held_product, own, target, dtype, tile.warps, known={"rows": "i32"})
            for rows, outputs, inputs in (
                (16, 6144, 4096),
                (64, 4096, 4096),
                (32, 2560, 10240),
                (32, 2048, 5120),
                (64, 28672, 4096),
                (16, 576, 576),
                (16, 576, 1536),
                (32, 3072, 576),
                (64, 576, 576),
                (64, 576, 1536),
            ):
                tile = linear_tiles.tile_of(rows, outputs, inputs)
                tile = tile._replace(splits=1) if kind else tile
                types = {"rows": "i32"}
                own = {**shape, **whole, "x_row": inputs, "M": outputs, "N": inputs, "ROWS": rows}
                own |= {"OUTPUTS": tile.outputs // 2 if kind else tile.outputs, "INPUTS": tile.inputs}
                own["LATE"] = linear_tiles.is_late(outputs, inputs, kind)
                if tile.splits > 1:
                    own = {name: value for name, value in own.items() if name not in ("partial", "arrived")}
                    own, types = own | {"SPLITS": tile.splits}, types | {"partial": "*fp32", "arrived": "*i32"}
                yield variant(linear._few_rows_product, own, target, dtype, tile.warps, tile.stages, types)


def many_rows_products(target, dtype):
    """With an activation in them; of experts, with one and without."""
    names = ("ROWS", "OUTPUTS", "INPUTS", "NEIGHBOURS")
    shape = {name: getattr(many_rows, name) for name in names} | {"PROGRAMS": MULTIPROCESSORS, "UPCAST": False}
    rows, outputs, inputs = (shape[name] for name in names[:3])
    for most_tiles, kind, sizes in (
        (0, "silu", (14336, 4096)),
        (many_rows.MOST_TILES, "silu", (14336, 4096)),
        (many_rows.MOST_TILES, "", (4096, 14336)),
    ):
        boxes = (rows, inputs), (1, 2, outputs, inputs) if kind else (1, 1, 2 * outputs, inputs), (rows, outputs)
        tiled = (f"tensordesc<{dtype}[{', '.join(map(str, box))}]>" for box in boxes)
        known = dict(zip(("x", "weight", "out"), tiled, strict=True)) | {"rows": "i32", "experts": "*i32"}
        constants = {**shape, "TILES": most_tiles, "KIND": kind, "M": sizes[0], "N": sizes[1]}
        constants |= {} if most_tiles else {"experts": None}
        known = {name: kind for name, kind in known.items() if name not in constants}
        yield variant(many_rows._many_rows_product, constants, target, dtype, many_rows.WARPS, many_rows.STAGES, known)
    bringing = {"K": 2, "N": 4096, "ROWS": rows, "BLOCK": experts.BROUGHT}
    known = {"x": f"*{dtype}", "out": f"*{dtype}", "sorted_pairs": "*i32", "experts": "*i32", "pairs": "i32"}
    yield variant(expert_tiles.bring_together, bringing, target, dtype, known=known)


def rounded_weight(form, block, halves, ordered):
    """What kernels know of it, and its tensors' types."""
    meaning = {"int4": "*u8", "affine": "*fp16"}.get(form)
    known = {"levels": "*i8" if form == "int8" else "*u8", "first": "*u8", "second": meaning, "order": "*i32"}
    known |= {"scales": "*fp32"}
    gone = {"int8": ("first", "second"), "affine": ("scales",)}.get(form, ())
    gone += () if ordered else ("order",)
    constants = {"BLOCK": block, "FORM": form, "HALVES": halves, "HAS_ORDER": ordered, **dict.fromkeys(gone)}
    return constants, {name: kind for name, kind in known.items() if name not in gone}


def rounded_products(target, dtype):
    """Of weights of 8 and 4 bits: their own groups, a checkpoint's in order and not."""
    for form, block, halves, ordered, rows, outputs in (
        ("int8", 128, False, False, 64, 28672),
        ("int4", 32, True, False, 16, 4096),
        ("affine", 128, True, False, 64, 28672),
        ("affine", 64, True, True, 16, 4096),
        ("affine", 128, False, False, 16, 4096),
    ):
        constants, types = rounded_weight(form, block, halves, ordered)
        types |= {"rows": "i32", "bias": f"*{dtype}"}
        constants |= {"M": outputs, "N": 4096}
        expanded = {**constants, "COLUMNS": 4096, "OUTPUTS": rounded.EXPANDED_OUTPUTS}
        yield variant(rounded_tiles.expand, expanded, target, dtype, known=types)
        steps = 4096 // rounded.STEP // (1 + halves)
        tile = rounded.tile_of(rows, outputs, steps, block, MULTIPROCESSORS, SHARED[target])
        constants |= {"BLOCKS": 4096 // block // (1 + halves), "HAS_BIAS": True}
        row = {**constants, "OUTPUTS": rounded.ROW_OUTPUTS, "AT_ONCE": rounded.ROW_BYTES // block}
        yield variant(rounded_tiles.multiply_row, row, target, dtype, known=types)
        if target == "sm_75":  # whose matrix units Triton does not use: PyTorch multiplies more rows than one
            continue
        constants |= {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "x_row": 4096, "UPCAST": False}
        constants |= {"STEPS": triton.cdiv(steps, tile.splits), "AT_ONCE": rounded.STEP // block}
        yield variant(rounded_tiles.multiply, constants, target, dtype, tile.warps, tile.stages, types)
    adding = {"SPLITS": 8, "BLOCK": rounded.ADDED}
    yield variant(rounded_tiles.add_splits, adding, target, dtype, known={"parts": "*fp32", "size": "i32"})


def mixtures(target, dtype, size, pairs_of_experts):
    """For Mixtral's shape or Qwen2-MoE's."""
    shape = {"M": size, "N": 4096}
    known = dict.fromkeys(("x", "wide", "gate_up", "down", "y", "out"), f"*{dtype}")
    known |= {"chosen": "*i64", "weights": "*fp32", "experts": "*i32", "pairs": "i32"}
    known |= {"sorted_pairs": "*i32", "places": "*i32"}
    routed = {"size": 8, "row_stride": 8, "K": 2, "KP": 2, "SUMS_TO_ONE": True, "BLOCK": 8}
    yield variant(routing._choose_experts, routed, target, dtype, 1, known=known | {"scores": f"*{dtype}"})
    widen, narrow = {**shape, **experts.row_of(4096)}, {**shape, **experts.row_of(size)}
    yield variant(expert_rows.widen_rows, {"K": 2, "KIND": "silu", **widen}, target, dtype, known=known)
    yield variant(expert_rows.narrow_rows, {"K": 2, **narrow}, target, dtype, known=known)
    yield variant(expert_tiles.mix, {"K": 2, "N": 4096, "BLOCK": sorted_experts.MIXED}, target, dtype, known=known)
    for pairs_of_expert in pairs_of_experts:
        itemsize = 4 if dtype == "fp32" else 2
        tile = experts.fitting(pairs_of_expert, itemsize, SHARED[target])
        sorting = sorted_experts.constants_of_sort(3000, 60, 100, tile.rows)
        yield variant(expert_tiles.sort_pairs, sorting, target, dtype, known=known)
        how = {**shape, "ROWS": tile.rows, "INPUTS": tile.inputs, "UPCAST": False}
        widen = {**how, "K": 2, "KIND": "silu", "COLUMNS": tile.columns // 2}
        narrow = {**how, "COLUMNS": tile.columns}
        yield variant(expert_tiles.widen_tiles, widen, target, dtype, tile.warps, tile.stages, known)
        yield variant(expert_tiles.narrow_tiles, narrow, target, dtype, tile.warps, tile.stages, known)


def rounded_mixtures(target, dtype):
    """Of experts with weights of 8 and 4 bits: some with tiles of other sizes too, all with the largest."""
    fitting = [rounded_experts.fitting(pairs, SHARED[target]) for pairs in rounded_experts.TILES]
    registers_are_short = target.startswith("gfx")
    for form, block, halves, ordered, size, every in (
        ("int8", 128, False, False, 1408, False),
        ("int4", 32, True, False, 14336, True),
        ("affine", 128, True, False, 14336, False),
        ("affine", 16, True, True, 704, registers_are_short),
    ):
        gone, types = rounded_weight(form, block, halves, ordered)
        types |= dict.fromkeys(("x", "wide", "out"), f"*{dtype}")
        types |= {"chosen": "*i64", "weights": "*fp32", "sorted_pairs": "*i32", "experts": "*i32", "pairs": "i32"}
        for name, outputs, inputs, more in (
            ("widen", 16 * size, 4096, {"KIND": "silu"}),
            ("narrow", 8 * 4096, size, {}),
        ):
            steps = triton.cdiv(inputs, rounded.STEP * (1 + halves))
            levels = torch.empty((steps * rounded.STEP // block, outputs, block), dtype=torch.uint8, device="meta")
            order = torch.empty((8, inputs), dtype=torch.int32, device="meta") if ordered else None
            weight = rounded.Rounded(form, outputs, inputs, levels, halves, order=order)
            given = {**gone, "FEATURES": 4096, "SIZE": size, **more}
            rows = {**given, "K": 2, **rounded_experts.constants_of_rows(weight)}
            yield variant(getattr(rounded_expert_rows, f"{name}_rows"), rows, target, dtype, known=types)
            given |= {"UPCAST": False} | ({"K": 2} if name == "widen" else {})
            sizes = fitting if registers_are_short else (fitting[0], fitting[-1])
            for tile in dict.fromkeys(sizes if every else fitting[-1:]):
                how = {**given, **rounded_experts.constants_of_tiles(weight, tile)}
                function = getattr(rounded_expert_tiles, f"{name}_tiles")
                yield variant(function, how, target, dtype, tile.warps, tile.stages, types)


def sums_of_ranks(target, dtype):
    """Alone, and with a norm behind them."""
    for kind in (dtype, "fp32"):
        constants = {"RANK": 1, "RANKS": 2, "CAPACITY": 1 << 20, "BLOCK": sums.BLOCK, "TOGETHER": 4, "LAST": sums.LAST}
        yield variant(sums._sum, constants, target, kind, known=SUMS)
    rows = {"RANK": 1, "RANKS": 2, "CAPACITY": 1 << 20, "SIZE": 2048, "WORDS": 2048, "LAST": sums.LAST}
    for more in ({"IS_RMS": True, "HAS_BIAS": False, "bias": None}, {"IS_RMS": False, "HAS_BIAS": True}):
        known = {**SUMS, "bias": f"*{dtype}"} if more["HAS_BIAS"] else SUMS
        yield variant(sums._sum_and_norm, {**rows, **more}, target, dtype, 16, known=known)


def variants(target):
    """Of every kernel, with the tiles that fit into the chip, and with what changes their code."""
    dtype, registers_are_short = "fp16" if target == "sm_75" else "bf16", target.startswith("gfx")
    rows = {"heads": 1, "x_token": 4096, "x_head": 0, "size": 4096}
    plain = {"BLOCK": 4096, "IS_RMS": True, "HAS_RESIDUAL": True, "HAS_BIAS": False, "bias": None, **rows}
    yield variant(norm._norm, plain, target, dtype, 8)
    wide = {"BLOCK": 16384, "x_token": 16384, "size": 16384}
    yield variant(norm._norm, {**plain, **wide}, target, dtype, 16)
    yield variant(
        norm._norm, {"BLOCK": 4096, "IS_RMS": False, "HAS_RESIDUAL": True, "HAS_BIAS": True, **rows}, target, dtype, 8
    )
    turn = {"q_token": 6144, "q_head": 128, "k_token": 6144, "k_head": 128, "q_heads": 32, "k_heads": 8, "HALF": 64}
    turn |= {"Q_PROGRAMS": 4, "HEADS": 8, "BLOCK": 64}
    yield variant(rotary._rotate, turn, target, dtype, 1)
    turns = {"HALF": 64, "BLOCK": 64, "HAS_LATE": False, "late": None}
    yield variant(rotary._angles, turns, target, dtype, 1, contracts=False)
    rows = {"size": 4096, "stride": 4096, "BLOCK": look_up.BLOCK}
    yield variant(look_up._look_up, rows, target, dtype, known={"table": f"*{dtype}", "rows": "*i64"})
    for kind in ("silu", "gelu", "gelu_tanh"):
        yield variant(
            activation._activate_and_multiply,
            {"size": 14336, "row_stride": 28672, "KIND": kind, "BLOCK": 1024},
            target,
            dtype,
        )
    rows = {"size": 49152, "row_stride": 49152}
    yield variant(sample._survey, {"BLOCK": sample.BLOCK, **rows}, target, dtype)
    yield variant(sample._greedy, {"size": 49152, **sample.parts_of(49152)}, target, dtype, 1)
    for size in (151936, 151643) if registers_are_short else (151936,):  # rows are aligned, and not
        yield from sampling(target, size)
    yield from products(target, dtype)
    yield from products(target, "fp32")
    if target == "sm_90":
        yield from many_rows_products(target, dtype)
    yield from rounded_products(target, dtype)
    if target != "sm_75":  # where experts are multiplied one after the other
        yield from rounded_mixtures(target, dtype)
    yield from sums_of_ranks(target, dtype)
    for kind in ("gelu", "gelu_tanh"):
        constants = {"size": 14336, "row_stride": 14336, "KIND": kind, "BLOCK": 1024}
        yield variant(activation._activate, constants, target, dtype)
    heads = {"q_token": 6144, "k_token": 6144, "v_token": 6144, "H": 32, "HKV": 8, "D": 128, "DP": 128, "HEADS": 8}
    still = {**heads, "HALF": 0, "BLOCK": 0, "Q_PROGRAMS": 0, "cos": None, "sin": None}
    turned = {**heads, "HALF": 48, "BLOCK": 64, "Q_PROGRAMS": 4}
    yield variant(store._store, still, target, dtype, 1)
    yield variant(store._store, turned, target, dtype, 1)
    for number, cache in enumerate(FLOAT8[target]):
        kept = dict.fromkeys(("keys", "values"), f"*{cache}")
        yield variant(store._store, turned, target, dtype, 1, known=kept)
        for size, options in FLOAT8_HEADS if registers_are_short else FLOAT8_HEADS[number : number + 1]:
            yield from attention(target, dtype, size, cache, in_order_splits=(1,), **options)
    every = tuple(experts.TILES)
    for kind, size, pairs in ((dtype, 14336, every), (dtype, 1408, ()), ("fp32", 1408, every[-1:])):
        yield from mixtures(target, kind, size, pairs)
    yield from attention(target, dtype, 128, gathered=(True,), in_order_splits=(1, 16))
    yield from attention(target, dtype, 80, gathered=(True,), in_order_splits=(16,), HAS_WINDOW=True, HAS_SLOPES=True)
    yield from attention(target, dtype, 256, gathered=(True,), HAS_SOFT_CAP=True)
    yield from attention(target, dtype, 64, group=1, gathered=(False, True), HAS_BIAS=True)
    yield from attention(target, "fp32", 128, gathered=(True,), in_order_splits=(16,))
