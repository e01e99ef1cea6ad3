// What the vector code is shaped by: the width of a register, and how many of them there are.
//
// The compiler's flags choose the machine (`build.py`, REC_JAX_NATIVE_ISA). -DREC_JAX_WIDE
// takes the shape of AVX-512 on any CPU, so that its code can be tested there; GCC then makes
// each operation of several narrow ones, which is slow.
#pragma once

namespace rec_jax {

// lanes: floats of a register. A product keeps `rows` x `columns` registers of sums; they, `columns`
// registers of the right side and one of the left fit into the machine's.
struct Machine {
  int lanes, rows, columns;
};

#if defined(__AVX512F__) || defined(REC_JAX_WIDE)
constexpr Machine kMachine = {16, 8, 2};  // of 32 registers
#elif defined(__AVX__)
constexpr Machine kMachine = {8, 6, 2};  // of 16
#elif defined(__aarch64__)
constexpr Machine kMachine = {4, 6, 4};  // of 32
#else
constexpr Machine kMachine = {4, 6, 2};  // of 16
#endif

constexpr int kLanes = kMachine.lanes;

}  // namespace rec_jax
