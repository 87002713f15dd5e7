"""Launches the kernels of a MoE block. Which tiles and routes is the core's choice (LaunchTable).

    sorted route   route_small, or count + scan + scatter · gate_up · down · combine
    direct route   gate_up · down · combine, the same without tensor cores: vector.gate_up · down_and_combine

A call allocates its scratch tensors from torch, never synchronises, and launches the same kernels for the
same shapes, so it can be captured in a CUDA graph. Tokens go in chunks and the down projection in slabs of
columns, so that scratch stays bounded however many tokens there are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from flexact._core import Function, Launch, LaunchTable, MoeProblem, Tile, chunking, token_bucket
from flexact.triton import combine, gemm, routing, vector
from flexact.triton.compiling import compiled_together
from flexact.triton.dependent import options
from flexact.triton.formats import FORMATS, Intermediate, Operand
from flexact.triton.functions import cache_folder, jit_function

__all__ = ["Block", "interpreted", "launch_table"]

_COMBINE_COLUMNS = 512
# Pairs that a direct kernel can search. Few, because each is a kernel to compile.
_DIRECT_SIZES = (16, 128)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


@functools.lru_cache(maxsize=64)
def launch_table(device_name: str, capability: tuple[int, int], multiprocessors: int) -> LaunchTable:
    """The measured launches for a device.

    What `flexact tune` wrote for it comes first. Shapes and formats that are not in there are taken from the
    shipped table of this device, and those that are not in that from others of the same chip: the same
    compute capability and number of multiprocessors, as an H200 has an H100's; the longest table first.
    """
    name = "".join(c if c.isalnum() else "_" for c in device_name) + ".json"
    folder = importlib.resources.files("flexact.triton") / "tuned"
    shipped = [json.loads(each.read_text()) for each in folder.iterdir() if each.name.endswith(".json")]
    chip = {"capability": list(capability), "multiprocessors": multiprocessors}
    same = [each for each in shipped if each["device"] == device_name or chip.items() <= each.items()]
    same.sort(key=lambda each: (each["device"] != device_name, -len(each["entries"]), each["device"]))
    own = cache_folder() / "tuned" / name
    tables = ([json.loads(own.read_text())] if own.is_file() else []) + same
    if not tables:
        return LaunchTable()
    entries: list[dict[str, Any]] = []
    for table in tables:
        known = {_layer(entry) for entry in entries}
        entries += [entry for entry in table["entries"] if _layer(entry) not in known]
    device = " and ".join(dict.fromkeys(table["device"] for table in tables))
    return LaunchTable.from_json(json.dumps({"device": device, "entries": entries}))


def _layer(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What the launches of an entry are for, but for the number of tokens."""
    fields = ("format", "experts", "top_k", "hidden", "intermediate", "gated")
    return tuple(entry.get(field, True) for field in fields)


@functools.lru_cache(maxsize=64)
def device_facts(index: int | None) -> tuple[str, tuple[int, int], int, int]:
    """Name, compute capability, multiprocessors, shared bytes of a block."""
    if index is None:
        return "interpreter", (9, 0), 4, 232448
    properties = torch.cuda.get_device_properties(index)
    shared = getattr(properties, "shared_memory_per_block_optin", 232448)
    capability = (properties.major, properties.minor)
    return properties.name, capability, properties.multi_processor_count, shared


class Block:
    """The kernels of one problem and function on one device. It owns no weights."""

    def __init__(
        self,
        problem: MoeProblem,
        function: Function,
        device: torch.device,
        table: LaunchTable | None = None,
        limits: tuple[int, int] | None = None,
    ) -> None:
        """Of `limits`, multiprocessors and shared bytes, and of `table` those of the device, unless given."""
        self.problem = problem
        self.function = function
        self.device = device
        index = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
        name, capability, *of_device = device_facts(index)
        self._multiprocessors, self._shared = limits or of_device
        # Whether there is a tensor copy engine.
        self._tma = capability >= (9, 0)
        self._options = options(device)
        if table is None:
            table = launch_table(name, capability, self._multiprocessors)
        self.table = table
        self._format = FORMATS[problem.format]
        self._activation = jit_function(function)
        exact = os.environ.get("FLEXACT_NUMERICS") == "exact"
        self._exact = {"bfloat16": tl.bfloat16, "float16": tl.float16}[problem.io_dtype] if exact else None
        self._dtype: torch.dtype = getattr(torch, problem.io_dtype)
        self._compiled: set[Any] = set()

    def choose(self, tokens: int) -> Launch:
        """How a call of `tokens` tokens is launched."""
        return self.table.choose(self.problem, tokens, self._multiprocessors, self._shared)

    def describe(self) -> str:
        """One line: backend, format, where the launches come from, function."""
        source = "launches by the model"
        if len(self.table):
            source = f"{len(self.table)} launches measured on {self.table.device}"
        return f"triton {self.problem.format} {self.function.name}, {source}"

    def describe_launch(self, tokens: int) -> str:
        """How a call of `tokens` tokens is launched, in words."""
        launch = self.choose(tokens)
        route = "direct" if launch.direct else "permuted" if launch.permute else "sorted"
        parts = [f"{launch.source}: {route}"]
        for name, tile, plain in (
            ("gate_up", launch.gate_up, launch.vector),
            ("down", launch.down, launch.fuse_combine),
        ):
            size = "vector " if plain else f"{tile.block_m}x"
            text = f"{name} {size}{tile.block_n}x{tile.block_k} w{tile.warps} s{tile.stages} g{tile.group_m}"
            parts.append(text + (f" p{tile.persistent}" if tile.persistent else ""))
        return ", ".join(parts)

    def workspace_bytes(self, tokens: int) -> int:
        """Scratch bytes of a call of up to `tokens` tokens: h, y and the sort."""
        problem = self.problem
        chunk, slab = chunking(problem, max(1, tokens))
        pairs = chunk * problem.top_k
        size = torch.finfo(self._dtype).bits // 8
        launch = self.choose(tokens)
        # Where a tile's rows are the tokens, each of `pairs` tiles has block_m of them.
        rows = pairs * launch.gate_up.block_m if launch.direct and tokens <= launch.gate_up.block_m else pairs
        sizes = (problem.hidden, problem.intermediate, size)
        between = self._format.scratch(chunk, rows, *sizes, launch.gate_up)
        if launch.fuse_combine:
            between = max(between, self._format.vector.scratch(chunk, pairs, *sizes, launch.gate_up))
        if launch.permute:
            between += pairs * problem.hidden * size
        blocks = triton.cdiv(pairs, routing.BLOCK_PAIRS)
        bins = triton.next_power_of_2(problem.experts + 1)
        tiles = pairs // 16 + min(problem.experts, pairs)
        sort = 4 * (4 * tiles + 3 * pairs + 1024 + (blocks + 4) * bins + 32)
        return between + pairs * slab * size + sort

    def run(
        self,
        hidden_states: torch.Tensor,
        weights: dict[str, torch.Tensor],
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Computes the block into `out`. Arguments are validated, and on the device.

        Args:
            hidden_states: [M, H], last stride 1.
            weights: w13, w2, biases and scales by name.
            topk_weights: [M, k] float32.
            topk_ids: [M, k] int32 or int64.
            values: [E or 1, P] float32.
            out: [M, H], or [M, k, H] without combine; contiguous.
        """
        tokens = hidden_states.shape[0]
        if not self.problem.combine:
            # Slots of absent experts belong to no tile.
            out.zero_()
        if tokens == 0:
            return out
        if hidden_states.stride(1) != 1:
            hidden_states = hidden_states.contiguous()
        with self._guard():
            chunks = list(self._chunks(hidden_states, weights, topk_weights, topk_ids, values, out))
            self._compile(chunks)
            for _, arguments in chunks:
                self._chunk(*arguments)
        return out

    def warm_up(
        self,
        weights: dict[str, torch.Tensor],
        values: torch.Tensor,
        tokens: int,
        id_dtypes: tuple[torch.dtype, ...] = (torch.int32,),
    ) -> int:
        """Compiles everything that calls of up to `tokens` tokens can need; returns the token buckets."""
        problem = self.problem
        size, _ = chunking(problem, tokens)
        buckets = [1]
        while 2 * buckets[-1] <= token_bucket(size):
            buckets.append(2 * buckets[-1])
        most = min(buckets[-1], size)
        x = torch.zeros((most, problem.hidden), dtype=self._dtype, device=self.device)
        scale = torch.zeros((most, problem.top_k), dtype=torch.float32, device=self.device)
        shape = (most, problem.hidden) if problem.combine else (most, problem.top_k, problem.hidden)
        out = x.new_zeros(shape)
        chunks: list[tuple[Any, tuple[Any, ...]]] = []
        for dtype in id_dtypes:
            # One expert's pairs, so that warming up reads little.
            ids = torch.full((most, problem.top_k), -1, dtype=dtype, device=self.device)
            ids[:1, :1] = 0
            for bucket in buckets:
                part = slice(min(bucket, size))
                chunks += self._chunks(x[part], weights, scale[part], ids[part], values, out[part])
        with self._guard():
            self._compile(chunks)
            for _, arguments in chunks:
                self._chunk(*arguments)
        return len(buckets)

    def _chunks(
        self, x: torch.Tensor, weights: dict[str, torch.Tensor], topk_weights: torch.Tensor,
        topk_ids: torch.Tensor, values: torch.Tensor, out: torch.Tensor,
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:  # fmt: skip
        """For each chunk of a call what tells its kernels from those of others, and arguments of `_chunk`."""
        topk_weights, topk_ids = topk_weights.contiguous(), topk_ids.contiguous()
        tokens = x.shape[0]
        size, _ = chunking(self.problem, tokens)
        for start in range(0, tokens, size):
            part = slice(start, min(start + size, tokens))
            count = part.stop - start
            launch = self.choose(count)
            key = (start == 0, launch.source, token_bucket(count), topk_ids.dtype, values.shape[0])
            yield key, (launch, x[part], weights, topk_weights[part], topk_ids[part], values, out[part])

    def _compile(self, chunks: list[tuple[Any, tuple[Any, ...]]]) -> None:
        """Compiles what chunks need and no chunk before them needed."""
        new = {key: arguments for key, arguments in chunks if key not in self._compiled}
        if not new or interpreted():
            return
        with compiled_together(self.device):
            for arguments in new.values():
                self._chunk(*arguments)
        self._compiled.update(new)

    # --- One chunk --------------------------------------------------------------------------------

    def _chunk(
        self,
        launch: Launch,
        x: torch.Tensor,
        weights: dict[str, torch.Tensor],
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        problem = self.problem
        tokens = x.shape[0]
        pairs = tokens * problem.top_k
        direct = 0
        if launch.direct:
            # One compiled kernel for a bucket of token counts.
            direct = next(size for size in _DIRECT_SIZES if size >= token_bucket(tokens) * problem.top_k)
        up, down = launch.gate_up, launch.down
        if direct:
            route = (topk_ids, topk_ids, topk_ids)
            bound = pairs
        else:
            route, bound = self._sort(topk_ids, up.block_m, pairs)
        by_token = (
            bool(direct)
            and not launch.vector
            and not launch.fuse_combine
            and self._rows_are_tokens(up, down, tokens, x)
        )
        boxes = by_token or (
            launch.permute
            and not direct
            and self._tma
            and self._format.copied
            and x.shape[1] * x.element_size() % 16 == 0
        )
        rows = pairs * up.block_m if by_token else pairs
        between = self._between(rows, weights, up, down, launch.fuse_combine)

        if launch.vector:
            inputs = self._format.vector.inputs(x, topk_ids, problem.experts, weights, up, False)
            self._vector_gate_up(up, inputs, weights, topk_weights, topk_ids, values, between, pairs)
        else:
            inputs = self._format.inputs(x, topk_ids, problem.experts, weights, up, boxes)
            if boxes and not by_token:
                inputs = Operand(self._permuted(inputs.tensor, route, pairs), inputs.extra)
            arguments = (inputs, weights, topk_weights, topk_ids, route, values, between, pairs)
            self._gate_up(up, direct, bound, boxes, by_token, *arguments)
        h = between.read()
        if launch.fuse_combine:
            self._down_and_combine(down, h, weights, topk_weights, topk_ids, out, tokens)
            return
        parts = 1 if direct else up.block_m // down.block_m
        tile = (direct, bound, parts, by_token, h, weights, topk_weights, topk_ids, route)
        if not problem.combine:
            y = out.view(pairs, problem.hidden)
            self._down(down, *tile, y, 0, pairs)
            return
        _, slab = chunking(problem, tokens)
        y = torch.empty((pairs, slab), dtype=self._dtype, device=self.device)
        for first in range(0, problem.hidden, slab):
            self._down(down, *tile, y, first, pairs)
            columns = min(slab, problem.hidden - first)
            block = min(_COMBINE_COLUMNS, triton.next_power_of_2(columns))
            combine.combine[(tokens, triton.cdiv(columns, block))](
                y,
                y.stride(0),
                topk_ids,
                out,
                out.stride(0),
                columns,
                first,
                problem.experts,
                problem.routed_scaling_factor,
                TOP_K=problem.top_k,
                BLOCK=block,
                num_warps=max(1, block // 256),
                **self._options,
            )

    def _between(
        self, rows: int, weights: dict[str, torch.Tensor], up: Tile, down: Tile, fused: bool
    ) -> Intermediate:
        """What lies between the GEMMs; `fused`: the second is down_and_combine."""
        width = self.problem.intermediate
        kernels = self._format.vector if fused else self._format
        return kernels.intermediate(rows, width, self._dtype, self.device, weights, up, down)

    def _rows_are_tokens(self, up: Tile, down: Tile, tokens: int, x: torch.Tensor) -> bool:
        """Whether a direct tile's rows can be the tokens (tiles.py), so that boxes of them are copied."""
        return (
            tokens <= up.block_m == down.block_m
            # Fewer warps read without the copy engine (_weight_operand).
            and min(up.warps, down.warps) >= 4
            and self._tma
            and self._format.by_token
            and not self.problem.router_weight_on_input
            # As boxes are copied. What is not copied as it is lies between the GEMMs as codes of one byte.
            and x.data_ptr() % 16 == 0
            and x.stride(0) >= x.shape[1]
            and x.stride(0) * x.element_size() % 16 == 0
            and self.problem.intermediate * (x.element_size() if self._format.copied else 1) % 16 == 0
        )

    def _sort(
        self, topk_ids: torch.Tensor, block_m: int, pairs: int
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], int]:
        """(tile table, its length, pairs in expert order), and the most tiles there can be."""
        experts = self.problem.experts
        bins = triton.next_power_of_2(experts + 1)
        bound = pairs // block_m + min(experts, pairs)
        small = pairs <= routing.SMALL_PAIRS
        blocks = triton.cdiv(pairs, routing.BLOCK_PAIRS)
        padded = blocks * routing.BLOCK_PAIRS
        sizes = [4 * bound, 2, pairs, 4 * bins, padded] + ([] if small else [padded, blocks * bins])
        # Each array starts on 16 bytes.
        scratch = torch.empty(sum((n + 3) // 4 * 4 for n in sizes), dtype=torch.int32, device=self.device)
        parts = []
        offset = 0
        for n in sizes:
            parts.append(scratch[offset : offset + n])
            offset += (n + 3) // 4 * 4
        tiles, tile_count, pair_of_row, starts, ids = parts[:5]
        if small:
            routing.route_small[(1,)](
                topk_ids, pair_of_row, tiles, tile_count, starts, ids, pairs, experts,
                EXPERTS=bins, BLOCK_M=block_m, STEP=2048, num_warps=16, **self._options,
            )  # fmt: skip
        else:
            ranks, counts = parts[5:]
            routing.count[(blocks,)](
                topk_ids, counts, ranks, ids, pairs, experts,
                PAIRS=routing.BLOCK_PAIRS, EXPERTS=bins, CHUNK=32, num_warps=8, **self._options,
            )  # fmt: skip
            part = min(bins, routing.SCAN_EXPERTS)
            routing.scan[(bins // part,)](
                counts, starts, blocks, BLOCKS=64, EXPERTS=bins, PART=part, num_warps=4, **self._options
            )
            routing.scatter[(max(blocks, experts),)](
                counts, starts, ranks, ids, pair_of_row, tiles, tile_count, pairs, experts, blocks,
                PAIRS=routing.BLOCK_PAIRS, EXPERTS=bins, BLOCK_M=block_m, num_warps=4, **self._options,
            )  # fmt: skip
        return (tiles, tile_count, pair_of_row), bound

    def _permuted(self, x: torch.Tensor, route: Any, pairs: int) -> torch.Tensor:
        """The token rows in sorted order, [pairs, H]."""
        _, tile_count, pair_of_row = route
        result = torch.empty((pairs, x.shape[1]), dtype=x.dtype, device=x.device)
        block = min(2048, triton.next_power_of_2(x.shape[1]))
        routing.permute[(pairs, triton.cdiv(x.shape[1], block))](
            x, x.stride(0), result, tile_count, pair_of_row, self.problem.top_k, x.shape[1],
            BLOCK=block, num_warps=4, **self._options,
        )  # fmt: skip
        return result

    def _gate_up(
        self, tile: Tile, direct: int, bound: int, boxes: bool, by_token: bool, inputs: Any,
        weights: dict[str, torch.Tensor], topk_weights: torch.Tensor, topk_ids: torch.Tensor, route: Any,
        values: torch.Tensor, between: Intermediate, pairs: int,
    ) -> None:  # fmt: skip
        problem = self.problem
        if not direct:
            # It reads no ids: one kernel for all their types.
            topk_ids = route[0]
        side = self._format.weights("w13", weights, problem.pairing)
        bias = weights.get("w13_bias")
        w, tma = self._weight_operand(side.tensor, problem.pairing, problem.intermediate, tile)
        h = between.written
        programs = bound * triton.cdiv(problem.intermediate, tile.block_n)
        persistent = tile.persistent and not direct
        if persistent:
            programs = min(programs, tile.persistent * self._multiprocessors)
        x = inputs.tensor
        a: Any = x
        if boxes:
            a = TensorDescriptor(x, list(x.shape), list(x.stride()), [tile.block_m, tile.block_k])
        gemm.gate_up[(programs,)](
            a, x.stride(0), inputs.extra, w, side.tensor.stride(), side.extra,
            values if bias is None else bias, 0 if bias is None else bias.stride(0), values, topk_weights,
            topk_ids, *route, h.tensor, h.tensor.stride(0), h.extra,
            pairs, problem.top_k, problem.hidden, problem.intermediate, problem.experts, tile.group_m,
            OPERANDS=self._format.policy(tile), ACTIVATION=self._activation, STORE=between.store,
            PARAMETERS=len(self.function.parameters), PER_EXPERT=values.shape[0] > 1,
            PAIRING=problem.pairing, BIAS=bias is not None, WEIGHT_INPUT=problem.router_weight_on_input,
            EXACT=self._exact, DIRECT=direct, BY_TOKEN=by_token, TMA_X=boxes, TMA_W=tma,
            EVEN_K=problem.hidden % tile.block_k == 0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k, PERSISTENT=bool(persistent),
            num_warps=tile.warps, num_stages=tile.stages, **self._options,
        )  # fmt: skip

    def _down(
        self, tile: Tile, direct: int, bound: int, parts: int, by_token: bool, h: Any,
        weights: dict[str, torch.Tensor], topk_weights: torch.Tensor, topk_ids: torch.Tensor, route: Any,
        y: torch.Tensor, first: int, pairs: int,
    ) -> None:  # fmt: skip
        problem = self.problem
        if not direct:
            # It reads no ids: one kernel for all their types.
            topk_ids = route[0]
        side = self._format.weights("w2", weights, "none")
        bias = weights.get("w2_bias")
        w, tma_w = self._weight_operand(side.tensor, "none", problem.hidden, tile)
        a, tma_h = h.tensor, False
        if by_token or (not direct and self._tma and a.stride(0) * a.element_size() % 16 == 0):
            a = TensorDescriptor(a, list(a.shape), list(a.stride()), [tile.block_m, tile.block_k])
            tma_h = True
        columns = min(y.shape[1], problem.hidden - first)
        programs = bound * parts * triton.cdiv(columns, tile.block_n)
        persistent = tile.persistent and not direct
        if persistent:
            programs = min(programs, tile.persistent * self._multiprocessors)
        gemm.down[(programs,)](
            a, h.tensor.stride(0), h.extra, w, side.tensor.stride(), side.extra,
            topk_weights if bias is None else bias, 0 if bias is None else bias.stride(0), topk_weights,
            topk_ids, *route, y, y.stride(0),
            pairs, problem.top_k, problem.intermediate, problem.hidden, problem.experts, first, tile.group_m,
            OPERANDS=self._format.policy(tile), BIAS=bias is not None,
            WEIGHT_OUTPUT=problem.combine and not problem.router_weight_on_input,
            DIRECT=direct, SLOTS=triton.next_power_of_2(problem.top_k) if by_token else 0, TMA_H=tma_h,
            TMA_W=tma_w, EVEN_K=problem.intermediate % tile.block_k == 0,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            PERSISTENT=bool(persistent), PARTS=parts,
            num_warps=tile.warps, num_stages=tile.stages, **self._options,
        )  # fmt: skip

    def _vector_gate_up(
        self, tile: Tile, inputs: Operand, weights: dict[str, torch.Tensor], topk_weights: torch.Tensor,
        topk_ids: torch.Tensor, values: torch.Tensor, between: Intermediate, pairs: int,
    ) -> None:  # fmt: skip
        problem = self.problem
        side = self._format.vector.weights("w13", weights, problem.pairing)
        bias = weights.get("w13_bias")
        x, h = inputs.tensor, between.written
        vector.gate_up[(triton.cdiv(problem.intermediate, tile.block_n), pairs)](
            x, x.stride(0), inputs.extra, side.tensor, side.tensor.stride(), side.extra,
            values if bias is None else bias, 0 if bias is None else bias.stride(0), values, topk_weights,
            topk_ids, h.tensor, h.tensor.stride(0), h.extra,
            problem.top_k, problem.hidden, problem.intermediate, problem.experts,
            OPERANDS=self._format.vector.operands, ACTIVATION=self._activation, STORE=between.store,
            PARAMETERS=len(self.function.parameters), PER_EXPERT=values.shape[0] > 1,
            PAIRING=problem.pairing, BIAS=bias is not None, WEIGHT_INPUT=problem.router_weight_on_input,
            EXACT=self._exact, EVEN_K=problem.hidden % tile.block_k == 0,
            EACH=self._format.vector.each, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            num_warps=tile.warps, num_stages=tile.stages, **self._options,
        )  # fmt: skip

    def _down_and_combine(
        self, tile: Tile, h: Operand, weights: dict[str, torch.Tensor], topk_weights: torch.Tensor,
        topk_ids: torch.Tensor, out: torch.Tensor, tokens: int,
    ) -> None:  # fmt: skip
        problem = self.problem
        side = self._format.vector.weights("w2", weights, "none")
        bias = weights.get("w2_bias")
        slots = triton.next_power_of_2(problem.top_k)
        rows = max(tile.block_n, slots)
        vector.down_and_combine[(triton.cdiv(problem.hidden, rows // slots), tokens)](
            h.tensor, h.tensor.stride(0), h.extra, side.tensor, side.tensor.stride(), side.extra,
            topk_weights if bias is None else bias, 0 if bias is None else bias.stride(0), topk_weights,
            topk_ids, out, out.stride(0),
            problem.intermediate, problem.hidden, problem.experts, problem.routed_scaling_factor,
            OPERANDS=self._format.vector.operands, BIAS=bias is not None,
            WEIGHT_OUTPUT=not problem.router_weight_on_input, TOP_K=problem.top_k, SLOTS=slots,
            EVEN_K=problem.intermediate % tile.block_k == 0, EACH=self._format.vector.each,
            BLOCK_N=rows, BLOCK_K=tile.block_k, num_warps=tile.warps, num_stages=tile.stages,
            **self._options,
        )  # fmt: skip

    def _weight_operand(self, w: torch.Tensor, pairing: str, width: int, tile: Tile) -> tuple[Any, bool]:
        """A descriptor where the copy engine can read the tensor, else the tensor; and which it is.

        Tiles of fewer than four warps take the tensor. Beside activations that are gathered by other copies
        the copy engine needs a fence in every step, which waits for the copies under way; small tiles live
        on those. It takes strides that Triton knows to be aligned, or copies are of four bytes.
        """
        size = w.element_size()
        if tile.warps < 4 and not any(stride % 16 for stride in w.stride()[:2]):
            return w, False
        by_half = pairing in ("concat", "up_first")
        columns_of_tile = tile.block_k // self._format.step
        if (
            not self._tma
            or w.stride(2) != 1
            or w.data_ptr() % 16
            or any(stride * size % 16 for stride in w.stride()[:2])
            or columns_of_tile * size < 16
            or (by_half and w.stride(0) != 2 * width * w.stride(1))
            or (by_half and width * w.stride(1) * size % 16)
        ):
            return w, False
        experts, rows, columns = w.shape
        if self._format.halves:
            # One box holds rows of gate or rows of up: [E, 2, I, K], or [E, I, 2, K] where they alternate.
            e, n, _ = w.stride()
            shape, strides, box = [experts, 1, rows, columns], [e, e, n, 1], [1, 1, tile.block_n]
            if by_half:
                shape, strides = [experts, 2, width, columns], [e, width * n, n, 1]
            elif pairing == "interleaved":
                shape, strides, box = [experts, width, 2, columns], [e, 2 * n, n, 1], [1, tile.block_n, 1]
            return TensorDescriptor(w, shape, strides, [*box, columns_of_tile]), True
        if by_half:
            shape, strides = [2 * experts, width, columns], [width * w.stride(1), w.stride(1), 1]
            box = [2, tile.block_n, columns_of_tile]
        else:
            shape, strides = [experts, rows, columns], [w.stride(0), w.stride(1), 1]
            box = [1, tile.block_n * (2 if pairing == "interleaved" else 1), columns_of_tile]
        return TensorDescriptor(w, shape, strides, box), True

    # --- Surroundings -----------------------------------------------------------------------------

    def _guard(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on torch's current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
