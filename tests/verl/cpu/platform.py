"""The CPU as verl's platform ``cpu``; Ray is told of as many GPUs as there are to be workers."""

import functools

import torch
from verl.plugin.platform import PlatformRegistry
from verl.plugin.platform.platform_cuda import PlatformCUDA


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformCUDA):
    device_name = "cpu"
    device_module = torch.cpu

    def is_available(self):
        return False

    def current_device(self):
        # verl hands this to Tensor.to, where a number would mean a GPU
        return "cpu"

    def device_count(self):
        return 0

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def is_ipc_supported(self):
        return False

    def set_allocator_settings(self, settings):
        pass


for name in (
    "empty_cache",
    "memory_allocated",
    "memory_reserved",
    "max_memory_allocated",
    "max_memory_reserved",
):
    setattr(torch.cpu, name, lambda: 0)


_init_process_group = torch.distributed.init_process_group


@functools.wraps(_init_process_group)
def init_process_group(backend=None, *args, **kwargs):
    # verl asks for gloo on the CPU and for the platform's backend on its device: twice the same
    if backend == "cpu:gloo,cpu:gloo":
        backend = "gloo"
    return _init_process_group(backend, *args, **kwargs)


torch.distributed.init_process_group = init_process_group
