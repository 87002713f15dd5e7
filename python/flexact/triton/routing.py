"""Sorts the (token, slot) pairs by expert on the device: count, scan, scatter. No host synchronisation.

The sort is stable: within an expert pairs keep their order. Ids outside 0 … E-1 are left out. Results:

    pair_of_row  [pairs] int32      the pair in each row of the sorted order
    tiles        [bound, 4] int32   expert, first row, rows of each tile of BLOCK_M rows, one to spare
    tile_count   [1] int32

Up to SMALL_PAIRS pairs one program does everything; above, blocks of PAIRS pairs are counted, one program
scans the counts, and the blocks scatter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.tiles import TILE_EXPERT, TILE_FIELDS, TILE_FIRST_ROW, TILE_ROWS

SMALL_PAIRS = 1024
BLOCK_PAIRS = 512


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
    for start in tl.static_range(0, PAIRS, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(scratch + other)
        earlier = (theirs[None, :] == ids[:, None]) & (other[None, :] < index[:, None])
        rank += tl.sum(earlier.to(tl.int32), 1)
    return rank


@triton.jit
def _write_tiles(
    first_row, counts, tiles, tile_count, scratch, bound,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The tile table from each expert's first row and count, [EXPERTS]."""
    expert = tl.arange(0, EXPERTS)
    expert_tiles = (counts + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(expert_tiles, 0)
    tl.store(tile_count, tl.sum(expert_tiles, 0))
    tl.store(scratch + expert, first_row)
    tl.store(scratch + EXPERTS + expert, counts)
    tl.store(scratch + 2 * EXPERTS + expert, after - expert_tiles)
    tl.debug_barrier()
    for start in range(0, bound, CHUNK):
        t = start + tl.arange(0, CHUNK)
        # The tile's expert: as many as have ended before it.
        owner = tl.sum((after[None, :] <= t[:, None]).to(tl.int32), 1)
        used = owner < EXPERTS
        owner = tl.where(used, owner, 0)
        skip = (t - tl.load(scratch + 2 * EXPERTS + owner)) * BLOCK_M
        inside = used & (t < bound)
        tl.store(tiles + t * TILE_FIELDS + TILE_EXPERT, owner, mask=inside)
        tl.store(tiles + t * TILE_FIELDS + TILE_FIRST_ROW, tl.load(scratch + owner) + skip, mask=inside)
        rows = tl.minimum(tl.load(scratch + EXPERTS + owner) - skip, BLOCK_M)
        tl.store(tiles + t * TILE_FIELDS + TILE_ROWS, rows, mask=inside)


@triton.jit(do_not_specialize=["pairs", "bound"])
def route_small(
    topk_ids, pair_of_row, tiles, tile_count, scratch, ids_scratch, pairs, experts, bound,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Everything in one program.

    scratch is [3 EXPERTS] int32, ids_scratch [PAIRS] int32; EXPERTS is a power of two above E.
    """
    pair = tl.arange(0, PAIRS)
    ids = _load_ids(topk_ids, pair, pairs, experts)
    tl.store(ids_scratch + pair, ids)
    counts = tl.histogram(ids, EXPERTS)
    counts = tl.where(tl.arange(0, EXPERTS) < experts, counts, 0)
    first_row = tl.cumsum(counts, 0) - counts
    tl.debug_barrier()
    rank = _rank(ids, PAIRS, CHUNK, ids_scratch)
    _write_tiles(first_row, counts, tiles, tile_count, scratch, bound, EXPERTS, BLOCK_M, CHUNK)
    row = tl.load(scratch + ids) + rank
    tl.store(pair_of_row + row, pair, mask=ids < experts)


@triton.jit(do_not_specialize=["pairs"])
def count(
    topk_ids, counts, ranks, ids_scratch, pairs, experts,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Counts each expert's pairs in block b → counts[b, EXPERTS], and ranks pairs within the block."""
    block = tl.program_id(0)
    pair = block * PAIRS + tl.arange(0, PAIRS)
    ids = _load_ids(topk_ids, pair, pairs, experts)
    tl.store(ids_scratch + pair, ids)
    tl.store(counts + block * EXPERTS + tl.arange(0, EXPERTS), tl.histogram(ids, EXPERTS))
    tl.debug_barrier()
    tl.store(ranks + pair, _rank(ids, PAIRS, CHUNK, ids_scratch + block * PAIRS))


@triton.jit(do_not_specialize=["blocks", "bound"])
def scan(
    counts, tiles, tile_count, scratch, experts, blocks, bound,
    BLOCKS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: turns counts into the first row of each (block, expert), and writes the tile table.

    scratch: [3 EXPERTS] int32.
    """
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        at = counts + block[:, None] * EXPERTS + expert[None, :]
        inside = (block < blocks)[:, None]
        here = tl.load(at, mask=inside, other=0)
        tl.store(at, tl.cumsum(here, 0) - here + total[None, :], mask=inside)
        total += tl.sum(here, 0)
    total = tl.where(expert < experts, total, 0)
    first_row = tl.cumsum(total, 0) - total
    _write_tiles(first_row, total, tiles, tile_count, scratch, bound, EXPERTS, BLOCK_M, CHUNK)


@triton.jit(do_not_specialize=["pairs"])
def scatter(
    counts, ranks, ids_scratch, first_row, pair_of_row, pairs, experts,
    PAIRS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Places each block's pairs: the expert's first row, the block's share of it, the rank in the block."""
    block = tl.program_id(0)
    pair = block * PAIRS + tl.arange(0, PAIRS)
    ids = tl.load(ids_scratch + pair)
    row = tl.load(first_row + ids) + tl.load(counts + block * EXPERTS + ids) + tl.load(ranks + pair)
    tl.store(pair_of_row + row, pair, mask=(ids < experts) & (pair < pairs))
