"""Packs weights as other projects document it, word by word in plain loops: nothing here is shared with the reader.

Each packer takes a weight [N, K] and returns the layer's tensors by field and the weight that they mean.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

GROUP = 32
Packed = tuple[dict[str, Tensor], Tensor]
Packer = Callable[[Tensor], Packed]


def words_of(codes: Sequence[int], bits: int) -> list[int]:
    """int32 words of whole numbers, the first in the lowest bits; the last word is filled with zeros."""
    words = []
    for start in range(0, len(codes), 32 // bits):
        word = 0
        for place, code in enumerate(codes[start : start + 32 // bits]):
            word |= int(code) << (place * bits)
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return words


def pack_rows(matrix: np.ndarray, bits: int) -> Tensor:
    return torch.tensor([words_of(row, bits) for row in matrix], dtype=torch.int32)


def grid(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unsigned codes [N, K], scales (fp16) and zero points [N, K / group] of a weight."""
    rows, columns = weight.shape
    most = 2**bits - 1
    codes = np.zeros((rows, columns), np.int64)
    scales = np.zeros((rows, columns // group), np.float16)
    zeros = np.zeros((rows, columns // group), np.int64)
    for row in range(rows):
        for number in range(columns // group):
            part = weight[row, number * group : (number + 1) * group].double().numpy()
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            if symmetric:
                high = max(high, -low)
                low = -high
            scale = np.float16((high - low) / most)
            zero = (most + 1) // 2 if symmetric else round(-low / float(scale))
            zeros[row, number], scales[row, number] = min(max(zero, 1), most), scale
            inside = np.clip(np.round(part / float(scale)) + zeros[row, number], 0, most)
            codes[row, number * group : (number + 1) * group] = inside
    return codes, scales, zeros


def meaning(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Tensor:
    """The weight: scale * (code - zero), float32."""
    each = codes.shape[1] // scales.shape[1]
    spread = [np.repeat(values.astype(np.float64), each, axis=1) for values in (scales, zeros)]
    return torch.from_numpy(spread[0] * (codes - spread[1])).float()


def gptq(bits: int = 4, *, symmetric: bool = True, sorted_by_group: bool = False, version: int = 1) -> Packer:
    """AutoGPTQ's QuantLinear.pack: words along K; zero points along N, one less than they are in version 1."""

    def pack(weight: Tensor) -> Packed:
        columns = weight.shape[1]
        order = np.random.default_rng(1).permutation(columns) if sorted_by_group else np.arange(columns)
        codes, scales, zeros = grid(weight[:, order.tolist()], bits, GROUP, symmetric)
        group_of_input = np.zeros(columns, np.int32)
        group_of_input[order] = np.arange(columns) // GROUP
        back = np.argsort(order)
        fields = {
            "qweight": pack_rows(codes[:, back], bits).T.contiguous(),
            "qzeros": pack_rows(zeros.T - (1 if version == 1 else 0), bits),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(group_of_input),
        }
        return fields, meaning(codes, scales, zeros)[:, back.tolist()]

    return pack


def awq(weight: Tensor) -> Packed:
    """AutoAWQ's WQLinear_GEMM: words along N, whose nibble i is that of feature order[i] of eight."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, scales, zeros = grid(weight, 4, GROUP, symmetric=False)

    def shuffled(matrix: np.ndarray) -> np.ndarray:
        return np.concatenate([matrix[:, start : start + 8][:, order] for start in range(0, matrix.shape[1], 8)], 1)

    fields = {
        "qweight": pack_rows(shuffled(codes.T), 4),
        "qzeros": pack_rows(shuffled(zeros.T), 4),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return fields, meaning(codes, scales, zeros)


def compressed(bits: int = 4, *, symmetric: bool = True, group: int | None = GROUP) -> Packer:
    """compressed-tensors' pack-quantized: words along K of signed codes shifted by half their range."""

    def pack(weight: Tensor) -> Packed:
        codes, scales, zeros = grid(weight, bits, group or weight.shape[1], symmetric)
        fields = {
            "weight_packed": pack_rows(codes, bits),
            "weight_scale": torch.from_numpy(scales),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            fields["weight_zero_point"] = pack_rows(zeros.T, bits).T.contiguous()
        return fields, meaning(codes, scales, zeros)

    return pack


def int8(weight: Tensor) -> Packed:
    """compressed-tensors' int-quantized: one signed byte a weight, a scale a row."""
    codes, scales, zeros = grid(weight, 8, weight.shape[1], symmetric=True)
    signed = torch.from_numpy(codes - 128).to(torch.int8)
    return {"weight": signed, "weight_scale": torch.from_numpy(scales)}, meaning(codes, scales, zeros)


def fp8(block: int | None, *, is_tensor: bool = False) -> Packer:
    """e4m3 with a scale for the tensor, for each row, or for each block of `block` rows and inputs."""

    def pack(weight: Tensor) -> Packed:
        rows, columns = weight.shape
        high, wide = (block, block) if block else (rows, columns) if is_tensor else (1, columns)
        scales = torch.zeros(-(-rows // high), -(-columns // wide))
        values, meant = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, columns)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                scales[i, j] = weight[at].abs().max() / 448
                values[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
                meant[at] = values[at].float() * scales[i, j]
        scale = {"weight_scale_inv" if block else "weight_scale": scales[0] if is_tensor else scales}
        return {"weight": values, **scale}, meant

    return pack


def compressed_config(
    form: str, weights: dict[str, object], inputs: dict[str, object] | None = None
) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
