// Threads, their processors, and how they find work.
//
// A job is open while `generation` is odd. The caller publishes it by making the number odd and
// closes it by making it even; a worker counts itself into `active` first and looks at the number
// second, so either the caller sees it and waits, or the worker sees an even number and leaves the
// job alone.
#include "cpu/pool.hpp"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <string>
#include <thread>

#include "flexact/error.hpp"

namespace flexact::cpu {

namespace {

constexpr int kMaxThreads = 1024;
// How long a worker looks for the next job before it sleeps: the three steps of one call follow
// each other within this time, the layers of a model do not, and nobody's processor is burnt for
// them.
constexpr std::chrono::microseconds kLookAround{20};
// Woken threads wake this many more, so that no thread pays for all.
constexpr int kFanOut = 4;

void pause_briefly() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void append_processors(const cpu_set_t& mask, std::vector<int>& processors) {
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &mask) &&
        std::find(processors.begin(), processors.end(), i) == processors.end()) {
      processors.push_back(i);
    }
  }
}

// The calling thread's processors, or none where the system does not say.
std::vector<int> own_processors() {
  std::vector<int> processors;
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) append_processors(mask, processors);
  return processors;
}

// Adds the processors of every thread of this process.
void append_process_processors(std::vector<int>& processors) {
  std::error_code error;
  std::filesystem::directory_iterator tasks("/proc/self/task", error);
  for (; !error && tasks != std::filesystem::directory_iterator(); tasks.increment(error)) {
    cpu_set_t mask;
    const auto thread = static_cast<pid_t>(std::atoi(tasks->path().filename().c_str()));
    if (thread > 0 && sched_getaffinity(thread, sizeof mask, &mask) == 0)
      append_processors(mask, processors);
  }
}

void fix_to_processor(int processor) noexcept {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(processor, &mask);
  // Where the system refuses, the thread stays free: slower, not wrong.
  static_cast<void>(sched_setaffinity(0, sizeof mask, &mask));
}

// FLEXACT_NUM_THREADS, or 0 where it is not set.
int threads_asked_for() {
  const char* text = std::getenv("FLEXACT_NUM_THREADS");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 1 || value > kMaxThreads) {
    throw Error(ErrorCode::InvalidArgument,
                "'" + std::string(text) + "' is not a number of threads", "FLEXACT_NUM_THREADS",
                "1 to " + std::to_string(kMaxThreads));
  }
  return static_cast<int>(value);
}

// The process's pool. A forked child starts over, whatever state the parent's threads left these
// in.
constinit std::atomic<Pool*> process_pool{nullptr};
constinit std::mutex creation;

void start_over_in_child() {
  process_pool.store(nullptr, std::memory_order_relaxed);
  new (&creation) std::mutex;
}

}  // namespace

struct Pool::State {
  struct Worker {
    std::thread thread;
    int processor = -1;
    alignas(64) std::atomic<int> asleep{0};
  };

  // The job; written while it is closed and nobody is active.
  Call call = nullptr;
  const void* context = nullptr;
  std::int64_t count = 0;
  int helpers = 0;       // workers that take part
  int sitting_out = -1;  // the worker of the caller's processor
  bool look_ahead = false;

  alignas(64) std::atomic<int> generation{0};
  alignas(64) std::atomic<int> active{0};
  alignas(64) std::atomic<std::int64_t> next{0};
  alignas(64) std::atomic<bool> stop{false};

  std::mutex turn;
  std::vector<std::unique_ptr<Worker>> workers;

  // The place of worker `index` among the helpers, or -1.
  int rank(int index) const noexcept {
    if (index == sitting_out) return -1;
    const int place = sitting_out >= 0 && index > sitting_out ? index - 1 : index;
    return place < helpers ? place : -1;
  }

  void wake(int place) noexcept {
    const int index = sitting_out >= 0 && place >= sitting_out ? place + 1 : place;
    Worker& worker = *workers[static_cast<std::size_t>(index)];
    if (worker.asleep.exchange(0) != 0) worker.asleep.notify_one();
  }

  // Wakes the helpers that follow `place` in the tree (-1: the caller).
  void wake_next(int place) noexcept {
    const int first = kFanOut * (place + 1);
    for (int i = first; i < std::min(first + kFanOut, helpers); ++i) wake(i);
  }

  void take_tasks() noexcept {
    std::int64_t current = next.fetch_add(1, std::memory_order_relaxed);
    while (current < count) {
      if (look_ahead) {
        const std::int64_t following = next.fetch_add(1, std::memory_order_relaxed);
        call(context, current, std::min(following, count));
        current = following;
      } else {
        call(context, current, count);
        current = next.fetch_add(1, std::memory_order_relaxed);
      }
    }
  }

  // Returns the number of an open job other than `seen`, or 0 to stop.
  int await_job(Worker& worker, int seen) noexcept {
    const auto is_new = [&](int number) { return (number & 1) != 0 && number != seen; };
    for (;;) {
      const auto deadline = std::chrono::steady_clock::now() + kLookAround;
      do {
        for (int i = 0; i < 32; ++i) {
          const int number = generation.load(std::memory_order_acquire);
          if (stop.load(std::memory_order_relaxed)) return 0;
          if (is_new(number)) return number;
          pause_briefly();
        }
      } while (std::chrono::steady_clock::now() < deadline);

      // Say that we sleep, then look once more: whoever publishes after this look sees us asleep.
      worker.asleep.store(1);
      const int number = generation.load();
      if (is_new(number) || stop.load()) {
        worker.asleep.store(0);
      } else {
        worker.asleep.wait(1);
      }
    }
  }

  void work(int index) noexcept {
    Worker& worker = *workers[static_cast<std::size_t>(index)];
    int seen = 0;
    for (;;) {
      seen = await_job(worker, seen);
      if (seen == 0) return;
      active.fetch_add(1);
      const int number = generation.load();
      if ((number & 1) != 0) {
        seen = number;
        const int place = rank(index);
        if (place >= 0) {
          wake_next(place);
          take_tasks();
        }
      }
      if (active.fetch_sub(1) == 1) active.notify_all();
    }
  }

  // Runs the job that was filled in, from the calling thread.
  void run() noexcept {
    next.store(0, std::memory_order_relaxed);
    generation.fetch_add(1);
    wake_next(-1);
    take_tasks();
    generation.fetch_add(1);
    for (int spins = 0;; ++spins) {
      const int left = active.load();
      if (left == 0) return;
      if (spins < 2000) {
        pause_briefly();
      } else {
        active.wait(left);
      }
    }
  }
};

Pool& Pool::instance() {
  Pool* pool = process_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  const std::lock_guard<std::mutex> lock(creation);
  pool = process_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, start_over_in_child);
    static_cast<void>(registered);
    // Never destroyed: threads of the host may still compute while the process ends.
    pool = new Pool();  // NOLINT
    process_pool.store(pool, std::memory_order_release);
  }
  return *pool;
}

Pool::Pool(int threads) : state_(std::make_unique<State>()) {
  std::vector<int> processors = own_processors();
  const int asked = threads > 0 ? threads : threads_asked_for();
  if (asked > static_cast<int>(processors.size())) append_process_processors(processors);
  threads_ = asked > 0 ? asked : std::max(1, static_cast<int>(processors.size()));
  if (threads_ == 1) return;

  // The host's signals are none of the workers' business.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 0; i < threads_; ++i) {
    state_->workers.push_back(std::make_unique<State::Worker>());
    if (!processors.empty()) {
      state_->workers.back()->processor =
          processors[static_cast<std::size_t>(i) % processors.size()];
    }
  }
  for (int i = 0; i < threads_; ++i) {
    State* state = state_.get();
    try {
      state->workers[static_cast<std::size_t>(i)]->thread = std::thread([state, i] {
        const int processor = state->workers[static_cast<std::size_t>(i)]->processor;
        if (processor >= 0) fix_to_processor(processor);
        pthread_setname_np(pthread_self(), ("flexact-" + std::to_string(i)).c_str());
        state->work(i);
      });
    } catch (const std::system_error&) {
      // No more threads to be had. The missing workers never take a task; the others do theirs.
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() {
  state_->stop.store(true);
  for (auto& worker : state_->workers) {
    worker->asleep.store(0);
    worker->asleep.notify_all();
  }
  for (auto& worker : state_->workers) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

std::vector<int> Pool::processors() const {
  std::vector<int> processors;
  for (const auto& worker : state_->workers) processors.push_back(worker->processor);
  return processors;
}

Pool::Session::Session(Pool& pool, int max_threads)
    : pool_(pool), threads_(std::clamp(max_threads, 1, pool.threads_)) {
  if (threads_ == 1) return;
  State& state = *pool_.state_;
  turn_ = std::unique_lock(state.turn);
  const int processor = sched_getcpu();
  if (sched_getaffinity(0, sizeof mask_, &mask_) == 0 && processor >= 0 && CPU_COUNT(&mask_) > 1) {
    fix_to_processor(processor);
    fixed_ = true;
  }
  state.helpers = threads_ - 1;
  state.sitting_out = -1;
  for (std::size_t i = 0; i < state.workers.size() && state.sitting_out < 0; ++i) {
    if (state.workers[i]->processor == processor) state.sitting_out = static_cast<int>(i);
  }
}

Pool::Session::~Session() {
  if (fixed_) static_cast<void>(sched_setaffinity(0, sizeof mask_, &mask_));
}

void Pool::Session::run(std::int64_t count, Call call, const void* context) {
  if (threads_ == 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) call(context, i, i + 1);
    return;
  }
  State& state = *pool_.state_;
  state.call = call;
  state.context = context;
  state.count = count;
  // A thread that looks ahead holds a task back from the others; with few tasks that would show.
  state.look_ahead = count >= 8 * std::int64_t{threads_};
  state.run();
}

}  // namespace flexact::cpu
