# isa_objects_export_nothing_shared: an object compiled for an instruction set defines no weak symbol
# that a baseline object could be linked against, and no two of them define the same one. Otherwise
# the linker might hand code for one machine to all.
#   cmake -DNM=nm -DOBJECTS=a.o,b.o -P isa_objects.cmake
cmake_minimum_required(VERSION 3.25)
string(REPLACE "," ";" objects "${OBJECTS}")
set(seen)
foreach(object ${objects})
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "nm fails on ${object}")
  endif()
  string(REGEX MATCHALL " [WVu] [^\n]+" weak "${symbols}")
  foreach(line ${weak})
    string(REGEX REPLACE "^ [WVu] " "" symbol "${line}")
    if(symbol MATCHES "^DW\\.ref\\.")
      continue()  # a pointer for exception handling, not code
    endif()
    if(NOT symbol MATCHES "avx")
      message(FATAL_ERROR "${object} defines ${symbol}, which other code may be linked to")
    endif()
    if(symbol IN_LIST seen)
      message(FATAL_ERROR "${object} defines ${symbol}, as another instruction set's object does")
    endif()
    list(APPEND seen ${symbol})
  endforeach()
endforeach()
