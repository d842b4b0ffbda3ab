"""The roofline of a model on a device, with what its server was measured to take besides."""

from policies.config.hardware import Device, Model, Precision
from policies.config.serving import KVPrecision, Serving
from policies.hardware.roofline import LAYER_OVERHEAD_S, Roofline

# Of a device that declares no link: the measured ones have 0.09 to 0.13 of their memory bandwidth.
LINK_OF_MEMORY = 0.1
# After attention and after the feed-forward part.
EXCHANGES_PER_LAYER = 2
ACTIVATION_BYTES = 2
# Formats whose multipliers take 8 bits or fewer; their servers keep the cache in FP8.
NARROW = frozenset({"fp8", "fp4", "mxfp4"})


def roofline_of(
    device: Device,
    model: Model,
    precision: Precision,
    tensor_parallel: int = 1,
    kv_precision: KVPrecision | None = None,
) -> Roofline:
    """Return the roofline of one replica.

    A device without `serving` constants has the plain roofline: no traffic, 3 us a layer, a cache
    of BF16. Otherwise see `Serving`; keys and values that have fewer heads than there are devices
    are kept more than once.

    Args:
        device: the device.
        model: the model.
        precision: of its weights.
        tensor_parallel: devices of the replica.
        kv_precision: of the cache; None: FP8 where the multipliers take 8 bits or fewer.

    Raises:
        ValueError: the device can't compute with such weights.
    """
    serving, wide = device.serving, tensor_parallel
    compute, bandwidth = device.compute_efficiency, device.bandwidth_efficiency
    kv_bytes = model.kv_bytes_per_token
    if kv_precision is None and serving is not None and device.computes_in(precision) in NARROW:
        kv_precision = "fp8"
    if kv_precision == "fp8":
        kv_bytes /= 2
    overhead_s = model.layers * LAYER_OVERHEAD_S
    traffic_s = sequence_s = prompt_s = 0.0
    if serving is not None:
        compute = min(1.0, compute * serving.compute_share)
        layer_us = serving.layer_us
        if model.has_experts:
            compute *= serving.experts_share
            layer_us += serving.expert_layer_us
        bandwidth = serving.bandwidth_share
        kv_bytes *= max(1.0, wide / (model.kv_heads or 1))
        overhead_s = model.layers * layer_us * 1e-6
        sequence_s = model.layers * serving.sequence_layer_us * 1e-6
        prompt_s = model.layers * serving.prompt_layer_us * 1e-6
        if wide > 1:
            overhead_s += EXCHANGES_PER_LAYER * model.layers * serving.all_reduce_us * 1e-6
            traffic_s = _traffic_token_s(device, model, serving, wide)
    return Roofline(
        weights_bytes=model.weights_bytes(precision),
        active_weights_bytes=model.active_weights_bytes(precision),
        active_parameters=model.active_parameters,
        kv_bytes_per_token=kv_bytes,
        layers=model.layers,
        attention_width=model.attention_width,
        flops=device.flops(precision) * wide,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s * wide,
        memory_bytes=device.memory_bytes * wide,
        compute_efficiency=compute,
        bandwidth_efficiency=bandwidth,
        step_overhead_s=overhead_s,
        traffic_token_s=traffic_s,
        sequence_overhead_s=sequence_s,
        prompt_overhead_s=prompt_s,
    )


def _traffic_token_s(device: Device, model: Model, serving: Serving, wide: int) -> float:
    """Return the time of a token's activations on the link.

    A ring all-reduce sends 2 (n - 1) / n of the data over each device's link.
    """
    sent_bytes = (
        EXCHANGES_PER_LAYER * model.layers * model.width * ACTIVATION_BYTES * 2 * (wide - 1) / wide
    )
    declared = device.link_gb_s
    link = device.bandwidth_bytes_per_s * LINK_OF_MEMORY if declared is None else declared * 1e9
    return sent_bytes / (link * serving.link_share)
