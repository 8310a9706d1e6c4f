// Packed bytes that somebody made up, and sizes that no layer has: refused, quickly, and nothing else is read.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "checks.h"
#include "layer/kernel_table.h"

namespace ao_arm {
namespace {

constexpr int64_t kHuge[] = {INT64_MIN, -1, 0, int64_t{1} << 31, int64_t{1} << 60, int64_t{1} << 62, INT64_MAX};

// The 256 bytes, all but a run of 8, whose checksum comes out as wanted: the checksum is no signature. Each word of the
// sum can be undone, so that one free word is enough.
void forge(PackedHeader* header, size_t free_word, uint64_t wanted) {
    constexpr int kWords = 31;
    constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
    uint64_t words[kWords];
    std::memcpy(words, header, sizeof words);
    uint64_t inverse = kMultiplier;  // Newton's iteration for 1 / kMultiplier modulo 2^64
    for (int i = 0; i < 6; ++i) inverse *= 2 - kMultiplier * inverse;
    const auto forward = [&](uint64_t sum, uint64_t word) {
        sum = (sum ^ word) * kMultiplier;
        return sum ^ sum >> 32;
    };
    uint64_t before = 0xCBF29CE484222325u;
    for (size_t i = 0; i < free_word; ++i) before = forward(before, words[i]);
    uint64_t after = wanted;
    for (size_t i = kWords - 1; i > free_word; --i) after = ((after ^ after >> 32) * inverse) ^ words[i];
    words[free_word] = ((after ^ after >> 32) * inverse) ^ before;
    std::memcpy(header, words, sizeof words);
    header->checksum = wanted;
}

void test_sizes() {
    for (const int64_t n : kHuge)
        for (const int64_t k : kHuge)
            for (const int64_t group : kHuge)
                for (const Scheme scheme : {Scheme::kInt8, Scheme::kInt4}) {
                    const Problem problem = {scheme, n, k, group, DType::kBFloat16, false};
                    std::string error;
                    bool refused = select_kernel(problem, "", &error) == nullptr && !error.empty();
                    for (const Kernel* kernel : kernels(scheme))
                        refused &= !reject_reasons(*kernel, problem).empty() && typical_cost(*kernel, problem) < 0;
                    check(refused, "sizes " + described(problem));
                }
    for (const int64_t group : kHuge) {
        const Problem problem = {Scheme::kInt4, 768, 768, group, DType::kFloat32, false};
        for (const Kernel* kernel : kernels(Scheme::kInt4))
            check(!reject_reasons(*kernel, problem).empty() && typical_cost(*kernel, problem) < 0,
                  "group " + std::to_string(group));
    }
    for (const int type : {-1, 2, 3, 4, 5, 77}) {
        const Problem problem = {Scheme::kInt4, 768, 768, 32, static_cast<DType>(type), false};
        check(!reasons_against(problem).empty(), "scales of type " + std::to_string(type));
    }
    Problem full_range = {Scheme::kInt8, 768, 768};
    full_range.full_range = true;
    std::string error;
    check(select_kernel(full_range, "", &error) != nullptr, "a weight that holds -128: " + error);
    // Too large for anything: no library is asked, which would take seconds and gigabytes.
    for (const Kernel* kernel : kernels(Scheme::kInt8)) {
        const std::vector<std::string> reasons = reject_reasons(*kernel, {Scheme::kInt8, 384, 1000000});
        check(!reasons.empty() && reasons.back().find("k may be") != std::string::npos, "k = 1000000");
    }
}

// A child may wait for ever for AddressSanitizer's own allocator, if another thread was in it: GCC 12's knows no forks.
#if AO_ARM_HAVE_ACL && !defined(__SANITIZE_ADDRESS__)
#define AO_ARM_FORKS 1
#else
#define AO_ARM_FORKS 0
#endif

#if AO_ARM_FORKS
// A child of a fork can go on, whatever other threads of its parent were doing in ACL.
void test_fork(const Kernel& kernel) {
    const Problem problem{Scheme::kInt8, 40, 24};
    if (!reject_reasons(kernel, problem).empty()) return;
    std::vector<int8_t> weight(40 * 24, 3);
    const auto pack = [&](int64_t k) {
        const Problem other{Scheme::kInt8, 40, k};
        std::vector<int8_t> values(40 * k, 3);
        std::vector<uint8_t> packed(packed_bytes(kernel, other));
        return pack_weight(kernel, other, {values.data(), nullptr, nullptr}, packed.data()).empty();
    };
    std::atomic<bool> stop{false};
    std::vector<std::thread> others;
    for (int t = 0; t < 2; ++t)
        others.emplace_back([&, t] {
            for (int64_t k = 24 + t; !stop.load(); k = 24 + (k + 2) % 100) pack(k);  // shapes that are not known yet
        });
    bool ok = true;
    for (int i = 0; ok && i < 10; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(1800);  // a child that waits for a lock for ever fails, and on the busiest machine no other
            _exit(pack(200 + i) ? 0 : 1);
        }
        int status = -1;
        ok = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    stop.store(true);
    for (std::thread& other : others) other.join();
    check(ok, std::string(kernel.id) + " after a fork");
}
#endif

}  // namespace

void test_damaged(const Kernel& kernel, const Problem& problem, const Bytes& packed) {
    const std::string name = std::string(kernel.id) + " " + described(problem);
    const Scheme scheme = problem.scheme, other = scheme == Scheme::kInt8 ? Scheme::kInt4 : Scheme::kInt8;
    PackedWeight opened{};
    const auto refused = [&](const Bytes& bytes) { return !open(bytes, scheme, &opened).empty(); };
    check(!refused(packed), name + " opens");
    Bytes damaged = packed;
    for (size_t bit = 0; bit < 8 * sizeof(PackedHeader); ++bit) {
        damaged[bit / 8] ^= 1 << bit % 8;
        check(refused(damaged), name + " with header bit " + std::to_string(bit) + " damaged");
        damaged[bit / 8] ^= 1 << bit % 8;
    }
    for (const size_t size : {size_t(0), size_t(255), size_t(256), packed.size() - 1, packed.size() + 1}) {
        Bytes cut = packed;
        cut.resize(size);
        check(refused(cut), name + " of " + std::to_string(size) + " bytes");
    }
    check(!open(packed, other, &opened).empty(), name + " opened as the other kind");

    // Somebody who can compute a checksum.
    for (const int64_t huge : kHuge) {
        check(refused(with_header(packed, [&](PackedHeader& header) { header.n = huge; })), name + " huge n");
        check(refused(with_header(packed, [&](PackedHeader& header) { header.k = huge; })), name + " huge k");
        check(refused(with_header(packed, [&](PackedHeader& header) { header.n = header.k = huge; })), name + " huge");
        check(refused(with_header(packed, [&](PackedHeader& header) { header.panel_columns = huge; })),
              name + " panel");
        if (scheme == Scheme::kInt4)
            check(refused(with_header(packed, [&](PackedHeader& header) { header.group = huge; })), name + " group");
    }
    check(refused(with_header(packed, [](PackedHeader& header) { header.n += 64; })), name + " more columns");
    check(refused(with_header(packed, [](PackedHeader& header) { header.scheme = 5; })), name + " scheme 5");
    if (scheme == Scheme::kInt4)
        for (const int type : {-1, 2, 3, 4, 5, 77})
            check(refused(with_header(packed, [&](PackedHeader& header) { header.scale_type = type; })),
                  name + " scales of type " + std::to_string(type));
    // Names that do not end.
    for (const auto change :
         {+[](PackedHeader& header) { std::memset(header.kernel, 'x', sizeof header.kernel); },
          +[](PackedHeader& header) { std::memset(header.packing_format, 'x', sizeof header.packing_format); }})
        check(refused(with_header(packed, change)), name + " with a name without an end");
    // Another header with the checksum of one that was opened before: a thousand columns more than there are bytes for.
    Bytes forged = packed;
    PackedHeader header;
    std::memcpy(&header, packed.data(), sizeof header);
    const uint64_t honest = header.checksum;
    header.n += 1000;
    forge(&header, 30, honest);  // the last word before the checksum is reserved
    std::memcpy(forged.data(), &header, sizeof header);
    check(!refused(packed) && refused(forged), name + " with a header forged to an honest one's checksum");
}

void test_without_memory(const Kernel& kernel, const Problem& problem) {
    if (!reject_reasons(kernel, problem).empty()) return;
    const std::string name = std::string(kernel.id) + " without memory";
    std::vector<int8_t> qdata(problem.n * problem.k, 1), other(qdata.size());
    std::vector<float> scales(problem.n, 1.0f), more(problem.n);
    const PlainWeight plain = {qdata.data(), scales.data(), nullptr}, unpacked = {other.data(), more.data(), nullptr};
    std::vector<uint8_t> packed(packed_bytes(kernel, problem));
    check(pack_weight(kernel, problem, plain, packed.data()).empty(), name + ": pack");
    const PackedWeight weight = planned(kernel, problem, packed.data());
    const Columns columns = weight.columns(0);
    std::vector<uint8_t> block(packed.begin() + weight.block_offset(0), packed.end());
    const std::vector<uint8_t> before = block;
    std::vector<int8_t> lhs((kMostRows + kMostRowStep) * 2 * (kernel.padded_k(problem) + 64));
    std::vector<int32_t> sums(kMostRows * kernel.column_step), again(sums.size());
    std::vector<uint8_t> scratch(kernel.scratch_bytes == nullptr ? 0 : kernel.scratch_bytes(problem, columns.count));
    const auto multiply = [&](std::vector<int32_t>& to) {
        return kernel.multiply({&problem, lhs.data(), false, 3, block.data(),
                                static_cast<const int32_t*>(weight.sums(0)), columns.count, to.data(),
                                kernel.column_step, scratch.data()});
    };
    bool packs, unpacks, multiplies;
    {
        const NoMemory no_memory;  // what throws now ends the program
        packs = kernel.pack(problem, plain, columns, block.data());
        unpacks = kernel.unpack(problem, before.data(), columns, unpacked);
        multiplies = multiply(sums);
    }
    // Each did its work, or said that it did not and can do it later.
    check(packs ? block == before : kernel.pack(problem, plain, columns, block.data()) && block == before, name);
    check(unpacks || kernel.unpack(problem, before.data(), columns, unpacked), name + ": unpack");
    check(std::equal(other.begin(), other.begin() + columns.count * problem.k, qdata.begin()), name + ": values");
    check(multiply(again) && (!multiplies || sums == again), name + ": multiply");
}

void test_hostile() {
    test_sizes();
#if AO_ARM_FORKS
    test_fork(*find_kernel(Scheme::kInt8, "acl/s8s32+epilogue"));
#endif
}

}  // namespace ao_arm
