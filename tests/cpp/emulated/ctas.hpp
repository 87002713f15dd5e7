// Runs the CTAs of a kernel one after the other, on a copy engine and tensor cores that work when a
// thread asks (`lazy`: as late as possible), and expects that each leaves nothing behind.
#pragma once

#include <gtest/gtest.h>

#include "tensor_cores.hpp"

namespace emulated {

template <typename Kernel>
void run_ctas(unsigned ctas, int threads, bool lazy, const Kernel& kernel) {
  auto& block = Block::current();
  auto& engine = Engine::current();
  block.grid = {ctas, 1, 1};
  engine.lazy = lazy;
  block.idle = [&engine] { return engine.work(); };
  for (unsigned cta = 0; cta < ctas; ++cta) {
    engine.begin();
    block.run(threads, {cta}, kernel);
    EXPECT_TRUE(engine.idle());
    EXPECT_FALSE(engine.allocated);
  }
  block.idle = nullptr;
}

}  // namespace emulated
