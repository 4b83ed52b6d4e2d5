"""Times what the host does to launch the Triton kernels, with a driver that does nothing.

Prints one JSON object. Needs a libcuda.so.1 of tests/cpp/driver.c, alone in a folder that
TRITON_LIBCUDA_PATH and LD_LIBRARY_PATH name; test_launch.py makes it.
"""

import ctypes
import json
import time

import torch
import triton
from inception_fused.triton_kernels import choose, execute, packing
from triton.backends.nvidia.driver import CudaDriver

from inception_fused.lower import lower
from inception_fused.spec import GOOGLENET

CALLS = 2000
ROUNDS = 7


class Driver(CudaDriver):
    """Of an H100 that is not there."""

    def __init__(self):
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_device_capability = lambda device=None: (9, 0)
        self.get_current_stream = lambda device=None: 0


def microseconds(function):
    """CPU time of a call, the least of several rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            function()
        times.append((time.process_time() - start) / CALLS)
    return 1e6 * min(times)


def main():
    triton.runtime.driver.set_active(Driver())
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    library = ctypes.CDLL("libcuda.so.1")
    library.launch_count.restype = ctypes.c_long
    plan = lower(GOOGLENET["3a"])
    x = torch.empty(1, 192, 28, 28, dtype=torch.float16).to(memory_format=torch.channels_last)
    out = torch.empty(1, 256, 28, 28, dtype=x.dtype).to(memory_format=torch.channels_last)
    pack = torch.empty(packing.layout(plan).size, dtype=x.dtype)
    work = execute.Work.of(plan, x, out)
    device = choose.device_for(90, 132)
    tiles = [choose.choose(one, work.math, device) for one in work.launches]
    program = execute.Program(work, tiles, x, pack, out)
    launches = [run for run, *_ in program._launches]
    pointers = [t.data_ptr() for t in (x, out, out, pack)]
    before = library.launch_count()
    figures = [microseconds(lambda run=run: run(*pointers, stream=0)) for run in launches]
    counted = library.launch_count() - before
    whole = microseconds(lambda: program(x, pack, out))
    seen = []
    triton.knobs.runtime.launch_enter_hook.add(lambda metadata: seen.append(metadata.get()["name"]))
    launches[0](*pointers, stream=0)
    triton.knobs.runtime.launch_enter_hook.calls[:] = [lambda metadata: None]
    hooked = [microseconds(lambda run=run: run(*pointers, stream=0)) for run in launches]
    result = {"launch": figures, "program": whole, "launched": counted}
    print(json.dumps(result | {"hooked": hooked, "seen": seen}))


if __name__ == "__main__":
    main()
