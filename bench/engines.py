"""CPU inference engines besides PyTorch, each prepared for one model and one input, in float32.

All take (model, contiguous input, number of threads) and return a call without arguments that
gives the output. Converting the model is their preparation and not timed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what converters print to nowhere, native code and its child processes included."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(fd) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(nowhere, fd)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for fd, old in zip((1, 2), saved, strict=True):
            os.dup2(old, fd)
            os.close(old)
        os.close(nowhere)


def onnx_bytes(model: nn.Module, x: Tensor) -> bytes:
    """The model in ONNX, for inputs of x's shape."""
    with quiet():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads spin for work within a call only; after it they would slow down who comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        onnx_bytes(model, x), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(
    model: nn.Module, x: Tensor, threads: int, precision: str = "f32"
) -> Callable[[], Tensor]:
    """``precision`` "bf16" computes in bfloat16; the CPU must have it.

    A bfloat16 x is taken, and its output given, in channels last, so that nothing is converted; a
    float32 x as it is.

    Raises:
        ValueError: OpenVINO would not compute in that precision here.
    """
    import openvino as ov

    half = x.dtype is torch.bfloat16
    with quiet():
        converted = ov.convert_model(model.float(), example_input=x.float())
    converted.reshape(list(x.shape))
    if half:
        converted = _with_bfloat16_ends(converted)
    compiled = ov.Core().compile_model(
        converted,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != precision:
        raise ValueError(f"OpenVINO computes in {taken} on this CPU, not in {precision}")
    request = compiled.create_infer_request()
    if not half:
        request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))

        def run() -> Tensor:
            request.infer()
            return torch.from_numpy(request.get_output_tensor().data)

        return run

    pixels = x.permute(0, 2, 3, 1).contiguous()
    tensor = ov.Tensor(ov.Type.bf16, ov.Shape([*pixels.shape]))
    tensor.data.view("int16")[...] = pixels.view(torch.int16).numpy()  # numpy has no bfloat16
    request.set_input_tensor(tensor)

    def run_half() -> Tensor:
        request.infer()
        output = torch.from_numpy(request.get_output_tensor().data.view("int16"))
        output = output.view(torch.bfloat16)
        return output.permute(0, 3, 1, 2) if output.dim() == 4 else output

    return run_half


def _with_bfloat16_ends(model: Any) -> Any:
    """The OpenVINO model with bfloat16 for input and output, images in channels last."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for end, port in ((steps.input(), model.input()), (steps.output(), model.output())):
        end.tensor().set_element_type(ov.Type.bf16)
        if len(port.get_partial_shape()) == 4:
            end.tensor().set_layout(ov.Layout("NHWC"))
            end.model().set_layout(ov.Layout("NCHW"))
    return steps.build()


def ncnn(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
    """ncnn has no batches; the images are run one after the other, as its users do.

    Its defaults (Winograd by shape, packed layout) are the fastest of its settings.
    """
    import ncnn as nc
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "model"
        with quiet():
            pnnx.export(model, str(stem) + ".pt", x[:1], fp16=False)
        net = nc.Net()
        net.opt.num_threads = threads
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
        net.opt.use_bf16_storage = False
        if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
            raise RuntimeError("ncnn cannot load what pnnx converted")
    images = [nc.Mat(image.numpy()).clone() for image in x]

    def run() -> Tensor:
        outputs = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            code, mat = extractor.extract("out0")
            if code:
                raise RuntimeError(f"ncnn's extract returns {code}")
            outputs.append(torch.from_numpy(mat.numpy().copy()))
        return torch.stack(outputs)

    return run
