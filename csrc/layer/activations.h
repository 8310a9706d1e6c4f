// From a layer's input to the lhs blocks that its kernel multiplies, and to each token's scale and zero point.
#pragma once

#include <cstdint>

#include "layer/linear.h"
#include "rows/activation_quantization.h"

namespace ao_arm {

// One of each for every row of a stretch.
struct Tokens {
    float* scale;
    int32_t* zero_point;
};

class Activations {
   public:
    // `ranges`: memory for m ranges if the whole input has one scale, which is found here, on `threads` threads.
    Activations(const Linear& layer, RowRange* ranges, const Parallel& parallel, int64_t threads);

    // Bytes of the memory that a thread needs to make a lhs block.
    static int64_t own_bytes(const Linear& layer);

    // Estimated cycles of quantizing `rows` rows on one thread.
    static double cost(const Linear& layer, int64_t rows);

    // Quantizes and arranges the rows [first, last) of a stretch of `rows` rows that begins with row `begin` of the
    // input. Both bounds are multiples of the kernel's lhs_step or `rows`.
    void arrange(int64_t begin, int64_t rows, int64_t first, int64_t last, uint8_t* own, const Tokens& tokens,
                 int8_t* lhs) const;

    // Whether no token has a zero point.
    bool zero_points_are_zero() const;

   private:
    const void* row_at(int64_t row) const;
    TokenQuantization quantization_of(int64_t row) const;
    const int8_t* quantized(int64_t row, const TokenQuantization& token, bool in_place, int8_t* to) const;

    const Linear& layer_;
    const RowRange* ranges_;
    TokenQuantization shared_;  // of all tokens, if they have one
};

}  // namespace ao_arm
