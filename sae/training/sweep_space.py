"""What the members of a sweep need together of memory, disk and time, and which of them fit into memory at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sae.base.device import available_memory
from sae.config import ConfigError
from sae.harvest.rows import PLACE_BYTES
from sae.training.space import run_bytes, weight_bytes
from sae.training.together import Member, grouped, order_of

ROOM = 0.9  # share of the free memory that members together may take


def memory_bytes(members: Sequence[Member]) -> dict[str, int]:
    """What members take together: the language model, their rows, and weights, gradients and two moments.

    Live, there is a buffer for each set of rows, and all members are in memory beside each other. From a store, members
    are as far as they have one order of rows, and so there is one buffer; without one, the rows of all sites are kept.
    """
    orders = grouped(members, order_of)
    weights = [sum(weight_bytes(member.plan) for member in order) for order in orders]
    first = members[0].data
    sizes: dict[object, int] = {}
    for member in members:
        config, data = member.config, member.data
        whole = config.tokens * (data.row_bytes + PLACE_BYTES)
        sites = tuple(site.name for site in data.sites)
        if data.in_memory:
            sizes[sites] = whole
        else:
            sizes[sites, data.batch, config.buffer_mb] = min(whole, config.buffer_mb << 20)
    one_buffer = first.cached and not first.in_memory
    return {
        "language_model": first.language_model_bytes,
        "activations": max(sizes.values()) if one_buffer else sum(sizes.values()),
        "weights_gradients_moments": max(weights) if first.cached else sum(weights),
    }


def groups_that_fit(members: Sequence[Member], *, loaded: bool = False) -> list[list[Member]]:
    """Members in groups, as many to each as fit into the free memory together; those with one order of rows adjoin.

    Args:
        loaded: whether the language model is in memory already.

    Raises:
        ConfigError: a member does not fit even alone.
    """
    groups: list[list[Member]] = []
    for member in (member for order in grouped(members, order_of) for member in order):
        if groups and not _over([*groups[-1], member], loaded):
            groups[-1].append(member)
            continue
        if over := _over([member], loaded):
            needed, free = over
            raise ConfigError(
                f"sweep: {member.name} takes {needed >> 20} MiB of memory with the rows it reads, "
                f"{free >> 20} MiB are free; lower --width or --buffer-mb"
            )
        groups.append([member])
    return groups


def _over(members: Sequence[Member], loaded: bool) -> tuple[int, int] | None:
    """Bytes that members need together and bytes that are free, where the first are more."""
    device = members[0].plan.device
    needs = memory_bytes(members)
    if loaded:
        del needs["language_model"]
    on_host = device.type == "cuda" and members[0].data.cached
    if on_host and needs["activations"] > (free := int(ROOM * available_memory(torch.device("cpu")))):
        return needs["activations"], free
    needed = sum(needs.values()) - (needs["activations"] if on_host else 0)
    free = int(ROOM * available_memory(device))
    return (needed, free) if needed > free else None


def estimate_members(groups: Sequence[Sequence[Member]]) -> dict[str, Any]:
    """Members, memory, disk and time of a sweep, as a dry run shows them; the device's speed is that of one product.

    The language model runs over the tokens once for each group, and not at all where a store has them.
    """
    members = [member for group in groups for member in group]
    estimates = {member: member.data.estimate() for member in members}
    harvest = max(estimate["seconds"]["harvest"] for estimate in estimates.values())
    stores = [estimate["disk_bytes"]["store"] for estimate in estimates.values()]
    reads = 1 if members[0].config.store is not None else len(groups)
    peaks = [memory_bytes(group) for group in groups]
    return {
        "members": [
            {
                "run": member.name,
                "variant": member.data.sae.variant,
                "site": estimates[member]["site"],
                "steps": estimates[member]["steps"],
                "parameters": member.plan.parameters,
                "weights, gradients, moments (MiB)": weight_bytes(member.plan) >> 20,
                "training (s)": estimates[member]["seconds"]["training"],
            }
            for member in members
        ],
        "reads": reads,
        "together": [[member.name for member in group] for group in groups] if len(groups) > 1 else "all",
        "memory_bytes": max(peaks, key=lambda peak: sum(peak.values())),
        "disk_bytes": {"runs": sum(run_bytes(member.plan) for member in members), "store": sum(stores)},
        "seconds": {
            "harvest": round(reads * harvest, 1),
            "training": round(sum(estimate["seconds"]["training"] for estimate in estimates.values()), 1),
        },
        "device": str(members[0].plan.device),
    }
