"""Compiles kernels for one target, and looks at the shared memory and, on AMD's, the registers that they take."""

import struct
import sys

import msgspec
import triton
from triton.compiler import ASTSource
from variants import SHARED, target_of, variants

#: what a kernel may keep outside its registers on AMD's, by the names of LLVM's AMDGPU metadata; nothing in memory
BUDGET = {".vgpr_spill_count": 0, ".private_segment_fixed_size": 0, ".sgpr_spill_count": 0}
#: scalars of these wait in lanes of a vector register, which costs an instruction each
BUDGETS = {name: {**BUDGET, ".sgpr_spill_count": 48} for name in ("prefill", "attend_in_order", "_filter")}
AMDGPU_NOTE, NT_AMDGPU_METADATA = b"AMDGPU\0\0", 32  #: of ELF, https://llvm.org/docs/AMDGPUUsage.html#note-records
#: these have the instructions of the other, but for float8, and less shared memory: what both would compile alike is
#: compiled for the other, within the smaller memory, and of each kernel at least one variant for these too
NEAR = {"sm_86": "sm_80", "sm_89": "sm_86"}


def compile_all(target, wanted):
    """Compile variants for a target.

    Raises:
        SystemExit: one takes more than there is, of a chip that it is compiled for or of one near it.
    """
    limits = limits_of(target, wanted)
    for one in wanted:
        compile_one(one, target, limits[one])


def limits_of(target, wanted):
    """Bytes of shared memory that each variant may take."""
    limits = dict.fromkeys(wanted, SHARED[target])
    for other in (name for name, near in NEAR.items() if near == target):
        for one, limit in limits_of(other, variants(other)).items():
            if one in limits:
                limits[one] = min(limits[one], limit)
    return limits


def wanted_of(target):
    """What is compiled for a target."""
    elsewhere = {one for one in variants(NEAR[target]) if not one.has_float8} if target in NEAR else ()
    every = dict.fromkeys(variants(target))
    wanted = [one for one in every if one not in elsewhere]
    kernels = {one.kernel for one in wanted}
    return wanted + list({one.kernel: one for one in every if one.kernel not in kernels}.values())


def compile_one(one, target, limit):
    constants = dict(one.constants)
    aligned = {(i,): [["tt.divisibility", 16]] for i, (_, kind) in enumerate(one.types) if kind.startswith("*")}
    source = ASTSource(fn=one.kernel, signature=dict(one.types), constexprs=constants, attrs=aligned)
    options = {"num_warps": one.warps, "num_stages": one.stages, "enable_fp_fusion": one.contracts}
    options |= {"launch_pdl": True} if constants["OVERLAP"] else {}
    compiled = triton.compile(source, target=target_of(target), options=options)
    name, kinds = one.kernel.__name__, [kind for _, kind in one.types if kind != "constexpr"]
    print(target, name, kinds[0], constants.get("D", ""), "shared", compiled.metadata.shared, "of", limit)
    if compiled.metadata.shared > limit:
        raise SystemExit(
            f"{name} wants {compiled.metadata.shared} bytes of shared memory; {target} or one near has {limit}"
        )
    if "hsaco" in compiled.asm:
        check_registers(compiled.asm["hsaco"], target_of(target))


def check_registers(code_object, target):
    facts = amdgpu_metadata(code_object)
    name = facts[".name"]
    found = {key: facts[key] for key in BUDGET}
    print(target.arch, name, "registers", facts[".vgpr_count"], facts[".sgpr_count"], *found.items())
    if facts[".wavefront_size"] != target.warp_size:
        raise SystemExit(f"{name}: a wavefront has {facts['.wavefront_size']} lanes on {target.arch}")
    for key, most in BUDGETS.get(name, BUDGET).items():
        if found[key] > most:
            raise SystemExit(f"{name}: {key} is {found[key]} on {target.arch}, more than {most}")


def amdgpu_metadata(code_object):
    """What the code object says of its only kernel."""
    at = code_object.index(AMDGPU_NOTE)
    _, size, kind = struct.unpack_from("<III", code_object, at - 12)
    if kind != NT_AMDGPU_METADATA:
        raise SystemExit(f"the first note of the code object is of kind {kind}")
    start = at + len(AMDGPU_NOTE)
    (kernel,) = msgspec.msgpack.decode(code_object[start : start + size])["amdhsa.kernels"]
    return kernel


if __name__ == "__main__":
    compile_all(sys.argv[1], wanted_of(sys.argv[1]))
