"""The frozen base shared out over the processes of a run, a slice of each weight on each device.

torch's `fully_shard` (FSDP2) gathers a block's weights before the block runs, forward or backward,
and drops them after it. The adapters are added afterwards and stay whole on every device, so
gradients, optimizers and states know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from ...app.config.distill_config import DistillConfig
from ...core.errors import SettingsError
from ..distributed import DEVICE_BACKENDS, Ranks
from ..loading.checkpoint import LoadedCheckpoint

# What is gathered at a time; weights outside of them are gathered with the whole network.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "JointTransformerBlock")


def check_sharding(config: DistillConfig, ranks: Ranks, device: torch.device) -> None:
    """Raise SettingsError unless the base can be shared out as the settings ask."""
    if not config.shard_base or ranks.size == 1:
        return
    if config.batch_size % ranks.size:
        raise SettingsError(
            f"batch_size is {config.batch_size} for {ranks.size} processes; with --shard-base all "
            "run the same passes, so it has to be a multiple of their number."
        )
    if config.base_weights != "keep" or config.offload_base:
        other = "--offload-base" if config.offload_base else f"--base-weights {config.base_weights}"
        raise SettingsError(
            f"--shard-base is for weights as they are, found {other}. Choose one of the two."
        )
    backend = DEVICE_BACKENDS.get(device.type, "gloo" if device.type == "cpu" else "")
    if not (backend and dist.is_backend_available(backend)):
        raise SettingsError(
            f"--shard-base needs {backend or 'a connection'} between devices of kind "
            f"{device.type}, and this PyTorch has none. Leave it out."
        )


def shard_base(
    checkpoint: LoadedCheckpoint,
    device: torch.device,
    ranks: Ranks,
    report: Callable[[str], None],
) -> None:
    """Leave this process's share of the network on `device`; its calls run in step from now on.

    Args:
        checkpoint: in the main memory, without adapters; is changed in place.
        device: where its shares and its passes are.
        ranks: the processes that share it.
    """
    # not there in builds of PyTorch for one process, which need none of it
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = checkpoint.network
    mesh = init_device_mesh(device.type, (ranks.size,))
    for block in [part for part in network.modules() if type(part).__name__ in BLOCKS]:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    checkpoint.device = device
    ranks.in_step = True
    report(
        f"The base is shared out over {ranks.size} processes. Previews and measurements, which one "
        "of them draws, are left out; `compare` draws them afterwards."
    )
