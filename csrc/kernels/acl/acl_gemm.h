// Arm Compute Library's s8 x s8 -> S32 GEMM on a weight that is packed once.
//
// ACL's operator is configured for one shape and one m and holds on to a pointer to the weight it packed. Here one
// configured operator serves every weight of its shape: the weight is declared variable, so that each run packs it
// again, but through a scheduler that, unless we are packing, runs only the step that binds the packed memory. So a
// weight is packed once, into memory of ours, and any number of operators read it. A trial (layer/trial.h) proves
// for the linked library that this holds.
//
// ACL picks a micro-kernel by m, and micro-kernels differ in how they pack. A weight is packed for the one that ACL
// picks for kMostRows rows; fewer rows are run as the next larger m for which ACL picks the same.
//
// Nothing here throws.
#pragma once

#include <cstdint>
#include <string>

namespace ao_arm {

// What is known of a weight's shape on this CPU.
struct AclShape {
    std::string micro_kernel;  // what ACL picks for kMostRows rows
    bool binds_alone;          // whether binding a packed weight leaves it as it is; a few micro-kernels pack again
    int64_t packed_bytes;
    int64_t scratch_bytes;  // of a call
};

// "24.11"
std::string acl_version();

// Why ACL does not take such a weight; empty if it does.
std::string acl_refusal(int64_t columns, int64_t k);

// Null if ACL failed.
const AclShape* acl_shape(int64_t columns, int64_t k);

// `weight` is (k, columns), `packed` has room for packed_bytes. False if ACL failed.
bool acl_pack(const int8_t* weight, int64_t columns, int64_t k, uint8_t* packed);

// sums (m, columns) = lhs (m, k) @ weight, for m <= kMostRows; both have room for kMostRows rows. False if ACL failed.
bool acl_multiply(const int8_t* lhs, int64_t m, const uint8_t* packed, int64_t columns, int64_t k, int32_t* sums,
                  uint8_t* scratch);

}  // namespace ao_arm
