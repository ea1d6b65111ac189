"""Linear maps whose result for a row depends on that row alone: packed bf16 and int8 matrices, and plain fp32 ones.

    int8   y = (q · W) · scale(row) · scale(output) + b; q and W whole numbers of at most 127 in size, summed exactly
    bf16   rows rounded to bf16, products summed in fp32
    fp32   the weight is read where it lies

Activations are fp32. The products are `native/gemm.h`; where it cannot be had, the references below do the work (int8:
the same bit for bit). A packed matrix holds tiles of 16 outputs by 64 bytes of inputs: see there.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openbook.errors import ConfigError, Refusal
from openbook.native import rows as native
from openbook.nn.linear import Linear
from openbook.nn.rows import usable

KINDS = ("bf16", "int8")
DTYPES = {"bf16": torch.bfloat16, "int8": torch.uint8}  # of the tiles


# ---------------------------------------------------------------------------------------------- packing


def pack(matrix: Tensor) -> Tensor:
    """bf16 or uint8 [..,out,in] → tiles [..,out/16,in/32 or /64,16,16,2 or 4]; beyond the matrix 0 (uint8: 128)."""
    width, empty = (2, 0) if matrix.dtype == torch.bfloat16 else (4, 128)
    outs, ins = matrix.shape[-2:]
    whole = F.pad(matrix, (0, -ins % (16 * width), 0, -outs % 16), value=empty).contiguous().view(torch.int32)
    tiles = whole.unflatten(-2, (-1, 16)).unflatten(-1, (-1, 16))  # [..,out/16,16,tiles,16]
    return tiles.movedim(-3, -1).contiguous().view(matrix.dtype).unflatten(-1, (16, width))


def unpack(tiles: Tensor, outs: int, ins: int) -> Tensor:
    """The inverse of `pack`."""
    whole = tiles.flatten(-2).view(torch.int32)  # [..,out/16,tiles,16,16]
    matrix = whole.movedim(-1, -3).contiguous().flatten(-2).view(tiles.dtype)  # [..,out/16,16,in]
    return matrix.flatten(-3, -2)[..., :outs, :ins].contiguous()


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [..,out,in] → whole numbers + 128 as uint8, and the scale of each output [..,out]."""
    scale = matrix.abs().amax(dim=-1) / 127.0
    whole = (matrix / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)).round_().clamp_(-127, 127)
    return whole.add_(128).to(torch.uint8), scale


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [..,in] → whole numbers (as fp32) and the scale of each row [..,1]; a row that is not finite has NaN."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    scale = largest / 127.0
    usual = torch.isfinite(largest) & (scale != 0)
    whole = torch.where(usual, (x / scale).round().clamp(-127, 127), 0.0)
    return whole, torch.where(torch.isfinite(largest), scale, float("nan"))


class Arena:
    """Memory that many packed matrices share, in the system's large pages where it has them: reading is then faster."""

    PIECE, PAGE, LINE = 32 << 20, 2 << 20, 4096

    def __init__(self) -> None:
        self.piece = torch.empty(0, dtype=torch.uint8)

    def take(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` that lies here."""
        size = tensor.numel() * tensor.element_size()
        size += -size % self.LINE
        if size > len(self.piece):
            memory = torch.empty(max(size, self.PIECE) + self.PAGE, dtype=torch.uint8)
            self.piece = memory[-memory.data_ptr() % self.PAGE :][: max(size, self.PIECE)]
            if (library := native.library()) is not None:
                library.openbook_rows_large_pages(self.piece.data_ptr(), len(self.piece))
        place, self.piece = self.piece[:size], self.piece[size:]
        return place[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape).copy_(tensor)


# ---------------------------------------------------------------------------------------------- modules


class Packed(nn.Module):
    """y = x Wᵀ + b with a packed W [out,in]. `smooth` [in] multiplies x first (and W was divided by it)."""

    def __init__(self, kind: str, shape: torch.Size, bias: Tensor | None, smooth: Tensor | None) -> None:
        super().__init__()
        check_kind(kind)
        self.kind = kind
        self.shape = shape
        self.dtype = torch.float32  # what the weight came in
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.tiles: Tensor
        self.scale: Tensor | None
        self.smooth: Tensor | None
        self.register_buffer("smooth", None if smooth is None else smooth.detach().float().contiguous(), False)
        self.register_buffer("scale", None, False)
        self._native: native.Matrix | None = None
        self._addresses: tuple[int, ...] | None = None

    @classmethod
    def of(cls, weight: Tensor, kind: str, bias: Tensor | None = None, smooth: Tensor | None = None) -> Packed:
        """The packed form of `weight` [out,in]."""
        made = cls(kind, weight.shape, bias, smooth)
        made.dtype = weight.dtype
        tiles, scale = encode(weight.detach(), kind, made.smooth)
        made.register_buffer("tiles", tiles, False)
        made.register_buffer("scale", scale, False)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix with its scales."""
        parts = (self.tiles, self.scale, self.smooth, self.bias)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    def unpack(self) -> Tensor:
        """W [out,in] in fp32: exact for bf16; for int8 what the products compute with, smoothing undone."""
        return decode(self.tiles, self.kind, self.shape, self.scale, self.smooth)

    @torch.no_grad()
    def assign(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take other weights of the same shape, in place."""
        if weight.shape != self.shape:
            raise ConfigError(f"A packed matrix of {tuple(self.shape)} cannot take {tuple(weight.shape)}.")
        tiles, scale = encode(weight.detach(), self.kind, self.smooth)
        self.tiles.copy_(tiles)
        if self.scale is not None and scale is not None:
            self.scale.copy_(scale)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..,in] → fp32 [..,out]."""
        x = x.float()
        library = native.library() if x.device.type == "cpu" and not torch.compiler.is_compiling() else None
        if x.requires_grad and torch.is_grad_enabled():
            return F.linear(x, self.unpack(), self.bias)
        return self.reference(x) if library is None else run(library, self.matrix(), x)

    def __getstate__(self) -> dict[str, Any]:  # addresses are of no use to a copy
        return {**self.__dict__, "_native": None, "_addresses": None}

    def matrix(self) -> native.Matrix:
        """The matrix as the native operators want it."""
        parts = (self.tiles, self.scale, self.smooth, self.bias)
        addresses = tuple(0 if t is None else t.data_ptr() for t in parts)
        if self._native is None or addresses != self._addresses:
            if self.tiles.dtype != DTYPES[self.kind] or any(
                t is not None and t.dtype != torch.float32 for t in parts[1:]
            ):
                raise Refusal(f"A packed {self.kind} matrix cannot be cast: `restore` the model, then cast it.")
            self._native = native.Matrix(*addresses, native.KINDS[self.kind], self.shape[1], self.shape[0])
            self._addresses = addresses
        return self._native

    def reference(self, x: Tensor) -> Tensor:
        """The same arithmetic in PyTorch; int8: the same bits."""
        return reference(x, unpack(self.tiles, *self.shape), self.scale, self.smooth, self.bias)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.shape[1]} → {self.shape[0]}"


class PackedStack(nn.Module):
    """The packed matrices of E experts, each [F,D]."""

    def __init__(self, kind: str, shape: torch.Size, tiles: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.kind = kind
        self.shape = shape
        self.dtype = torch.float32
        self.tiles: Tensor
        self.scale: Tensor | None
        self.register_buffer("tiles", tiles, False)
        self.register_buffer("scale", scale, False)

    @classmethod
    def of(cls, stacked: Tensor, kind: str) -> PackedStack:
        """The packed form of `stacked` [E,F,D], made expert by expert."""
        check_kind(kind)
        parts = [encode(matrix.detach(), kind, None) for matrix in stacked]
        scales = [scale for _, scale in parts if scale is not None]
        made = cls(kind, stacked.shape, torch.stack([t for t, _ in parts]), torch.stack(scales) if scales else None)
        made.dtype = stacked.dtype
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices with their scales."""
        return sum(t.numel() * t.element_size() for t in (self.tiles, self.scale) if t is not None)

    def unpack(self) -> Tensor:
        """[E,F,D] in fp32."""
        return decode(self.tiles, self.kind, self.shape, self.scale, None)

    @torch.no_grad()
    def assign(self, stacked: Tensor) -> None:
        """Take other weights of the same shape, in place."""
        if stacked.shape != self.shape:
            raise ConfigError(f"Packed experts of {tuple(self.shape)} cannot take {tuple(stacked.shape)}.")
        for expert, matrix in enumerate(stacked):
            tiles, scale = encode(matrix.detach(), self.kind, None)
            self.tiles[expert].copy_(tiles)
            if self.scale is not None and scale is not None:
                self.scale[expert].copy_(scale)

    def grouped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """rows [n,D] fp32, of expert e those from ends[e-1] to ends[e] (int32 [E]) → [n,F]; the rest gives zeros."""
        library = native.library() if rows.device.type == "cpu" and not torch.compiler.is_compiling() else None
        if library is None:
            return self.reference(rows, ends)
        scale = None if self.scale is None else self.scale.data_ptr()
        outs, ins = self.shape[1:]
        matrix = native.Matrix(self.tiles.data_ptr(), scale, None, None, native.KINDS[self.kind], ins, outs)
        return run_grouped(library, matrix, rows, ends)

    def reference(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The same arithmetic in PyTorch, expert by expert."""
        out = rows.new_zeros(len(rows), self.shape[1])
        start = 0
        for expert, end in enumerate(ends.tolist()):
            scale = None if self.scale is None else self.scale[expert]
            matrix = unpack(self.tiles[expert], *self.shape[1:])
            out[start:end] = reference(rows[start:end], matrix, scale, None, None)
            start = max(start, end)
        return out


class RowLinear(Linear):
    """Linear in fp32, row by row the same: weight [out,in], bias [out]."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    def matrix(self) -> native.Matrix:
        """The matrix as the native operators want it."""
        return plain_matrix(self.weight, self.bias)

    @classmethod
    def of(cls, weight: nn.Parameter, bias: nn.Parameter | None) -> RowLinear:
        """With these parameters, in fp32: the same ones if they are."""
        made = cls(0, 0)
        made.weight = as_fp32(weight)
        made.bias = None if bias is None else as_fp32(bias)
        return made


def as_fp32(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself if it is contiguous fp32, else a copy that is."""
    if parameter.dtype == torch.float32 and parameter.is_contiguous():
        return parameter
    return nn.Parameter(parameter.detach().float().contiguous(), requires_grad=False)


# ---------------------------------------------------------------------------------------------- products


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b row by row the same where the native operators are; x [..,in], weight [out,in] → [..,out]."""
    library = usable(x)
    usual = weight.dtype == torch.float32 and weight.is_contiguous() and (bias is None or bias.dtype == torch.float32)
    if library is None or not usual:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return run(library, plain_matrix(weight, bias), x)


def plain_matrix(weight: Tensor, bias: Tensor | None) -> native.Matrix:
    """A plain fp32 matrix as the native operators want it."""
    outs, ins = weight.shape
    address = None if bias is None else bias.data_ptr()
    return native.Matrix(weight.data_ptr(), None, None, address, native.KINDS["fp32"], ins, outs)


def grouped(rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor | None:
    """Rows of each group times that group's matrix (`nn/grouped.py`), row by row the same; None: not for these."""
    library = usable(rows)
    if library is None or stacked.dtype != torch.float32 or not stacked.is_contiguous():
        return None
    _, outs, ins = stacked.shape
    matrix = native.Matrix(stacked.data_ptr(), None, None, None, native.KINDS["fp32"], ins, outs)
    return run_grouped(library, matrix, rows, ends)


def run(library: ctypes.CDLL, matrix: native.Matrix, x: Tensor) -> Tensor:
    x = x.detach().contiguous()
    if x.shape[-1] != matrix.inputs:
        raise ConfigError(f"This linear map takes {matrix.inputs} numbers in a row: got {tuple(x.shape)}.")
    y = x.new_empty(*x.shape[:-1], matrix.outputs)
    count, threads = x.numel() // matrix.inputs, torch.get_num_threads()
    call = library.openbook_rows_product
    native.check(call(ctypes.addressof(matrix), count, x.data_ptr(), y.data_ptr(), threads))
    return y


def run_grouped(library: ctypes.CDLL, matrix: native.Matrix, rows: Tensor, ends: Tensor) -> Tensor:
    rows, ends = rows.detach().float().contiguous(), ends.to(torch.int32).contiguous()
    y = rows.new_empty(len(rows), matrix.outputs)
    call, threads = library.openbook_rows_grouped, torch.get_num_threads()
    address = ctypes.addressof(matrix)
    native.check(call(address, ends.data_ptr(), len(ends), len(rows), rows.data_ptr(), y.data_ptr(), threads))
    return y


def reference(x: Tensor, matrix: Tensor, scale: Tensor | None, smooth: Tensor | None, bias: Tensor | None) -> Tensor:
    """Rows times an unpacked matrix (bf16, or uint8 of whole numbers + 128)."""
    if smooth is not None:
        x = x * smooth
    if scale is None:
        y = F.linear(x.bfloat16().float(), matrix.float())
    else:
        whole, step = quantise_rows(x)
        exact = whole.double() @ (matrix.double() - 128).mT  # below 2^53: exact
        y = exact.float() * (step * scale)
    return y if bias is None else y + bias


def encode(weight: Tensor, kind: str, smooth: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """[out,in] → tiles and scales."""
    if smooth is not None:
        weight = weight.float() / smooth
    library = native.library() if weight.device.type == "cpu" else None
    if library is not None and weight.dtype in (torch.float32, torch.bfloat16):
        return _encode(library, weight.contiguous(), kind)
    if kind == "bf16":
        return pack(weight.bfloat16()), None
    whole, scale = quantise(weight.float())
    return pack(whole), scale


def _encode(library: ctypes.CDLL, weight: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    outs, ins = weight.shape
    width = 4 // DTYPES[kind].itemsize
    tiles = weight.new_empty(-(-outs // 16), -(-ins // (16 * width)), 16, 16, width, dtype=DTYPES[kind])
    scale = weight.new_empty(outs, dtype=torch.float32) if kind == "int8" else None
    matrix = native.Matrix(None, None, None, None, native.KINDS[kind], ins, outs)
    wide, address = weight.dtype == torch.float32, None if scale is None else scale.data_ptr()
    call, threads = library.openbook_rows_pack, torch.get_num_threads()
    native.check(call(ctypes.addressof(matrix), wide, weight.data_ptr(), tiles.data_ptr(), address, threads))
    return tiles, scale


def decode(tiles: Tensor, kind: str, shape: torch.Size, scale: Tensor | None, smooth: Tensor | None) -> Tensor:
    """The inverse of `encode`, in fp32."""
    matrix = unpack(tiles, *shape[-2:]).float()
    if kind == "int8" and scale is not None:
        matrix = (matrix - 128.0) * scale.unsqueeze(-1)
    return matrix if smooth is None else matrix * smooth


def check_kind(kind: str) -> None:
    """The kind must be one that is packed."""
    if kind not in KINDS:
        raise ConfigError(f"A packed matrix is of kind {' or '.join(KINDS)}: got '{kind}'.")
