from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

import rankfold as rf  # noqa: E402
from rankfold.adapters.base import Adapter  # noqa: E402
from rankfold.ops import Op  # noqa: E402
from rankfold.testing import Harness  # noqa: E402
from rankfold.testing.suite import AdapterSuite  # noqa: E402
from rankfold_onnx import nodes, runtime, state_io  # noqa: E402
from rankfold_onnx.adapter import OnnxAdapter  # noqa: E402
from rankfold_onnx.graph import Graphs  # noqa: E402


class OnnxHarness(Harness):
    dtypes = ("float64", "float32", "float16", "bfloat16")

    def adapter(self) -> Adapter:
        return OnnxAdapter()

    def model(self, ops: Sequence[Op], dtype: str = "float32") -> onnx.ModelProto:
        return self._graph(ops, [f"{index}" for index in range(len(ops))], dtype)

    def call(self, model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        onnx.checker.check_model(model, full_check=True)
        (y,) = runtime.session(model).run(None, {"x": x})
        return y

    def inputs(self, x: np.ndarray, dtype: str = "float32") -> np.ndarray:
        import ml_dtypes  # noqa: F401

        return x.astype(dtype) if x.dtype.kind == "f" else x

    def state(self, model: onnx.ModelProto) -> dict[str, np.ndarray]:
        tensors = state_io.tensors(Graphs(model))
        return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}

    def shared(self, op: Op) -> onnx.ModelProto:
        return self._graph([op, op], ["0", "0"], "float32")

    def tied(self, op: Op) -> onnx.ModelProto:
        model = self._graph([op, op], ["0", "0"], "float32")
        zeros = numpy_helper.from_array(np.zeros(len(op.weight), np.float32), "zeros")
        model.graph.initializer.append(zeros)
        model.graph.node[-1].output[0] = "sum"
        model.graph.node.append(helper.make_node("Add", ["sum", "zeros"], ["y"]))
        return model

    @staticmethod
    def _graph(ops: Sequence[Op], names: Sequence[str], dtype: str) -> onnx.ModelProto:
        graph = onnx.GraphProto(name="model")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        table = isinstance(ops[0], rf.Embedding)
        first = onnx.TensorProto.INT64 if table else kind
        axes = ops[0].weight.ndim if ops[0].weight.ndim > 2 else 3
        graph.input.append(helper.make_tensor_value_info("x", first, [None] * (axes - table)))
        graph.output.append(helper.make_tensor_value_info("y", kind, [None] * axes))
        x = "x"
        for index, (op, name) in enumerate(zip(ops, names, strict=True)):
            y = "y" if index == len(ops) - 1 else f"h{index}"
            tensors = [numpy_helper.from_array(nodes.stored(op).astype(dtype), f"{name}.weight")]
            if op.bias is not None:
                tensors.append(numpy_helper.from_array(op.bias.astype(dtype), f"{name}.bias"))
            read = [x, *(tensor.name for tensor in tensors)]
            if isinstance(op, rf.Embedding):
                graph.node.append(helper.make_node("Gather", read[::-1], [y]))
            elif isinstance(op, rf.Linear):
                end = f"{y}.product" if op.bias is not None else y
                graph.node.append(helper.make_node("MatMul", read[:2], [end]))
                if op.bias is not None:
                    graph.node.append(helper.make_node("Add", [end, read[2]], [y]))
            else:
                graph.node.append(nodes.convolution(op, read, y))
            known = {tensor.name for tensor in graph.initializer}
            graph.initializer.extend(t for t in tensors if t.name not in known)
            x = y
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# For all checks: what these compress alike is compressed once.
HARNESS = OnnxHarness()


@pytest.mark.usefixtures("few_sweeps")
class TestOnnx(AdapterSuite):
    @pytest.fixture
    def harness(self) -> Harness:
        return HARNESS
