"""DeepGEMM's grouped GEMMs with SGLang's kernels between them as a peer, in bf16 and in FP8 blocks.

Rows of an expert are padded to whole tiles. Where each row stands is worked out before and not timed, in
its favour; copying the rows, their quantisation, the activation and the weighted sum are.
"""

import torch


def set_up():
    """SGLang's globals, which its kernels read."""
    from peers import sglang_triton

    sglang_triton.set_up()


def layout_of(ids, experts, alignment):
    """(padded rows, row of each pair, expert of each row) of pairs sorted by expert."""
    flat = ids.flatten().long()
    counts = torch.bincount(flat, minlength=experts)
    padded = (counts + alignment - 1) // alignment * alignment
    order = flat.argsort(stable=True)
    expert = flat[order]
    within = torch.arange(flat.numel(), device=ids.device) - (counts.cumsum(0) - counts)[expert]
    row = torch.empty_like(flat)
    row[order] = (padded.cumsum(0) - padded)[expert] + within
    rows = int(padded.sum())
    expert_of_row = torch.full((rows,), -1, dtype=torch.int32, device=ids.device)
    expert_of_row[row] = flat.to(torch.int32)
    return rows, row, expert_of_row


def variants(shape, weights, inputs, activation):
    """One call."""
    if activation != "silu" or not shape.gated:
        raise ValueError(f"DeepGEMM is compared on gated silu, not on {activation}")
    import deep_gemm
    from sglang.kernels.ops.activation.activation import silu_and_mul

    x, topk_weights, ids, _ = inputs
    tokens, top_k = ids.shape
    alignment = deep_gemm.get_mk_alignment_for_contiguous_layout()
    rows, row, expert_of_row = layout_of(ids, shape.experts, alignment)
    token_of_row = torch.zeros(rows, dtype=torch.long, device=x.device)
    token_of_row[row] = torch.arange(ids.numel(), device=x.device) // top_k
    inner = torch.empty(rows, 2 * shape.intermediate, dtype=x.dtype, device=x.device)
    hidden = torch.empty(rows, shape.intermediate, dtype=x.dtype, device=x.device)
    out = torch.empty(rows, shape.hidden, dtype=x.dtype, device=x.device)
    scale = topk_weights.to(x.dtype).unsqueeze(1)

    def summed():
        return torch.bmm(scale, out.index_select(0, row).view(tokens, top_k, -1)).squeeze(1)

    if weights["w13"].dtype == torch.bfloat16:

        def call():
            gathered = x.index_select(0, token_of_row)
            deep_gemm.m_grouped_bf16_gemm_nt_contiguous(gathered, weights["w13"], inner, expert_of_row)
            silu_and_mul(inner, hidden)
            deep_gemm.m_grouped_bf16_gemm_nt_contiguous(hidden, weights["w2"], out, expert_of_row)
            return summed()

    elif weights["w13"].dtype == torch.float8_e4m3fn and weights["w13_scale"].dim() == 3:
        from sglang.kernels.ops.moe.ep_moe_kernels import tma_align_input_scale
        from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

        def multiply(a, name, result):
            codes, scales = sglang_per_token_group_quant_fp8(a, 128)
            left = codes, tma_align_input_scale(scales)
            right = weights[name], weights[f"{name}_scale"]
            deep_gemm.m_grouped_fp8_gemm_nt_contiguous(left, right, result, expert_of_row)

        def call():
            multiply(x.index_select(0, token_of_row), "w13", inner)
            silu_and_mul(inner, hidden)
            multiply(hidden, "w2", out)
            return summed()

    else:
        raise ValueError("DeepGEMM is compared in bf16 and fp8_block")
    yield f"contiguous, rows in {alignment}", call
