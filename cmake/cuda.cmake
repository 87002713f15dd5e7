# The CUDA kernels: compiled by nvcc to LTO-IR, not to machine code, and carried inside the library.
# What finishes them is found at run time (src/cuda/jit); this needs nvcc 13 and CuTe's headers, from
# NVIDIA's toolkit or its Python packages (requirements/cuda.txt).
#
# sm90_*.cu and sm100_*.cu have matrix instructions of one architecture. All others are compiled once, for the
# oldest one: LTO-IR links for every newer one, and for sm_90a this gives the very code that its own would.
set(flexact_site_packages "")
file(GLOB flexact_site_packages ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages $ENV{VIRTUAL_ENV}/lib/python3*/site-packages)
if(Python_EXECUTABLE)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
    OUTPUT_VARIABLE flexact_purelib OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(PREPEND flexact_site_packages ${flexact_purelib})
endif()
list(TRANSFORM flexact_site_packages APPEND /nvidia/cu13/bin OUTPUT_VARIABLE flexact_nvcc_hints)
list(TRANSFORM flexact_site_packages APPEND /cutlass_library/source/include OUTPUT_VARIABLE flexact_cutlass_hints)
find_program(FLEXACT_NVCC nvcc HINTS ${flexact_nvcc_hints} $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin)
find_path(FLEXACT_CUTLASS_INCLUDE_DIR cute/tensor.hpp HINTS ${flexact_cutlass_hints} $ENV{CUTLASS_PATH}/include)

set(flexact_toolkit "")
if(FLEXACT_NVCC)
  execute_process(COMMAND ${FLEXACT_NVCC} --version OUTPUT_VARIABLE flexact_nvcc_version ERROR_QUIET)
  if(flexact_nvcc_version MATCHES "release ([0-9]+)\\.([0-9]+)")
    set(flexact_toolkit ${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
  endif()
endif()
set(flexact_cuda_default OFF)
if(flexact_toolkit MATCHES "^13;" AND FLEXACT_CUTLASS_INCLUDE_DIR)
  set(flexact_cuda_default ON)
endif()
option(FLEXACT_CUDA "Build the CUDA kernels: needs nvcc 13 and the headers of nvidia-cutlass" ${flexact_cuda_default})
if(FLEXACT_CUDA AND NOT flexact_cuda_default)
  message(FATAL_ERROR
    "FLEXACT_CUDA needs nvcc 13 (found: ${FLEXACT_NVCC}) and CuTe (found: ${FLEXACT_CUTLASS_INCLUDE_DIR}).\n"
    "pip install -r requirements/cuda.txt brings both; CUDA_HOME and CUTLASS_PATH name others.")
endif()

set(flexact_images "")
if(FLEXACT_CUDA)
  set(kernels ${PROJECT_SOURCE_DIR}/src/cuda/kernels)
  file(GLOB flexact_kernels CONFIGURE_DEPENDS ${kernels}/*.cu)
  file(GLOB flexact_kernel_headers CONFIGURE_DEPENDS ${kernels}/*.cuh ${kernels}/*.hpp)
  # The compiler cache serves these too, given one working directory: a package's build and one with tests
  # compile them once.
  set(flexact_kernel_compiler ${FLEXACT_NVCC})
  if(FLEXACT_CCACHE)
    list(PREPEND flexact_kernel_compiler ${FLEXACT_CCACHE})
  endif()
  foreach(source ${flexact_kernels})
    get_filename_component(name ${source} NAME_WE)
    set(image ${PROJECT_BINARY_DIR}/cuda/${name}.fatbin)
    set(architecture 90)
    if(name MATCHES "^sm([0-9]+)_")
      set(architecture ${CMAKE_MATCH_1}a)
    endif()
    add_custom_command(OUTPUT ${image}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/cuda
      COMMAND ${flexact_kernel_compiler} -ccbin ${CMAKE_CXX_COMPILER} -std=c++17 -O3 -DNDEBUG -rdc=true --expt-relaxed-constexpr
        -gencode arch=compute_${architecture},code=lto_${architecture} -I${FLEXACT_CUTLASS_INCLUDE_DIR} -c -fatbin ${source} -o ${image}
      DEPENDS ${source} ${flexact_kernel_headers} WORKING_DIRECTORY ${kernels}
      COMMENT "CUDA kernel ${name} to LTO-IR" VERBATIM)
    list(APPEND flexact_images ${image})
  endforeach()
  message(STATUS "CUDA kernels: ${FLEXACT_NVCC}, ${FLEXACT_CUTLASS_INCLUDE_DIR}")
else()
  message(STATUS "CUDA kernels: not built")
endif()

set(FLEXACT_KERNEL_IMAGES ${PROJECT_BINARY_DIR}/cuda/kernel_images.cpp)
add_custom_command(OUTPUT ${FLEXACT_KERNEL_IMAGES}
  COMMAND ${CMAKE_COMMAND} "-DIMAGES=${flexact_images}" "-DTOOLKIT=${flexact_toolkit}" -DOUTPUT=${FLEXACT_KERNEL_IMAGES}
    -P ${PROJECT_SOURCE_DIR}/cmake/embed_kernels.cmake
  DEPENDS ${flexact_images} ${PROJECT_SOURCE_DIR}/cmake/embed_kernels.cmake VERBATIM)
target_sources(flexact PRIVATE ${FLEXACT_KERNEL_IMAGES})
target_link_libraries(flexact PRIVATE ${CMAKE_DL_LIBS})
