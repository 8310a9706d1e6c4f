// What newer C and C++ libraries brought, made of what older ones have: a library that was built on a new system runs
// with glibc 2.28 and GCC 8's libstdc++, which torch's wheels need anyway. Headers and ACL refer to these functions by
// the names given here; other libraries do not see them (exports.map).
#include <condition_variable>
#include <mutex>
#include <new>
#include <sstream>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#include <pthread.h>

// glibc 2.32 says whether there is but one thread, where reference counts need not be atomic. Here they always are.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

// glibc 2.29 has one that does not set errno.
extern "C" double first_pow(double base, double exponent);
#if defined(__x86_64__)
__asm__(".symver first_pow, pow@GLIBC_2.2.5");
#else
__asm__(".symver first_pow, pow@GLIBC_2.17");
#endif
extern "C" double pow(double base, double exponent) noexcept { return first_pow(base, exponent); }

#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
namespace ao_arm {

// GCC 9
void make_stringstream(void* place) __asm__("_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void make_stringstream(void* place) { new (place) std::stringstream(std::ios_base::in | std::ios_base::out); }

void make_ostringstream(void* place) __asm__("_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void make_ostringstream(void* place) { new (place) std::ostringstream(std::ios_base::out); }

// GCC 11
[[noreturn]] void throw_bad_array_new_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// GCC 11 moved copying and destroying into headers, where both need these; what they were before is in newer libraries
// too.
void copy_exception(void* place, const void* exception);
void destroy_exception(void* exception);
__asm__(".symver _ZN6ao_arm14copy_exceptionEPvPKv, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver _ZN6ao_arm17destroy_exceptionEPv, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");

void count_exception(void* exception) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void count_exception(void* exception) {
    void* copy;
    copy_exception(&copy, exception);
}

void release_exception(void* exception) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release_exception(void* exception) { destroy_exception(exception); }

// GCC 12
void wait(std::condition_variable* condition,
          std::unique_lock<std::mutex>& lock) __asm__("_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE");
void wait(std::condition_variable* condition, std::unique_lock<std::mutex>& lock) {
    pthread_cond_wait(condition->native_handle(), lock.mutex()->native_handle());
}

}  // namespace ao_arm
#endif
#endif
