"""The shapes of all stored documents."""

from typing import Any

from typing_extensions import is_typeddict

from mongodb_session_manager._model import related_shapes, shapes

SHAPES: list[Any] = [
    shape
    for module in (shapes, related_shapes)
    for shape in vars(module).values()
    if is_typeddict(shape) and shape.__module__ == module.__name__
]
