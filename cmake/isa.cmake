# Instruction sets: a file src/cpu/NAME_ISA.cpp is compiled for that ISA and called only after
# detection (src/cpu/isa.hpp). Everything else stays at the platform's baseline.
#
# Such a file must not leak code into the rest of the library: inline functions of the standard
# library compiled here could be picked by the linker for everybody. So these files use raw pointers,
# intrinsics, and templates over types of their own ISA's namespace only; the test
# isa_objects_export_nothing_shared watches over it.
#
# The kernels' plain loops over rows rely on -O3 for their vectorisation; instrumented builds, which
# would take minutes over it, ask for nothing.
set(FLEXACT_KERNEL_FLAGS -O3)
if(FLEXACT_SANITIZE OR FLEXACT_COVERAGE)
  set(FLEXACT_KERNEL_FLAGS)
endif()
if(FLEXACT_SANITIZE MATCHES "undefined")
  # Intrinsics over raw pointers: AddressSanitizer watches them, and checks of each conversion would
  # double the time of every sweep over all inputs. gemm_scalar.cpp and tape_scalar.cpp, the same
  # templates over plain floats, keep them.
  set(FLEXACT_ISA_UNCHECKED -fno-sanitize=undefined)
endif()
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/cpu/gemm_scalar.cpp PROPERTIES COMPILE_OPTIONS "${FLEXACT_KERNEL_FLAGS}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(FLEXACT_ISA_FLAGS_avx2 ${FLEXACT_KERNEL_FLAGS} ${FLEXACT_ISA_UNCHECKED} -mavx2 -mfma -mf16c)
  set(FLEXACT_ISA_FLAGS_avx512 ${FLEXACT_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 header leaves pass-through operands of unmasked intrinsics uninitialised and
    # warns about it once inlined (GCC bug 105593).
    list(APPEND FLEXACT_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set(FLEXACT_ISA_FLAGS_avx512bf16 ${FLEXACT_ISA_FLAGS_avx512} -mavx512bf16)
  foreach(isa avx2 avx512 avx512bf16)
    file(GLOB isa_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cpu/*_${isa}.cpp)
    set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${FLEXACT_ISA_FLAGS_${isa}}")
  endforeach()
endif()
