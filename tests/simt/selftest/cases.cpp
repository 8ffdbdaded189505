// The cases by name, for ctypes.
#include "cases.h"

// The report of one case, empty where nothing is wrong.
extern "C" __attribute__((visibility("default"))) const char* run_case(const char* name) {
  static std::string report;
  report = cases().at(name)();
  return report.c_str();
}
