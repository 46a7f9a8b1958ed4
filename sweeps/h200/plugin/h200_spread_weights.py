"""A plugin of vLLM: `--load-format spread`, random weights of the scale that trained ones have.

vLLM's own `--load-format dummy` makes every weight smaller than 0.001, norms and routers too, and leaves INT8 weights
as the memory was. All tokens then go to the same few experts, a batch reads far less memory than a real model's, and
products of near zeros draw less power. Here norms are 1, biases 0, scales of INT8 such that the dequantised weights
have the same spread as BF16's, and all other weights normal with a standard deviation of 0.02. Every tensor is seeded
by its name and shape: a restart has the same weights.

To use it, put this folder on PYTHONPATH; vLLM finds it by the entry point in the .dist-info beside this file.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SPREAD = 0.02  # initializer_range of both models
INT8_SPREAD = 73.6  # standard deviation of the integers -127 to 127, each as likely


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    class SpreadLoader(DummyModelLoader):
        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:  # noqa: ANN401, ARG002 - vLLM's
            for name, tensor in model.state_dict().items():
                fill(name, tensor)

    register_model_loader("spread")(SpreadLoader)


def fill(name: str, tensor: torch.Tensor) -> None:
    """Give a parameter or buffer its values, by its name in the model's state."""
    import torch

    if tensor.numel() == 0 or tensor.device.type == "meta" or "cos_sin_cache" in name or "inv_freq" in name:
        return
    seed = zlib.crc32(f"{name} {tuple(tensor.shape)}".encode())
    random = torch.Generator(device=tensor.device).manual_seed(seed)
    with torch.no_grad():
        if tensor.dtype == torch.int8 and tensor.dim() > 1:
            tensor.random_(-127, 128, generator=random)
        elif not torch.is_floating_point(tensor):
            tensor.zero_()
        elif "scale" in name:  # the attention's own, of a KV cache, are not of weights
            of_kv = "attn." in name and "_proj" not in name
            tensor.fill_(1.0 if of_kv else SPREAD / INT8_SPREAD)
        elif "bias" in name:
            tensor.zero_()
        elif tensor.dim() == 1:  # norms
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, SPREAD, generator=random)
