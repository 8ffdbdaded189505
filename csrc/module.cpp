// The Python module modfast._C: facts of this build and run-time switches. It handles no tensors;
// importing it is what registers the CPU operators.
//
// By Python's limited API only, so that one library serves every Python from 3.10 on.
#ifdef Py_LIMITED_API  // set by torch, whose own floor may be another; free-threaded Pythons have none
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include "cpu/simd.h"

using modfast::SimdLevel;

namespace {

// A new list of the levels' names; null, with Python's error set, where there is no memory for it.
PyObject* levels(bool (*accept)(SimdLevel)) {
  PyObject* names = PyList_New(0);
  for (int i = 0; names != nullptr && i < modfast::kSimdLevels; ++i) {
    if (!accept(static_cast<SimdLevel>(i))) continue;
    PyObject* name = PyUnicode_FromString(modfast::kSimdNames[i]);
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

// N takes the reference, and passes the error of a null on.
PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue(
      "{s:s, s:s, s:N, s:N, s:s, s:s, s:s, s:s, s:s, s:s, s:s}",  //
      "version", MODFAST_VERSION,
#if defined(__clang__)
      "compiler", "Clang " __clang_version__,
#else
      "compiler", "GCC " __VERSION__,
#endif
      "simd_built", levels(modfast::simd_built),          //
      "simd_supported", levels(modfast::simd_supported),  //
      "simd", modfast::kSimdNames[static_cast<int>(modfast::simd_level())],
      "threads", "torch's pool (torch::stable::parallel_for)",  //
      "cuda_because", MODFAST_CUDA_BECAUSE,                      //
      "cuda_architectures", MODFAST_CUDA_ARCHITECTURES,          //
      "cuda_toolkit", MODFAST_CUDA_TOOLKIT,                      //
      "torch_target", MODFAST_TORCH_TARGET,                      //
      "torch_built", MODFAST_TORCH_BUILT);
}

PyObject* set_simd_level(PyObject*, PyObject* name) {
  if (!PyUnicode_Check(name)) {
    return PyErr_Format(PyExc_TypeError, "level must be a string, got %R", name);
  }
  for (int i = 0; i < modfast::kSimdLevels; ++i) {
    const SimdLevel level = static_cast<SimdLevel>(i);
    if (PyUnicode_CompareWithASCIIString(name, modfast::kSimdNames[i]) == 0 &&
        modfast::simd_supported(level)) {
      modfast::set_simd_level(level);
      return Py_NewRef(Py_None);
    }
  }
  PyObject* supported = levels(modfast::simd_supported);
  if (supported == nullptr) return nullptr;
  PyErr_Format(PyExc_ValueError, "level must be one of %S, got %R", supported, name);
  Py_DECREF(supported);
  return nullptr;
}

PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info($module, /)\n--\n\nHow this library was built, and which SIMD level it uses."},
    {"set_simd_level", set_simd_level, METH_O,
     "set_simd_level($module, level, /)\n--\n\n"
     "Chooses the SIMD level of the CPU kernels: 'baseline', 'avx2' or 'avx512'."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef_Slot no_slots[] = {{0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Build facts and run-time switches of modfast's compiled library.",
    0,
    functions,
    no_slots,
    nullptr,
    nullptr,
    nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&definition); }
