# Whether there will be CUDA kernels, and with which nvcc, architectures and libraries. Knows no source file.
#
# Reads FUSEDACT_CUDA, TORCH_ROOT, and TORCH_CUDA_ARCH_LIST from the environment or the cache. Sets FUSEDACT_WITH_CUDA and, if that is
# true, cuda_architectures (flags), cuda_architecture_list, and the targets torch::torch_cuda, torch::c10_cuda, cuda::headers, cuda::runtime.

# torch's CUDA version, which version.py has as a Python literal: cuda: Optional[str] = '13.0'
file(STRINGS ${TORCH_ROOT}/version.py torch_cuda_line REGEX "^cuda *[:=]")
string(REGEX MATCH "[0-9]+\\.[0-9]+" TORCH_CUDA "${torch_cuda_line}")
string(REGEX MATCH "^[0-9]+" torch_cuda_major "${TORCH_CUDA}")

# The compiler: named, in CUDA_HOME, on PATH, or from the Python package.
get_filename_component(site_packages ${TORCH_ROOT} DIRECTORY)
find_program(FUSEDACT_NVCC nvcc NAMES $ENV{CUDACXX} nvcc
  HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin ${site_packages}/nvidia/cu${torch_cuda_major}/bin
  PATHS /usr/local/cuda/bin)

set(why_not "")
if(NOT TORCH_CUDA)
  set(why_not "torch ${TORCH_VERSION} is a build without CUDA: install one with it")
elseif(NOT FUSEDACT_NVCC)
  set(why_not "nvcc was not found: put it on PATH, or set CUDA_HOME to its toolkit")
else()
  execute_process(COMMAND ${FUSEDACT_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" found "${nvcc_says}")
  if(NOT CMAKE_MATCH_1 EQUAL torch_cuda_major)
    set(why_not "${FUSEDACT_NVCC} is of CUDA ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}, but torch ${TORCH_VERSION} of CUDA ${TORCH_CUDA}: \
the major versions must be the same")
  endif()
endif()

string(TOLOWER "${FUSEDACT_CUDA}" wanted)
if(NOT wanted MATCHES "^(auto|0|off|no|false|1|on|yes|true)$")
  message(FATAL_ERROR "FUSEDACT_CUDA is '${FUSEDACT_CUDA}', expected 0, 1 or auto")
endif()
set(FUSEDACT_WITH_CUDA FALSE)
if(wanted MATCHES "^(0|off|no|false)$")
  message(STATUS "CUDA kernels: no, FUSEDACT_CUDA is ${FUSEDACT_CUDA}")
elseif(NOT why_not)
  set(FUSEDACT_WITH_CUDA TRUE)
elseif(wanted STREQUAL "auto")
  message(STATUS "CUDA kernels: no, ${why_not}")
else()
  message(FATAL_ERROR "FUSEDACT_CUDA is ${FUSEDACT_CUDA}, but ${why_not}; or build for the CPU alone with FUSEDACT_CUDA=0")
endif()

if(FUSEDACT_WITH_CUDA)
  set(CMAKE_CUDA_COMPILER ${FUSEDACT_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # our own -gencode below
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_FLAGS_RELEASE "")

  if(NOT DEFINED TORCH_CUDA_ARCH_LIST)
    set(TORCH_CUDA_ARCH_LIST $ENV{TORCH_CUDA_ARCH_LIST})
  endif()
  if(NOT TORCH_CUDA_ARCH_LIST)
    set(TORCH_CUDA_ARCH_LIST 7.5 8.0 8.6 9.0 10.0 12.0+PTX)
  endif()
  string(REGEX REPLACE "[ ,]+" ";" TORCH_CUDA_ARCH_LIST "${TORCH_CUDA_ARCH_LIST}")
  set(cuda_architectures "")
  foreach(entry ${TORCH_CUDA_ARCH_LIST})
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9][a-z]?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST has '${entry}', expected entries like 8.0 or 9.0+PTX")
    endif()
    set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
    list(APPEND cuda_architectures "SHELL:-gencode arch=compute_${number},code=sm_${number}")
    if(CMAKE_MATCH_3)
      list(APPEND cuda_architectures "SHELL:-gencode arch=compute_${number},code=compute_${number}")
    endif()
  endforeach()
  string(REPLACE ";" " " cuda_architecture_list "${TORCH_CUDA_ARCH_LIST}")
  message(STATUS "CUDA kernels: ${cuda_architecture_list}, by ${FUSEDACT_NVCC}")

  foreach(library torch_cuda c10_cuda)
    add_library(torch::${library} SHARED IMPORTED)
    set_target_properties(torch::${library} PROPERTIES IMPORTED_LOCATION ${TORCH_ROOT}/lib/lib${library}.so)
  endforeach()
  # One runtime in the process: torch's.
  find_library(FUSEDACT_CUDART NAMES libcudart.so.${torch_cuda_major} cudart
    HINTS ${site_packages}/nvidia/cu${torch_cuda_major}/lib ${TORCH_ROOT}/lib ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
  add_library(cuda::runtime SHARED IMPORTED)
  set_target_properties(cuda::runtime PROPERTIES IMPORTED_LOCATION ${FUSEDACT_CUDART})
  add_library(cuda::headers INTERFACE IMPORTED)
  target_include_directories(cuda::headers SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
endif()
