"""Between transformers' cache and bytes: layout, export of segments, import into a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, LinearAttentionLayer

from prfaas_lab.errors import LabError
from prfaas_lab.model.buffers import IncomingCache
from prfaas_lab.model.layout import CacheLayout, LayerLayout, Part, SegmentKey


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for one sequence."""
    return DynamicCache(config=model.config)


@torch.inference_mode()
def layout_of(model: PreTrainedModel, chunk_tokens: int) -> CacheLayout:
    """What this model's cache is made of, read off a real one. Raises `LabError` if it cannot move."""
    cache = model(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=True).past_key_values
    if type(cache) is not DynamicCache:
        raise _unmovable(model, f"its cache is a {type(cache).__name__}")
    layers = tuple(_layer_layout(model, layer) for layer in cache.layers)
    return CacheLayout(layers=layers, chunk_tokens=chunk_tokens)


def chunk_segments(
    cache: DynamicCache, layout: CacheLayout, layer: int, span: tuple[int, int]
) -> Iterator[tuple[SegmentKey, memoryview]]:
    """One layer's growing tensors over one chunk of tokens, token-major and copied."""
    first, end = span
    chunk = first // layout.chunk_tokens
    for part, tensor in enumerate(_tensors(cache.layers[layer])):
        if layout.layers[layer].parts[part].kind == "growing":
            yield SegmentKey(layer, part, chunk), segment_of(tensor[0, :, first:end].transpose(0, 1))


def state_segments(
    cache: DynamicCache, layout: CacheLayout, layer: int, tokens: int
) -> Iterator[tuple[SegmentKey, memoryview]]:
    """One layer's states after `tokens`."""
    last = (tokens - 1) // layout.chunk_tokens
    for part, tensor in enumerate(_tensors(cache.layers[layer])):
        if layout.layers[layer].parts[part].kind == "state":
            yield SegmentKey(layer, part, last), segment_of(tensor[0])


def build_cache(model: PreTrainedModel, incoming: IncomingCache) -> DynamicCache:
    """A cache for one sequence over the received bytes.

    Nothing is copied: states live on in `incoming`, which must not be used for anything else.
    """
    assert incoming.complete, "a cache is built from all of its segments"
    cache = new_cache(model)
    for index, (layer, layout) in enumerate(zip(cache.layers, incoming.layout.layers, strict=True)):
        tensors = {
            part.name: _tensor(incoming.part(index, number), part, incoming.tokens)
            for number, part in enumerate(layout.parts)
        }
        if type(layer) is DynamicLayer:
            layer.lazy_initialization(tensors["keys"], tensors["values"])
            layer.keys, layer.values = tensors["keys"], tensors["values"]
        elif type(layer) is LinearAttentionLayer:
            _restore_states(layer, tensors)
    return cache


def state_items(layer: LinearAttentionLayer) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(kind, number, tensor) of each state a linear layer holds, in the layout's order."""
    for kind, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
        for number, tensor in states.items():
            if tensor is not None:
                yield kind, number, tensor


def adopt_state(layer: Any, kind: str, number: int, tensor: torch.Tensor) -> None:
    """Make `tensor` the layer's state; it is updated in place from now on."""
    layer.dtype, layer.device = tensor.dtype, tensor.device
    layer.has_previous_state[number] = True
    if kind == "conv":
        layer.conv_states[number] = tensor
        layer.conv_kernel_size[number] = tensor.shape[-1]
        layer.is_conv_states_initialized[number] = True
    else:
        layer.recurrent_states[number] = tensor
        layer.is_recurrent_states_initialized[number] = True


def segment_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor. Always a copy: states are updated in place, and a view of keys would hold the
    whole cache in memory."""
    array: Any = tensor.clone(memory_format=torch.contiguous_format).numpy()
    return memoryview(array).cast("B")


def _restore_states(layer: LinearAttentionLayer, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        kind, number = name.rsplit("-", 1)
        adopt_state(layer, kind, int(number), tensor)


def _layer_layout(model: PreTrainedModel, layer: object) -> LayerLayout:
    if type(layer) is DynamicLayer:
        parts = tuple(
            _part(name, "growing", tensor[0, :, 0])
            for name, tensor in (("keys", layer.keys), ("values", layer.values))
            if tensor is not None
        )
        return LayerLayout(kind="full", parts=parts)
    if type(layer) is LinearAttentionLayer:
        parts = tuple(_part(f"{kind}-{number}", "state", t[0]) for kind, number, t in state_items(layer))
        return LayerLayout(kind="linear", parts=parts)
    if isinstance(layer, DummyLayer):
        return LayerLayout(kind="linear", parts=())
    raise _unmovable(model, f"a layer's cache is a {type(layer).__name__}")


def _part(name: str, kind: str, tensor: torch.Tensor) -> Part:
    assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}: bfloat16 is not token-exact here"
    growing = kind == "growing"
    return Part(
        name=name, kind="growing" if growing else "state", shape=tuple(tensor.shape), itemsize=tensor.itemsize
    )


def _tensors(layer: object) -> list[torch.Tensor]:
    if isinstance(layer, DynamicLayer):
        return [tensor for tensor in (layer.keys, layer.values) if tensor is not None]
    if isinstance(layer, LinearAttentionLayer):
        return [tensor for _, _, tensor in state_items(layer)]
    return []


def _tensor(memory: bytearray, part: Part, tokens: int) -> torch.Tensor:
    """[1, heads, tokens, dim] over token-major memory (growing), [1, *shape] (state)."""
    flat = torch.frombuffer(memory, dtype=torch.float32)
    if part.kind == "state":
        return flat.view(1, *part.shape)
    return flat.view(tokens, *part.shape).transpose(0, 1).unsqueeze(0)


def _unmovable(model: PreTrainedModel, reason: str) -> LabError:
    return LabError(
        f"the cache of a {model.config.model_type} cannot be moved between engines: {reason}",
        where="model",
        remedy="use a hybrid of linear and full attention on transformers' DynamicCache, such as qwen3_next",
    )
