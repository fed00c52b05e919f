"""A sample of ONNX's own node tests on both backends; `make conformance` runs all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from tests.conformance import all_cases, outcomes

RIGHT_ON_BOTH = """
test_add_bcast test_argmax_keepdims_example_select_last_index test_averagepool_2d_ceil test_basic_conv_with_padding
test_batchnorm_example_training_mode test_bitshift_left_uint8 test_cast_FLOAT_to_BFLOAT16 test_cast_BFLOAT16_to_FLOAT
test_cast_FLOAT_to_FLOAT8E4M3FN test_cast_FLOAT_to_INT4 test_cast_UINT4_to_UINT8
test_celu test_clip_default_inbounds test_compress_1 test_concat_3d_axis_negative_1 test_constantofshape_int_zeros
test_cumsum_2d_axis_1 test_dequantizelinear_e4m3fn test_dequantizelinear_int4 test_einsum_batch_matmul
test_equal_string test_expand_dim_changed test_gather_elements_negative_indices test_gathernd_example_int32
test_gelu_tanh_1 test_gemm_all_attributes test_group_normalization_example test_gru_with_initial_bias
test_identity_opt test_identity_sequence test_if test_if_opt test_if_seq test_instancenorm_example
test_layer_normalization_3d_axis1_epsilon test_logsoftmax_large_number test_loop11 test_loop13_seq test_loop16_seq_none
test_lstm_with_peepholes test_matmul_bcast test_maxpool_2d_dilations test_mish_expanded test_mod_mixed_sign_float16
test_nonmaxsuppression_limit_output_size test_nonzero_example test_onehot_negative_indices
test_optional_get_element_optional_sequence test_optional_has_element_empty_optional_input test_pow_types_float32_int64
test_qlinearmatmul_2D_uint8_float32 test_quantizelinear_blocked_asymmetric test_range_float_type_positive_delta_expanded
test_reduce_log_sum_exp_keepdims_random test_reshape_zero_and_negative_dim test_rms_normalization_3d_axis1_epsilon
test_scan9_sum test_scatter_elements_with_reduction_max test_sequence_insert_at_front test_sequence_map_add_2_sequences
test_shape_clip_start test_slice_negative_axes test_softmax_axis_1 test_split_to_sequence_nokeepdims
test_string_concat_broadcasting test_strnormalizer_export_monday_casesensintive_lower test_swiglu
test_tfidfvectorizer_tf_uniandbigrams_skip5 test_top_k_smallest test_training_dropout_zero_ratio_mask
test_unique_sorted_with_axis_3d test_where_long_example test_attention_4d_gqa_with_past_and_present_fp16
""".split()


@lru_cache(maxsize=1)
def _cases() -> dict[str, Any]:
    return {case.name: case for case in all_cases()}


@pytest.mark.parametrize("name", RIGHT_ON_BOTH)
def test_case(name: str) -> None:
    for backend, outcome in outcomes(_cases()[name]).items():
        assert outcome.kind == "right", f"{backend}: {outcome.reason}"


@pytest.mark.parametrize(
    "name", ["test_maxunpool_export_with_output_shape", "test_resize_downsample_scales_linear_align_corners"]
)
def test_a_known_deviation_is_announced(name: str) -> None:
    import onnx_ir as ir

    from runtime import Session
    from runtime.onnx_import import import_model

    case = _cases()[name]
    assert outcomes(case)["numpy"].kind == "right"
    session = Session(import_model(ir.from_proto(case.model)))
    assert [finding.code for finding in session.findings if finding.code == "deviation"] == ["deviation"]
