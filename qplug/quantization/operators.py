"""Which operators of torch multiply and accumulate: formulas that torch's FLOP counter lacks, and those that do not.

Operators that neither this table nor torch counts are unknown: ``counting`` names the modules that call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

aten = torch.ops.aten
Shape = Sequence[int]

FREE = frozenset(
    """
    all amax amin _aminmax aminmax any argmax argmin bucketize count_nonzero _cummax_helper _cummin_helper cummax cummin
    cumprod cumsum dist histc isin kthvalue linalg__powsum linalg_vector_norm _logcumsumexp logcumsumexp logsumexp max
    mean median min mode nanmedian nansum norm prod renorm searchsorted sort std std_mean sum topk trace _unique2
    unique_consecutive unique_dim var var_mean
    _log_softmax _masked_softmax _safe_softmax _softmax
    _batch_norm_no_update _batch_norm_with_update _fused_rms_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _weight_norm_interface batch_norm_elemt batch_norm_stats cudnn_batch_norm
    miopen_batch_norm native_batch_norm native_group_norm native_layer_norm native_norm
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d
    avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d max_unpool3d mkldnn_max_pool2d
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    _chunk_cat _index_put_impl _local_scalar_dense _pack_padded_sequence _pin_memory _reshape_copy _stack _to_copy
    _to_dense _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_view as_strided as_strided_scatter cat
    channel_shuffle clone col2im complex constant_pad_nd copy diag_embed diagonal_scatter embedding equal fill flip
    gather im2col index index_add index_copy index_fill index_put index_reduce index_select lift lift_fresh
    masked_fill masked_scatter masked_select native_channel_shuffle nonzero pixel_shuffle pixel_unshuffle polar put
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d resize roll rot90 scatter scatter_add scatter_reduce select_scatter set slice_scatter
    split_with_sizes_copy stack take tril triu unsafe_split unsafe_split_with_sizes zero
    _add_relu _prelu_kernel floor_divide hardswish heaviside _thnn_fused_gru_cell _thnn_fused_lstm_cell
    _transform_bias_rescale_qkv bernoulli exponential glu log_sigmoid_forward multinomial native_dropout normal rand
    rand_like randn_like rrelu_with_noise uniform
    """.split()
)
"""Operators without pairs of operands to quantize: sums, norms, pooling and resampling by fixed weights, moved values.

Elementwise operators are not here, as torch tags them.
"""

REGIONS = frozenset({"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"})
"""Operators of torchvision on regions: comparisons of boxes, and pooling, whose interpolation is not counted."""


def _addmv(_: Shape, matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _mv(matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _outer(*args: Any, out_shape: Shape = (), **kwargs: Any) -> int:
    return 2 * prod(out_shape)


def _addmm(_: Shape, left: Shape, right: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(left) * right[-1]


def _mm(left: Shape, right: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(left) * right[-1]


def _distances(left: Shape, *args: Any, out_shape: Shape = (), **kwargs: Any) -> int:
    """One MAC for each channel of each distance."""
    return 2 * prod(out_shape) * left[-1]


def _convolution(_: Shape, weight: Shape, *args: Any, out_shape: Shape = (), **kwargs: Any) -> int:
    """A deformable convolution multiplies its samples as another its pixels; the interpolation is not counted."""
    return 2 * prod(out_shape) * prod(weight[1:])


def _conv_tbc(_: Shape, weight: Shape, *args: Any, out_shape: Shape = (), **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[:2])


def _trilinear(
    one: Shape, two: Shape, three: Shape, expand1: Shape, expand2: Shape, expand3: Shape, *_: Any, **__: Any
) -> int:
    """One MAC for each element of the expanded product, as ``nn.Bilinear`` has one for each weight."""
    shapes: list[list[int]] = []
    for shape, expand in ((one, expand1), (two, expand2), (three, expand3)):
        expanded = list(shape)
        for axis in sorted(expand):
            expanded.insert(axis, 1)
        shapes.append(expanded)
    return 2 * int(prod([max(sizes) for sizes in zip(*shapes, strict=True)]))


def _rnn_layer(x: Shape, input_weight: Shape, hidden_weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(input_weight) + prod(hidden_weight))


def _rnn(x: Shape, weights: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _attention(
    q: Shape, k: Shape, v: Shape, width: int, heads: int, qkv: Shape, _: Any, proj: Shape, *args: Any, **kwargs: Any
) -> int:
    batch, length, keys = q[0], q[1], k[1]
    return 2 * batch * (length * (prod(qkv) + prod(proj)) + 2 * length * keys * width)


def _encoder_layer(x: Shape, width: int, heads: int, qkv: Shape, _: Any, proj: Shape, *args: Any, **kwargs: Any) -> int:
    """The ninth and the eleventh of ``args`` are the weights of the feed-forward part."""
    inner = int(prod(args[8]) + prod(args[10]))
    return _attention(x, x, x, width, heads, qkv, None, proj) + 2 * prod(x[:-1]) * inner


def _grid_sampler(x: Shape, grid: Shape, mode: int, *args: Any, out_shape: Shape = (), **kwargs: Any) -> int:
    """Pixels by interpolation weights: 2 an axis, 4 if bicubic, none if nearest."""
    pixels = {0: 2, 2: 4}.get(mode, 0)
    return 2 * prod(out_shape) * int(pixels ** (len(x) - 2))


def _embedding_bag(table: Shape, indices: Shape, *args: Any, **kwargs: Any) -> int:
    weights = kwargs.get("per_sample_weights", args[4] if len(args) > 4 else None)
    return 2 * prod(indices) * table[-1] if weights is not None else 0


def formulas() -> dict[Any, Callable[..., int]]:
    """Operator → floating-point operations of a call, two a MAC, from the shapes of its arguments.

    For ``FlopCounterMode``'s ``custom_mapping``.
    """
    found: dict[Any, Callable[..., int]] = {
        **dict.fromkeys((aten.mv, aten.dot, aten.vdot), _mv),
        aten.addmv: _addmv,
        aten.addr: _outer,
        **dict.fromkeys((aten.addbmm, aten._addmm_activation), _addmm),
        aten._int_mm: _mm,
        **dict.fromkeys((aten._cdist_forward, aten._euclidean_dist), _distances),
        aten.conv_tbc: _conv_tbc,
        aten._trilinear: _trilinear,
        aten.mkldnn_rnn_layer: _rnn_layer,
        **dict.fromkeys((aten._cudnn_rnn, aten.miopen_rnn), _rnn),
        aten._native_multi_head_attention: _attention,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
        **dict.fromkeys((aten.grid_sampler_2d, aten.grid_sampler_3d), _grid_sampler),
        **dict.fromkeys((aten._embedding_bag, aten._embedding_bag_forward_only), _embedding_bag),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # where torchvision is imported
        found[torch.ops.torchvision.deform_conv2d] = _convolution
    return found


def is_view(operator: Any) -> bool:
    """Whether an overload returns a view of its argument."""
    return any(one.alias_info is not None and not one.alias_info.is_write for one in operator._schema.arguments)


def is_of_shapes(operator: Any) -> bool:
    """Whether an overload reads the shape and type of its argument alone."""
    name = str(operator._schema.name).partition("::")[2]
    return name.endswith("_like") or name.startswith("new_")


def is_free(operator: Any) -> bool:
    """Whether an overload multiplies no two operands and sums the products: it has no MACs."""
    name = str(operator._schema.name).partition("::")[2]
    tags = {*operator.tags, *_tags(operator.namespace, name.removesuffix("_"))}
    return (
        torch.Tag.pointwise in tags
        or torch.Tag.inplace_view in tags
        or is_view(operator)
        or is_of_shapes(operator)
        or operator.namespace in ("prim", "profiler")
        or (operator.namespace == "torchvision" and name in REGIONS)
        or name.removesuffix("_") in FREE
        or name.startswith(("_assert", "_functional_assert"))
    )


def _tags(namespace: str, name: str) -> list[torch.Tag]:
    """Tags of an operator's overloads; torch does not tag those that write to their argument."""
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return [tag for overload in packet.overloads() for tag in getattr(packet, overload).tags] if packet else []
