// The library's own threads: persistent, each fixed to one processor, asleep when there is no work.
//
//   who works    the calling thread and up to threads() - 1 workers. Work is cut into numbered
//                tasks that are claimed one by one, so a worker that wakes late costs nothing, and
//                who computed a task never shows in its result.
//   affinity     two free threads may be left on one processor by the kernel, so each worker is
//                fixed to its own, and the caller stays where it is for the length of a Session
//                (its mask is put back afterwards). The worker of the caller's processor sits out.
//   processors   those of the calling thread's mask when the pool is made. FLEXACT_NUM_THREADS asks
//                for fewer or more; for more, the masks of all the process's threads are united (a
//                host that fixed its main thread has the others elsewhere), and what still exceeds
//                the processors shares them.
//   fork         a child has none of the parent's threads; instance() makes it a pool of its own.
//   sharing      Sessions of several calling threads take turns.
#pragma once

#include <sched.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

namespace flexact::cpu {

class Pool {
  using Call = void (*)(const void* context, std::int64_t first, std::int64_t next);

 public:
  // The process's pool. Throws InvalidArgument for a FLEXACT_NUM_THREADS that is not 1 … 1024.
  static Pool& instance();

  // A pool of `threads` threads, the caller included; 0: one for each processor.
  explicit Pool(int threads = 0);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const noexcept { return threads_; }
  // The processors that workers are fixed to, for describe() and tests.
  std::vector<int> processors() const;

  // The pool in the hands of one calling thread. With one thread it takes nothing and fixes
  // nothing.
  class Session {
   public:
    // Uses at most `max_threads` threads, the caller included.
    Session(Pool& pool, int max_threads);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    int threads() const noexcept { return threads_; }

    // Calls task(first, next) for first = 0 … count-1, each once, on whichever thread comes first.
    // `next` is a task that this thread will run afterwards, or count where there is none: what to
    // prefetch. Returns when all are done, with their writes visible. `task` must not throw.
    template <typename Task>
    void for_each(std::int64_t count, const Task& task) {
      static_assert(std::is_nothrow_invocable_v<const Task&, std::int64_t, std::int64_t>);
      run(
          count,
          [](const void* context, std::int64_t first, std::int64_t next) {
            (*static_cast<const Task*>(context))(first, next);
          },
          &task);
    }

   private:
    void run(std::int64_t count, Call call, const void* context);

    Pool& pool_;
    int threads_;
    std::unique_lock<std::mutex> turn_;
    cpu_set_t mask_{};  // the caller's own, put back at the end
    bool fixed_ = false;
  };

 private:
  struct State;
  std::unique_ptr<State> state_;
  int threads_ = 1;
};

}  // namespace flexact::cpu
