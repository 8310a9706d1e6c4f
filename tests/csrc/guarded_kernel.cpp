#include "guarded_kernel.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <optional>

#include "guarded_memory.h"
#include "kept_registers.h"
#include "layer/packed_weight.h"

namespace ao_arm {
namespace {

constexpr Flush kBoth[] = {Flush::kBehind, Flush::kBefore};

const Kernel* original;
Kernel instrumented;
std::atomic<int> failures{0};

void fail(const char* function, const std::string& what) {
    if (failures.fetch_add(1) < 20) std::printf("FAILED %s of %s %s\n", function, original->id, what.c_str());
}

template <class Result, class... Parameters>
Result checked(const char* name, Result (*function)(Parameters...), typename Same<Parameters>::Type... arguments) {
    struct Changed {
        const char* name;
        std::string registers;
        ~Changed() {
            if (!registers.empty()) fail(name, "changes" + registers);
        }
    } changed = {name, ""};
    return called(&changed.registers, function, arguments...);
}

// A copy of a buffer, or one that is to be filled. Null stays null.
struct Buffer {
    const bool is_null;
    const GuardedMemory memory;

    Buffer(Flush flush, const void* from, int64_t bytes, int64_t alignment = 1)
        : is_null(from == nullptr), memory(bytes, flush, alignment) {
        if (!is_null) std::memcpy(memory.data(), from, bytes);
    }

    template <class T>
    T* as() const {
        return is_null ? nullptr : memory.data<T>();
    }
};

struct ToFill {
    const GuardedMemory memory;

    ToFill(Flush flush, int64_t bytes, int64_t alignment = 1) : memory(bytes, flush, alignment) {
        std::memset(memory.data(), flush == Flush::kBehind ? 0xA5 : 0x5A, bytes);
    }
};

// Gives the caller what a function wrote; the second time it has to be the same.
void deliver(const char* name, Flush flush, const void* from, int64_t bytes, void* to) {
    if (flush == Flush::kBehind)
        std::memcpy(to, from, bytes);
    else if (std::memcmp(to, from, bytes) != 0)
        fail(name, "depends on where its buffers are, or on what was in them");
}

// The part of a plain weight that belongs to some columns, as if it were all that there is.
struct PlainPart {
    int64_t qdata_bytes, scale_bytes, zero_point_bytes, scale_alignment;
    PlainWeight at;

    PlainPart(const Problem& problem, const PlainWeight& plain, Columns columns) {
        const bool grouped = problem.scheme == Scheme::kInt4;
        const int64_t groups = grouped ? problem.groups() : 0, scale = grouped ? problem.scale_bytes() : 0;
        qdata_bytes = columns.count * problem.k;
        scale_bytes = columns.count * groups * scale;
        zero_point_bytes = plain.zero_point == nullptr ? 0 : columns.count * groups;
        scale_alignment = grouped ? scale : 1;
        at = {plain.qdata + columns.first * problem.k,
              grouped ? static_cast<uint8_t*>(plain.scale) + columns.first * groups * scale : nullptr,
              plain.zero_point == nullptr ? nullptr : plain.zero_point + columns.first * groups};
    }
};

bool pack(const Problem& problem, const PlainWeight& plain, Columns columns, uint8_t* block) {
    const PlainPart part(problem, plain, columns);
    const int64_t bytes = original->block_bytes(problem, columns.count);
    for (const Flush flush : kBoth) {
        const Buffer qdata(flush, part.at.qdata, part.qdata_bytes),
            scale(flush, part.at.scale, part.scale_bytes, part.scale_alignment),
            zero_point(flush, part.at.zero_point, part.zero_point_bytes);
        // It comes as zeros, not all of which a library writes again.
        const Buffer to(flush, block, bytes);
        const PlainWeight copy = {qdata.as<int8_t>(), scale.as<void>(), zero_point.as<int8_t>()};
        if (!checked("pack", original->pack, problem, copy, {0, columns.count}, to.as<uint8_t>())) return false;
        deliver("pack", flush, to.as<uint8_t>(), bytes, block);
    }
    return true;
}

bool unpack(const Problem& problem, const uint8_t* block, Columns columns, const PlainWeight& plain) {
    const PlainPart part(problem, plain, columns);
    for (const Flush flush : kBoth) {
        const Buffer from(flush, block, original->block_bytes(problem, columns.count));
        const ToFill qdata(flush, part.qdata_bytes), scale(flush, part.scale_bytes, part.scale_alignment),
            zero_point(flush, part.zero_point_bytes);
        const PlainWeight to = {qdata.memory.data<int8_t>(),
                                part.at.scale == nullptr ? nullptr : scale.memory.data<void>(),
                                part.at.zero_point == nullptr ? nullptr : zero_point.memory.data<int8_t>()};
        if (!checked("unpack", original->unpack, problem, from.as<uint8_t>(), {0, columns.count}, to)) return false;
        deliver("unpack", flush, to.qdata, part.qdata_bytes, part.at.qdata);
        if (to.scale != nullptr) deliver("unpack", flush, to.scale, part.scale_bytes, part.at.scale);
        if (to.zero_point != nullptr)
            deliver("unpack", flush, to.zero_point, part.zero_point_bytes, part.at.zero_point);
    }
    return true;
}

int64_t lhs_bytes(const Problem& problem) {
    return original->lhs_bytes == nullptr ? original->row_step * original->padded_k(problem)
                                          : original->lhs_bytes(problem);
}

// Other threads may fill in other parts of the block meanwhile: so it gets those bytes only that are the same both
// times, which those that are not written are not.
void pack_lhs(const Problem& problem, const LhsPart& part, int8_t* block) {
    const int64_t row_bytes = original->padded_k(problem), bytes = lhs_bytes(problem);
    const ToFill behind(Flush::kBehind, bytes), before(Flush::kBefore, bytes);
    for (const Flush flush : kBoth) {
        std::optional<Buffer> copies[kMostRowStep];
        const int8_t* rows[kMostRowStep];
        for (int64_t i = 0; i < part.count; ++i)
            rows[i] = copies[i].emplace(flush, part.rows[i], row_bytes).as<int8_t>();
        const ToFill& to = flush == Flush::kBehind ? behind : before;
        checked("pack_lhs", original->pack_lhs, problem, {rows, part.first, part.count, part.of},
                to.memory.data<int8_t>());
    }
    for (int64_t i = 0; i < bytes; ++i)
        if (behind.memory.data<int8_t>()[i] == before.memory.data<int8_t>()[i])
            block[i] = behind.memory.data<int8_t>()[i];
}

bool multiply(const Multiplication& given) {
    const Kernel& kernel = *original;
    const Problem& problem = *given.problem;
    const int64_t step = kernel.column_step, blocks = divide_up(given.columns, step);
    const int64_t first = std::min(step, given.columns), last = given.columns - (blocks - 1) * step;
    const int64_t weight_bytes = (blocks - 1) * kernel.block_bytes(problem, step) + kernel.block_bytes(problem, last);
    const int64_t all_lhs_bytes = divide_up(kernel.rows_read(given.m), kernel.row_step) * lhs_bytes(problem);
    const int64_t sums_bytes =
        4 * ((round_up(given.m, kernel.row_step) - 1) * given.sums_stride + round_up(given.columns, step));
    const int64_t scratch_bytes = kernel.scratch_bytes == nullptr ? 0
                                                                  : std::max(kernel.scratch_bytes(problem, first),
                                                                             kernel.scratch_bytes(problem, last));
    const ScaledRows& scaled = given.scaled;
    const int64_t out_bytes = scaled.count == 0 ? 0 : 4 * ((scaled.count - 1) * scaled.out_stride + given.columns);
    for (const Flush flush : kBoth) {
        const Buffer lhs(flush, given.lhs, all_lhs_bytes), weight(flush, given.weight, weight_bytes),
            column_sums(flush, given.column_sums, given.columns * 4, 4),
            token_scale(flush, scaled.token_scale, scaled.count * 4, 4),
            zero_point(flush, scaled.zero_point, scaled.count * 4, 4),
            weight_scale(flush, scaled.weight_scale, scaled.count == 0 ? 0 : given.columns * 4, 4),
            bias(flush, scaled.bias, scaled.count == 0 ? 0 : given.columns * 4, 4);
        const ToFill sums(flush, sums_bytes, 4), scratch(flush, scratch_bytes, 64), out(flush, out_bytes, 4);
        Multiplication copy = given;
        copy.lhs = lhs.as<int8_t>();
        copy.weight = weight.as<uint8_t>();
        copy.column_sums = column_sums.as<int32_t>();
        copy.sums = sums.memory.data<void>();
        copy.scratch = scratch.memory.data();
        copy.scaled = {scaled.count,
                       out.memory.data<float>(),
                       scaled.out_stride,
                       token_scale.as<float>(),
                       zero_point.as<int32_t>(),
                       weight_scale.as<float>(),
                       bias.as<float>()};
        if (!checked("multiply", kernel.multiply, copy)) return false;
        for (int64_t i = 0; i < scaled.count; ++i)
            deliver("multiply", flush, out.memory.data<float>() + i * scaled.out_stride, given.columns * 4,
                    scaled.out + i * scaled.out_stride);
        for (int64_t i = scaled.count; i < given.m; ++i)
            deliver("multiply", flush, sums.memory.data<int32_t>() + i * given.sums_stride, given.columns * 4,
                    static_cast<int32_t*>(given.sums) + i * given.sums_stride);
    }
    return true;
}

}  // namespace

const Kernel& guarded(const Kernel& kernel) {
    original = &kernel;
    failures = 0;
    instrumented = kernel;
    instrumented.pack = pack;
    instrumented.unpack = unpack;
    if (kernel.pack_lhs != nullptr) instrumented.pack_lhs = pack_lhs;
    instrumented.multiply = multiply;
    return instrumented;
}

const Kernel* guarded_or_same(const Kernel* kernel) { return kernel == original ? &instrumented : kernel; }

int guarded_failures() { return failures; }

}  // namespace ao_arm
