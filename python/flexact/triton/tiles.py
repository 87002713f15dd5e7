"""Which rows of which expert a program computes, and in which order tiles run.

A *pair* p is (token p // k, slot p % k). A tile is up to BLOCK_M pairs of one expert times BLOCK_N output
columns. There are two ways to find the pairs of a tile:

    sorted   `routing.py` has sorted the pairs by expert; a table lists the tiles. Row r of the sorted
             order is pair pair_of_row[r], and intermediate results are stored in that order. The second
             GEMM may cut the table's tiles into several of fewer rows.
    direct   for few pairs: program m stands for pair m and finds the other pairs of its expert itself.
             It leads a tile where it is the first of BLOCK_M of them, otherwise there is nothing to do.
             No kernel runs before the first GEMM, and intermediate results are stored by pair.
             Where a tile has room for all tokens, its rows are the tokens themselves: nothing is looked up
             before the first weight is on its way, and rows are consecutive, as the copy engine reads them.
             Then the tile that pair m leads has the intermediate rows from m BLOCK_M on.

An id outside 0 … E-1 belongs to no tile in either.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Fields of a row of the tile table.
TILE_EXPERT = tl.constexpr(0)
TILE_FIRST_ROW = tl.constexpr(1)
TILE_ROWS = tl.constexpr(2)
TILE_FIELDS = tl.constexpr(4)


@triton.jit
def ordered(index, tiles_m, tiles_n, group_m):
    """(row tile, column tile) of the index-th tile to run.

    Column by column within groups of group_m row tiles, so that what runs at the same time reads few
    distinct rows and weights and the L2 holds them.
    """
    group = index // (group_m * tiles_n)
    first = group * group_m
    height = tl.minimum(tiles_m - first, group_m)
    within = index % (group_m * tiles_n)
    return first + within % height, within // height


@triton.jit
def sorted_tile(m, tiles, BLOCK_M: tl.constexpr, PARTS: tl.constexpr):
    """Expert, first sorted row, sorted rows and validity of tile m; each of the table's is cut in PARTS.

    A part that has no rows has expert -1. Rows past the tile's end repeat its first one, so that they can be
    read.
    """
    at = tiles + m // PARTS * TILE_FIELDS
    expert = tl.load(at + TILE_EXPERT)
    first = tl.load(at + TILE_FIRST_ROW)
    count = tl.load(at + TILE_ROWS)
    if PARTS > 1:
        before = m % PARTS * BLOCK_M
        first += before
        count -= before
        expert = tl.where(count > 0, expert, -1)
    lane = tl.arange(0, BLOCK_M)
    valid = lane < count
    return expert, first, first + tl.where(valid, lane, 0), valid


@triton.jit
def direct_leader(m, topk_ids, pairs, experts, PAIRS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of the tile that pair m leads (-1: nothing to do), and how many of its pairs stand before m.

    Most programs end after this, so it is one reduction.
    """
    pair = tl.arange(0, PAIRS)
    ids = tl.load(topk_ids + pair, mask=pair < pairs, other=-1)
    mine = tl.load(topk_ids + m)
    # Compared as int64, an id beyond int32 cannot turn into an expert.
    before = tl.sum(((ids == mine) & (pair < m)).to(tl.int32), 0)
    here = (mine >= 0) & (mine < experts)
    leads = here & (before % BLOCK_M == 0)
    return tl.where(leads, mine, -1).to(tl.int32), before


@triton.jit
def direct_rows(m, expert, before, topk_ids, pairs, PAIRS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Pairs and validity of the tile of `expert` that pair m leads."""
    pair = tl.arange(0, PAIRS)
    ids = tl.load(topk_ids + pair, mask=pair < pairs, other=-1)
    same = (ids == expert) & (pair < pairs)
    # lane[q]: the row of the tile that pair q stands in.
    lane = tl.cumsum(same.to(tl.int32), 0) - 1 - before
    row = tl.arange(0, BLOCK_M)
    hit = same[None, :] & (lane[None, :] == row[:, None])
    # A pair's number plus one, so that 0 says that there is none.
    member = tl.sum(tl.where(hit, pair[None, :] + 1, 0), 1)
    valid = member > 0
    return tl.where(valid, member - 1, m), valid


@triton.jit
def token_rows(m, tokens, BLOCK_M: tl.constexpr):
    """Intermediate rows and validity of the tile that pair m leads, where its rows are the tokens."""
    row = tl.arange(0, BLOCK_M)
    return m * BLOCK_M + row, row < tokens


@triton.jit
def token_pairs(expert, topk_ids, pairs, top_k, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The pairs of each token [BLOCK_M, SLOTS], and which of them are with `expert`.

    Args:
        expert: The expert.
        topk_ids: [M, k], contiguous.
        pairs: M k.
        top_k: k.
        SLOTS: A power of two not below k.
        BLOCK_M: Not below M.
    """
    slot = tl.arange(0, SLOTS)[None, :]
    pair = tl.arange(0, BLOCK_M)[:, None] * top_k + slot
    ids = tl.load(topk_ids + pair, mask=(slot < top_k) & (pair < pairs), other=-1)
    return pair, ids == expert
