"""JSON that can be stored and sent back: input is checked, and every stored value is sent as valid JSON."""

import json
import math
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import AfterValidator

MAX_DEPTH = 60


def check_json(value: Any, levels_left: int = MAX_DEPTH) -> Any:
    """Return a value from a JSON request if it can be sent back as JSON; otherwise raise `ValueError`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and Infinity are no JSON")
    if isinstance(value, dict | list):
        if not levels_left:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            check_json(item, levels_left - 1)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]


class Json(JSONResponse):
    """Valid JSON for any stored value: null for NaN and Infinity; only ASCII, for lone surrogates."""

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return to_json(content).encode("ascii")


def to_json(content: Any) -> str:
    """Encode a value as `Json` does."""
    return json.dumps(_encodable(content), allow_nan=False, separators=(",", ":"))


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
