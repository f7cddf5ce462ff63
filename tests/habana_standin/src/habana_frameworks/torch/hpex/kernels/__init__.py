"""The fused kernels that optimum-habana calls, in plain arithmetic."""

from enum import Enum

import torch


class RotaryPosEmbeddingMode(Enum):
    BLOCKWISE = 0
    PAIRWISE = 1


class RotaryPosEmbeddingHelperV2:
    @staticmethod
    def apply(p, cos, sin, position_ids=None, mode=RotaryPosEmbeddingMode.BLOCKWISE):
        if position_ids is not None:
            cos, sin = (x.squeeze(1).squeeze(0) if x.dim() == 4 else x for x in (cos, sin))
            cos, sin = (x[position_ids].unsqueeze(1) for x in (cos, sin))
        first, second = p.chunk(2, dim=-1)
        return p * cos + torch.cat((-second, first), dim=-1) * sin


RotaryPosEmbeddingHelperV1 = RotaryPosEmbeddingHelperV3 = RotaryPosEmbeddingHelperV2


def apply_rotary_pos_emb(p, cos, sin, position_ids=None, offset=0, mode=RotaryPosEmbeddingMode.BLOCKWISE):
    return RotaryPosEmbeddingHelperV2.apply(p, cos, sin, position_ids, mode)


class FusedSDPA(torch.nn.Module):
    @staticmethod
    def apply(
        q,
        k,
        v,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        softmax_mode="None",
        recompute_mode=None,
        valid_seq_len=None,
        seq_padding_type="left",
        *rest,
    ):
        if valid_seq_len is not None:
            raise NotImplementedError("the stand-in has no valid_seq_len")
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.matmul(q, k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
        lowest = torch.finfo(scores.dtype).min
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, lowest)
        if attn_mask is not None:
            is_flag = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, lowest) if is_flag else scores + attn_mask
        return torch.matmul(scores.float().softmax(-1).to(q.dtype), v)


class CustomSoftmax:
    pass


class CTCLoss:
    @staticmethod
    def apply(*args, **kwargs):
        raise NotImplementedError("the stand-in does not train")


def fp8_fused_sdpa(*args, **kwargs):
    raise NotImplementedError("the stand-in has no flash attention in float8")
