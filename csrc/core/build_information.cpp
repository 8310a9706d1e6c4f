#include "core/build_information.h"

namespace ao_arm {

std::string build_information() {
    std::string text = AO_ARM_COMPILER;
#if AO_ARM_HAVE_ACL
    text += "; Arm Compute Library " AO_ARM_ACL_VERSION;
#endif
#if AO_ARM_HAVE_KLEIDIAI
    text += "; KleidiAI";
#endif
    return text;
}

}  // namespace ao_arm
