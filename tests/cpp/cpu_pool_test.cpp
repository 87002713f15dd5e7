// The thread pool: every task once, on its own processor, asleep when idle, alive after a fork.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "cpu/pool.hpp"
#include "flexact/error.hpp"

namespace {

using flexact::cpu::Pool;

cpu_set_t own_mask() {
  cpu_set_t mask;
  sched_getaffinity(0, sizeof mask, &mask);
  return mask;
}

TEST(Pool, runs_every_task_once_with_any_number_of_threads) {
  for (const int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const std::int64_t count : {0, 1, 2, 7, 64, 1000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      Pool::Session session(pool, threads);
      for (int round = 0; round < 20; ++round) {
        session.for_each(count, [&](std::int64_t task, std::int64_t next) noexcept {
          done[static_cast<std::size_t>(task)].fetch_add(1, std::memory_order_relaxed);
          if (next < task || next > count) std::abort();
        });
      }
      for (const auto& times : done) ASSERT_EQ(times.load(), 20);
    }
  }
}

TEST(Pool, makes_plain_writes_visible_to_the_next_step) {
  Pool pool(4);
  Pool::Session session(pool, 4);
  std::vector<std::int64_t> a(500), b(500);
  for (std::int64_t round = 0; round < 200; ++round) {
    session.for_each(500, [&](std::int64_t i, std::int64_t) noexcept {
      a[static_cast<std::size_t>(i)] = i + round;
    });
    session.for_each(500, [&](std::int64_t i, std::int64_t) noexcept {
      b[static_cast<std::size_t>(i)] = a[static_cast<std::size_t>(499 - i)];
    });
    for (std::int64_t i = 0; i < 500; ++i)
      ASSERT_EQ(b[static_cast<std::size_t>(i)], 499 - i + round);
  }
}

TEST(Pool, fixes_workers_to_processors_of_the_mask_and_gives_the_caller_its_own_back) {
  const cpu_set_t before = own_mask();
  Pool pool(2);
  for (const int processor : pool.processors()) EXPECT_TRUE(CPU_ISSET(processor, &before));
  {
    Pool::Session session(pool, 2);
    EXPECT_EQ(session.threads(), 2);
    EXPECT_EQ(
        [] {
          const cpu_set_t mask = own_mask();
          return CPU_COUNT(&mask);
        }(),
        1);
    std::atomic<bool> loose{false};
    session.for_each(64, [&](std::int64_t, std::int64_t) noexcept {
      const cpu_set_t mask = own_mask();
      if (CPU_COUNT(&mask) != 1) loose = true;
    });
    EXPECT_FALSE(loose);
  }
  const cpu_set_t after = own_mask();
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST(Pool, uses_two_processors_at_once_where_there_are_two) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "one processor";
  Pool pool(2);
  std::vector<int> seen(4000, -1);
  Pool::Session session(pool, 2);
  // Tasks long enough for the other thread to wake up.
  session.for_each(4000, [&](std::int64_t task, std::int64_t) noexcept {
    volatile double x = 1;
    for (int i = 0; i < 2000; ++i) x = x * 1.0000001;
    seen[static_cast<std::size_t>(task)] = sched_getcpu();
  });
  EXPECT_EQ(std::set<int>(seen.begin(), seen.end()).size(), 2u);
}

TEST(Pool, respects_a_smaller_affinity_mask) {
  std::thread([] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    if (std::getenv("FLEXACT_NUM_THREADS") != nullptr) return;
    EXPECT_EQ(Pool().threads(), 1);
  }).join();
}

TEST(Pool, reads_the_number_of_threads_from_the_environment) {
  const char* before = std::getenv("FLEXACT_NUM_THREADS");
  const std::string kept = before == nullptr ? "" : before;
  setenv("FLEXACT_NUM_THREADS", "3", 1);
  EXPECT_EQ(Pool().threads(), 3);
  for (const char* nonsense : {"0", "-1", "two", "3x", "99999999999999999999", "1025", " "}) {
    setenv("FLEXACT_NUM_THREADS", nonsense, 1);
    EXPECT_THROW(Pool(), flexact::Error) << nonsense;
  }
  setenv("FLEXACT_NUM_THREADS", "", 1);
  EXPECT_NO_THROW(Pool());
  if (before != nullptr) {
    setenv("FLEXACT_NUM_THREADS", kept.c_str(), 1);
  } else {
    unsetenv("FLEXACT_NUM_THREADS");
  }
}

TEST(Pool, serves_several_calling_threads) {
  Pool pool(3);
  std::atomic<std::int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        Pool::Session session(pool, 3);
        session.for_each(40, [&](std::int64_t i, std::int64_t) noexcept { sum += i; });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 100 * (39 * 40 / 2));
}

TEST(Pool, sleeps_when_idle) {
  Pool pool(2);
  {
    Pool::Session session(pool, 2);
    session.for_each(100, [](std::int64_t, std::int64_t) noexcept {});
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  getrusage(RUSAGE_SELF, &after);
  const auto microseconds = [](const rusage& r) {
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000 + r.ru_utime.tv_usec +
           r.ru_stime.tv_usec;
  };
  EXPECT_LT(microseconds(after) - microseconds(before), 50000);
}

#if defined(__SANITIZE_THREAD__)
constexpr bool kForksAreTested =
    false;  // the thread sanitizer does not follow threads of a forked child
#else
constexpr bool kForksAreTested = true;
#endif

TEST(Pool, a_forked_child_makes_its_own) {
  if (!kForksAreTested) GTEST_SKIP();
  const auto works = [] {
    std::atomic<int> done{0};
    Pool& pool = Pool::instance();
    Pool::Session session(pool, pool.threads());
    session.for_each(500, [&](std::int64_t, std::int64_t) noexcept { ++done; });
    return done == 500;
  };
  ASSERT_TRUE(works());
  const Pool* parents = &Pool::instance();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const bool own = &Pool::instance() != parents;
    _exit(works() && own ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(works());
}

}  // namespace
