"""The model of the examples: offline and scripted, or any Strands provider, chosen by environment variables.

- `MODEL_PROVIDER`: `offline` (the default), or one of those below. All but `bedrock` and `llamacpp` are
  extras of Strands, such as `pip install 'strands-agents[openai]'`.
- `MODEL_ID`: the provider's name of the model. `bedrock` and `llamacpp` have a default.
- `MODEL_BASE_URL`: another server than the provider's, for example a local one.
- `MODEL_MAX_TOKENS`: the longest answer, in tokens; 1024 by default.

    MODEL_PROVIDER=bedrock                                        with AWS credentials
    MODEL_PROVIDER=anthropic  MODEL_ID=claude-sonnet-4-5          with ANTHROPIC_API_KEY
    MODEL_PROVIDER=openai     MODEL_ID=gpt-4o-mini                with OPENAI_API_KEY
    MODEL_PROVIDER=openai     MODEL_ID=any                        with MODEL_BASE_URL=http://localhost:1234/v1
    MODEL_PROVIDER=gemini     MODEL_ID=gemini-2.5-flash           with GEMINI_API_KEY
    MODEL_PROVIDER=mistral    MODEL_ID=mistral-small-latest       with MISTRAL_API_KEY
    MODEL_PROVIDER=litellm    MODEL_ID=azure/my-deployment        with what that provider needs
    MODEL_PROVIDER=ollama     MODEL_ID=llama3.1                   with a server at http://localhost:11434
    MODEL_PROVIDER=llamacpp                                       with a server at http://localhost:8080
"""

import os
from collections.abc import Callable
from typing import Any

from offline_model import OfflineScriptedModel, Reply
from strands.models import Model
from strands.types.content import Messages


def model_from_environment(offline_answer: Callable[[Messages], Reply], **offline_options: Any) -> Model:
    """Return the model that the environment chooses, not connected yet.

    Args:
        offline_answer: Returns the offline model's answer to the messages; used unless a provider is chosen.
        **offline_options: Other parameters of `OfflineScriptedModel`.

    Raises:
        SystemExit: The provider is unknown, lacks its `MODEL_ID` or is not installed; the message says what
            to do.
    """
    provider = os.environ.get("MODEL_PROVIDER", "offline").strip().lower()
    if provider == "offline":
        return OfflineScriptedModel(offline_answer, **offline_options)
    if provider not in _PROVIDERS:
        raise SystemExit(f"MODEL_PROVIDER={provider} is unknown; choose offline, {', '.join(_PROVIDERS)}")
    model_id = os.environ.get("MODEL_ID", "")
    if not model_id and provider not in ("bedrock", "llamacpp"):
        raise SystemExit(f"MODEL_PROVIDER={provider} needs MODEL_ID, the name of a model of that provider")
    max_tokens = os.environ.get("MODEL_MAX_TOKENS", "1024")
    if not max_tokens.isdecimal():
        raise SystemExit(f"MODEL_MAX_TOKENS={max_tokens} is no number")
    try:
        config = {"model_id": model_id} if model_id else {}
        return _PROVIDERS[provider](config, int(max_tokens), os.environ.get("MODEL_BASE_URL"))
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install 'strands-agents[{provider}]'") from error


def describe(model: Model) -> str:
    """Return the model's id; for the offline model, add that a script answers."""
    model_id = str(model.get_config().get("model_id", type(model).__name__))
    if isinstance(model, OfflineScriptedModel):
        return f"{model_id} (offline: a script answers, not a language model)"
    return model_id


# Each provider is imported only when it is chosen, because most are extras that may not be installed.


def _bedrock(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.bedrock import BedrockModel

    return BedrockModel(endpoint_url=base_url, max_tokens=max_tokens, **config)


def _anthropic(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.anthropic import AnthropicModel

    return AnthropicModel(client_args=_given(base_url=base_url), max_tokens=max_tokens, **config)


def _openai(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.openai import OpenAIModel

    # The client insists on a key, also for a local server that has no use for one.
    api_key = os.environ.get("OPENAI_API_KEY", "none" if base_url else "")
    client_args = _given(base_url=base_url, api_key=api_key)
    return OpenAIModel(client_args=client_args, params={"max_tokens": max_tokens}, **config)


def _gemini(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.gemini import GeminiModel

    client_args = _given(http_options=base_url and {"base_url": base_url})
    return GeminiModel(client_args=client_args, params={"max_output_tokens": max_tokens}, **config)


def _mistral(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.mistral import MistralModel

    return MistralModel(client_args=_given(server_url=base_url), max_tokens=max_tokens, **config)


def _litellm(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.litellm import LiteLLMModel

    return LiteLLMModel(client_args=_given(api_base=base_url), params={"max_tokens": max_tokens}, **config)


def _ollama(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.ollama import OllamaModel

    return OllamaModel(base_url or "http://localhost:11434", max_tokens=max_tokens, **config)


def _llamacpp(config: dict[str, Any], max_tokens: int, base_url: str | None) -> Model:
    from strands.models.llamacpp import LlamaCppModel

    url = base_url or "http://localhost:8080"
    return LlamaCppModel(base_url=url, params={"max_tokens": max_tokens}, **config)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


_PROVIDERS: dict[str, Callable[[dict[str, Any], int, str | None], Model]] = {
    "bedrock": _bedrock,
    "anthropic": _anthropic,
    "openai": _openai,
    "gemini": _gemini,
    "mistral": _mistral,
    "litellm": _litellm,
    "ollama": _ollama,
    "llamacpp": _llamacpp,
}
