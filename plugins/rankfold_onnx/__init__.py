"""ONNX: models as graphs of onnx, run by onnxruntime; through the public plugin API alone."""

from collections.abc import Iterable

from rankfold.plugins import AdapterSpec, ModelFile, hookimpl

RANKFOLD_API = (1, 6)
_INSTALL = "pip install 'rankfold[onnx]'"


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Declare the adapter of `onnx.ModelProto`, and the files that hold one."""
    return (
        AdapterSpec(
            name="onnx",
            model_types=("onnx:ModelProto",),
            target="rankfold_onnx.adapter:OnnxAdapter",
            model_files=(
                ModelFile(
                    kind="an ONNX model",
                    suffixes=(".onnx",),
                    read="rankfold_onnx.model_files:read",
                    write="rankfold_onnx.model_files:write",
                    install=_INSTALL,
                    plan="rankfold_onnx.model_files:read_plan",
                ),
            ),
            install=_INSTALL,
        ),
    )
