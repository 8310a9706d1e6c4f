#include "kernels/self_check.h"

#include <cmath>

#include "rows/element_types.h"

namespace ao_arm {
namespace {

constexpr int64_t kRows = 5;

class Trial {
   public:
    Trial(const Kernel& kernel, const Problem& problem, uint32_t seed)
        : kernel_(kernel), problem_(problem), groups_(problem.scheme == Scheme::kInt4 ? problem.groups() : 1) {
        uint32_t state = seed;
        const auto next = [&] { return static_cast<int>((state = state * 1664525u + 1013904223u) >> 24); };
        const bool int4 = problem.scheme == Scheme::kInt4;
        qdata_.resize(problem.n * problem.k);
        for (int8_t& value : qdata_) value = static_cast<int8_t>(int4 ? next() % 16 - 8 : next() % 255 - 127);
        scales_.resize(problem.n * groups_);
        for (uint16_t& scale : scales_) scale = int4 ? BFloat16::store(static_cast<float>(1 + next())) : 0x3F80;
        rows_.resize(kRows * kernel.padded_k(problem));
        for (int64_t i = 0; i < kRows; ++i)
            for (int64_t l = 0; l < problem.k; ++l)
                rows_[i * kernel.padded_k(problem) + l] = static_cast<int8_t>(next() - 128);
    }

    bool pack() {
        const int64_t step = kernel_.column_step, whole = kernel_.block_bytes(problem_, step);
        weight_.resize(divide_up(problem_.n, step) * whole);
        std::vector<int8_t> qdata(qdata_.size());
        std::vector<uint16_t> scales(scales_);
        for (int64_t first = 0; first < problem_.n; first += step) {
            const int64_t columns = problem_.n - first < step ? problem_.n - first : step;
            uint8_t* block = weight_.data() + first / step * whole;
            if (!kernel_.pack(problem_, {qdata_.data(), scales_.data(), nullptr}, first, columns, block) ||
                !kernel_.unpack(problem_, block, first, columns, {qdata.data(), scales.data(), nullptr}))
                return false;
        }
        return qdata == qdata_ && scales == scales_;
    }

    bool multiply() const {
        const int64_t step = kernel_.column_step, stride = round_up(problem_.n, step);
        const int64_t padded_k = kernel_.padded_k(problem_), row_step = kernel_.row_step;
        const int64_t bytes = kernel_.lhs_bytes == nullptr ? row_step * padded_k : kernel_.lhs_bytes(problem_);
        std::vector<int8_t> lhs(divide_up(kMostRows + kRows, row_step) * bytes);
        for (int64_t row = 0; row < kRows; row += row_step) {
            const int8_t* rows[kMostRowStep];
            const int64_t count = kRows - row < row_step ? kRows - row : row_step;
            for (int64_t i = 0; i < count; ++i) rows[i] = rows_.data() + (row + i) * padded_k;
            int8_t* block = lhs.data() + row / row_step * bytes;
            if (kernel_.pack_lhs == nullptr)
                for (int64_t i = 0; i < count; ++i) __builtin_memcpy(block + i * padded_k, rows[i], padded_k);
            else
                kernel_.pack_lhs(problem_, rows, 0, count, count, block);
        }
        std::vector<int32_t> sums(kMostRows * stride);
        std::vector<uint8_t> scratch(kernel_.scratch_bytes == nullptr ? 0
                                                                      : kernel_.scratch_bytes(problem_, problem_.n));
        if (!kernel_.multiply({&problem_, lhs.data(), false, kRows, weight_.data(), nullptr, problem_.n, sums.data(),
                               stride, scratch.data()}))
            return false;
        bool right = true;
        for (int64_t i = 0; i < kRows; ++i)
            for (int64_t j = 0; j < problem_.n; ++j) right &= is_right(i, j, sums[i * stride + j]);
        return right;
    }

   private:
    // `bits`: an int32 sum, or a float one's.
    bool is_right(int64_t i, int64_t j, int32_t bits) const {
        double sum = 0, magnitude = 0;
        for (int64_t l = 0; l < problem_.k; ++l) {
            const double scale = BFloat16::load(scales_[j * groups_ + l * groups_ / problem_.k]);
            const double product = scale * rows_[i * kernel_.padded_k(problem_) + l] * qdata_[j * problem_.k + l];
            sum += product;
            magnitude += std::fabs(product);
        }
        if (problem_.scheme == Scheme::kInt8) return sum == bits;
        return std::fabs(sum - static_cast<double>(float_of(bits))) <= 1e-6 * magnitude;
    }

    const Kernel& kernel_;
    const Problem problem_;
    int64_t groups_;
    std::vector<int8_t> qdata_, rows_;
    std::vector<uint16_t> scales_;
    std::vector<uint8_t> weight_;
};

}  // namespace

bool self_check(const Kernel& kernel, const Problem& problem) try {
    Trial one(kernel, problem, 1), other(kernel, problem, 2);
    return one.pack() && other.pack() && one.multiply() && other.multiply() && one.multiply() && other.multiply();
} catch (...) {
    return false;
}

}  // namespace ao_arm
