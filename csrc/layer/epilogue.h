// From a tile of sums to the output: one way for each kind of sums and outputs.
#pragma once

#include <cstdint>

#include "core/scratch.h"
#include "layer/activations.h"
#include "layer/linear.h"

namespace ao_arm {

class Epilogue {
   public:
    // `has_zero_points`: whether some token's zero point is not 0.
    Epilogue(const Linear& layer, bool has_zero_points);

    // What some columns have in common, and the memory that a thread has for it.
    struct TileColumns {
        TileColumns(const Linear& layer, int64_t most_columns, ScratchParts* parts);

        float* converted_bias;
        int32_t* offsets;
        float* multipliers;
        const float* bias = nullptr;
        int64_t first = 0;
        int64_t count = 0;
    };

    // Makes `columns` speak of the `count` columns from `first` on. Then tiles of these columns follow.
    void begin(int64_t first, int64_t count, TileColumns* columns) const;

    // Whether the kernel may scale rows of whole blocks itself.
    bool leaves_scaling_to_kernel() const;
    // What it needs for the output's `count` rows from `row` on; `tokens` begins with the first one's.
    ScaledRows scaled(const TileColumns& columns, int64_t row, int64_t count, const Tokens& tokens) const;

    // Writes the output's rows from `row` on; `tokens` begins with the first one's.
    void finish(const TileColumns& columns, int64_t row, int64_t rows, const void* sums, int64_t sums_stride,
                const Tokens& tokens) const;

   private:
    template <class Sum>
    SumsTile<Sum> tile(const TileColumns& columns, int64_t row, int64_t rows, const void* sums,
                       int64_t sums_stride) const;
    int32_t quantized(float bound) const;

    const Linear& layer_;
    bool has_zero_points_;
    float unit_ = 1;
    int32_t least_ = 0;  // of int8 and uint8 outputs
    int32_t greatest_ = 0;
};

}  // namespace ao_arm
