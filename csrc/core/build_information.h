#pragma once

#include <string>

namespace ao_arm {

// What this library was built with, e.g. "GCC 12.2; Arm Compute Library 24.11; KleidiAI".
std::string build_information();

}  // namespace ao_arm
