"""A backend for a small framework, as an example: its declaration, which imports no framework."""

from rankfold.plugins import AdapterSpec, hookimpl

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_adapters() -> tuple[AdapterSpec, ...]:
    """Registers "numpy_example" for the framework's models."""
    return (
        AdapterSpec(
            name="numpy_example",
            model_types=("rankfold_numpy.framework:Model",),
            target="rankfold_numpy.adapter:NumpyAdapter",
        ),
    )
