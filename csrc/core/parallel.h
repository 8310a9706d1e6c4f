// Threads as kernels see them: a way to run numbered tasks. Kernels own no thread; the caller lends them its own.
#pragma once

#include <cstdint>

namespace ao_arm {

class Parallel {
   public:
    using ForFunction = void (*)(int64_t tasks, void (*body)(int64_t task, void* context), void* context);

    // `threads` is how many tasks may run at once; `run_tasks` runs them and returns when all are done.
    Parallel(int threads, ForFunction run_tasks) : threads_(threads), run_tasks_(run_tasks) {}

    static Parallel serial() { return Parallel(1, nullptr); }

    int threads() const { return threads_; }

    // Calls body(task) for each task in [0, tasks). Bodies must not throw.
    template <class Body>
    void run(int64_t tasks, const Body& body) const {
        if (threads_ == 1 || tasks <= 1) {
            for (int64_t task = 0; task < tasks; ++task) body(task);
            return;
        }
        run_tasks_(
            tasks, [](int64_t task, void* context) { (*static_cast<const Body*>(context))(task); },
            const_cast<void*>(static_cast<const void*>(&body)));
    }

    // Calls body(first, last, strip) for `strips` strips of [0, count) of nearly equal length.
    template <class Body>
    void run_strips(int64_t strips, int64_t count, const Body& body) const {
        run(strips, [&](int64_t strip) { body(count * strip / strips, count * (strip + 1) / strips, strip); });
    }

   private:
    int threads_;
    ForFunction run_tasks_;
};

}  // namespace ao_arm
