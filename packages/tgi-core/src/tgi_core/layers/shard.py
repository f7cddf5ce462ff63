"""A rank's share of a model's sizes.

A model is built from a config whose counts are this rank's, so that its layers need not know that there are others;
only linear layers, which read their share of a checkpoint and give shares of sums, do.
"""

from __future__ import annotations

from dataclasses import replace

from tgi_core.distributed.group import Group
from tgi_core.errors import UnsupportedModel
from tgi_core.model_config import ModelConfig


def shard_config(config: ModelConfig, group: Group) -> ModelConfig:
    """The config with this rank's heads and inner features.

    Raises:
        UnsupportedModel: they cannot be divided by the number of ranks.
    """
    if group.size == 1:
        return config
    heads = share(config.num_heads, group, "attention heads")
    kv_heads, kv_copies = share_kv_heads(config.num_kv_heads, group)
    return replace(
        config,
        num_heads=heads,
        num_kv_heads=kv_heads,
        kv_copies=kv_copies,
        intermediate_size=share(config.intermediate_size, group, "inner features"),
    )


def share(count: int, group: Group, what: str) -> int:
    """What each rank has of `count` things.

    Raises:
        UnsupportedModel: they cannot be divided.
    """
    if count % group.size:
        raise UnsupportedModel(f"{count} {what} cannot be divided by {group.size} devices; use another --num-shard")
    return count // group.size


def share_kv_heads(count: int, group: Group) -> tuple[int, int]:
    """(heads of each rank, ranks that hold the same ones): fewer heads than ranks are repeated.

    Raises:
        UnsupportedModel: they can be neither divided nor repeated.
    """
    if count >= group.size or group.size % count:
        return share(count, group, "key and value heads"), 1
    return 1, group.size // count
