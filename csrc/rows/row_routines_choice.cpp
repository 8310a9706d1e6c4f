#include "core/cpu_features.h"
#include "rows/row_routines.h"

namespace ao_arm {

const RowRoutines& row_routines() {
#if defined(__x86_64__)
    static const RowRoutines& chosen = cpu_features().has(kAvx512Vnni) ? isa_avx512::kRowRoutines
                                       : cpu_features().has(kAvx2)     ? isa_avx2::kRowRoutines
                                                                       : isa_baseline::kRowRoutines;
    return chosen;
#else
    return isa_baseline::kRowRoutines;
#endif
}

}  // namespace ao_arm
