"""The CUDA row of the back-end table: which calls it takes, and what it says of the others.

No GPU is needed: tensors are fake ones on a CUDA device, and what would ask a driver is replaced.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from inception_fused import FusedInception, cuda, ops
from inception_fused.backends import TABLE, Choice, choose
from inception_fused.lower import lower
from inception_fused.plan import IN, OUT, Destination, Plan, Slice, Step
from inception_fused.spec import GOOGLENET, Kind, Spec, Stage, Window

V1 = lower(GOOGLENET["3a"])
SCRATCH = 2


@pytest.fixture
def device(monkeypatch):
    """A machine with one sm_90 GPU and a library that has code for it."""
    monkeypatch.setattr(ops, "CUDA_NOT_LOADED", None)
    monkeypatch.setattr(ops, "cuda_has_code", lambda index: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return monkeypatch


def on_gpu(plan, batch=2, size=14, dtype=torch.float16):
    with FakeTensorMode():
        return torch.empty(batch, plan.in_channels, size, size, dtype=dtype, device="cuda:0")


def refusal(plan, x):
    choice = choose(plan, x)
    assert choice.backend.name == "reference"
    reasons = dict(choice.refused)
    with pytest.raises(ValueError, match="back end cuda: ") as error:
        choose(plan, x, "cuda")
    assert str(error.value) == f"back end cuda: {reasons['cuda']}"
    return reasons["cuda"]


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_it_is_taken_for_what_it_can_do(device, dtype):
    assert choose(V1, on_gpu(V1, dtype=dtype)) == Choice(TABLE[0], ())


def test_cpu_tensors_do_not_hear_of_it():
    choice = choose(V1, torch.empty(1, V1.in_channels, 7, 7))
    assert choice.backend.name == "cpu"
    assert choice.refused == ()


def test_a_cpu_tensor_is_refused_by_name(device):
    with pytest.raises(ValueError, match="back end cuda: x is on cpu"):
        choose(V1, torch.empty(1, V1.in_channels, 7, 7), "cuda")


def test_the_library_is_not_built(device):
    device.setattr(ops.importlib.util, "find_spec", lambda name: None)
    device.setattr(torch.version, "cuda", "13.0")
    device.setattr(ops, "CUDA_NOT_LOADED", ops.load_cuda())
    assert "the CUDA library is not built" in refusal(V1, on_gpu(V1))


def test_torch_has_no_cuda(device):
    device.setattr(torch.version, "cuda", None)
    device.setattr(ops, "CUDA_NOT_LOADED", ops.load_cuda())
    assert refusal(V1, on_gpu(V1)) == "this torch has no CUDA"


def test_the_library_does_not_load(device):
    def fail(name):
        raise ImportError("libtorch_cuda.so: cannot open")

    device.setattr(ops.importlib.util, "find_spec", lambda name: object())
    device.setattr(ops.importlib, "import_module", fail)
    device.setattr(torch.version, "cuda", "13.0")
    device.setattr(ops, "CUDA_NOT_LOADED", ops.load_cuda())
    reason = refusal(V1, on_gpu(V1))
    assert reason == "the CUDA library does not load (libtorch_cuda.so: cannot open)"


def test_no_device(device):
    device.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(V1, on_gpu(V1)) == "there is no CUDA device"


def test_an_old_device(device):
    device.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert refusal(V1, on_gpu(V1)) == "cuda:0 is of sm_75, the kernels need sm_80 or newer"


def test_no_code_for_the_device(device):
    device.setattr(ops, "cuda_has_code", lambda index: index != 0)
    device.setattr(torch.cuda, "get_device_capability", lambda device: (12, 1))
    reason = refusal(V1, on_gpu(V1))
    assert "no code for cuda:0, of sm_121" in reason
    assert "TORCH_CUDA_ARCH_LIST=12.1" in reason


def test_dtypes(device):
    assert "x is torch.float64" in refusal(V1, on_gpu(V1, dtype=torch.float64))


def test_too_many_pixels(device):
    assert "x has 1073872900 pixels" in refusal(V1, on_gpu(V1, 1, 32770))


def conv(src, *dst, kernel=3, wave=0, first=0):
    window = Window((kernel, kernel), padding=(kernel // 2, kernel // 2))
    kind = Kind.POINTWISE if kernel == 1 else Kind.CONV
    made = tuple(Destination(d, first + i) for i, d in enumerate(dst))
    return Step(kind, window, src, made, wave)


HALVING = ((Stage.conv(8, 3, 2),), (Stage.pool(stride=2), Stage.conv(8)))
CHANGES_SIZE = "step 0 has a window that changes the image size"
PLANS = [
    (lower(Spec.naive(8, 8, 8, 8)), "step 3 is a pool that no 1x1 convolution follows"),
    (lower(Spec(8, HALVING)), CHANGES_SIZE),
    (lower(Spec(8, HALVING[::-1])), CHANGES_SIZE),
    (lower(Spec(8, ((Stage.conv(8),),) * 13)), "step 0 has more than 12 destinations"),
    (
        Plan(
            (8, 8, 16),
            (
                conv(Slice(IN, 0, 8), Slice(SCRATCH, 0, 16), kernel=1),
                conv(Slice(SCRATCH, 8, 8), Slice(OUT, 0, 8), wave=1, first=1),
            ),
        ),
        "step 1 reads scratch that is not exactly one destination",
    ),
    (lower(Spec(8, ((Stage.conv(8), Stage.pool(), Stage.conv(8)),))), "step 1 pools scratch"),
    (
        Plan((2**18, 8), (conv(Slice(IN, 0, 2**18), Slice(OUT, 0, 8), kernel=1),)),
        "step 0 reads more channels than an index can count",
    ),
]


@pytest.mark.parametrize(("plan", "reason"), PLANS)
def test_plans_that_it_does_not_cover(device, plan, reason):
    plan.check()
    assert refusal(plan, on_gpu(plan)) == reason


@pytest.fixture
def precision():
    """Sets torch's switch for float32 convolutions, and sets it back."""
    before = torch.backends.cudnn.allow_tf32

    def use(value):
        torch.backends.cudnn.conv.fp32_precision = value

    yield use
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def matmuls():
    """Sets torch's switch for float32 matrix products, and sets it back."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("conv", ["tf32", "ieee", "none"])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_never_less_accurate_than_the_switches_promise(device, precision, matmuls, conv, matmul):
    """The switch for convolutions comes first; "high" makes them more accurate, never less."""
    precision(conv)
    matmuls(matmul)
    expected = "ieee" if conv != "tf32" else "bf16x3" if matmul == "high" else "tf32"
    assert ops.float32_products() == expected
    settings = TABLE[0].settings
    assert expected in settings(on_gpu(V1, dtype=torch.float32))
    assert expected not in settings(on_gpu(V1))


def test_switches_that_torch_does_not_sum_up(monkeypatch, precision):
    """Single operators' switches may amount to no value of ``get_float32_matmul_precision``."""

    def fail():
        raise RuntimeError("PyTorch is checking the matmul precision without a specific backend")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", fail)
    for conv, expected in {"tf32": "tf32", "ieee": "ieee"}.items():
        precision(conv)
        assert ops.float32_products() == expected


def test_float32_packs_follow_torch(device, precision):
    settings = TABLE[0].settings
    x, half = on_gpu(V1, dtype=torch.float32), on_gpu(V1)
    precision("tf32")
    assert ops.allows_tf32()
    allowed, half_allowed = settings(x), settings(half)
    precision("ieee")
    assert not ops.allows_tf32()
    assert settings(x) != allowed
    assert settings(half) == half_allowed
    torch.backends.cudnn.allow_tf32 = True
    assert ops.allows_tf32()
    torch.backends.cudnn.allow_tf32 = False
    assert not ops.allows_tf32()


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("float32", cuda.FLOAT32)
def test_shapes_of_pack_and_run(dtype, float32):
    x = on_gpu(V1, dtype=dtype)
    with x.fake_mode:
        weights = [x.new_empty(c.weight_shape) for c in V1.convolutions()]
        biases = [w.new_empty(w.shape[0]) for w in weights]
        pack = torch.ops.inception_fused.pack(weights, biases, V1.code, float32=float32)
        y = torch.ops.inception_fused.run(x, pack, V1.code)
    parameters = sum(w.numel() for w in weights)  # every width is whole vectors here
    columns = sum(len(b) for b in biases)
    told = {"tf32": 0, "ieee": 16, "bf16x3": 32}[float32] if dtype is torch.float32 else 0
    assert pack.numel() * dtype.itemsize == parameters * dtype.itemsize + columns * 4 + told
    assert (y.shape, y.dtype, y.device) == ((2, 256, 14, 14), dtype, x.device)


class _Recorded(TorchDispatchMode):
    arguments: tuple = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.inception_fused.pack.default:
            self.arguments = args
        return func(*args, **(kwargs or {}))


def test_an_exported_pack_is_given_its_tuning():
    """AOTInductor's runtime hands a list that was left at its default on as None (torch 2.14)."""
    backend = next(b for b in TABLE if b.name == "cuda")
    x = on_gpu(V1)
    zeros = (0,) * len(V1.steps)
    with x.fake_mode, _Recorded() as recorded:
        weights = [x.new_empty(c.weight_shape) for c in V1.convolutions()]
        backend.pack(V1, weights, [w.new_empty(w.shape[0]) for w in weights], zeros)
    assert [*recorded.arguments[3]] == [*zeros]


def test_a_changed_setting_packs_again(monkeypatch):
    switch, packs = ["a"], []
    cpu = next(b for b in TABLE if b.name == "cpu")

    def pack(*arguments):
        packs.append(switch[0])
        return cpu.pack(*arguments)

    counting = replace(cpu, pack=pack, settings=lambda x: switch[0])
    monkeypatch.setattr(sys.modules["inception_fused.backends"], "TABLE", (counting,))
    module = FusedInception(Spec.v1(8, 8, 8, 8, 8, 8, 8)).eval()
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        for value in "aabba":
            switch[0] = value
            module(x)
    assert packs == ["a", "b"]


def test_what_the_choice_asks_can_be_compiled(monkeypatch, precision):
    """The driver's and torch's answers are constants of a graph."""
    precision("ieee")
    operators = torch.ops.inception_fused
    monkeypatch.setattr(operators, "cuda_has_code", lambda index: index == 1, raising=False)

    def forward(x):
        return x + (1 if ops.cuda_has_code(1) else 2) + (ops.float32_products() == "ieee") * 10

    x = torch.zeros(3)
    assert torch.equal(torch.compile(forward, fullgraph=True, backend="eager")(x), x + 11)
