// The block against fp64: every ISA of this machine, layout, option, format and awkward size.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu_moe_case.hpp"

namespace {

using namespace flexact;
using namespace flexact::testing;
using cpu::Isa;

MoeProblem small_problem() {
  MoeProblem p;
  p.experts = 5;
  p.top_k = 2;
  p.hidden = 96;
  p.intermediate = 80;
  return p;
}

Function gated() {
  return Function::named("swiglu");
}

void expect_close(const MoeCase& c, const Stored& out, const std::vector<double>& reference) {
  const Distance d = distance(out, reference);
  EXPECT_LT(d.largest, allowed(c.problem.io_dtype));
  EXPECT_LT(d.typical, allowed(c.problem.io_dtype) / 2);
}

class MoeBlock : public ::testing::TestWithParam<Isa> {
 protected:
  void check(const MoeCase& c) { expect_close(c, c.run(GetParam()), c.reference()); }
};

TEST_P(MoeBlock, computes_every_pairing) {
  for (const Pairing pairing : {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved}) {
    MoeProblem p = small_problem();
    p.pairing = pairing;
    SCOPED_TRACE(static_cast<int>(pairing));
    check(MoeCase(p, Function::expression("silu(g)*(u+0.5)"), 9));
  }
  MoeProblem p = small_problem();
  p.pairing = Pairing::None;
  check(MoeCase(p, Function::named("relu2"), 9));
}

TEST_P(MoeBlock, tells_gate_from_up) {
  MoeProblem p = small_problem();
  const MoeCase c(p, gated(), 9);
  p.pairing = Pairing::UpFirst;
  const MoeCase swapped(p, gated(), 9);
  EXPECT_GT(distance(swapped.run(GetParam()), c.reference()).typical, 0.5);
  EXPECT_GT(distance(Stored(DType::BFloat16, std::vector<double>(c.reference().size(), 0.0)),
                     c.reference())
                .typical,
            0.9);
}

TEST_P(MoeBlock, computes_every_format_and_io_type) {
  for (const Format format : {Format::Bf16, Format::Fp16, Format::Fp32}) {
    for (const DType io : {DType::BFloat16, DType::Float16, DType::Float32}) {
      SCOPED_TRACE(std::string(to_string(format)) + " " + std::string(to_string(io)));
      MoeProblem p = small_problem();
      p.format = format;
      p.io_dtype = io;
      check(MoeCase(p, gated(), 7));
    }
  }
}

TEST_P(MoeBlock, computes_any_hidden_and_intermediate_size) {
  const std::int64_t sizes[][2] = {{1, 1},   {1, 7},    {2, 1},    {15, 17},  {17, 16}, {31, 33},
                                   {63, 65}, {100, 50}, {130, 47}, {1031, 9}, {9, 1031}};
  for (const Format format : {Format::Bf16, Format::Fp32, Format::Fp16}) {
    for (const auto& [hidden, intermediate] : sizes) {
      for (const Pairing pairing : {Pairing::Interleaved, Pairing::None}) {
        SCOPED_TRACE(std::to_string(hidden) + " " + std::to_string(intermediate) + " " +
                     std::string(to_string(format)));
        MoeProblem p = small_problem();
        p.hidden = hidden;
        p.intermediate = intermediate;
        p.format = format;
        p.pairing = pairing;
        p.io_dtype = format == Format::Bf16 ? DType::BFloat16 : DType::Float32;
        check(MoeCase(p, pairing == Pairing::None ? Function::named("relu2") : gated(), 5));
      }
    }
  }
}

TEST_P(MoeBlock, computes_any_number_of_tokens) {
  for (const std::int64_t tokens : {1, 2, 3, 5, 6, 7, 11, 12, 13, 29, 64, 200, 450}) {
    SCOPED_TRACE(tokens);
    MoeProblem p = small_problem();
    p.experts = 2;
    p.hidden = 40;
    p.intermediate = 24;
    check(MoeCase(p, gated(), tokens));
  }
}

TEST_P(MoeBlock, no_tokens_is_no_work) {
  const MoeCase c(small_problem(), gated(), 0);
  const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(), {GetParam()});
  EXPECT_EQ(plan->workspace_bytes(0), 0u);
  plan->run(MoeInputs{}, c.table(), nullptr, 0, nullptr);
}

TEST_P(MoeBlock, k_goes_up_to_32_and_an_expert_may_be_named_twice) {
  MoeProblem p = small_problem();
  p.top_k = 32;
  check(MoeCase(p, gated(), 3));
  p.top_k = 1;
  p.experts = 1;
  check(MoeCase(p, gated(), 3));
}

TEST_P(MoeBlock, adds_biases) {
  for (const Pairing pairing :
       {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
    SCOPED_TRACE(static_cast<int>(pairing));
    MoeProblem p = small_problem();
    p.intermediate = 75;
    p.bias13 = true;
    p.bias2 = true;
    p.pairing = pairing;
    check(MoeCase(p, pairing == Pairing::None ? Function::named("relu2") : gated(), 8));
  }
}

TEST_P(MoeBlock, scales_the_sum) {
  MoeProblem p = small_problem();
  p.routed_scaling_factor = 2.5f;
  check(MoeCase(p, gated(), 8));
}

TEST_P(MoeBlock, router_weight_multiplies_the_input_where_asked) {
  MoeProblem p = small_problem();
  p.router_weight_on_input = true;
  const MoeCase c(p, gated(), 8);
  check(c);
  p.router_weight_on_input = false;
  EXPECT_GT(distance(MoeCase(p, gated(), 8).run(GetParam()), c.reference()).typical, 0.05);
}

TEST_P(MoeBlock, without_combine_each_slot_is_its_expert_unweighted_and_unscaled) {
  MoeProblem p = small_problem();
  p.combine = false;
  p.bias2 = true;
  p.routed_scaling_factor = 3;
  MoeCase c(p, gated(), 8);
  c.ids[3] = -1;
  c.ids[8] = 5;
  check(c);
  const Stored out = c.run(GetParam());
  for (std::int64_t h = 0; h < p.hidden; ++h) {
    EXPECT_EQ(out.at(3 * p.hidden + h), 0);
    EXPECT_EQ(out.at(8 * p.hidden + h), 0);
  }
  p.bias2 = false;
  p.router_weight_on_input = true;
  check(MoeCase(p, gated(), 8));
}

TEST_P(MoeBlock, ids_outside_the_range_contribute_nothing) {
  MoeCase c(small_problem(), gated(), 8);
  c.ids[0] = -1;
  c.ids[5] = 5;
  c.ids[6] = c.ids[7] = std::numeric_limits<std::int64_t>::min();
  c.ids[9] = std::numeric_limits<std::int64_t>::max();
  c.ids[11] = (std::int64_t{1} << 32) + 1;  // expert 1 in its low half
  c.weights[0] = NAN;
  check(c);
  const Stored out = c.run(GetParam());
  for (std::int64_t h = 0; h < c.problem.hidden; ++h)
    EXPECT_EQ(out.at(3 * c.problem.hidden + h), 0);

  for (std::int64_t& id : c.ids) id = -1;
  const Stored nothing = c.run(GetParam());
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(nothing.size()); ++i)
    ASSERT_EQ(nothing.at(i), 0);
}

TEST_P(MoeBlock, takes_32_bit_ids_and_strided_routing) {
  const MoeCase c(small_problem(), gated(), 8);
  std::vector<std::int32_t> ids(16 * 8, -7);
  std::vector<float> weights(16 * 8, NAN);
  std::vector<std::uint16_t> hidden(8 * 200, 0x7fc0);
  for (std::size_t m = 0; m < 8; ++m) {
    for (std::size_t k = 0; k < 2; ++k) {
      ids[16 * m + 3 * k] = static_cast<std::int32_t>(c.ids[2 * m + k]);
      weights[16 * m + 5 * k] = c.weights[2 * m + k];
    }
    for (std::size_t h = 0; h < 96; ++h) hidden[200 * m + h] = c.hidden.halves[96 * m + h];
  }
  const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(), {GetParam()});
  Stored out(DType::BFloat16, std::vector<double>(8 * 96, NAN));
  MoeInputs in = c.inputs(out.data());
  in.topk_ids = view(ids.data(), DType::Int32, {8, 2});
  in.topk_ids.strides = {16, 3};
  in.topk_weights = view(weights.data(), DType::Float32, {8, 2});
  in.topk_weights.strides = {16, 5};
  in.hidden_states = view(hidden.data(), DType::BFloat16, {8, 96});
  in.hidden_states.strides = {200, 1};
  std::vector<std::uint8_t> memory(plan->workspace_bytes(8) + 64);
  void* workspace = memory.data();
  std::size_t room = memory.size();
  std::align(64, plan->workspace_bytes(8), workspace, room);
  plan->run(in, c.table(), workspace, room, nullptr);
  EXPECT_EQ(out.halves, c.run(GetParam()).halves);
}

TEST_P(MoeBlock, packs_weights_of_any_strides) {
  MoeProblem p = small_problem();
  p.hidden = 37;
  p.intermediate = 21;
  p.pairing = Pairing::Interleaved;
  for (const Format format : {Format::Bf16, Format::Fp32}) {
    p.format = format;
    const MoeCase c(p, gated(), 6);
    // As [E, H, 2I] and [E, I, H].
    Stored w13 = c.w13;
    Stored w2 = c.w2;
    const auto transpose = [](const Stored& from, Stored& to, std::int64_t experts,
                              std::int64_t rows, std::int64_t columns) {
      for (std::int64_t e = 0; e < experts; ++e) {
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t k = 0; k < columns; ++k) {
            const auto a = static_cast<std::size_t>((e * rows + r) * columns + k);
            const auto b = static_cast<std::size_t>((e * columns + k) * rows + r);
            if (from.dtype == DType::Float32)
              to.floats[b] = from.floats[a];
            else
              to.halves[b] = from.halves[a];
          }
        }
      }
    };
    transpose(c.w13, w13, p.experts, 2 * p.intermediate, p.hidden);
    transpose(c.w2, w2, p.experts, p.hidden, p.intermediate);
    MoeWeights weights = c.moe_weights();
    weights.w13.data = w13.data();
    weights.w13.strides = {2 * p.intermediate * p.hidden, 1, 2 * p.intermediate};
    weights.w2.data = w2.data();
    weights.w2.strides = {p.hidden * p.intermediate, 1, p.hidden};
    const auto plan = cpu::make_moe_plan(p, c.function, weights, {GetParam()});
    const Stored transposed = c.run(*plan);
    const Stored straight = c.run(GetParam());
    EXPECT_EQ(transposed.halves, straight.halves);
    EXPECT_EQ(transposed.floats, straight.floats);
  }
}

TEST_P(MoeBlock, each_expert_has_its_own_parameters) {
  MoeProblem p = small_problem();
  MoeCase c(p, Function::named("swish_glu"), 12);
  const MoeCase alike = c;
  c.value_rows = p.experts;
  c.values = {0.3f, 0.7f, 1.1f, 1.9f, 3.0f};
  check(c);
  EXPECT_GT(distance(alike.run(GetParam()), c.reference()).typical, 0.02);
}

TEST_P(MoeBlock, exact_numerics_round_gate_and_up_first) {
  MoeProblem p = small_problem();
  p.hidden = 256;
  // A function that shows the rounding of its input: a step as fine as a bf16 ulp at 1.
  const MoeCase c(p, Function::expression("where(floor(g*256)/256 == g, 1, 0)*u"), 12);
  expect_close(c, c.run(GetParam(), nullptr, cpu::Numerics::Exact), c.reference(true));
  EXPECT_GT(distance(c.run(GetParam()), c.reference(true)).typical, 0.3);
}

TEST_P(MoeBlock, a_token_does_not_depend_on_the_others_or_on_poisoned_memory) {
  MoeProblem p = small_problem();
  p.hidden = 1100;  // more than one stretch of K
  const MoeCase c(p, gated(), 70);
  const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(), {GetParam()});
  const Stored all = c.run(*plan, 0xff);
  EXPECT_EQ(all.halves, c.run(*plan, 0x7f).halves);
  MoeCase one = c;
  for (const std::int64_t token : {0, 33, 69}) {
    one.tokens = 1;
    one.hidden.halves.assign(c.hidden.halves.begin() + token * p.hidden,
                             c.hidden.halves.begin() + (token + 1) * p.hidden);
    one.ids.assign(c.ids.begin() + 2 * token, c.ids.begin() + 2 * token + 2);
    one.weights.assign(c.weights.begin() + 2 * token, c.weights.begin() + 2 * token + 2);
    const Stored alone = one.run(*plan);
    EXPECT_TRUE(
        std::equal(alone.halves.begin(), alone.halves.end(), all.halves.begin() + token * p.hidden))
        << token;
  }
}

TEST_P(MoeBlock, the_number_of_threads_changes_no_bit) {
  MoeProblem p = small_problem();
  p.hidden = 256;
  p.intermediate = 160;  // more panels than threads, in both products
  const MoeCase c(p, gated(), 61);
  cpu::Pool one(1);
  const Stored expected = c.run(GetParam(), &one);
  expect_close(c, expected, c.reference());
  for (const int threads : {2, 3, 7}) {
    cpu::Pool pool(threads);
    const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(),
                                         {GetParam(), cpu::Numerics::Fast, &pool});
    for (int round = 0; round < 5; ++round)
      ASSERT_EQ(c.run(*plan).halves, expected.halves) << threads;
  }
}

TEST_P(MoeBlock, the_way_weights_are_fetched_changes_no_bit) {
  for (const std::int64_t tokens : {1, 11, 29, 200}) {  // one tile for each expert, two, more
    SCOPED_TRACE(tokens);
    MoeProblem p = small_problem();
    p.experts = 2;
    p.hidden = 1100;  // more than one stretch of K
    const MoeCase c(p, gated(), tokens);
    const auto run = [&](cpu::Prefetch prefetch) {
      return c.run(*cpu::make_moe_plan(c.problem, c.function, c.moe_weights(),
                                       {GetParam(), cpu::Numerics::Fast, nullptr, prefetch}));
    };
    const Stored expected = run(cpu::Prefetch::IntoL1);
    expect_close(c, expected, c.reference());
    EXPECT_EQ(run(cpu::Prefetch::IntoL2).halves, expected.halves);
  }
}

TEST_P(MoeBlock, more_tokens_than_a_chunk_give_the_same_bits) {
  MoeProblem p = small_problem();
  p.top_k = 32;
  p.experts = 3;
  p.hidden = 5000;  // 32 slots of it: about 200 tokens a chunk, so the least chunk of 256 holds
  p.intermediate = 3;
  MoeCase c(p, gated(), 300);
  // Most slots are on other ranks: memory is planned for them and no work is done.
  for (std::size_t i = 0; i < c.ids.size(); ++i) {
    if (i % 32 >= 3) c.ids[i] = -1;
  }
  cpu::Pool pool(2);
  const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(),
                                       {GetParam(), cpu::Numerics::Fast, &pool});
  EXPECT_EQ(plan->workspace_bytes(300), plan->workspace_bytes(256));
  const Stored all = c.run(*plan);
  MoeCase last = c;
  last.tokens = 40;
  last.hidden.halves.assign(c.hidden.halves.end() - 40 * p.hidden, c.hidden.halves.end());
  last.ids.assign(c.ids.end() - 40 * 32, c.ids.end());
  last.weights.assign(c.weights.end() - 40 * 32, c.weights.end());
  const Stored alone = last.run(*plan);
  EXPECT_TRUE(
      std::equal(alone.halves.begin(), alone.halves.end(), all.halves.end() - 40 * p.hidden));
}

TEST_P(MoeBlock, may_write_over_its_input) {
  const MoeCase c(small_problem(), gated(), 300);
  const auto plan = cpu::make_moe_plan(c.problem, c.function, c.moe_weights(), {.isa = GetParam()});
  MoeCase in_place = c;
  const std::size_t bytes = plan->workspace_bytes(c.tokens);
  std::vector<std::uint8_t> memory(bytes + 64);
  void* workspace = memory.data();
  std::size_t room = memory.size();
  std::align(64, bytes, workspace, room);
  plan->run(in_place.inputs(in_place.hidden.data()), c.table(), workspace, bytes, nullptr);
  EXPECT_EQ(in_place.hidden.halves, c.run(*plan).halves);
}

TEST_P(MoeBlock, propagates_nan_to_its_token_alone) {
  MoeCase c(small_problem(), gated(), 8);
  c.hidden.halves[3 * 96 + 5] = 0x7fc0;
  const Stored out = c.run(GetParam());
  for (std::int64_t h = 0; h < 96; ++h) {
    EXPECT_TRUE(std::isnan(out.at(3 * 96 + h)));
    EXPECT_FALSE(std::isnan(out.at(2 * 96 + h)));
  }
}

// Memory whose last byte is followed by a page that faults.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : pages_((bytes + 4095) / 4096 * 4096) {
    base_ = static_cast<std::uint8_t*>(
        mmap(nullptr, pages_ + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + pages_, 4096, PROT_NONE);
    data_ = base_ + pages_ - bytes;
  }
  ~Guarded() { munmap(base_, pages_ + 4096); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  std::uint8_t* data() { return data_; }

 private:
  std::size_t pages_;
  std::uint8_t* base_;
  std::uint8_t* data_;
};

TEST_P(MoeBlock, reads_and_writes_nothing_beyond_the_tensors) {
  for (const Format format : {Format::Bf16, Format::Fp16, Format::Fp32}) {
    for (const Pairing pairing : {Pairing::Concat, Pairing::Interleaved}) {
      MoeProblem p = small_problem();
      p.hidden = 33;
      p.intermediate = 19;
      p.format = format;
      p.pairing = pairing;
      p.io_dtype = format == Format::Bf16 ? DType::BFloat16 : DType::Float32;
      MoeCase c(p, gated(), 7);
      c.ids[1] = 5;
      c.ids[4] = -1;
      const auto guarded = [](const void* data, std::size_t bytes) {
        auto g = std::make_unique<Guarded>(bytes);
        std::memcpy(g->data(), data, bytes);
        return g;
      };
      const std::size_t size = format == Format::Fp32 ? 4 : 2;
      const std::size_t io_size = format == Format::Bf16 ? 2 : 4;
      const auto w13 = guarded(c.w13.data(), c.w13.size() * size);
      const auto w2 = guarded(c.w2.data(), c.w2.size() * size);
      const auto hidden = guarded(c.hidden.data(), c.hidden.size() * io_size);
      const auto ids = guarded(c.ids.data(), c.ids.size() * 8);
      const auto weights = guarded(c.weights.data(), c.weights.size() * 4);
      Guarded output(c.tokens * p.hidden * io_size);
      MoeWeights moe_weights = c.moe_weights();
      moe_weights.w13.data = w13->data();
      moe_weights.w2.data = w2->data();
      const auto plan = cpu::make_moe_plan(p, c.function, moe_weights, {GetParam()});
      MoeInputs in = c.inputs(output.data());
      in.hidden_states.data = hidden->data();
      in.topk_ids.data = ids->data();
      in.topk_weights.data = weights->data();
      Guarded workspace(plan->workspace_bytes(c.tokens));
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(workspace.data()) % 64, 0u);
      plan->run(in, c.table(), workspace.data(), plan->workspace_bytes(c.tokens), nullptr);
      EXPECT_EQ(std::memcmp(output.data(), c.run(GetParam()).data(), c.tokens * p.hidden * io_size),
                0);
    }
  }
}

TEST_P(MoeBlock, owns_its_weights_and_little_more) {
  MoeProblem p = small_problem();
  p.hidden = 512;
  p.intermediate = 192;
  auto c = std::make_unique<MoeCase>(p, gated(), 5);
  const auto plan = cpu::make_moe_plan(p, c->function, c->moe_weights(), {GetParam()});
  const double original = static_cast<double>(2 * (c->w13.size() + c->w2.size()));
  EXPECT_LE(static_cast<double>(plan->resident_bytes()), 1.02 * original);
  const std::vector<double> reference = c->reference();
  std::fill(c->w13.halves.begin(), c->w13.halves.end(), 0x7fc0);
  std::fill(c->w2.halves.begin(), c->w2.halves.end(), 0x7fc0);
  expect_close(*c, c->run(*plan), reference);
}

TEST_P(MoeBlock, gives_its_weights_back_bit_for_bit) {
  for (const Format format : {Format::Bf16, Format::Fp16, Format::Fp32}) {
    for (const Pairing pairing :
         {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
      MoeProblem p = small_problem();
      p.hidden = 75;  // neither a whole block of columns nor whole pairs
      p.intermediate = 37;
      p.format = format;
      p.pairing = pairing;
      const MoeCase c(p, pairing == Pairing::None ? Function::named("relu2") : gated(), 3);
      const auto plan = cpu::make_moe_plan(p, c.function, c.moe_weights(), {GetParam()});
      const std::size_t size = format == Format::Fp32 ? 4 : 2;
      std::vector<std::byte> w13(c.w13.size() * size, std::byte{0xa5});
      std::vector<std::byte> w2(c.w2.size() * size, std::byte{0xa5});
      plan->unpack(w13.data(), w2.data());
      EXPECT_EQ(std::memcmp(w13.data(), c.w13.data(), w13.size()), 0);
      EXPECT_EQ(std::memcmp(w2.data(), c.w2.data(), w2.size()), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, MoeBlock, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& isa) { return std::string(to_string(isa.param)); });

}  // namespace
