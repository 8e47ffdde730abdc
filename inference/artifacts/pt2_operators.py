"""Which operators a .pt2 graph may call: ATen without its dangerous corners, and Python's operators on sizes.

Denied is what reads or writes files, builds tensors from unchecked indices, changes storages, or trains.
"""

from __future__ import annotations

import re

_ATEN = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_OPERATOR = {
    f"_operator.{name}"
    for name in (
        "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "or_",
        "pos", "pow", "sub", "truediv",
    )
}  # fmt: skip
_MATH = {"math.ceil", "math.floor", "math.sqrt", "math.trunc"}
_SYM = {
    f"torch.{name}"
    for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum", "_sym_sqrt")
}
_HIGHER = {
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "map_impl", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
}
_PRIMS = {
    f"torch.ops.prims.{name}.default"
    for name in ("broadcast_in_dim", "collapse_view", "convert_element_type", "iota", "split_dim", "squeeze", "var")
}
# Of the private operators only those that torch.export and its decompositions write for models.
PRIVATE = frozenset(
    [
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_add_relu",
        "_aminmax",
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "_batch_norm_impl_index",
        "_batch_norm_no_update",
        "_cdist_forward",
        "_conj",
        "_conj_physical",
        "_conv_depthwise2d",
        "_convolution",
        "_convolution_mode",
        "_cummax_helper",
        "_cummin_helper",
        "_embedding_bag_forward_only",
        "_euclidean_dist",
        "_fft_c2c",
        "_fft_c2r",
        "_fft_r2c",
        "_fused_rms_norm",
        "_grid_sampler_2d_cpu_fallback",
        "_int_mm",
        "_is_all_true",
        "_is_any_true",
        "_linalg_check_errors",
        "_linalg_det",
        "_linalg_eigh",
        "_linalg_slogdet",
        "_linalg_solve_ex",
        "_linalg_svd",
        "_local_scalar_dense",
        "_log_softmax",
        "_logcumsumexp",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_native_multi_head_attention",
        "_neg_view",
        "_pack_padded_sequence",
        "_pad_circular",
        "_pad_enum",
        "_pad_packed_sequence",
        "_pdist_forward",
        "_prelu_kernel",
        "_safe_softmax",
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable",
        "_shape_as_tensor",
        "_softmax",
        "_stack",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
        "_to_copy",
        "_transformer_encoder_layer_fwd",
        "_trilinear",
        "_unique2",
        "_unsafe_index",
        "_unsafe_masked_index",
        "_unsafe_view",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "_weight_norm",
        "_weight_norm_interface",
    ]
)
_DENIED = re.compile(
    r"from_file|.*sparse.*|.*nested.*|.*quantize.*|.*_coo|.*_cs[rc]|.*_bs[rc]|set_?|set_data|.*storage.*|resize.*|"
    r"record_stream|retain_grad|requires_grad_|.*backward.*|.*pin_memory|is_pinned|.*mkldnn.*|.*vulkan.*|.*miopen.*|"
    r"qscheme|q_.*|int_repr|dequantize|fbgemm.*|copy_sparse.*|manual_seed|from_blob|rename_?|.*_names|data|"
    r"values|indices|crow_indices|col_indices|ccol_indices|row_indices|to_padded_tensor|narrow_tensors|hspmm|sspaddmm"
)
_SYM_STORAGE = {"sym_storage_offset"}


def is_allowed(target: str) -> bool:
    """Whether a node may call `target`, as torch writes it: "torch.ops.aten.add.Tensor", "_operator.mul", ..."""
    found = _ATEN.fullmatch(target)
    if not found:
        return target in _OPERATOR or target in _MATH or target in _SYM or target in _HIGHER or target in _PRIMS
    name, overload = found.groups()
    if "__" in name or "__" in overload or overload.endswith("out"):
        return False
    if name in _SYM_STORAGE:
        return True
    if name.startswith("_"):
        return name in PRIVATE
    return not _DENIED.fullmatch(name)
