// How GPU kernels are launched: the model's rules, tables of measurements, bounds of scratch
// memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "flexact/backend.hpp"
#include "flexact/error.hpp"
#include "moe/launch_policy.hpp"
#include "moe/problem.hpp"

namespace flexact::moe {
namespace {

using testing::HasSubstr;

MoeProblem problem(std::int64_t experts, std::int64_t top_k, std::int64_t hidden,
                   std::int64_t intermediate) {
  MoeProblem p;
  p.experts = experts;
  p.top_k = top_k;
  p.hidden = hidden;
  p.intermediate = intermediate;
  return p;
}

const char* const kTable = R"({"device": "a GPU", "entries": [
  {"format": "bf16", "experts": 8, "top_k": 2, "hidden": 64, "intermediate": 32, "gated": true,
   "tokens": 16, "direct": true,
   "gate_up": {"block_m": 16, "block_n": 32, "block_k": 64, "group_m": 1, "warps": 4, "stages": 5},
   "down": {"block_m": 16, "block_n": 64, "block_k": 64, "group_m": 1, "warps": 4, "stages": 5}},
  {"format": "bf16", "experts": 8, "top_k": 2, "hidden": 64, "intermediate": 32, "gated": true,
   "tokens": 4096,
   "gate_up": {"block_m": 128, "block_n": 64, "block_k": 64, "group_m": 8, "warps": 8, "stages": 3,
               "persistent": 1},
   "down": {"block_m": 128, "block_n": 128, "block_k": 64, "group_m": 8, "warps": 8, "stages": 3}}]})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string refusal_of(const std::string& text) {
  try {
    LaunchTable::from_json(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::ConfigError);
    return error.what();
  }
  return "accepted";
}

TEST(LaunchPolicy, token_counts_round_up_to_powers_of_two) {
  EXPECT_EQ(token_bucket(0), 1);
  EXPECT_EQ(token_bucket(1), 1);
  EXPECT_EQ(token_bucket(3), 4);
  EXPECT_EQ(token_bucket(4096), 4096);
  EXPECT_EQ(token_bucket(4097), 8192);
}

TEST(LaunchPolicy, few_pairs_need_no_sort_and_many_do) {
  const MoeProblem p = problem(128, 8, 2048, 768);
  EXPECT_TRUE(model(problem(128, 8, 2048, 1536), 1, {}).vector);
  EXPECT_TRUE(model(p, 1, {}).fuse_combine);
  EXPECT_FALSE(model(p, 16, {}).vector);
  EXPECT_TRUE(model(p, 16, {}).direct);
  EXPECT_FALSE(model(p, 17, {}).direct);
}

TEST(LaunchPolicy, every_tile_of_the_model_fits_into_shared_memory) {
  for (const std::int64_t width : {8, 33, 768, 2880, 14336}) {
    for (const bool gated : {true, false}) {
      MoeProblem p = problem(32, 4, width, width);
      p.pairing = gated ? Pairing::Concat : Pairing::None;
      for (const int shared : {101376, 166912, 232448}) {
        for (std::int64_t tokens = 1; tokens <= 65536; tokens *= 2) {
          const Launch launch = model(p, tokens, {132, shared});
          const Tile& up = launch.gate_up;
          const int rows = (gated ? 2 : 1) * up.block_n;
          if (!launch.vector) {
            EXPECT_LE(up.stages * up.block_k * 2 * (up.block_m + rows), shared);
          }
          EXPECT_GE(up.stages, 2);
          if (launch.fuse_combine) continue;
          const Tile& down = launch.down;
          EXPECT_LE(down.stages * down.block_k * 2 * (down.block_m + down.block_n), shared);
          EXPECT_EQ(down.block_m, up.block_m);
        }
      }
    }
  }
}

TEST(LaunchPolicy, nearest_measurement_of_the_same_shape_is_taken) {
  const LaunchTable table = LaunchTable::from_json(kTable);
  EXPECT_EQ(table.device(), "a GPU");
  EXPECT_EQ(table.size(), 2u);
  const MoeProblem p = problem(8, 2, 64, 32);
  EXPECT_EQ(table.choose(p, 8, {}).gate_up.stages, 5);
  EXPECT_EQ(table.choose(p, 30, {}).gate_up.stages, 5);
  EXPECT_EQ(table.choose(p, 2000, {}).gate_up.persistent, 1);
  EXPECT_EQ(table.choose(problem(8, 1, 64, 32), 16, {}).source, "model");
  // More than twice from any measurement.
  EXPECT_EQ(table.choose(p, 4, {}).source, "model");
  EXPECT_EQ(table.choose(p, 50, {}).source, "model");
  EXPECT_EQ(table.choose(p, 1024, {}).source, "model");
  EXPECT_EQ(table.choose(p, 10000, {}).source, "model");
  EXPECT_EQ(table.choose(problem(8, 2, 64, 48), 16, {}).source, "model");
  MoeProblem unary = p;
  unary.pairing = Pairing::None;
  EXPECT_EQ(table.choose(unary, 16, {}).source, "model");
}

TEST(LaunchPolicy, many_pairs_are_not_searched_though_a_measurement_of_few_is_near) {
  const LaunchTable table = LaunchTable::from_json(replaced(
      replaced(kTable, "\"tokens\": 16", "\"tokens\": 64"), "\"tokens\": 4096", "\"tokens\": 256"));
  const MoeProblem p = problem(8, 2, 64, 32);
  EXPECT_TRUE(table.choose(p, 64, {}).direct);
  // 256 pairs.
  EXPECT_EQ(table.choose(p, 128, {}).gate_up.block_m, 128);
}

TEST(LaunchPolicy, kernels_that_sum_do_not_serve_where_nothing_is_summed) {
  MoeProblem p = problem(8, 2, 64, 32);
  p.combine = false;
  EXPECT_FALSE(model(p, 1, {}).fuse_combine);
  const std::string fused =
      replaced(kTable, "\"direct\": true", "\"direct\": true, \"fuse_combine\": true");
  const LaunchTable table = LaunchTable::from_json(fused);
  EXPECT_FALSE(table.choose(p, 16, {}).fuse_combine);
  EXPECT_EQ(table.choose(p, 16, {}), model(p, 16, {}));
  p.combine = true;
  EXPECT_TRUE(table.choose(p, 16, {}).fuse_combine);
}

TEST(LaunchPolicy, a_layer_has_a_short_list_of_launches) {
  const MoeProblem p = problem(128, 8, 2048, 768);
  const auto launches = LaunchTable().all(p, 1 << 20, {});
  EXPECT_GT(launches.size(), 2u);
  EXPECT_LE(launches.size(), 8u);
  for (std::int64_t tokens = 1; tokens < 40000; tokens += 37) {
    const Launch launch = LaunchTable().choose(p, tokens, {});
    EXPECT_NE(std::find(launches.begin(), launches.end(), launch), launches.end()) << tokens;
  }
}

TEST(LaunchPolicy, scratch_memory_is_bounded_whatever_the_number_of_tokens) {
  for (const std::int64_t hidden : {8, 2048, 7168}) {
    for (const std::int64_t top_k : {1, 8, 32}) {
      const MoeProblem p = problem(32, top_k, hidden, 2048);
      for (std::int64_t tokens = 1; tokens <= std::int64_t{1} << 24; tokens *= 8) {
        const Chunking c = chunking(p, tokens);
        EXPECT_GE(c.tokens, 1);
        EXPECT_LE(c.tokens, tokens);
        EXPECT_LE(c.tokens * top_k, 1 << 18);
        EXPECT_GE(c.columns, 1);
        EXPECT_LE(c.columns, std::max<std::int64_t>(hidden, 256));
        EXPECT_LE(c.tokens * top_k * c.columns * 2, (std::int64_t{2} << 30));
      }
    }
  }
}

TEST(LaunchPolicy, tables_with_faults_are_refused_with_the_place) {
  EXPECT_EQ(refusal_of(kTable), "accepted");
  EXPECT_THAT(refusal_of(replaced(kTable, "\"device\": \"a GPU\",", "")), HasSubstr("/device"));
  EXPECT_THAT(refusal_of(replaced(kTable, "\"block_n\": 32", "\"block_n\": 33")),
              HasSubstr("/entries/0/gate_up/block_n"));
  EXPECT_THAT(refusal_of(replaced(kTable, "\"tokens\": 16", "\"tokens\": 1600")),
              HasSubstr("/entries/0/direct"));
  EXPECT_THAT(
      refusal_of(replaced(kTable, "\"down\": {\"block_m\": 128", "\"down\": {\"block_m\": 256")),
      HasSubstr("/entries/1/down/block_m"));
  // Tiles of the table that the first GEMM's rows are sorted by may be cut.
  EXPECT_EQ(
      refusal_of(replaced(kTable, "\"down\": {\"block_m\": 128", "\"down\": {\"block_m\": 32")),
      "accepted");
  EXPECT_THAT(refusal_of(replaced(kTable, "\"experts\": 8", "\"experts\": \"8\"")),
              HasSubstr("/entries/0/experts"));
  EXPECT_THAT(refusal_of(replaced(kTable, "\"direct\": true", "\"direct\": 1")),
              HasSubstr("/entries/0/direct"));
  EXPECT_THAT(refusal_of(replaced(kTable, "\"direct\": true", "\"fuse_combine\": true")),
              HasSubstr("/entries/0/fuse_combine"));
  EXPECT_THAT(refusal_of(R"({"device": "a GPU", "entries": 3})"), HasSubstr("/entries"));
}

TEST(TritonBackend, says_what_it_computes_and_where) {
  const Backend& triton = backend("triton");
  EXPECT_EQ(triton.device(), "cuda");
  const Function swiglu = Function::named("swiglu");
  MoeProblem p = problem(8, 2, 64, 32);
  EXPECT_FALSE(triton.refuse(p, swiglu));
  EXPECT_THROW(triton.plan(p, swiglu, {}), Error);
  p.io_dtype = DType::Float32;
  EXPECT_THAT(triton.refuse(p, swiglu)->hint, HasSubstr("bfloat16"));
  p = problem(5000, 2, 64, 32);
  EXPECT_THAT(triton.refuse(p, swiglu)->reason, HasSubstr("5000 experts"));
  EXPECT_THROW(triton.plan(p, swiglu, {}), Error);
  p = problem(8, 2, 64, 32);
  p.format = Format::Fp32;
  EXPECT_THAT(triton.refuse(p, swiglu)->reason, HasSubstr("fp32"));
}

// Of activations, and of weights at most as many.
int activation_bytes(Format format) {
  return format == Format::Mxfp4 || format == Format::Nvfp4 ? 2 : 1;
}

TEST(LaunchPolicy, tiles_of_quantised_formats_fit_their_policies) {
  const GpuLimits limits;
  for (const Format format : {Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel,
                              Format::Mxfp4, Format::Nvfp4, Format::Mxfp4Fp8}) {
    for (const Pairing pairing : {Pairing::Concat, Pairing::None}) {
      MoeProblem p = problem(8, 2, 4096, 14336);
      p.format = format;
      p.pairing = pairing;
      for (std::int64_t tokens = 1; tokens <= 65536; tokens *= 2) {
        const Launch launch = model(p, tokens, limits);
        EXPECT_EQ(launch.gate_up.block_m % launch.down.block_m, 0);
        EXPECT_GE(launch.gate_up.block_k, 32);
        if (launch.vector) {
          EXPECT_LE(tokens, 2);
          continue;
        }
        if (!launch.fuse_combine && activation_bytes(format) == 1) {
          const Tile& up = launch.gate_up;
          const int up_rows = up.block_m + (pairing == Pairing::None ? 1 : 2) * up.block_n;
          const Tile& down = launch.down;
          EXPECT_LE(up.stages * up.block_k * up_rows, limits.shared_bytes);
          EXPECT_LE(down.stages * down.block_k * (down.block_m + down.block_n),
                    limits.shared_bytes);
        }
        if (format == Format::Fp8Block || format == Format::Fp8Tensor ||
            format == Format::Fp8Channel) {
          EXPECT_NE(launch.gate_up.block_m, 32) << "without a group of warps";
        }
        if ((format == Format::Mxfp4 || format == Format::Nvfp4) && !launch.vector) {
          EXPECT_GE(launch.gate_up.block_n, 32);
          EXPECT_GE(launch.down.block_n, 32);
        }
        if (format == Format::Fp8Block || format == Format::Mxfp4Fp8) {
          EXPECT_EQ(launch.gate_up.block_k, 128);
          EXPECT_EQ(launch.down.block_k, 128);
          EXPECT_LE(launch.gate_up.block_n, 128);
          // Many rows: the result is quantised in the epilogue.
          if (tokens >= 1024) {
            EXPECT_EQ(launch.gate_up.block_n, 128);
          }
        }
      }
    }
  }
}

TEST(LaunchPolicy, one_or_two_tokens_of_fp8_take_no_tensor_cores) {
  for (const Format format : {Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel}) {
    for (const std::int64_t top_k : {1, 2, 8, 32, 48}) {
      MoeProblem p = problem(64, top_k, 4096, 768);
      p.format = format;
      for (const std::int64_t tokens : {1, 2}) {
        const Launch launch = model(p, tokens, {});
        EXPECT_TRUE(launch.vector && launch.fuse_combine);
        EXPECT_EQ(launch.gate_up.block_k % 128, 0);
        EXPECT_EQ(launch.down.block_k % 128, 0);
        // The second kernel's rows are at least as many as slots.
        EXPECT_LE(top_k * launch.down.block_k, 8192);
      }
      EXPECT_FALSE(model(p, 3, {}).fuse_combine);
      p.combine = false;
      EXPECT_FALSE(model(p, 1, {}).fuse_combine || model(p, 1, {}).vector);
    }
  }
}

TEST(LaunchPolicy, the_second_gemm_of_fp8_may_have_tiles_of_fewer_rows) {
  MoeProblem p = problem(32, 8, 7168, 2048);
  p.format = Format::Fp8Block;
  const Launch many = model(p, 4096, {});
  EXPECT_EQ(many.gate_up.block_m, 128);
  EXPECT_EQ(many.down.block_m, 64);
  EXPECT_EQ(model(p, 1024, {}).gate_up.block_m, 64);
  p = problem(128, 8, 2048, 768);
  p.format = Format::Fp8Tensor;
  EXPECT_EQ(model(p, 1024, {}).gate_up.block_m, 128);
  EXPECT_EQ(model(p, 1024, {}).down.block_m, 64);
  EXPECT_EQ(model(p, 512, {}).gate_up.block_m, 64);
}

TEST(LaunchPolicy, fp4_beside_bf16_takes_tiles_as_high_as_an_experts_share_of_the_rows) {
  for (const Format format : {Format::Mxfp4, Format::Nvfp4}) {
    const auto of = [format](std::int64_t experts, std::int64_t top_k, std::int64_t hidden,
                             std::int64_t intermediate, std::int64_t tokens) {
      MoeProblem p = problem(experts, top_k, hidden, intermediate);
      p.format = format;
      return model(p, tokens, {});
    };
    // Rows of an expert: 8, 16, 32, 64, 128.
    EXPECT_EQ(of(128, 8, 2048, 768, 128).gate_up.block_m, 16);
    EXPECT_EQ(of(32, 4, 2880, 2880, 128).gate_up.block_m, 32);
    EXPECT_EQ(of(8, 2, 4096, 14336, 128).gate_up.block_m, 64);
    EXPECT_EQ(of(128, 8, 2048, 768, 1024).gate_up.block_m, 64);
    EXPECT_EQ(of(32, 4, 2880, 2880, 1024).gate_up.block_m, 128);
    // No more rows than there are tokens.
    EXPECT_EQ(of(8, 8, 4096, 14336, 16).gate_up.block_m, 16);
    // What is sorted is copied into that order.
    EXPECT_TRUE(of(8, 2, 4096, 14336, 128).permute);
    EXPECT_FALSE(of(8, 2, 4096, 14336, 16).permute);
    // One token of long experts goes without tensor cores, a warp for two of its slots' rows.
    const Launch one = of(8, 2, 4096, 14336, 1);
    EXPECT_TRUE(one.vector && one.fuse_combine);
    EXPECT_EQ(one.down.warps, 1);
    EXPECT_EQ(of(32, 4, 2880, 2880, 2).down.warps, 2);
    EXPECT_EQ(of(64, 32, 4096, 2048, 1).down.block_k, 256);
    EXPECT_FALSE(of(128, 8, 2048, 768, 1).vector);
    EXPECT_FALSE(of(8, 2, 4096, 14336, 4).vector);
  }
  MoeProblem p = problem(8, 2, 4096, 14336);
  p.format = Format::Mxfp4Fp8;
  EXPECT_FALSE(model(p, 1, {}).vector);
  EXPECT_FALSE(model(p, 128, {}).permute);
}

TEST(LaunchPolicy, tables_are_refused_where_a_tile_cannot_hold_the_formats_scales) {
  const std::string blocks = replaced(kTable, "\"bf16\"", "\"fp8_block\"");
  EXPECT_THAT(refusal_of(blocks), HasSubstr("/entries/0/gate_up: block_k is not 128"));
  const std::string packed =
      replaced(replaced(kTable, "\"bf16\"", "\"mxfp4\""), "\"block_k\": 64", "\"block_k\": 16");
  EXPECT_THAT(refusal_of(packed), HasSubstr("less than a group of FP4"));
  // The lanes of an FP4 tile hold 32 columns together.
  const std::string narrow =
      replaced(replaced(kTable, "\"bf16\"", "\"nvfp4\""), "\"block_n\": 32", "\"block_n\": 16");
  EXPECT_THAT(refusal_of(narrow), HasSubstr("block_n is less than the 32 columns"));
  std::string wide = replaced(replaced(blocks, "\"block_k\": 64", "\"block_k\": 128"),
                              "\"block_n\": 32", "\"block_n\": 256");
  EXPECT_THAT(refusal_of(wide), HasSubstr("more than two blocks of scales"));
}

TEST(LaunchPolicy, tables_are_refused_where_a_tile_without_tensor_cores_does_not_fit) {
  const auto with = [](const char* format, const char* more) {
    return replaced(replaced(kTable, "\"bf16\"", std::string("\"") + format + "\""),
                    "\"direct\": true", std::string("\"direct\": true, ") + more);
  };
  EXPECT_THAT(refusal_of(with("bf16", "\"vector\": true")),
              HasSubstr("/entries/0/vector: only with fuse_combine"));
  const char* both = "\"vector\": true, \"fuse_combine\": true";
  EXPECT_EQ(refusal_of(with("mxfp4", both)), "accepted");
  EXPECT_EQ(refusal_of(with("fp8_channel", both)), "accepted");
  EXPECT_THAT(refusal_of(with("mxfp4_fp8", both)), HasSubstr("no kernels without tensor cores"));
  const std::string blocks = with("fp8_block", both);
  EXPECT_THAT(refusal_of(blocks), HasSubstr("block_k is not a multiple of 128"));
  const std::string half = replaced(blocks, "\"block_k\": 64", "\"block_k\": 512");
  const std::string whole = replaced(half, "\"block_k\": 64", "\"block_k\": 512");
  EXPECT_EQ(refusal_of(whole), "accepted");
  EXPECT_THAT(refusal_of(replaced(whole, "\"block_n\": 32", "\"block_n\": 128")),
              HasSubstr("more than one block of scales"));
}

}  // namespace
}  // namespace flexact::moe
