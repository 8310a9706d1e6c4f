// Uses what older_libraries.cpp defines; `check` returns the number of what failed first, or 0.
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

// Counts the exceptions that were not destroyed yet.
struct Counted : std::runtime_error {
    explicit Counted(int* alive) : std::runtime_error("counted"), alive(alive) { ++*alive; }
    Counted(const Counted& other) : std::runtime_error(other), alive(other.alive) { ++*alive; }
    ~Counted() override { --*alive; }
    int* alive;
};

bool streams_read_and_write() {
    std::ostringstream out;
    out << 1.5 << ' ' << -3;
    std::stringstream both;
    both << out.str() << " end";
    double first = 0;
    int second = 0;
    std::string third;
    both >> first >> second >> third;
    return out.str() == "1.5 -3" && first == 1.5 && second == -3 && third == "end";
}

bool copies_of_an_exception_are_counted() {
    int alive = 0;
    {
        std::exception_ptr caught;
        try {
            throw Counted(&alive);
        } catch (...) {
            caught = std::current_exception();
        }
        const std::vector<std::exception_ptr> copies(5, caught);
        caught = nullptr;
        if (alive != 1) return false;
        try {
            std::rethrow_exception(copies[3]);
        } catch (const Counted& error) {
            if (std::string(error.what()) != "counted") return false;
        }
    }
    return alive == 0;
}

bool too_large_an_array_is_refused(size_t elements) {
    try {
        return std::allocator<double>().allocate(elements) == nullptr;
    } catch (const std::bad_array_new_length&) {
        return true;
    }
}

bool a_thread_waits_for_another() {
    std::mutex mutex;
    std::condition_variable changed;
    int turn = 0;
    std::thread other([&] {
        std::unique_lock<std::mutex> lock(mutex);
        while (turn != 1) changed.wait(lock);
        turn = 2;
        changed.notify_all();
    });
    {
        std::unique_lock<std::mutex> lock(mutex);
        turn = 1;
        changed.notify_all();
        while (turn != 2) changed.wait(lock);
    }
    other.join();
    return turn == 2;
}

bool shared_pointers_end() {
    const std::weak_ptr<int> weak = std::make_shared<int>(3);
    return weak.expired();
}

}  // namespace

extern "C" int check(double base, double exponent, double expected, size_t too_many) {
    if (std::pow(base, exponent) != expected) return 1;
    if (!streams_read_and_write()) return 2;
    if (!copies_of_an_exception_are_counted()) return 3;
    if (!too_large_an_array_is_refused(too_many)) return 4;
    if (!a_thread_waits_for_another()) return 5;
    return shared_pointers_end() ? 0 : 6;
}
