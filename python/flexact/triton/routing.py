"""Sorts the (token, slot) pairs by expert on the device: count, scan, scatter. No host synchronisation.

Ids outside 0 … E-1 are left out. Results:

    pair_of_row  [pairs] int32      the pair in each row of the sorted order
    tiles        [bound, 4] int32   expert, first row, rows of each tile of BLOCK_M rows, one to spare
    tile_count   [2] int32          how many tiles, and how many rows

Up to SMALL_PAIRS pairs one program does everything, and takes a pair's rank among its expert's from an atomic
counter: within an expert, pairs stand in any order. A row's result does not depend on which row it is, so
results have the same bits all the same. Above, blocks of pairs are counted and ranked, the counts are scanned
for each expert, and the blocks scatter; pairs keep their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.dependent import begin
from flexact.triton.tiles import TILE_EXPERT, TILE_FIELDS, TILE_FIRST_ROW, TILE_ROWS

SMALL_PAIRS = 8192
# Pairs that one program counts; it compares every two.
BLOCK_PAIRS = 256
# Experts that one program scans.
SCAN_EXPERTS = 16


@triton.jit
def _load_ids(topk_ids, pair, pairs, experts):
    """Ids as int32; `experts`, one past the last, for what is not on this rank."""
    ids = tl.load(topk_ids + pair, mask=pair < pairs, other=-1)
    return tl.where((ids >= 0) & (ids < experts), ids, experts).to(tl.int32)


@triton.jit
def _rank(ids, PAIRS: tl.constexpr, CHUNK: tl.constexpr, scratch):
    """How many earlier pairs of the block have the same id, by comparing every two."""
    index = tl.arange(0, PAIRS)
    rank = tl.zeros((PAIRS,), tl.int32)
    for start in range(0, PAIRS, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(scratch + other)
        earlier = (theirs[None, :] == ids[:, None]) & (other[None, :] < index[:, None])
        rank += tl.sum(earlier.to(tl.int32), 1)
    return rank


@triton.jit
def _starts(counts, tile_count, scratch, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """From each expert's count to scratch [3, EXPERTS]: first row, count, first tile."""
    expert = tl.arange(0, EXPERTS)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    tl.store(tile_count, tl.sum(tiles, 0))
    tl.store(tile_count + 1, tl.sum(counts, 0))
    tl.store(scratch + expert, tl.cumsum(counts, 0) - counts)
    tl.store(scratch + EXPERTS + expert, counts)
    tl.store(scratch + 2 * EXPERTS + expert, tl.cumsum(tiles, 0) - tiles)


@triton.jit(do_not_specialize=["pairs", "experts"])
def route_small(
    topk_ids, pair_of_row, tiles, tile_count, scratch, ranks, pairs, experts,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Everything in one program, STEP pairs at a time.

    scratch is [4 EXPERTS] int32, ranks [pairs] int32; EXPERTS is a power of two above E.
    """
    begin()
    expert = tl.arange(0, EXPERTS)
    counts = scratch + 3 * EXPERTS
    tl.store(counts + expert, tl.zeros((EXPERTS,), tl.int32))
    tl.debug_barrier()
    for start in range(0, pairs, STEP):
        pair = start + tl.arange(0, STEP)
        ids = _load_ids(topk_ids, pair, pairs, experts)
        rank = tl.atomic_add(counts + ids, 1, mask=ids < experts, sem="relaxed")
        tl.store(ranks + pair, rank, mask=pair < pairs)
    tl.debug_barrier()
    # Atomics count in the L2, past what this multiprocessor may hold.
    count = tl.load(counts + expert, cache_modifier=".cg")
    _starts(count, tile_count, scratch, EXPERTS, BLOCK_M)
    tl.debug_barrier()
    for start in range(0, pairs, STEP):
        pair = start + tl.arange(0, STEP)
        ids = _load_ids(topk_ids, pair, pairs, experts)
        rank = tl.load(ranks + pair, mask=pair < pairs, other=0)
        row = tl.load(scratch + ids) + rank
        tl.store(pair_of_row + row, pair, mask=ids < experts)
        # A pair that leads a tile writes its entry.
        leads = (ids < experts) & (rank % BLOCK_M == 0)
        rows = tl.minimum(tl.load(scratch + EXPERTS + ids) - rank, BLOCK_M)
        at = tiles + (tl.load(scratch + 2 * EXPERTS + ids) + rank // BLOCK_M) * TILE_FIELDS
        tl.store(at + TILE_EXPERT, ids, mask=leads)
        tl.store(at + TILE_FIRST_ROW, row, mask=leads)
        tl.store(at + TILE_ROWS, rows, mask=leads)


@triton.jit(do_not_specialize=["pairs", "experts"])
def count(
    topk_ids, counts, ranks, ids_scratch, pairs, experts,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Counts each expert's pairs in block b → counts[b, EXPERTS], and ranks pairs within the block."""
    begin()
    block = tl.program_id(0)
    pair = block * PAIRS + tl.arange(0, PAIRS)
    ids = _load_ids(topk_ids, pair, pairs, experts)
    tl.store(ids_scratch + pair, ids)
    tl.store(counts + block * EXPERTS + tl.arange(0, EXPERTS), tl.histogram(ids, EXPERTS))
    tl.debug_barrier()
    tl.store(ranks + pair, _rank(ids, PAIRS, CHUNK, ids_scratch + block * PAIRS))


@triton.jit(do_not_specialize=["blocks"])
def scan(
    counts, totals, blocks, BLOCKS: tl.constexpr, EXPERTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Turns counts into what stands before each block, for PART experts; their sums go to totals."""
    begin()
    expert = tl.program_id(0) * PART + tl.arange(0, PART)
    total = tl.zeros((PART,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        at = counts + block[:, None] * EXPERTS + expert[None, :]
        inside = (block < blocks)[:, None]
        here = tl.load(at, mask=inside, other=0)
        tl.store(at, tl.cumsum(here, 0) - here + total[None, :], mask=inside)
        total += tl.sum(here, 0)
    tl.store(totals + expert, total)


@triton.jit(do_not_specialize=["pairs", "experts", "blocks"])
def scatter(
    counts, totals, ranks, ids_scratch, pair_of_row, tiles, tile_count, pairs, experts, blocks,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Program p places the pairs of block p, and writes the tiles of expert p, where there are such.

    A pair's row: the expert's first row, what stands before its block, its rank in the block.
    """
    begin()
    program = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    count = tl.where(expert < experts, tl.load(totals + expert), 0)
    expert_tiles = (count + BLOCK_M - 1) // BLOCK_M
    first_row = tl.cumsum(count, 0) - count
    first_tile = tl.cumsum(expert_tiles, 0) - expert_tiles
    if program < blocks:
        pair = program * PAIRS + tl.arange(0, PAIRS)
        ids = tl.load(ids_scratch + pair)
        row = tl.gather(first_row, ids, 0) + tl.load(counts + program * EXPERTS + ids) + tl.load(ranks + pair)
        tl.store(pair_of_row + row, pair, mask=(ids < experts) & (pair < pairs))
    if program < experts:
        mine = expert == program
        at = tiles + tl.sum(tl.where(mine, first_tile, 0), 0) * TILE_FIELDS
        rows, first = tl.sum(tl.where(mine, count, 0), 0), tl.sum(tl.where(mine, first_row, 0), 0)
        for start in range(0, tl.cdiv(rows, BLOCK_M), 32):
            t = start + tl.arange(0, 32)
            inside = t * BLOCK_M < rows
            tl.store(at + t * TILE_FIELDS + TILE_EXPERT, tl.zeros((32,), tl.int32) + program, mask=inside)
            tl.store(at + t * TILE_FIELDS + TILE_FIRST_ROW, first + t * BLOCK_M, mask=inside)
            tl.store(at + t * TILE_FIELDS + TILE_ROWS, tl.minimum(rows - t * BLOCK_M, BLOCK_M), mask=inside)
    if program == 0:
        tl.store(tile_count, tl.sum(expert_tiles, 0))
        tl.store(tile_count + 1, tl.sum(count, 0))


@triton.jit(do_not_specialize=["top_k"])
def permute(
    x, x_stride, xs, tile_count, pair_of_row, top_k, columns, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copies token rows into sorted order: xs[r] = x[pair_of_row[r] // k].

    A GEMM then reads its rows as boxes instead of gathering them in its main loop.
    """
    begin()
    row = tl.program_id(0)
    if row < tl.load(tile_count + 1):
        token = (tl.load(pair_of_row + row) // top_k).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(x + token * x_stride + column, mask=inside)
        tl.store(xs + row.to(tl.int64) * columns + column, value, mask=inside)
