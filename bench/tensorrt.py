"""TensorRT, by itself and through torch_tensorrt: a model and a CUDA input become a call.

Precision is that of the model: networks are strongly typed, and float32 may use TF32 only where
torch's convolutions may.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .engines import onnx_bytes, quiet


def engine(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
    """An engine built from the model's ONNX export, run on torch's current stream."""
    import tensorrt as trt

    exported = onnx_bytes(model, x)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(exported):
        raise RuntimeError(f"TensorRT cannot read the model: {parser.get_error(0)}")
    config = builder.create_builder_config()
    if not torch.backends.cudnn.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT cannot build an engine of the model")
    built = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = built.create_execution_context()
    names = [built.get_tensor_name(i) for i in range(built.num_io_tensors)]
    source = next(n for n in names if built.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    target = next(n for n in names if built.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
    output = torch.empty(tuple(built.get_tensor_shape(target)), dtype=x.dtype, device=x.device)
    context.set_tensor_address(target, output.data_ptr())

    def run() -> Tensor:
        context.set_tensor_address(source, x.data_ptr())  # as for another input
        if not context.execute_async_v3(torch.cuda.current_stream(x.device).cuda_stream):
            raise RuntimeError("TensorRT's execution failed")
        return output

    return run


def through_torch(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
    import torch_tensorrt

    with quiet():
        compiled = torch_tensorrt.compile(
            model,
            ir="dynamo",
            inputs=[x],
            use_explicit_typing=True,
            disable_tf32=not torch.backends.cudnn.allow_tf32,
        )
    return lambda: compiled(x)
